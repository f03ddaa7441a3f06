"""From seconds to the feature grid, random crops, and padding.

Shapes: B videos, C channels, T clips of the feature grid, N actions of a video, 2 = (start, end).
"""

import random
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from rdfa.errors import RunError


def seconds_to_grid(segments_N2: np.ndarray, fps: float, stride: int, num_frames: int) -> np.ndarray:
    """Positions on the feature grid, x = (s fps - num_frames / 2) / stride: clip i lies at x = i.

    Args:
        segments_N2: seconds.
        fps: frames per second of the video.
        stride: frames between two clips, `feat_stride * downsample_rate`.
        num_frames: frames that one clip covers; its position is their centre. Starts may come out slightly negative.

    Returns:
        float32 [N, 2], rounded as the published code rounds (float32 throughout).
    """
    return (segments_N2.astype(np.float32) * np.float32(fps) - np.float32(0.5 * num_frames)) / np.float32(stride)


def resize_features(features_TC: np.ndarray, length: int) -> np.ndarray:
    """Features at `length` positions spread evenly over the video: float32 [length, C].

    Position j lies at (j + 0.5) T / length - 0.5 clips, and takes the linear interpolation of the clips around it,
    before the first and after the last clip theirs. It is PyTorch's `interpolate` with align_corners=False, as the
    field's loaders use it.
    """
    if len(features_TC) == length:
        return features_TC
    features_CT = torch.from_numpy(features_TC).T[None]
    resized = torch.nn.functional.interpolate(features_CT, size=length, mode="linear", align_corners=False)
    return np.ascontiguousarray(resized[0].T.numpy())


def draw_crop(
    length: int,
    segments_N2: np.ndarray,
    max_seq_len: int,
    trunc_thresh: float,
    crop_ratio: Sequence[float] | None,
    rng: random.Random,
    max_trials: int = 200,
    has_action: bool = True,
    no_trunc: bool = False,
) -> tuple[int, int] | None:
    """Choose the clips [start, stop) of a training sequence at random, as published.

    A video longer than `max_seq_len` is cut to that length, a shorter one to a share of its own length drawn between
    the ends of `crop_ratio` (None: not cut). The start is drawn until the crop is good, at most `max_trials` times; the
    last one is taken then. Good means that at least one action keeps `trunc_thresh` of itself (`has_action`), or, with
    `no_trunc`, that in addition no action is cut in two.

    Args:
        length: clips of the video.
        segments_N2: its actions, grid.
        rng: one draw for the length if it is random, one per trial.

    Returns:
        (start, stop), or None when the video stays as it is.
    """
    crop_length = max_seq_len
    if length <= max_seq_len:
        if crop_ratio is None:
            return None
        least = max(round(crop_ratio[0] * length), 1)
        crop_length = rng.randint(least, max(min(round(crop_ratio[1] * length), length), least))
        if crop_length == length:
            return None
    wants_action = (has_action or no_trunc) and len(segments_N2) > 0
    for _ in range(max_trials):
        start = rng.randint(0, length - crop_length)
        if not wants_action:
            break
        kept_N = _kept_share(segments_N2, start, start + crop_length)
        cut = no_trunc and bool(((kept_N > 0) & (kept_N < 1)).any())
        if bool((kept_N >= trunc_thresh).any()) and not cut:
            break
    return start, start + crop_length


def crop_segments(segments_N2: np.ndarray, start: int, stop: int, trunc_thresh: float) -> tuple[np.ndarray, np.ndarray]:
    """Actions as a crop shows them: those that keep `trunc_thresh` of their length, clipped and counted from `start`.

    Returns:
        segments [M, 2], and bool [N]: which of the N actions they are.
    """
    kept_N = _kept_share(segments_N2, start, stop) >= trunc_thresh
    return np.clip(segments_N2[kept_N], start, stop) - np.asarray(start, segments_N2.dtype), kept_N


def _kept_share(segments_N2: np.ndarray, start: int, stop: int) -> np.ndarray:
    """The share of each action that lies in [start, stop]; -1 for actions without length, which are never kept."""
    length_N = segments_N2[:, 1] - segments_N2[:, 0]
    inside_N = np.minimum(segments_N2[:, 1], stop) - np.maximum(segments_N2[:, 0], start)
    share_N = np.full_like(length_N, -1)
    return np.divide(np.maximum(inside_N, 0), length_N, out=share_N, where=length_N > 0)


def padded_length(length: int, max_seq_len: int, multiple: int, training: bool) -> int:
    """The length to which a video of `length` clips is padded.

    Always `max_seq_len` in training. Otherwise `max_seq_len` too, or, for longer videos, the next multiple of
    `multiple`. Padding is not neutral to the detector, so this is a part of the model rather than a matter of batching.

    Raises:
        RunError: a training sequence longer than `max_seq_len`.
    """
    if length <= max_seq_len:
        return max_seq_len
    if training:
        raise RunError(
            f"a training sequence of {length} clips is longer than Dataset.max_seq_len = {max_seq_len}: crop it"
        )
    return -(-length // multiple) * multiple


def pad_features(features: Sequence[Tensor], length: int, padding_value: float) -> tuple[Tensor, Tensor]:
    """Stack videos [C, T_i] into float32 [B, C, length], filled up with `padding_value` at the end.

    Returns:
        features_BCT, and mask_BT bool: True where a clip is.
    """
    features_BCT = torch.full((len(features), features[0].shape[0], length), padding_value, dtype=torch.float32)
    mask_BT = torch.zeros(len(features), length, dtype=torch.bool)
    for row, video_CT in enumerate(features):
        features_BCT[row, :, : video_CT.shape[1]] = video_CT
        mask_BT[row, : video_CT.shape[1]] = True
    return features_BCT, mask_BT
