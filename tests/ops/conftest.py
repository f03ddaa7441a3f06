"""What the tests of the operators share: poisoned allocations everywhere, and a run for each instruction set."""

import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor

from ops import library


@pytest.fixture(autouse=True)
def _poisoned_allocations(monkeypatch):
    """Whatever the library or the package allocates is NaN first: an element that a kernel forgets fails the test."""
    monkeypatch.setenv("RDFA_POISON_ALLOCATIONS", "1")
    for owner, name in (
        (torch, "empty"),
        (torch, "empty_like"),
        (torch, "empty_strided"),
        (torch.Tensor, "new_empty"),
    ):
        monkeypatch.setattr(owner, name, _poisoned(getattr(owner, name)))


def _poisoned(allocate):
    def wrapper(*args, **kwargs):
        tensor = allocate(*args, **kwargs)
        from_package = sys._getframe(1).f_globals.get("__name__", "").partition(".")[0] == "ops"
        if from_package and tensor.is_floating_point() and not isinstance(tensor, FakeTensor):
            tensor.fill_(float("nan"))
        return tensor

    return wrapper


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
