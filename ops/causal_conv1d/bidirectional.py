"""`bidirectional_conv1d`: the convolutions of an FA-Bi-S6 block, all branches and both directions, in one operator.

Letters: S sequences, D channels, L time, K branches, each with a width W_k of its own.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ops import library
from ops.causal_conv1d import cuda
from ops.causal_conv1d.checks import check
from ops.causal_conv1d.op import causal_conv1d


def bidirectional_conv1d(x: Tensor, weight: Sequence[Tensor], bias: Sequence[Tensor]) -> Tensor:
    """What K branches make of two sequences, one read forwards and one backwards:

        u_0[k D + d, t] = silu(bias_k[d] + sum_j weight_k[d, j] x_0[d, t - (W_k-1-j)])
        u_1[k D + d, t] = silu(bias_k[d] + sum_j weight_k[d, j] x_1[d, t + (W_k-1-j)])

    x is zero outside its range. Both directions share the weights, and all is in the natural order of time.

    Args:
        x: [2,S,D,L] (direction, sequence, channel, time), any strides. A GPU reads it once for all branches, in place
            where time is contiguous, as it is in a slice of [S,4D,L].
        weight: K tensors [D,W_k], W_k from 2 to 4. bias: K tensors [D].

    Returns:
        u [2,S,K D,L] in x's dtype, contiguous. Sums are float32.

    Where `causal_conv1d` would run its Triton kernel, one launch does it all; elsewhere, and in graphs that are traced
    or exported, this is a composition of `causal_conv1d`. Differentiable once in x and in every weight and bias.

    Raises:
        TypeError, ValueError: an argument of the wrong dtype, shape or device.
    """
    weight, bias = list(weight), list(bias)
    recorded = torch.jit.is_tracing() or torch.compiler.is_exporting()
    if not torch.jit.is_tracing():
        _check(x, weight, bias)
    if library.runs_triton(x, *weight, *bias) and not recorded:
        return torch.ops.rdfa.bidirectional_conv1d(x, weight, bias)
    branches = [[causal_conv1d(x[r], w, b, "silu", reverse=r == 1) for w, b in zip(weight, bias)] for r in range(2)]
    return torch.stack([torch.cat(u, 1) for u in branches]).contiguous()


def _check(x, weight, bias):
    if not isinstance(x, Tensor) or x.dim() != 4 or x.shape[0] != 2:
        shape = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"x is {shape}: expected [2, S, D, L]")
    if not weight or len(weight) != len(bias):
        raise ValueError(
            f"there are {len(weight)} weights and {len(bias)} biases: expected one of each for every branch"
        )
    for w, b in zip(weight, bias):
        check(x[0], w, b)


def _fake(x, weights, biases):
    directions, sequences, channels, length = x.shape
    return x.new_empty(directions, sequences, len(weights) * channels, length)


def _fake_backward(du, x, weights, biases):
    return x.new_empty(x.shape), [w.new_empty(w.shape) for w in weights], [b.new_empty(b.shape) for b in biases]


def _setup_context(ctx, inputs, output):
    x, weights, biases = inputs
    ctx.save_for_backward(x, *weights, *biases)


def _backward(ctx, du):
    x, *filters = ctx.saved_tensors
    branches = len(filters) // 2
    return torch.ops.rdfa.bidirectional_conv1d_backward(du, x, filters[:branches], filters[branches:])


if library.HAS_TRITON:
    _INPUTS = "Tensor x, Tensor[] weights, Tensor[] biases"
    torch.library.define("rdfa::bidirectional_conv1d", f"({_INPUTS}) -> Tensor")
    torch.library.define(
        "rdfa::bidirectional_conv1d_backward", f"(Tensor du, {_INPUTS}) -> (Tensor, Tensor[], Tensor[])"
    )
    torch.library.impl("rdfa::bidirectional_conv1d", "CUDA", cuda.bidirectional_forward)
    torch.library.impl("rdfa::bidirectional_conv1d_backward", "CUDA", cuda.bidirectional_backward)
    torch.library.register_fake("rdfa::bidirectional_conv1d", _fake)
    torch.library.register_fake("rdfa::bidirectional_conv1d_backward", _fake_backward)
    torch.library.register_autograd("rdfa::bidirectional_conv1d", _backward, setup_context=_setup_context)
    library.refuse_gradients("bidirectional_conv1d_backward", "for second derivatives use ops.causal_conv1d.reference")
