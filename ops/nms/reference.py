"""Decoding and 1-D NMS as plain loops, one class after the other: what the native call must agree with.

Segments are (left, right) on the feature grid, scores float32 in [0, 1]. Thresholds are compared in float32.
"""

import torch

METHODS = ("none", "soft", "hard")


def decode_reference(
    cls_logits_PC, offsets_P2, point_mask_P, points_P4, pre_nms_thresh, pre_nms_topk, duration_thresh
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Candidates (segments [M,2], scores [M], labels [M]) of one video, level by level, the best first.

    A level is a run of equal stride in points (t, range low, range high, stride). Of its (point, class) pairs with
    sigmoid(logit) > pre_nms_thresh at unmasked points, the best `pre_nms_topk` are kept (equal scores: the smaller
    index first); of those, segments (t - offset_0 stride, t + offset_1 stride) longer than `duration_thresh`.
    """
    num_classes = cls_logits_PC.shape[1]
    segments, scores, labels = [], [], []
    strides = points_P4[:, 3].tolist()
    first = 0
    while first < len(strides):
        last = first + 1
        while last < len(strides) and strides[last] == strides[first]:
            last += 1
        score = torch.sigmoid(cls_logits_PC[first:last].double()).float()
        keep = (score > pre_nms_thresh) & point_mask_P[first:last, None]
        index = keep.flatten().nonzero().flatten()
        score, order = score.flatten()[index].sort(descending=True, stable=True)
        score, index = score[:pre_nms_topk], index[order[:pre_nms_topk]]
        point = first + index // num_classes
        t, stride = points_P4[point, 0], points_P4[point, 3]
        left = t - offsets_P2[point, 0] * stride
        right = t + offsets_P2[point, 1] * stride
        long_enough = right - left > duration_thresh
        segments.append(torch.stack([left, right], dim=1)[long_enough])
        scores.append(score[long_enough])
        labels.append((index % num_classes)[long_enough])
        first = last
    if not segments:
        return cls_logits_PC.new_empty(0, 2), cls_logits_PC.new_empty(0), point_mask_P.new_empty(0, dtype=torch.int64)
    return torch.cat(segments), torch.cat(scores), torch.cat(labels)


def nms_reference(
    segments_N2, scores_N, labels_N, method, multiclass, iou_threshold, min_score, max_seg_num, sigma, voting_thresh
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Suppress overlapping candidates; returns (segments [M,2], scores [M], labels [M]).

    Candidates that are not finite or end before they start are left out. ``"none"`` returns the others as they came.
    Otherwise the method runs within each class (`multiclass`) or across all; each run yields at most `max_seg_num`, and
    so does the whole: sorted by score, equal scores by class, then by the order of their selection.

    Soft: scores of what overlaps the selected segment fall by exp(-iou^2 / sigma), and below `min_score` they are
    dropped (the first selection is never compared); there is no overlap threshold. Hard: candidates must exceed
    `min_score` (if > 0), and those that overlap the selected one by at least `iou_threshold` go. Of equal scores the
    first is selected: for hard NMS the one that came first, for soft NMS the first in the array in which a selected
    candidate changes places with the first of the rest and a dropped one is replaced by the last.

    Voting (across classes only, `voting_thresh` > 0): each result becomes the average of all candidates that overlap it
    by at least `voting_thresh`, weighted with their original scores.
    """
    length = segments_N2[:, 1] - segments_N2[:, 0]
    usable = scores_N.isfinite() & segments_N2[:, 0].isfinite() & length.isfinite() & (length >= 0)
    segments, scores, labels = segments_N2[usable], scores_N[usable], labels_N[usable]
    if method == "none":
        return segments, scores, labels
    groups = [(labels == label).nonzero().flatten() for label in labels.unique()] if multiclass else [...]
    parts = []
    for group in groups:
        candidates = (segments[group], scores[group], labels[group])
        if method == "soft":
            parts.append(_soft(*candidates, min_score, max_seg_num, sigma))
        else:
            parts.append(_hard(*candidates, iou_threshold, min_score, max_seg_num))
    if not parts:
        return segments, scores, labels
    out_segments, out_scores, out_labels = (torch.cat(tensors) for tensors in zip(*parts))
    if not multiclass and voting_thresh > 0:
        out_segments = _vote(out_segments, segments, scores, voting_thresh)
    out_scores, order = out_scores.sort(descending=True, stable=True)
    order = order[:max_seg_num]
    return out_segments[order], out_scores[:max_seg_num], out_labels[order]


def _overlap(segment_2, segments_N2, eps) -> torch.Tensor:
    """Intersection over union of one segment with each of N; `eps` is added to every length."""
    left, right = segments_N2[:, 0], segments_N2[:, 1]
    inter = (torch.minimum(segment_2[1], right) - torch.maximum(segment_2[0], left)).clamp(min=0)
    return inter / ((segment_2[1] - segment_2[0] + eps) + (right - left + eps) - inter)


def _soft(segments, scores, labels, min_score, max_num, sigma):
    segments, scores, labels = segments.clone(), scores.clone(), labels.clone()
    start, end = 0, len(scores)
    while start < end and start < max_num:
        best = start + int(scores[start:end].argmax())
        swap, with_ = torch.tensor([start, best]), torch.tensor([best, start])
        for array in (segments, scores, labels):
            array[swap] = array[with_]
        overlap = _overlap(segments[start], segments[start + 1 : end], 1e-6).double()
        start += 1
        scores[start:end] *= torch.exp(-(overlap * overlap) / sigma).float()
        too_low = (scores < min_score).tolist()
        position = start
        while position < end:
            if too_low[position]:
                end -= 1
                too_low[position] = too_low[end]
                for array in (segments, scores, labels):
                    array[position] = array[end]
            else:
                position += 1
    return segments[:start], scores[:start], labels[:start]


def _hard(segments, scores, labels, iou_threshold, min_score, max_num):
    remaining = (scores > min_score).nonzero().flatten() if min_score > 0 else torch.arange(len(scores))
    remaining = remaining[scores[remaining].sort(descending=True, stable=True).indices]
    selected = []
    while len(remaining) and len(selected) < max_num:
        selected.append(int(remaining[0]))
        overlap = _overlap(segments[remaining[0]], segments[remaining[1:]], 1e-6)
        remaining = remaining[1:][~(overlap >= iou_threshold)]
    return segments[selected], scores[selected], labels[selected]


def _vote(detections, segments, scores, voting_thresh):
    voted = detections.clone()
    for i, detection in enumerate(detections):
        weights = (scores * (_overlap(detection, segments, 0.0) >= voting_thresh)).double()
        total = weights.sum()
        if total > 0:
            voted[i] = ((weights[:, None] * segments).sum(0) / total).float()
    return voted
