"""The Triton kernels between the products of inference, without a GPU."""

from pathlib import Path

import pytest
import torch

from ops.rows import gpu
from tests.ops import triton_tools


def test_interpreted():
    triton_tools.run_interpreted(Path(__file__).with_name("interpreted.py"))


@pytest.mark.parametrize("capability", (80, 120))
def test_kernels_compile(capability):
    x, norm, mask = torch.empty(2, 64, 512, dtype=torch.bfloat16), torch.empty(2, 512), torch.empty(2, 64).bool()

    def call():
        gpu.finish(x.unsqueeze(2).expand(-1, -1, 3, -1), taps=3, mask=mask, norm=norm, relu=True, next_norm=norm)
        gpu.halve(x, mask, norm)
        gpu.average(x, 16)

    for kernel in triton_tools.compile_launches(capability, call):
        assert kernel.stack == 0, kernel.name
        assert kernel.count("LDG.*128") or kernel.count("LDG.*64"), kernel.name  # wide accesses


def test_a_new_length_compiles_nothing():
    kernels = set()
    for length in (64, 36, 1):
        for kernel in triton_tools.compile_launches(90, lambda n=length: gpu.finish(torch.empty(2, n, 64))):
            kernels.add(kernel.sass)
    assert len(kernels) == 1
