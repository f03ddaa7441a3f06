"""Label assignment: which points of the pyramid learn which action.

Shapes: B videos, P points of all levels (finest first), N actions of a video, C classes; 2 = (start, end) or (left,
right).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

# Actions whose lengths differ by less than this share a point: it learns the classes of all of them.
SAME_LENGTH = 1e-3


def assign_targets(
    points_P4: Tensor,
    segments: Sequence[Tensor],
    labels: Sequence[Tensor],
    num_classes: int,
    center_sample: str = "radius",
    center_sample_radius: float = 1.5,
) -> tuple[Tensor, Tensor]:
    """Class and offset targets of every point, for a batch of videos.

    A point at time t, on a level of stride s that regresses offsets in [lo, hi], belongs to the action (a, b) when

        lo <= max(t - a, b - t) <= hi    and    max(a, m - r s) < t < min(b, m + r s),    m = (a + b) / 2,

    where r is `center_sample_radius`; with `center_sample` "none" the second condition is a < t < b. Of several such
    actions the shortest gives the offsets (the first one among equals), and all within 1e-3 of its length their class.

    Args:
        points_P4: (t, lo, hi, s) per point, on the feature grid.
        segments: per video [N, 2], (start, end) on the feature grid; N may differ and may be 0.
        labels: per video [N], int64 in [0, num_classes).
        num_classes: C.
        center_sample: "radius" or "none".
        center_sample_radius: in strides of the level.

    Returns:
        cls_targets_BPC, 0 or 1, and offsets_BP2 >= 0 in strides of the level, both in the dtype of `points_P4`. A point
        is positive when any class is 1; the others have zero offsets.

    Raises:
        ValueError: an unknown `center_sample`, or a label outside [0, num_classes).
    """
    if center_sample not in ("radius", "none"):
        raise ValueError(f"center_sample = {center_sample!r}: expected 'radius' or 'none'")
    points = points_P4[:, :, None]
    t_P1, low_P1, high_P1, stride_P1 = points[:, 0], points[:, 1], points[:, 2], points[:, 3]
    # Padding with the empty segment (0, 0), in which no point lies; one row at least, so that a minimum exists.
    segments_BN2 = pad_sequence([_at_least_one(s) for s in segments], batch_first=True)
    labels_BN = pad_sequence([_at_least_one(ids) for ids in labels], batch_first=True)
    if bool(((labels_BN < 0) | (labels_BN >= num_classes)).any()):
        raise ValueError(
            f"labels span {int(labels_BN.min())} to {int(labels_BN.max())}, but there are {num_classes} classes"
        )
    segments_BN2, labels_BN = segments_BN2.to(points_P4), labels_BN.to(points_P4.device)

    start_B1N, end_B1N = segments_BN2[:, None, :, 0], segments_BN2[:, None, :, 1]
    left_BPN, right_BPN = t_P1 - start_B1N, end_B1N - t_P1
    if center_sample == "radius":
        middle_B1N, reach_P1 = 0.5 * (start_B1N + end_B1N), stride_P1 * center_sample_radius
        window_left = t_P1 - torch.maximum(middle_B1N - reach_P1, start_B1N)
        window_right = torch.minimum(middle_B1N + reach_P1, end_B1N) - t_P1
        inside_BPN = torch.minimum(window_left, window_right) > 0
    else:
        inside_BPN = torch.minimum(left_BPN, right_BPN) > 0
    farthest_BPN = torch.maximum(left_BPN, right_BPN)
    belongs_BPN = inside_BPN & (farthest_BPN >= low_P1) & (farthest_BPN <= high_P1)

    length_BPN = (end_B1N - start_B1N).masked_fill(~belongs_BPN, torch.inf)
    shortest_BP1, first_BP1 = length_BPN.min(dim=-1, keepdim=True)
    shares_BPN = belongs_BPN & (length_BPN <= shortest_BP1 + SAME_LENGTH)
    cls_targets_BPC = (shares_BPN.to(points_P4) @ F.one_hot(labels_BN, num_classes).to(points_P4)).clamp_(max=1.0)

    offsets_BP2 = torch.cat([left_BPN.gather(-1, first_BP1), right_BPN.gather(-1, first_BP1)], dim=-1) / stride_P1
    return cls_targets_BPC, offsets_BP2.masked_fill(shortest_BP1.isinf(), 0.0)


def _at_least_one(rows: Tensor) -> Tensor:
    return rows if len(rows) else rows.new_zeros((1, *rows.shape[1:]))
