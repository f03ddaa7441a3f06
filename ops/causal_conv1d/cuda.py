"""The convolutions for CUDA tensors: choose a tile, launch the Triton kernels, and add up what their programs leave.

Letters as in `triton_kernels`, which is imported, with Triton, when the first call arrives. No result depends on an
order of execution: every run gives the same bits. Where Triton interprets its kernels, CPU tensors are taken as well.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ops import library
from ops.causal_conv1d.checks import check

ACCESS_BYTES = 16
WARPS = 4
# A GPU that has this many programs gets no more: each goes through several tiles along time instead, for which it reads
# its filters once. Twice what fits on an H200 at a time; not measured.
ENOUGH_PROGRAMS = 4096
MOST_ROWS = 65535  # programs in the second dimension of a grid


@dataclass(frozen=True)
class Tile:
    """`channels` x `times` threads, neighbours along time if `time_inner`, else along channels. Each has `steps` of
    `width` channels. Accesses take `width` channels of one step, or else all `steps` of one channel."""

    channels: int
    times: int
    steps: int
    width: int
    time_inner: bool

    @property
    def access(self) -> int:
        return self.steps if self.time_inner else self.width


def tile_for(x: Tensor, channels_last: bool, backward: bool = False) -> Tile:
    """The tile for x [directions, S, D, L] and a result whose channels (or else times) are adjacent in memory."""
    access = ACCESS_BYTES // x.element_size()
    if channels_last:
        # The backward of 16-bit channels takes all the registers there are with 3 steps, and more with 4.
        steps = 3 if backward and access > 4 else 4
        wide, narrow = Tile(8, 16, steps, access, False), Tile(32, 4, 4, 1, False)
    else:
        wide, narrow = Tile(4, 32, access, 1, True), Tile(4, 32, 1, 1, True)
    return wide if fits(x, wide) else narrow


def fits(x: Tensor, tile: Tile) -> bool:
    """Whether the tile's accesses of ACCESS_BYTES, if it makes any, are there in x's memory."""
    inner = 3 if tile.time_inner else 2
    return tile.access == 1 or (
        x.stride(inner) == 1
        and x.shape[inner] % tile.access == 0
        and x.data_ptr() % ACCESS_BYTES == 0
        and all(i == inner or x.shape[i] == 1 or x.stride(i) % tile.access == 0 for i in range(4))
    )


def forward(x, weight, bias, silu, reverse):
    """``rdfa::causal_conv1d``."""
    _check_operator(x, weight, bias)
    y = library.empty_bdl(x)
    return _forward(x[None], y[None], (weight,), (bias,), silu, reverse)[0]


def backward(dy, x, weight, bias, silu, reverse):
    """``rdfa::causal_conv1d_backward``: the gradients of x, weight and bias, the last also where there is no bias."""
    _check_operator(x, weight, bias, dy)
    dx = library.empty_bdl(x)
    dx, (dweight,), (dbias,) = _backward(dy[None], x[None], dx[None], (weight,), (bias,), silu, reverse)
    return dx[0], dweight, dbias


def _check_operator(x, weight, bias, dy=None):
    """Recorded graphs come here without the checks of the function in Python."""
    check(x, weight, bias)
    for name, tensor in (("x", x), ("weight", weight), ("bias", bias), ("dy", dy)):
        if tensor is not None and tensor.dtype not in library.TRITON_DTYPES:
            raise TypeError(f"{name} is {tensor.dtype}: expected float32, float16 or bfloat16")
    if dy is not None and dy.shape != x.shape:
        raise ValueError(f"dy has shape {list(dy.shape)}: expected that of x, {list(x.shape)}")


def bidirectional_forward(x, weights, biases):
    """``rdfa::bidirectional_conv1d``."""
    directions, sequences, channels, length = x.shape
    u = x.new_empty(directions, sequences, len(weights) * channels, length)
    return _forward(_time_contiguous(x), u, weights, biases, True, None)


def bidirectional_backward(du, x, weights, biases):
    """``rdfa::bidirectional_conv1d_backward``: the gradients of x, of every weight and of every bias."""
    dx = torch.empty_like(x, memory_format=torch.contiguous_format)
    return _backward(_time_contiguous(du), _time_contiguous(x), dx, weights, biases, True, None)


def _forward(x, y, weights, biases, silu, reverse):
    """Writes y; `reverse` None stands for one direction each way."""
    from ops.causal_conv1d.triton_kernels import forward_kernel

    if y.numel() == 0:
        return y
    tile = tile_for(x, y.stride(2) < y.stride(3))
    weights, biases = _contiguous(weights), _contiguous(biases)
    grid, blocks = _grid(x, tile)
    with torch.cuda.device_of(x):
        forward_kernel[grid](
            x, weights, biases, y, x.stride(), y.stride(), *x.shape[1:], blocks,
            **_constants(tile, weights, silu, reverse),
        )  # fmt: skip
    return y


def _backward(dy, x, dx, weights, biases, silu, reverse):
    """Writes dx, and makes the gradients of the filters."""
    from ops.causal_conv1d.triton_kernels import add_up_kernel, backward_kernel

    new = torch.zeros if x.numel() == 0 else torch.empty
    dweights = [new(w.shape, dtype=w.dtype, device=x.device) for w in weights]
    dbiases = [new(len(w), dtype=(w if b is None else b).dtype, device=x.device) for w, b in zip(weights, biases)]
    if x.numel() == 0:
        return dx, dweights, dbiases
    channels_last = dx.stride(2) < dx.stride(3)
    tile = tile_for(x, channels_last, backward=True)
    if not fits(dy, tile):
        dy = _copy(dy, channels_last)
    weights, biases = _contiguous(weights), _contiguous(biases)
    grid, blocks = _grid(x, tile)
    constants = _constants(tile, weights, silu, reverse)
    directions, sequences, channels, length = x.shape
    rows = sum(constants["WIDTHS"]) + len(weights)
    sums = torch.empty(directions * sequences * grid[1], rows, channels, dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        backward_kernel[grid](
            dy, x, weights, biases, dx, sums, dy.stride(), x.stride(), dx.stride(), sequences, channels, length, blocks,
            ROWS=rows, **constants,
        )  # fmt: skip
        add_up_kernel[(-(-channels // 32), rows)](
            sums, tuple(dweights), tuple(dbiases), len(sums), channels,
            WIDTHS=constants["WIDTHS"], ROWS=rows, SLOTS=32, CHANNELS=32, num_warps=WARPS, enable_fp_fusion=True,
        )  # fmt: skip
    return dx, dweights, dbiases


def _grid(x, tile):
    """The programs, and how many tiles each runs through along time."""
    directions, sequences, channels, length = x.shape
    columns = directions * sequences * -(-channels // (tile.channels * tile.width))
    tiles = -(-length // (tile.times * tile.steps))
    rows = min(tiles, max(1, ENOUGH_PROGRAMS // columns), MOST_ROWS)
    blocks = -(-tiles // rows)
    return (columns, -(-tiles // blocks)), blocks


def _constants(tile, weights, silu, reverse):
    widths = tuple(w.shape[1] for w in weights)
    return {
        "WIDTHS": widths,
        "BEFORE": max(widths) - 1,
        "SILU": silu,
        "REVERSE": bool(reverse),
        "BOTH": reverse is None,
        "num_warps": WARPS,
        "enable_fp_fusion": True,
        "PD": tile.channels,
        "PT": tile.times,
        "T": tile.steps,
        "V": tile.width,
        "TIME_INNER": tile.time_inner,
    }


def _time_contiguous(x):
    return x if x.stride(3) == 1 else x.contiguous()


def _contiguous(tensors):
    return tuple(None if t is None else t.contiguous() for t in tensors)


def _copy(x, channels_last):
    if channels_last:
        return x.transpose(2, 3).clone(memory_format=torch.contiguous_format).transpose(2, 3)
    return x.clone(memory_format=torch.contiguous_format)
