"""Which launches are compiled ahead of time, under the names by which the library's C++ asks for them.

Each variant is a name and a call that launches it on CPU tensors; the launchers of the package do the rest, so that
constants and tiles are theirs. (The kernels of ``triton_prepare`` have no launcher but the library's.) What the library
does to get along with few variants: states are padded to whole launches, filters and per-channel arguments are float32
and never None, and where sequences differ in dtype, or softplus or the gate z is missing, or there are several launches
of states, everything is computed in float32.
"""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import NamedTuple
from unittest import mock

import torch

from ops.aot.compiler import Launch, recorded
from ops.causal_conv1d import cuda as conv
from ops.selective_scan import launch, tiles

# Elements that a program of `triton_prepare` takes.
PREPARED_PER_PROGRAM = 1024
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
WIDTHS = (2, 3, 4)
# Lengths and strides: "any"; "access": multiples of one access; "even": the length one of the tile's block as well.
FORMS = ("any", "access", "even")
# Only this tile is cut into segments: where rows are too few, it is chosen (tests/ops/aot/test_choice.py).
SEGMENTED_TILE = tiles.FORWARD_TILES[-1]


class Variant(NamedTuple):
    name: str
    record: Callable[[], Launch]


def variants() -> list[Variant]:
    """All that the library may ask for."""
    return [*_packs(), *_scans(), Variant("join", partial(_scan, "join")), *_convolutions(), *_preparations()]


def constants() -> dict[str, float]:
    """What the rules of choice in C++ need to know, by name."""
    numbers = {name: getattr(tiles, name) for name in ("WARPS_PER_PROCESSOR", "EMPTY_WAVE", "WAVE_START")}
    numbers |= {name: getattr(tiles, name) for name in ("FORWARD_SEGMENT", "FORWARD_WAVES", "ACCESS_BYTES")}
    numbers |= {name: getattr(conv, name) for name in ("ENOUGH_PROGRAMS", "MOST_ROWS")}
    numbers["PREPARED_PER_PROGRAM"] = PREPARED_PER_PROGRAM
    return numbers | {
        name: getattr(launch, name) for name in ("STATES_PER_LAUNCH", "PACKED_PER_PROGRAM", "JOINED_PER_PROGRAM")
    }


def scan_tiles() -> list[tuple[int, ...]]:
    """(rows, lanes, steps, time of a wave for 2 and for 4 bytes), in the order of preference."""
    return [(tile.rows, tile.lanes, tile.steps, *tile.wave) for tile in tiles.FORWARD_TILES]


def conv_tiles() -> dict[str, tuple[int, ...]]:
    """(channels, times, steps, width) by the name of the tile."""
    found = {}
    for size, (layout, inner), wide in product((2, 4), _LAYOUTS.items(), (True, False)):
        tile = conv.tile_for(_conv_input(DTYPES["f16" if size == 2 else "f32"], layout, wide), inner)
        found[f"{layout}-{'wide' if wide else 'narrow'}-{size}"] = (tile.channels, tile.times, tile.steps, tile.width)
    return found


def _name(tile) -> str:
    return f"{tile.rows}x{tile.lanes}"


def _packs() -> Iterator[Variant]:
    for dtype, tile in product(DTYPES, tiles.FORWARD_TILES):
        yield Variant(f"pack-{dtype}-{_name(tile)}", partial(_scan, "pack", dtype, tile))


def _scans() -> Iterator[Variant]:
    forms = [(dtype, form, "softplus", "gated") for dtype, form in product(DTYPES, FORMS)]
    forms += [("f32", "any", *rest) for rest in (("softplus", "plain"), ("linear", "gated"), ("linear", "plain"))]
    for tile, kind in product(tiles.FORWARD_TILES, forms):
        for part in ("whole", "first", "rest") if tile == SEGMENTED_TILE else ("whole",):
            dtype, *rest = kind
            name = "-".join(("scan", dtype, _name(tile), *rest, part))
            yield Variant(name, partial(_scan, part, dtype, tile, *rest))


def _convolutions() -> Iterator[Variant]:
    for dtype, layout, wide, width, silu, reverse in product(
        DTYPES, _LAYOUTS, (True, False), WIDTHS, (True, False), (False, True)
    ):
        words = ("wide" if wide else "narrow", f"w{width}", "silu" if silu else "linear")
        name = "-".join(("conv", dtype, layout, *words, "reverse" if reverse else "forward"))
        yield Variant(name, partial(_convolution, DTYPES[dtype], layout, wide, width, silu, reverse))


def _preparations() -> Iterator[Variant]:
    """Conversions to and from float32."""
    for given, wanted in [*product(DTYPES, ("f32",)), ("f32", "f16"), ("f32", "bf16")]:
        yield Variant(f"convert-{given}-{wanted}", partial(_conversion, DTYPES[given], DTYPES[wanted]))
    yield Variant("scale", _scaling)


def _scan(
    part: str, dtype: str = "f32", tile: tiles.Tile = SEGMENTED_TILE, form="any", softplus="softplus", gate="gated"
) -> Launch:
    access = tiles.ACCESS_BYTES // DTYPES[dtype].itemsize
    length = 2 * tile.block + {"any": 1, "access": access, "even": 0}[form]

    def tensor(*size, dtype=DTYPES[dtype]):
        return torch.zeros(1, *size, dtype=dtype)

    u, delta, y = (tensor(1, tile.rows, length) for _ in range(3))
    z = tensor(1, tile.rows, length) if gate == "gated" else None
    B, C = (tensor(1, 1, launch.STATES_PER_LAUNCH, length) for _ in range(2))
    A = torch.zeros(tile.rows, launch.STATES_PER_LAUNCH)
    D, bias = torch.zeros(tile.rows), torch.zeros(tile.rows)
    segment = 10**6 if part in ("whole", "pack") else 1
    with (
        mock.patch.object(tiles, "forward_tile", lambda *sizes: tile),
        mock.patch.object(tiles, "segment", lambda *sizes: segment),
        recorded() as launches,
    ):
        launch.forward(u, delta, A, B, C, D, z, bias, y, softplus=softplus == "softplus", last=True)
    index = {"pack": 0, "whole": 1, "first": 1, "join": 2, "rest": 3}[part]
    # A wide access needs its address to be a multiple of itself; the library's own buffers always are.
    sequences = () if form == "any" else ("u_ptr", "delta_ptr", "z_ptr", "y_ptr")
    return launches[index].with_aligned("BC_ptr", *sequences)


# Names of the axis whose elements are adjacent in memory -> whether that is the channels.
_LAYOUTS = {"time": False, "channels": True}


def _conv_input(dtype, layout, wide):
    """x [1, S, D, L] for which the wide or the narrow tile is chosen."""
    size = 32 if wide else 33
    x = torch.zeros(1, 1, size, size, dtype=dtype)
    return x.transpose(2, 3) if _LAYOUTS[layout] else x


def _convolution(dtype, layout, wide, width, silu, reverse) -> Launch:
    x = _conv_input(dtype, layout, wide)[0]
    weight, bias = torch.zeros(x.shape[1], width), torch.zeros(x.shape[1])
    with recorded() as launches:
        conv.forward(x, weight, bias, silu, reverse)
    return launches[0].with_aligned(*(("x_ptr", "y_ptr") if wide else ()))


def _conversion(given, wanted) -> Launch:
    from ops.aot.triton_prepare import convert_kernel

    arguments = {"from_ptr": torch.zeros(2, dtype=given), "to_ptr": torch.zeros(2, dtype=wanted)}
    return _preparation(convert_kernel, arguments, ("rows", "given", "wanted", "parts"))


def _scaling() -> Launch:
    from ops.aot.triton_prepare import scale_kernel

    arguments = {"A_ptr": torch.zeros(2), "to_ptr": torch.zeros(2)}
    return _preparation(scale_kernel, arguments, ("D", "N", "states"))


def _preparation(kernel, pointers, sizes) -> Launch:
    arguments = pointers | dict.fromkeys(sizes, 2) | {"BLOCK": PREPARED_PER_PROGRAM}
    return Launch(kernel, arguments, {"num_warps": 4})
