"""`causal_conv1d`: checks, dispatch, and what torch must know about the library's operator (fake, autograd)."""

import torch
from torch.nn import functional as F

from ops import library
from ops.causal_conv1d import cuda
from ops.causal_conv1d.checks import check
from ops.causal_conv1d.reference import causal_conv1d_reference

ACTIVATIONS = (None, "silu", "swish")


def causal_conv1d(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    reverse: bool = False,
) -> torch.Tensor:
    """Causal depthwise convolution: y_t = act(bias + sum_k weight_k x_{t - (W-1-k)}), x zero before its first step.

    Takes what causal-conv1d's ``causal_conv1d_fn`` takes. With ``reverse`` time runs backwards, y_t = act(bias + sum_k
    weight_k x_{t + (W-1-k)}), without flipping anything.

    Args:
        x: [B,D,L] (batch, channels, time), any strides; memory order [B,D,L] or [B,L,D] needs no copy. On a GPU both
            are fast when the contiguous dimension and the strides are multiples of 16 bytes.
        weight: [D,W], W from 2 to 4. bias: [D] or None.
        activation: None, "silu" or "swish" (the same).

    Returns:
        y [B,D,L] in x's dtype. The kernels keep x's memory order. Sums are float32 (float64 for float64).

    float32 and bfloat16 on the CPU run the C++ kernel, float16 too, converted to float32 and back; float32, float16 and
    bfloat16 on a GPU run the Triton kernel where Triton is installed, else, without gradients, the one that ``python -m
    ops.aot`` compiled; everything else, derivatives by `torch.func` or in forward mode, and a machine without the
    library run `causal_conv1d_reference`.
    Differentiable once in x, weight and bias; gradients do not depend on the thread count, and repeat to the last bit.

    Raises:
        TypeError, ValueError: an argument of the wrong dtype, shape, device or name.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation = {activation!r} is unknown: use None, 'silu' or 'swish'")
    if not torch.jit.is_tracing():  # which would warn about every comparison of a shape; the operator checks again
        check(x, weight, bias)
    if library.recording_onnx:
        return _standard(x, weight, bias, activation, reverse)
    inputs = (x, weight, bias)
    if library.runs_triton(*inputs) or library.runs_aot(*inputs) or library.runs_native(*inputs):
        return torch.ops.rdfa.causal_conv1d(x, weight, bias, activation is not None, reverse)
    if wide := library.widened(*inputs):
        return torch.ops.rdfa.causal_conv1d(*wide, activation is not None, reverse).to(x.dtype)
    return causal_conv1d_reference(x, weight, bias, activation, reverse)


def _standard(x, weight, bias, activation, reverse):
    """As ONNX has it: a padding and one convolution."""
    past = weight.shape[1] - 1
    padded = F.pad(x, (0, past) if reverse else (past, 0))
    filters = weight.flip(1) if reverse else weight
    y = F.conv1d(padded, filters.unsqueeze(1), bias, groups=weight.shape[0])
    return y if activation is None else F.silu(y)


def _fake(x, weight, bias, silu, reverse):
    return library.empty_bdl(x)


def _fake_backward(dy, x, weight, bias, silu, reverse):
    dbias = weight.new_empty(weight.shape[0], dtype=(weight if bias is None else bias).dtype)
    return library.empty_bdl(x), weight.new_empty(weight.shape), dbias


def _setup_context(ctx, inputs, output):
    x, weight, bias, ctx.silu, ctx.reverse = inputs
    ctx.save_for_backward(x, weight, bias)


def _backward(ctx, dy):
    x, weight, bias = ctx.saved_tensors
    dx, dweight, dbias = torch.ops.rdfa.causal_conv1d_backward(dy, x, weight, bias, ctx.silu, ctx.reverse)
    return dx, dweight, (None if bias is None else dbias), None, None


if library.loaded():
    library.implement_with_triton("causal_conv1d", cuda.forward)
    library.implement_with_triton("causal_conv1d_backward", cuda.backward)
    torch.library.register_fake("rdfa::causal_conv1d", _fake)
    torch.library.register_fake("rdfa::causal_conv1d_backward", _fake_backward)
    torch.library.register_autograd("rdfa::causal_conv1d", _backward, setup_context=_setup_context)
    library.refuse_gradients("causal_conv1d_backward", "for second derivatives use ops.causal_conv1d.reference")
