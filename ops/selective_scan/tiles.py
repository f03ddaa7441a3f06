"""Which tile a Triton kernel of the scan takes: how many rows, how many lanes along time for each, how many steps."""

from dataclasses import dataclass
from functools import cache

import torch

ACCESS_BYTES = 16
# Warps that keep a multiprocessor busy: three for each of its four schedulers, as many as fit with 168 registers each.
WARPS_PER_PROCESSOR = 12


@dataclass(frozen=True)
class Tile:
    """R `rows` by LT `lanes`, `steps` of each lane, and the registers a thread may take (None: all there are)."""

    rows: int
    lanes: int
    steps: int
    registers: int | None = None

    @property
    def block(self) -> int:
        """Steps that a tile takes in one turn."""
        return self.lanes * self.steps


# Fewer lanes need fewer instructions but leave fewer warps: the first tile that gives every scheduler its warps is
# taken, else the last.
FORWARD_TILES = (Tile(32, 1, 16, 168), Tile(8, 4, 8, 168), Tile(1, 32, 8, 168))


def forward_tile(device: torch.device, sequences: int, rows: int) -> Tile:
    """For `sequences` (times groups) with `rows` channels each."""
    wanted = WARPS_PER_PROCESSOR * _processors(device)
    return next((tile for tile in FORWARD_TILES if sequences * (rows // tile.rows) >= wanted), FORWARD_TILES[-1])


def backward_tile(dtype: torch.dtype) -> Tile:
    """One access per lane; 8 rows, whose share in the gradients of B and C is added up within the warp."""
    return Tile(8, 4, ACCESS_BYTES // dtype.itemsize)


@cache
def _processors(device):
    # Where Triton interprets, any number will do.
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
