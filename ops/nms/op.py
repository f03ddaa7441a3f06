"""`decode_nms` and `nms`: checks, dispatch, and what torch must know about the library's operators (fake)."""

import torch

from ops import library
from ops.nms.reference import METHODS, decode_reference, nms_reference

Triple = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def decode_nms(
    cls_logits: torch.Tensor,
    offsets: torch.Tensor,
    point_mask: torch.Tensor,
    points: torch.Tensor,
    *,
    pre_nms_thresh: float = 0.001,
    pre_nms_topk: int = 2000,
    duration_thresh: float = 0.05,
    method: str = "soft",
    multiclass: bool = True,
    iou_threshold: float = 0.1,
    min_score: float = 0.001,
    max_seg_num: int = 200,
    sigma: float = 0.5,
    voting_thresh: float = 0.7,
) -> Triple:
    """The final detections of ONE video from the detector's outputs, in one native call.

    Args:
        cls_logits: [P,C]. offsets: [P,2], in strides. point_mask: [P] bool, False at padding.
        points: [P,4] (t, range low, range high, stride) on the feature grid; a pyramid level is a run of equal stride.
        pre_nms_thresh: a candidate's sigmoid(logit) must exceed it. pre_nms_topk: candidates kept per level.
        duration_thresh: a candidate must be longer, on the grid. The others: see `nms`.

    Returns:
        segments [M,2] float32 on the grid (t - offset_0 stride, t + offset_1 stride), scores [M] float32 best first,
        labels [M] int64.

    Computed on the CPU in float32 and returned on the device of `cls_logits`. NaN logits and offsets yield no
    candidate. `decode_reference` and `nms_reference` say exactly what is computed, and run where the library is not
    built.
    """
    if cls_logits.dim() != 2:
        raise ValueError(f"cls_logits has shape {list(cls_logits.shape)}: expected [P, C]")
    _check_shapes(cls_logits.shape[0], "P", offsets=(offsets, 2), point_mask=(point_mask, None), points=(points, 4))
    if point_mask.dtype != torch.bool:
        raise TypeError(f"point_mask is {point_mask.dtype}: expected torch.bool")
    if pre_nms_topk < 1:
        raise ValueError(f"pre_nms_topk = {pre_nms_topk}: expected at least 1")
    _check_settings(method, max_seg_num, sigma)
    outputs = (_float_cpu(cls_logits), _float_cpu(offsets), point_mask.cpu(), _float_cpu(points))
    decoding = (pre_nms_thresh, pre_nms_topk, duration_thresh)
    settings = (multiclass, iou_threshold, min_score, max_seg_num, sigma, voting_thresh)
    if library.available():
        result = torch.ops.rdfa.decode_nms(*outputs, *decoding, METHODS.index(method), *settings)
    else:
        result = nms_reference(*decode_reference(*outputs, *decoding), method, *settings)
    return tuple(t.to(cls_logits.device) for t in result)


def nms(
    segments: torch.Tensor,
    scores: torch.Tensor,
    labels: torch.Tensor,
    *,
    method: str = "soft",
    multiclass: bool = True,
    iou_threshold: float = 0.1,
    min_score: float = 0.001,
    max_seg_num: int = 200,
    sigma: float = 0.5,
    voting_thresh: float = 0.7,
) -> Triple:
    """Non-maximum suppression of time segments, of all classes in one native call.

    Args:
        segments: [N,2] (left, right). scores: [N]. labels: [N] integer.
        method: "soft" (scores fall by exp(-iou^2 / sigma), dropped below `min_score`), "hard" (overlaps of at least
            `iou_threshold` are removed, scores up to `min_score` ignored) or "none" (neither sorted nor capped).
        multiclass: suppress within each class; otherwise across classes, and then `voting_thresh` > 0 averages the
            candidates that overlap a detection that much.
        max_seg_num: detections kept.

    Returns:
        segments [M,2] float32, scores [M] float32 (best first), labels [M] int64, on the device of `segments`.

    Computed on the CPU in float32. `nms_reference` says exactly what is computed, the order of equal scores included.
    """
    if scores.dim() != 1:
        raise ValueError(f"scores has shape {list(scores.shape)}: expected [N]")
    _check_shapes(scores.shape[0], "N", segments=(segments, 2), labels=(labels, None))
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise TypeError(f"labels is {labels.dtype}: expected integers")
    _check_settings(method, max_seg_num, sigma)
    candidates = (_float_cpu(segments), _float_cpu(scores), labels.to("cpu", torch.int64))
    settings = (multiclass, iou_threshold, min_score, max_seg_num, sigma, voting_thresh)
    if library.available():
        result = torch.ops.rdfa.nms(*candidates, METHODS.index(method), *settings)
    else:
        result = nms_reference(*candidates, method, *settings)
    return tuple(t.to(segments.device) for t in result)


def _float_cpu(tensor):
    return tensor.detach().to("cpu", torch.float32)


def _check_shapes(length, letter, **tensors):
    for name, (tensor, columns) in tensors.items():
        expected = [length] if columns is None else [length, columns]
        if list(tensor.shape) != expected:
            wanted = f"[{letter}]" if columns is None else f"[{letter}, {columns}]"
            raise ValueError(f"{name} has shape {list(tensor.shape)}: expected {wanted} = {expected}")


def _check_settings(method, max_seg_num, sigma):
    if method not in METHODS:
        raise ValueError(f"method = {method!r} is unknown: use 'soft', 'hard' or 'none'")
    if max_seg_num < 1:
        raise ValueError(f"max_seg_num = {max_seg_num}: expected at least 1")
    if not sigma > 0:
        raise ValueError(f"sigma = {sigma}: expected more than 0")


def _fake(first, *_):
    size = torch.library.get_ctx().new_dynamic_size()
    floats = first.new_empty
    return floats((size, 2)), floats((size,)), floats((size,), dtype=torch.int64)


if library.loaded():
    torch.library.register_fake("rdfa::nms", _fake)
    torch.library.register_fake("rdfa::decode_nms", _fake)
