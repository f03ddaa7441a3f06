"""Which tile a Triton kernel of the scan takes, and in how many segments it cuts time.

A tile is one warp: few rows with many lanes along time, or many rows with few. Fewer lanes need fewer instructions for
a step, more lanes keep more of the device busy. The choice follows from the time of a wave, as many tiles at once as
the device holds, measured on an H100 (compute capability 9.0). Only the ratios of these times matter, so the table
serves other devices as well.
"""

import math
from dataclasses import dataclass
from functools import cache

import torch

ACCESS_BYTES = 16
# Warps that a multiprocessor holds with 168 registers each.
WARPS_PER_PROCESSOR = 12
# Time of an almost empty wave in units of a full one: latencies, not throughput, decide then.
EMPTY_WAVE = 0.6
# What a wave takes before its first step, in steps of the tile with one row.
WAVE_START = 170
# Blocks that a segment has at least: the forward, which does all exponentials twice, must gain more by them.
FORWARD_SEGMENT, BACKWARD_SEGMENT = 16, 1
# Waves that segments are to fill. The forward then does its exponentials twice: only for far too few rows.
FORWARD_WAVES, BACKWARD_WAVES = 0.25, 1.0


@dataclass(frozen=True)
class Tile:
    """R `rows` by LT `lanes`, `steps` of each lane, and the registers a thread may take (None: all there are).

    `wave` is the time of a full wave in ns per step, for sequences of 2 and of 4 bytes.
    """

    rows: int
    lanes: int
    steps: int
    registers: int | None = None
    wave: tuple[float, float] = (0.0, 0.0)

    @property
    def block(self) -> int:
        """Steps that a tile takes in one turn."""
        return self.lanes * self.steps


FORWARD_TILES = (
    Tile(32, 1, 16, 168, (450, 616)),
    Tile(8, 4, 8, 168, (137, 169)),
    Tile(4, 8, 8, 168, (67, 93)),
    Tile(1, 32, 8, 168, (15, 27)),
)


def forward_tile(u: torch.Tensor, groups: int) -> Tile:
    """For u [.., E, L] with `groups` groups of channels."""
    *sequences, channels, length = u.shape
    rows = channels // groups
    slots = WARPS_PER_PROCESSOR * _processors(u.device)

    def cost(tile):
        waves, rest = divmod(groups * math.prod(sequences) * -(-rows // tile.rows), slots)
        waves += EMPTY_WAVE + (1 - EMPTY_WAVE) * rest / slots if rest else 0
        ns = tile.wave[u.element_size() == 4]
        return waves * (ns * -(-length // tile.block) * tile.block + FORWARD_TILES[-1].wave[0] * WAVE_START)

    return min(FORWARD_TILES, key=cost)


def backward_tile(dtype: torch.dtype) -> Tile:
    """One access per lane; 8 rows, whose share in the gradients of B and C is added up within the warp."""
    return Tile(8, 4, ACCESS_BYTES // dtype.itemsize, 168)


def segment(device: torch.device, programs: int, blocks: int, least: int, waves: float) -> int:
    """Blocks of one segment, at least `least`: all of them where the programs fill `waves` waves, else so few that
    programs times segments do."""
    segments = min(int(waves * WARPS_PER_PROCESSOR * _processors(device)) // max(1, programs), blocks // least)
    return -(-blocks // max(1, segments))


@cache
def _processors(device):
    # Where Triton interprets, any number will do.
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
