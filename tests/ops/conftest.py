"""What the tests of the operators share: poisoned allocations everywhere, and a run for each instruction set."""

import pytest
import torch

from ops import library


@pytest.fixture(autouse=True)
def _poisoned_allocations(monkeypatch):
    """Whatever the library allocates is NaN first: an element that a kernel forgets to write fails the test."""
    monkeypatch.setenv("RDFA_POISON_ALLOCATIONS", "1")


@pytest.fixture(params=["avx512", "avx2", "portable"])
def isa(request, monkeypatch):
    """Runs the test once per instruction set that this CPU has."""
    library.require()
    monkeypatch.setenv("RDFA_CPU_ISA", request.param)
    try:
        torch.ops.rdfa.causal_conv1d(torch.zeros(1, 1, 1), torch.zeros(1, 2), None, False, False)
    except RuntimeError as error:
        assert "this CPU lacks it" in str(error)
        pytest.skip(f"this CPU lacks {request.param}")
    return request.param


def relative_rms(value, truth):
    """Root mean square of the difference, in units of that of the truth."""
    difference = (value.double() - truth.double()).square().mean().sqrt()
    return (difference / truth.double().square().mean().sqrt().clamp_min(1e-30)).item()


def assert_as_exact(name, value, same_dtype, truth):
    """`value` may be at most twice as far from the float64 truth as the plain reference in the same dtype is."""
    assert value.shape == truth.shape, f"{name}: {list(value.shape)} instead of {list(truth.shape)}"
    if truth.numel() == 0:
        return
    error, allowed = relative_rms(value, truth), 2 * relative_rms(same_dtype, truth) + 1e-6
    assert error <= allowed, f"{name}: relative RMS error {error:.2e}, allowed {allowed:.2e}"
