"""Whether a device saw anything of a call."""

import pytest
import torch

from rdfa.bench import witness


def test_a_cpu_needs_no_witness():
    assert witness.on_device("cpu")(lambda: None)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_kernels_are_seen_and_the_cpu_and_copies_are_not():
    on_device = witness.on_device("cuda")
    x = torch.randn(64, 64)
    y = x.cuda()
    assert on_device(lambda: y @ y)
    assert not on_device(lambda: x @ x)
    assert not on_device(lambda: x.cuda().cpu())
