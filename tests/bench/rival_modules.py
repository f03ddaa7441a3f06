"""Stand-ins for the compiled modules of mamba-ssm and causal-conv1d, which demand what those demand."""

import sys

import torch

from ops.causal_conv1d.reference import causal_conv1d_reference
from ops.selective_scan.reference import selective_scan_reference


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
        with torch.enable_grad():
            outputs = gated_scan(*leaves)
        du, ddelta, dA, dB, dC, dD, dz, dbias = torch.autograd.grad(outputs, leaves, dout)
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
        with torch.enable_grad():
            outputs = causal_conv1d_reference(*leaves, "silu")
        gradients = torch.autograd.grad(outputs, leaves, dout)
        for target, gradient in zip((dx, dweight, dbias), gradients):
            target.copy_(gradient)


def install(monkeypatch):
    """Let both be imported."""
    monkeypatch.setitem(sys.modules, "selective_scan_cuda", SelectiveScanCuda)
    monkeypatch.setitem(sys.modules, "causal_conv1d_cuda", CausalConv1dCuda)
