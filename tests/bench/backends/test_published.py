"""The published way of an FA-Bi-S6 block, with this project's operators in place of the CUDA kernels."""

import numpy as np
import pytest
import torch

from ops import causal_conv1d, selective_scan
from rdfa.bench.backends import published
from rdfa.bench.backends.published import Kernels
from tests.bench import rival_modules
from tests.deploy.artifacts import tiny_config, tiny_detector


def test_outputs_are_the_detectors_and_every_scan_goes_through_the_kernels():
    calls = {"conv": 0, "scan": 0}

    def conv(x, weight, bias):
        calls["conv"] += 1
        assert x.stride(-1) == 1
        return causal_conv1d(x, weight, bias, activation="silu")

    def scan(u, delta, A, B, C, D, z, delta_bias):
        calls["scan"] += 1
        assert all(t.stride(-1) == 1 for t in (u, delta, B, C, z))
        return selective_scan(u, delta, A, B, C, D, z=z, delta_bias=delta_bias, delta_softplus=True)

    ours = tiny_detector(tiny_config())
    theirs = published.use(tiny_detector(tiny_config()), Kernels(conv, scan))
    features = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 6, 38)).astype(np.float32))
    mask = torch.ones(2, 38, dtype=torch.bool)
    mask[1, 29:] = False
    with torch.inference_mode():
        for a, b in zip(theirs(features, mask), ours(features, mask)):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    # One pass of the stem, over time and over channels with three branches each, and one branch block; both directions
    # in one call.
    assert calls == {"conv": 7, "scan": 7}


def test_gradients_are_the_detectors(monkeypatch):
    rival_modules.install(monkeypatch)
    ours = tiny_detector(tiny_config())
    theirs = published.use(tiny_detector(tiny_config()), published.with_gradients())
    features = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 6, 38)).astype(np.float32))
    for detector in (ours, theirs):
        logits, offsets, _ = detector(features, torch.ones(2, 38, dtype=torch.bool))
        (logits.sin().sum() + offsets.square().sum()).backward()
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters()):
        assert (a.grad - b.grad).norm() <= 1e-4 * a.grad.norm(), name


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_cuda_kernels_give_what_the_detector_gives():
    if published.missing():
        pytest.skip(f"{', '.join(published.missing())} is not installed: pip install 'rdfa-s6[reference]'")
    ours = tiny_detector(tiny_config()).cuda()
    theirs = published.use(tiny_detector(tiny_config()).cuda(), published.cuda_kernels())
    features, mask = torch.randn(3, 6, 64, device="cuda"), torch.ones(3, 64, dtype=torch.bool, device="cuda")
    with torch.inference_mode():
        for a, b in zip(theirs(features, mask), ours(features, mask)):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
