"""The rules that choose tiles and segments: those in C++ choose what those in Python choose, for any sizes."""

import ctypes
import random

import pytest
import torch

pytest.importorskip("triton")

from ops.aot import variants
from ops.causal_conv1d import cuda as conv
from ops.selective_scan import launch, tiles


def problems(count):
    """(batch, groups, channels of a group, length, bytes, multiprocessors), small and large."""
    draw = random.Random(0)
    for _ in range(count):
        sizes = [int(2 ** draw.uniform(0, bits)) for bits in (7, 5, 11, 17)]
        yield (*sizes, draw.choice((2, 4)), draw.choice((1, 7, 46, 108, 132, 148)))


def test_scan(native, folder, monkeypatch):
    given = list(problems(3000))
    numbers = (ctypes.c_int64 * (6 * len(given)))(*(n for problem in given for n in problem))
    found = (ctypes.c_int64 * (5 * len(given)))()
    native.choose_scan(str(folder / "librdfa_ops.cubins").encode(), ctypes.c_int64(len(given)), numbers, found)
    segmented = set()
    for i, (batch, groups, channels, length, size, processors) in enumerate(given):
        monkeypatch.setattr(tiles, "_processors", lambda device, processors=processors: processors)
        dtype = torch.float32 if size == 4 else torch.bfloat16
        u = torch.empty(1, batch, groups * channels, length, dtype=dtype, device="meta")
        tile = tiles.forward_tile(u, groups)
        programs, blocks = launch._programs(tile, u, groups), -(-length // tile.block)
        segment = tiles.segment(u.device, programs, blocks, tiles.FORWARD_SEGMENT, tiles.FORWARD_WAVES)
        assert tuple(found[5 * i : 5 * i + 5]) == (tile.rows, tile.lanes, programs, blocks, segment), given[i]
        segmented |= {tile} if segment < blocks else set()
    # Only its kernels for segments are in the pack.
    assert segmented == {variants.SEGMENTED_TILE}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("channels_last", [False, True])
def test_convolution(native, folder, dtype, channels_last):
    draw = random.Random(1)
    choice = (ctypes.c_int64 * 3)()
    for _ in range(300):
        batch, channels, length = (int(2 ** draw.uniform(0, bits)) for bits in (9, 12, 22))
        if draw.random() < 0.5:  # as wide accesses need it
            channels, length = -(-channels // 8) * 8, -(-length // 8) * 8
        rest = (1, channels) if channels_last else (length, 1)
        x = torch.empty_strided((1, batch, channels, length), (0, channels * length, *rest), dtype=dtype, device="meta")
        tile = conv.tile_for(x, channels_last)
        (columns, rows), blocks = conv._grid(x, tile)
        layout, kind = "channels" if channels_last else "time", "wide" if tile.access > 1 else "narrow"
        native.choose_conv(
            str(folder / "librdfa_ops.cubins").encode(), f"{layout}-{kind}-{dtype.itemsize}".encode(),
            *(ctypes.c_int64(n) for n in (batch, channels, length)), choice,
        )  # fmt: skip
        assert tuple(choice) == (columns, rows, blocks), (kind, batch, channels, length)
