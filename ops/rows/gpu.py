"""What stands between the matrix products of inference on a GPU: each function is one Triton kernel.

Rows of channels x [S,L,N]: S sequences, L rows, N adjacent channels. float32, float16 or bfloat16; all that is computed
is float32. There are no gradients. Where Triton interprets its kernels, CPU tensors are taken as well.
"""

import torch
from torch import Tensor

ROW_ELEMENTS = 2048  # of a program


def finish(
    x: Tensor,
    *,
    taps: int = 1,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    norm: Tensor | None = None,
    factor: Tensor | None = None,
    relu: bool = False,
    gate: Tensor | None = None,
    residual: Tensor | None = None,
    next_norm: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """What follows a matrix product, each part only where it is given:

        y = relu(factor norm(mask (sum_w x_w,(l + w - W/2) + bias))) sigmoid(gate) + residual

    Args:
        x: [S,L,N]; with W = `taps` > 1, [S,L,W,N], the product with each tap of a convolution, zero outside.
        bias: [N]. mask: bool [S,L]. norm: [2,N], weight and bias of a layer norm (eps 1e-5). factor: [L].
        gate: [S,N], before its sigmoid. residual: [S,L,N].
        next_norm: [2,N]. Returns (y, its layer norm).
        out: [S,L,N], for y; by default a new tensor.
    """
    from ops.rows.triton_kernels import finish_kernel

    if taps == 1:
        x = x.unsqueeze(2)
    x, residual = (t if t is None or t.stride(-1) == 1 else t.contiguous() for t in (x, residual))
    sequences, length, _, channels = x.shape
    y = x.new_empty(sequences, length, channels) if out is None else out
    v = None if next_norm is None else torch.empty_like(y, memory_format=torch.contiguous_format)
    if y.numel():
        strides = [x.stride()[:3], _strides(residual), _strides(y), _strides(v)]
        unit, sizes = _sizes(channels, *strides)
        x_strides, *others = sizes[1:]
        mask_strides = (0, 0) if mask is None else mask.stride()
        with torch.cuda.device_of(x):
            finish_kernel[_grid(sequences * length, channels)](
                x, bias, mask, norm, factor, gate, residual, next_norm, y, v,
                sequences * length, length, sizes[0], *x_strides, *mask_strides, *(n for pair in others for n in pair),
                TAPS=taps, RELU=relu, UNIT=unit, **_constants(channels),
            )  # fmt: skip
    return y if v is None else (y, v)


def halve(x: Tensor, mask: Tensor, next_norm: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
    """y_l = mask_2l max(x_2l-1, x_2l, x_2l+1), [S,ceil(L/2),N]; the maximum sees masked rows.

    x [S,L,N], mask bool [S,L]; with next_norm [2,N] returns (y, its layer norm).
    """
    from ops.rows.triton_kernels import halve_kernel

    sequences, length, channels = x.shape
    y = x.new_empty(sequences, -(-length // 2), channels)
    v = None if next_norm is None else torch.empty_like(y)
    if y.numel():
        unit, (width, *strides) = _sizes(channels, _strides(x), _strides(y), _strides(v))
        x_strides, *others = strides
        with torch.cuda.device_of(x):
            halve_kernel[_grid(sequences * y.shape[1], channels)](
                x, mask, next_norm, y, v, sequences * y.shape[1], length, width,
                *x_strides, *mask.stride(), *(n for pair in others for n in pair), UNIT=unit, **_constants(channels),
            )  # fmt: skip
    return y if v is None else (y, v)


def average(x: Tensor, bins: int) -> Tensor:
    """y [S,bins,N], bin g being the mean of the rows floor(g L / bins) to ceil((g + 1) L / bins) of x [S,L,N]."""
    from ops.rows.triton_kernels import average_kernel

    sequences, length, channels = x.shape
    y = x.new_empty(sequences, bins, channels)
    if y.numel():
        unit, (width, strides) = _sizes(channels, _strides(x))
        with torch.cuda.device_of(x):
            average_kernel[(sequences * bins,)](x, y, length, width, bins, *strides, UNIT=unit, **_constants(channels))
    return y


def _strides(t):
    return (0, 0) if t is None else t.stride()[:2]


def _sizes(channels, *strides):
    """The largest unit of all, and they in multiples of it."""
    unit = 8 if all(n % 8 == 0 for group in ((channels,), *strides) for n in group) else 1
    return unit, [channels // unit, *(tuple(n // unit for n in group) for group in strides)]


def _grid(rows, channels):
    return (-(-rows // _constants(channels)["ROWS"]),)


def _constants(channels):
    width = 1 << (channels - 1).bit_length()
    return {"ROWS": max(1, ROW_ELEMENTS // width), "WIDTH": width, "enable_fp_fusion": True}
