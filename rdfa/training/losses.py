"""Losses: sigmoid focal loss for classes, centre DIoU loss for offsets, and the criterion that joins them.

Shapes: B videos, P points of all levels, C classes, 2 = (left, right) offset in strides of the level.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from rdfa.training.settings import CriterionSettings

EPSILON = 1e-8


def _reduce(loss: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return loss
    if reduction == "mean":
        return loss.mean() if loss.numel() else loss.sum()  # the mean of nothing is 0 here, not NaN
    if reduction == "sum":
        return loss.sum()
    raise ValueError(f"reduction = {reduction!r}: expected 'none', 'mean' or 'sum'")


def sigmoid_focal_loss(
    logits: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2.0, reduction: str = "none"
) -> Tensor:
    """Focal loss of independent classes (Lin et al., "Focal Loss for Dense Object Detection", arXiv 1708.02002).

        loss = a (1 - p_t)^gamma BCE(x, y),    p_t = p y + (1 - p)(1 - y),    p = sigmoid(x),
        a = alpha y + (1 - alpha)(1 - y)

    Args:
        logits, targets: any equal shapes; targets in [0, 1].
        alpha: weight of the positives; negative: no weighting (a = 1).
        gamma: focus on hard examples; 0: none.
        reduction: "none", "mean" (0 for no element) or "sum".

    Computed in float32 or the wider dtype of the inputs.
    """
    logits, targets = _widen(logits), _widen(targets)
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    # 1 - p_t without the cancellation that 1 - sigmoid(x) has for large x
    miss = torch.sigmoid(logits) * (1 - targets) + torch.sigmoid(-logits) * targets
    loss = cross_entropy * miss**gamma
    if alpha >= 0:
        loss = (alpha * targets + (1 - alpha) * (1 - targets)) * loss
    return _reduce(loss, reduction)


def ctr_diou_loss_1d(offsets: Tensor, targets: Tensor, reduction: str = "none") -> Tensor:
    """Distance-IoU loss of two segments around a common point (Zheng et al., arXiv 1911.08287), in one dimension.

        loss = 1 - I / U + (d / E)^2

    with I, U, E the lengths of intersection, union and enclosing segment, d the distance of the midpoints.

    Args:
        offsets, targets: [..., 2], distances >= 0 from the common point to the left and right end.
        reduction: "none" gives [...]; "mean" (0 for no element) or "sum".
    """
    offsets, targets = _widen(offsets), _widen(targets)
    iou, union = _iou(offsets, targets)
    # Segments that share a point have no gap between them: the enclosing segment is their union.
    shift = 0.5 * (offsets - targets).diff(dim=-1).squeeze(-1)
    return _reduce(1 - iou + (shift / union).square(), reduction)


def ctr_giou_loss_1d(offsets: Tensor, targets: Tensor, reduction: str = "none") -> Tensor:
    """Generalised IoU loss of two segments around a common point (Rezatofighi et al., arXiv 1902.09630).

        loss = 1 - I / U + (E - U) / E = 1 - I / U

    because the enclosing segment of two that share a point is their union. Arguments as for `ctr_diou_loss_1d`.
    """
    return _reduce(1 - _iou(_widen(offsets), _widen(targets))[0], reduction)


def _widen(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _iou(offsets: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """(intersection / union, union) of segments that share a point; the union that divides is at least EPSILON long."""
    union = torch.maximum(offsets, targets).sum(dim=-1).clamp(min=EPSILON)
    return torch.minimum(offsets, targets).sum(dim=-1) / union, union


def criterion(
    cls_logits_BPC: Tensor,
    offsets_BP2: Tensor,
    point_mask_BP: Tensor,
    cls_targets_BPC: Tensor,
    offset_targets_BP2: Tensor,
    settings: CriterionSettings,
    num_positives: Tensor | None = None,
) -> dict[str, Tensor]:
    """The losses of a batch: scalars "cls_loss", "reg_loss" and "loss", which is the one to differentiate.

        norm = m init + (1 - m) max(positives, 1)            m = init_loss_norm_momentum, init = init_loss_norm
        cls_loss = sum of the focal loss over the valid points / norm
        reg_loss = sum of the centre DIoU loss over the positive points / norm
        loss = cls_loss + w reg_loss
        w = loss_weight; if that is negative, cls_loss / max(reg_loss, 0.01), taken as a constant

    The normaliser is always computed from the constant `init`: as in the published code, and unlike ActionFormer's, it
    is not a running average, so the loss of a batch depends on nothing but that batch. For a piece of a batch,
    `num_positives` is the number of positives of the whole, an integer scalar: the losses of all pieces then add up to
    those of the batch (for a `loss_weight` >= 0).

    Positive points are the valid ones with a class. With label smoothing e the classes of *all* valid points become
    (1 - e) y + e / (C + 1). Computed in float32 whatever the dtype of the outputs, without waiting for the device.
    """
    valid_BP1 = point_mask_BP[..., None]
    positive_BP = point_mask_BP & (cls_targets_BPC > 0).any(dim=-1)
    if settings.label_smoothing > 0:
        keep, classes = 1 - settings.label_smoothing, cls_targets_BPC.shape[-1]
        cls_targets_BPC = keep * cls_targets_BPC + settings.label_smoothing / (classes + 1)
    if num_positives is None:
        num_positives = positive_BP.sum()
    momentum = settings.init_loss_norm_momentum
    norm = momentum * settings.init_loss_norm + (1 - momentum) * num_positives.clamp(min=1)

    focal_BPC = sigmoid_focal_loss(cls_logits_BPC, cls_targets_BPC)
    cls_loss = torch.where(valid_BP1, focal_BPC, 0.0).sum() / norm
    diou_BP = ctr_diou_loss_1d(offsets_BP2, offset_targets_BP2)
    reg_loss = torch.where(positive_BP, diou_BP, 0.0).sum() / norm

    weight = settings.loss_weight
    if weight < 0:
        weight = cls_loss.detach() / reg_loss.detach().clamp(min=0.01)
    return {"cls_loss": cls_loss, "reg_loss": reg_loss, "loss": cls_loss + weight * reg_loss}
