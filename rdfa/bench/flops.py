"""Floating-point operations of one call, counted by torch, with formulas for the operators of `ops`.

A multiplication and an addition are one each, an exponential, a logarithm and a division likewise. What is counted is
the computation of the module as it is written here, so a backend that does more of them for the same result is not
better used for it. Shape letters as in `ops.selective_scan`.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

# delta A, exp, (delta u) B, a h + b, and the sum of C h.
PER_STATE = 7
# delta + bias, softplus (exp, +, log), delta u, D u + y; the gate (exp, +, /, z, y).
PER_STEP, GATE = 7, 5
# SiLU of a convolution, and its bias.
SILU, BIAS = 4, 1


def selective_scan(u, delta, A, B, C, D=None, z=None, *rest, out_shape=None, **kwargs) -> int:
    """u [B,D,L], A [D,N]."""
    batch, channels, length = u
    return batch * channels * length * (PER_STATE * A[1] + PER_STEP + (GATE if z is not None else 0))


def causal_conv1d(x, weight, bias=None, silu=True, *rest, out_shape=None, **kwargs) -> int:
    """x [B,D,L], weight [D,W]."""
    batch, channels, length = x
    return batch * channels * length * (2 * weight[1] + (BIAS if bias is not None else 0) + (SILU if silu else 0))


def bidirectional_scan(u, delta, A, *rest, out_shape=None, **kwargs) -> int:
    """u [2,S,E,L], A [D,N]; always gated."""
    directions, sequences, channels, length = u
    return directions * sequences * channels * length * (PER_STATE * A[1] + PER_STEP + GATE)


def bidirectional_conv1d(x, weights, biases, *rest, out_shape=None, **kwargs) -> int:
    """x [2,S,D,L], one weight [D,W] per branch."""
    directions, sequences, channels, length = x
    taps = sum(2 * weight[1] + BIAS + SILU for weight in weights)
    return directions * sequences * channels * length * taps


_FORMULAS = (selective_scan, causal_conv1d, bidirectional_scan, bidirectional_conv1d)


class _Unknown(TorchDispatchMode):
    """Remembers operators of this project that no formula is for."""

    def __init__(self, known: set[Any]):
        super().__init__()
        self.known, self.names = known, set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "rdfa" and function.overloadpacket not in self.known:
            self.names.add(str(function))
        return function(*args, **(kwargs or {}))


def count(call: Callable[[], object]) -> int | None:
    """Operations of `call`, in Python and torch; None where an operator of this project has no formula."""
    formulas = {
        getattr(torch.ops.rdfa, formula.__name__): formula
        for formula in _FORMULAS
        if hasattr(torch.ops.rdfa, formula.__name__)
    }
    counter, unknown = FlopCounterMode(display=False, custom_mapping=formulas), _Unknown(set(formulas))
    with torch.inference_mode(), counter, unknown:
        call()
    return None if unknown.names else counter.get_total_flops()
