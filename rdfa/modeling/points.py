"""The points on the time axis at which the detector predicts.

Shape suffixes: P points of all pyramid levels, finest first.
"""

import torch
from torch import Tensor

from rdfa.errors import RunError


class PointGenerator:
    """Points of a pyramid whose level l has stride `strides[l]`; it has no state.

    Args:
        max_frames: longest input, in frames of the feature grid.
        regression_ranges: smallest and largest offset, in frames, that each level regresses.
    """

    def __init__(self, max_frames: int, strides: list[int], regression_ranges: tuple[tuple[float, float], ...]):
        self.max_frames = max_frames
        self.strides = strides
        self.regression_ranges = regression_ranges

    def level_lengths(self, num_frames: int) -> list[int]:
        """Points per level for an input of `num_frames` frames.

        Raises:
            RunError: an input too long, or not a multiple of the coarsest stride.
        """
        if not 0 < num_frames <= self.max_frames:
            raise RunError(
                f"{num_frames} frames, expected 1 to {self.max_frames}: split the video, or raise "
                "PointGenerator.max_buffer_len_factor"
            )
        if num_frames % self.strides[-1]:
            raise RunError(
                f"{num_frames} frames are not a multiple of {self.strides[-1]}, the stride of the coarsest level: "
                "pad with zeros and a False mask"
            )
        return [num_frames // stride for stride in self.strides]

    def points(self, num_frames: int, device: torch.device | str | None = None) -> Tensor:
        """float32 [P, 4] of (t, range low, range high, stride), all in frames; t = index x stride, no offset."""
        levels = []
        for length, stride, bounds in zip(self.level_lengths(num_frames), self.strides, self.regression_ranges):
            level_P4 = torch.empty(length, 4, device=device)
            level_P4[:, 0] = torch.arange(length, device=device) * stride
            level_P4[:, 1:] = torch.tensor([*bounds, stride], device=device)
            levels.append(level_P4)
        return torch.cat(levels)
