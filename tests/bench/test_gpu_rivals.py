"""The layouts in which the rival kernels are called, on stand-ins that demand what the CUDA modules demand."""

import sys
from types import SimpleNamespace

import pytest
import torch

from ops.causal_conv1d.reference import causal_conv1d_reference
from ops.selective_scan.reference import selective_scan_reference
from rdfa.bench.gpu_cases import FusedCase
from rdfa.bench.gpu_kernels import of_mode
from rdfa.bench.gpu_providers import Missing
from rdfa.bench.gpu_rivals import rival
from rdfa.bench.gpu_solutions import solve
from rdfa.bench.kernel_rows import MODES, judge, relative_l2

SCAN = FusedCase("odd", 2, 5, 37, (2, 3, 4), states=3)
CONV = FusedCase("odd", 2, 5, 37, (2, 3, 4))


def gated_scan(u, delta, A, B, C, D, z, delta_bias):
    return selective_scan_reference(u, delta, A, B[:, 0], C[:, 0], D, z, delta_bias, True)


def check(u, delta, A, B, C, D, z, delta_bias):
    """What selective_scan_cuda asks of its arguments."""
    batch, channels, length = u.shape
    assert {t.dtype for t in (u, delta, B, C, z)} == {u.dtype}
    assert {t.dtype for t in (A, D, delta_bias)} == {torch.float32}
    assert delta.shape == z.shape == u.shape and A.shape == (channels, A.shape[1])
    assert B.shape == C.shape == (batch, 1, A.shape[1], length)
    assert all(t.stride(-1) == 1 for t in (u, delta, B, C, z, D, delta_bias))


class SelectiveScanCuda:
    calls = 0

    @classmethod
    def fwd(cls, u, delta, A, B, C, D, z, delta_bias, delta_softplus):
        check(u, delta, A, B, C, D, z, delta_bias)
        assert delta_softplus is True
        cls.calls += 1
        states = torch.zeros(*u.shape[:2], 1, 2 * A.shape[1])
        before_gate = selective_scan_reference(u, delta, A, B[:, 0], C[:, 0], D, None, delta_bias, True)
        return [before_gate, states, gated_scan(u, delta, A, B, C, D, z, delta_bias)]

    @staticmethod
    def bwd(u, delta, A, B, C, D, z, delta_bias, dout, x, out, dz, delta_softplus, recompute_out_z):
        check(u, delta, A, B, C, D, z, delta_bias)
        assert dout.shape == out.shape == u.shape and dout.dtype == out.dtype == u.dtype and dout.stride(-1) == 1
        assert x.shape == (*u.shape[:2], 1, 2 * A.shape[1])
        assert (dz, delta_softplus, recompute_out_z) == (None, True, False)
        leaves = [t.detach().requires_grad_() for t in (u, delta, A, B, C, D, z, delta_bias)]
        du, ddelta, dA, dB, dC, dD, dz, dbias = torch.autograd.grad(gated_scan(*leaves), leaves, dout)
        return [du, ddelta, dA, dB, dC, dD, dbias, dz]


class CausalConv1dCuda:
    @staticmethod
    def causal_conv1d_fwd(x, weight, bias, seq_idx, initial_states, out, final_states_out, silu_activation):
        assert (seq_idx, initial_states, final_states_out, silu_activation) == (None, None, None, True)
        assert x.stride(-1) == 1 and out.shape == x.shape and weight.dtype == bias.dtype
        out.copy_(causal_conv1d_reference(x, weight, bias, "silu"))

    @staticmethod
    def causal_conv1d_bwd(
        x, weight, bias, dout, seq_idx, initial_states, dfinal_states, dx, dweight, dbias, dinitial_states, silu
    ):
        assert (seq_idx, initial_states, dfinal_states, dinitial_states, silu) == (None, None, None, None, True)
        assert dx.shape == dout.shape == x.shape and dout.stride(-1) == 1
        # It adds to these, in float32.
        assert dweight.dtype == dbias.dtype == torch.float32 and not dweight.any() and not dbias.any()
        leaves = [t.detach().requires_grad_() for t in (x, weight, bias)]
        gradients = torch.autograd.grad(causal_conv1d_reference(*leaves, "silu"), leaves, dout)
        for target, gradient in zip((dx, dweight, dbias), gradients):
            target.copy_(gradient)


@pytest.fixture
def modules(monkeypatch):
    monkeypatch.setitem(sys.modules, "selective_scan_cuda", SelectiveScanCuda)
    monkeypatch.setitem(sys.modules, "causal_conv1d_cuda", CausalConv1dCuda)


@pytest.mark.parametrize("case", [SCAN, CONV], ids=lambda c: c.kernel)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mode", MODES)
def test_results_come_back_in_the_layout_of_the_fused_operators(case, dtype, mode, modules):
    inputs = case.inputs("cpu", dtype)
    exact = solve(case, inputs, exact=True)
    plain = relative_l2(solve(case, inputs, exact=False), exact)
    stage = rival(case, mode, inputs)
    results = stage.named(stage.call(stage.arguments))
    chosen = of_mode(exact, case, mode)
    assert {name: t.shape for name, t in results.items()} == {name: t.shape for name, t in chosen.items()}
    assert judge(relative_l2(results, chosen), plain) == "valid"


def test_a_call_per_branch_and_the_note_says_what_is_left_out(modules, monkeypatch):
    monkeypatch.setattr(SelectiveScanCuda, "calls", 0)
    stage = rival(SCAN, "forward", SCAN.inputs("cpu", torch.float32))
    assert SelectiveScanCuda.calls == 0
    stage.call(stage.arguments)
    assert SelectiveScanCuda.calls == 3
    assert stage.note.startswith("3 calls, one per branch; flips")
    assert not stage.eager


@pytest.mark.parametrize(("case", "package"), [(SCAN, "mamba-ssm"), (CONV, "causal-conv1d")])
def test_a_missing_package_names_the_extra(case, package, monkeypatch):
    for name in ("selective_scan_cuda", "causal_conv1d_cuda"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(Missing, match=rf"{package}: .* \(install the extra 'reference'\)"):
        rival(case, "forward", case.inputs("cpu", torch.float32))


def test_only_the_compiled_modules_are_imported(monkeypatch):
    """The packages' top levels need transformers and more."""
    monkeypatch.setitem(sys.modules, "selective_scan_cuda", SimpleNamespace(fwd=None, bwd=None))
    rival(SCAN, "forward", SCAN.inputs("cpu", torch.float32))
    assert not {"mamba_ssm", "causal_conv1d"} & set(sys.modules)
