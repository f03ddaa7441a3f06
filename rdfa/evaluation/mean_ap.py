"""Mean average precision of temporal action detection, vectorised over videos, classes and predictions.

Suffixes: M predictions, G ground-truth segments, R pairs of both, K thresholds of temporal IoU, C classes.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from rdfa.errors import RunError, UsageError
from rdfa.inference.videos import find_video

DUPLICATE_TOLERANCE = 1e-3  # seconds
BLOCK = 1 << 14  # predictions whose overlaps are computed at once: bounds memory, stays in cache


@dataclass(frozen=True)
class MeanAP:
    """Average precision per threshold of temporal IoU and class.

    `ap_KC` float64 in [0, 1]; columns in the order of `labels_C` (class ids, ascending) and `class_names`.
    `num_ground_truth` counts the segments evaluated against, `num_predictions` all predictions given, of which
    `unknown_labels` (class id -> count) have a class without ground truth and take no part, and `unknown_videos`
    (video id -> count) lie in videos without ground truth and are false positives of their class. `recall` is multiple
    -> mean recall per threshold, as far as it was asked for.
    """

    tiou_K: np.ndarray
    ap_KC: np.ndarray
    labels_C: np.ndarray
    class_names: list[str]
    num_ground_truth: int
    num_predictions: int
    unknown_labels: dict[int, int]
    unknown_videos: dict[str, int]
    recall: dict[int, np.ndarray]

    @property
    def mAP(self) -> np.ndarray:
        """Mean over classes, one value per threshold."""
        return self.ap_KC.mean(axis=1)

    @property
    def average(self) -> float:
        """Mean over classes and thresholds."""
        return float(self.mAP.mean())

    def summary(self) -> dict[str, Any]:
        """The figures as JSON values."""
        return {
            "tiou": [round(float(t), 6) for t in self.tiou_K],
            "mAP": self.mAP.tolist(),
            "average_mAP": self.average,
            "per_class": dict(zip(self.class_names, self.ap_KC.T.tolist())),
            "recall": {f"{k}x": values.tolist() for k, values in self.recall.items()},
            "num_ground_truth": self.num_ground_truth,
            "num_predictions": self.num_predictions,
        }


def mean_average_precision(
    ground_truth: Iterable[Any],
    predictions: Mapping[str, Any],
    tiou: Iterable[float],
    class_names: Mapping[int, str] | None = None,
    keep_duplicates: bool = False,
    recall_at: Iterable[int] = (),
) -> MeanAP:
    """Mean average precision as the ActivityNet benchmark defines it.

    Per class, predictions of all videos are taken by falling score. Each one claims, of the ground truth of its video
    and class that no higher score has claimed, the segment of largest temporal IoU, if that is at least the threshold
    (equal IoU: the later segment), and is a true positive; all others are false positives. AP is the area under the
    precision-recall curve after precision is made non-increasing (no sampling of recall). float64 throughout.

    Of equal scores the later prediction comes first, in the order of the mapping and then within the video: what the
    common evaluators' reversed sort means, made stable, so that the result does not depend on the machine.

    Args:
        ground_truth: objects with `id`, `segments_N2` (seconds), `labels_N` (class ids), such as `rdfa.data`'s `Video`.
        predictions: video id -> object with `segments_N2` (seconds), `scores_N`, `labels_N`, such as `Detections`.
            Ids match with or without the prefix ``v_``.
        tiou: thresholds in (0, 1].
        class_names: class id -> name, for the report only.
        keep_duplicates: False drops ground truth that repeats an earlier segment of its video and class within 1e-3 s,
            or has no length, as the evaluation of ActionFormer and its successors does; True keeps all of it, as the
            official ActivityNet evaluation does.
        recall_at: multiples k of the recall to compute too: the share of a class's ground truth that one of the best
            k G predictions overlaps enough, of the G segments that its video shows of the class; mean over classes.

    Raises:
        UsageError: a threshold outside (0, 1], or none.
        RunError: no ground truth, or a NaN among the scores or segments.
    """
    tiou_K = _check_thresholds(tiou)
    ranking = rank_predictions(ground_truth, predictions, keep_duplicates)
    pairs = ranking.pairs(tiou_K.min())
    labels_C, gt_class_G, class_M = ranking.labels_C, ranking.gt_class_G, ranking.class_M
    recall = {k: _recall(*pairs, ranking.group_M, ranking.groups.count, k, tiou_K, gt_class_G) for k in recall_at}
    ap_KC = np.zeros((len(tiou_K), len(labels_C)))
    for k in np.argsort(tiou_K):
        enough_R = pairs[2] >= tiou_K[k]
        pairs = tuple(column_R[enough_R] for column_R in pairs)
        matched, _ = match(*pairs[:2], len(gt_class_G))
        ap_KC[k] = average_precision(ranking.place_M[matched], class_M[matched], ranking.num_gt_C)

    names = class_names or {}
    return MeanAP(
        tiou_K=tiou_K,
        ap_KC=ap_KC,
        labels_C=labels_C,
        class_names=[names.get(int(label), str(label)) for label in labels_C],
        num_ground_truth=len(gt_class_G),
        num_predictions=ranking.num_predictions,
        unknown_labels=ranking.unknown_labels,
        unknown_videos=ranking.unknown_videos,
        recall=recall,
    )


@dataclass(frozen=True)
class Ranking:
    """Ground truth and predictions in columns, predictions by class, then by falling score.

    Attributes:
        place_M: of a prediction among those of its class, from 0 on.
        group_M: the ground truth of the prediction's video and class, as a group of `groups`; -1: none.
    """

    gt: "Columns"
    gt_class_G: np.ndarray
    labels_C: np.ndarray
    num_gt_C: np.ndarray
    pred: "Columns"
    class_M: np.ndarray
    place_M: np.ndarray
    group_M: np.ndarray
    groups: "_Groups"
    num_predictions: int
    unknown_labels: dict[int, int]
    unknown_videos: dict[str, int]

    def pairs(self, least_iou: float) -> tuple[np.ndarray, ...]:
        """(pred_R, gt_R, iou_R) of one video and class and enough overlap, as `match` takes them."""
        return _overlapping_pairs(self.pred.segments, self.group_M, self.gt.segments, self.groups, least_iou)

    def pairs_of_any_class(self, least_iou: float) -> tuple[np.ndarray, ...]:
        """As `pairs`, of one video."""
        groups = _Groups(self.gt.video)
        return _overlapping_pairs(self.pred.segments, groups.find(self.pred.video), self.gt.segments, groups, least_iou)


def rank_predictions(ground_truth: Iterable[Any], predictions: Mapping[str, Any], keep_duplicates: bool) -> Ranking:
    """See `mean_average_precision`. Predictions of classes without ground truth are left out.

    Raises:
        RunError: no ground truth, or a NaN among the scores or segments.
    """
    videos = list(ground_truth)
    index = {video.id: i for i, video in enumerate(videos)}
    gt = _ground_truth_columns(videos, keep_duplicates)
    if not len(gt.labels):
        raise RunError("no ground truth to evaluate against: the annotations of this subset hold no segment")
    labels_C, gt_class_G = np.unique(gt.labels, return_inverse=True)

    pred, unknown_videos = _prediction_columns(predictions, index)
    class_M = np.searchsorted(labels_C, pred.labels).clip(max=len(labels_C) - 1)
    known_M = labels_C[class_M] == pred.labels
    unknown_ids, unknown_counts = np.unique(pred.labels[~known_M], return_counts=True)
    rows = np.flatnonzero(known_M)
    rows = rows[_ranking(pred.scores[rows], class_M[rows], len(labels_C))]

    # A prediction can only meet ground truth of its video and class. The keys ascend with the videos: fast to look up.
    groups = _Groups(gt.video * len(labels_C) + gt_class_G)
    group_M = groups.find(pred.video * len(labels_C) + class_M)[rows]
    class_M = class_M[rows]
    first_of_class_C = np.searchsorted(class_M, np.arange(len(labels_C)))
    return Ranking(
        gt=gt,
        gt_class_G=gt_class_G,
        labels_C=labels_C,
        num_gt_C=np.bincount(gt_class_G, minlength=len(labels_C)),
        pred=pred.take(rows),
        class_M=class_M,
        place_M=np.arange(len(rows)) - first_of_class_C[class_M],
        group_M=group_M,
        groups=groups,
        num_predictions=len(pred.labels),
        unknown_labels=dict(zip(unknown_ids.tolist(), unknown_counts.tolist())),
        unknown_videos=unknown_videos,
    )


@dataclass(frozen=True)
class Columns:
    """Segments of all videos in columns; `video` is the index of the video, `scores` is None for ground truth."""

    video: np.ndarray
    segments: np.ndarray
    labels: np.ndarray
    scores: np.ndarray | None = None

    def take(self, rows: np.ndarray) -> "Columns":
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows
        scores = None if self.scores is None else self.scores[rows]
        return Columns(self.video[rows], self.segments.take(rows, axis=0), self.labels[rows], scores)


def _check_thresholds(tiou: Iterable[float]) -> np.ndarray:
    tiou_K = np.atleast_1d(np.asarray(tiou if isinstance(tiou, (int, float)) else list(tiou), dtype=np.float64))
    if not tiou_K.size or not ((tiou_K > 0) & (tiou_K <= 1)).all():
        raise UsageError(f"tIoU thresholds {tiou_K.tolist()}: give at least one, each above 0 and at most 1")
    return tiou_K


def _concatenate(parts: list, dtype, shape=(0,)) -> np.ndarray:
    parts = [part for part in parts if len(part)]
    return np.concatenate(parts).astype(dtype, copy=False) if parts else np.empty(shape, dtype)


def _ground_truth_columns(videos: list, keep_duplicates: bool) -> Columns:
    gt = Columns(
        np.repeat(np.arange(len(videos)), [len(video.labels_N) for video in videos]),
        _concatenate([video.segments_N2 for video in videos], np.float64, (0, 2)),
        _concatenate([video.labels_N for video in videos], np.int64),
    )
    if keep_duplicates:
        return gt
    gt = gt.take(gt.segments[:, 1] > gt.segments[:, 0])
    return gt.take(_first_occurrences(gt))


def _first_occurrences(gt: Columns) -> np.ndarray:
    """Mask of the segments that repeat no earlier kept segment of their video and class within the tolerance."""
    keep = np.ones(len(gt.labels), bool)
    order = np.lexsort((gt.segments[:, 0], gt.labels, gt.video))
    new_group = np.ones(len(order), bool)
    new_group[1:] = (np.diff(gt.video[order]) != 0) | (np.diff(gt.labels[order]) != 0)
    # Only a group in which neighbouring starts are close can hold a repetition; few do.
    close = ~new_group[1:] & (np.diff(gt.segments[order, 0]) <= DUPLICATE_TOLERANCE)
    group = np.cumsum(new_group)
    for suspect in np.unique(group[1:][close]):
        rows = np.sort(order[group == suspect])
        for i, row in enumerate(rows):
            earlier = rows[:i][keep[rows[:i]]]
            difference = np.abs(gt.segments[earlier] - gt.segments[row])
            keep[row] = not (difference <= DUPLICATE_TOLERANCE).all(axis=1).any()
    return keep


def _prediction_columns(predictions: Mapping[str, Any], index: Mapping[str, int]) -> tuple[Columns, dict[str, int]]:
    """All predictions in order, and the count of those in unknown videos, whose index is the number of videos."""
    ids, items = list(predictions), list(predictions.values())
    rows = [index.get(find_video(i, index), len(index)) for i in ids]
    columns = Columns(
        np.repeat(np.array(rows, np.int64), [len(item.labels_N) for item in items]),
        _concatenate([item.segments_N2 for item in items], np.float64, (0, 2)),
        _concatenate([item.labels_N for item in items], np.int64),
        _concatenate([item.scores_N for item in items], np.float64),
    )
    for name, values in (("score", columns.scores), ("segment", columns.segments)):
        if np.isnan(values).any():
            bad = np.isnan(values).reshape(len(values), -1).any(axis=1).argmax()
            video_id = np.repeat(ids, [len(item.labels_N) for item in items])[bad]
            raise RunError(f"video {video_id}: a {name} is NaN; such predictions cannot be ranked or matched")
    unknown = {i: len(item.labels_N) for i, item, row in zip(ids, items, rows) if row == len(index)}
    return columns, {i: n for i, n in unknown.items() if n}


def _ranking(scores_M: np.ndarray, class_M: np.ndarray, num_classes: int) -> np.ndarray:
    """The order by class, then by falling score, then later first."""
    # A stable sort of 16-bit keys is linear, and the scores of one class fit into the cache.
    order = np.argsort(class_M.astype(np.uint16) if num_classes < 1 << 16 else class_M, kind="stable")
    negative_M = -scores_M[order]
    ends = np.cumsum(np.bincount(class_M, minlength=num_classes))
    for start, end in zip(ends - np.diff(ends, prepend=0), ends):
        within = negative_M[start:end].argsort()
        order[start:end], negative_M[start:end] = order[start:end][within], negative_M[start:end][within]
    # The fastest sort leaves equal scores in any order; sorting those again costs nothing where there are few.
    tied = np.append(negative_M[1:] == negative_M[:-1], False)
    after_tied = np.append(False, tied[:-1])[: len(tied)]
    at = np.flatnonzero(tied | after_tied)
    order[at] = order[at][np.lexsort((-order[at], np.cumsum(~after_tied)[at], class_M[order[at]]))]
    return order


class _Groups:
    """Ground truth by key: the segments of group g are `order[end[g] - count[g] : end[g]]`, in file order."""

    def __init__(self, key_G: np.ndarray):
        self.order = np.argsort(key_G, kind="stable")
        self._keys, start, self.count = np.unique(key_G[self.order], return_index=True, return_counts=True)
        self.end = start + self.count

    def find(self, key_M: np.ndarray) -> np.ndarray:
        """The group of each key, -1 where there is none."""
        group_M = np.searchsorted(self._keys, key_M).clip(max=len(self._keys) - 1)
        group_M[self._keys[group_M] != key_M] = -1
        return group_M


def _overlapping_pairs(pred_segments, group_M, gt_segments, groups: _Groups, least_iou) -> tuple[np.ndarray, ...]:
    """Pairs of one group whose IoU is at least `least_iou`, by prediction, then falling IoU, then later ground truth.

    Returns (pred_R, gt_R, iou_R).
    """
    candidates = np.flatnonzero(group_M >= 0)
    pred_columns, gt_columns = (segments.T.copy() for segments in (pred_segments, gt_segments[groups.order]))
    blocks = []
    for start in range(0, max(len(candidates), 1), BLOCK):
        block = candidates[start : start + BLOCK]
        count, end = groups.count[group_M[block]], groups.end[group_M[block]]
        pred_R = np.repeat(block, count)
        gt_R = np.repeat(end + np.cumsum(count) - count, count) - np.arange(1, len(pred_R) + 1)
        iou_R = _temporal_iou(pred_columns[:, pred_R], gt_columns[:, gt_R])
        enough = np.flatnonzero(iou_R >= least_iou)
        blocks.append((pred_R[enough], gt_R[enough], iou_R[enough]))
    pred_R, gt_R, iou_R = map(np.concatenate, zip(*blocks))
    # Ground truth falls within each prediction already; only predictions with a choice need sorting by IoU.
    same = pred_R[1:] == pred_R[:-1]
    choice = np.flatnonzero(np.append(same, False) | np.append(False, same)[: len(pred_R)])
    order = choice[np.lexsort((-iou_R[choice], pred_R[choice]))]
    gt_R[choice], iou_R[choice] = gt_R[order], iou_R[order]
    return pred_R, groups.order[gt_R], iou_R


def _temporal_iou(a_2R: np.ndarray, b_2R: np.ndarray) -> np.ndarray:
    """Intersection over union of paired segments; 1 for two equal instants, whose union has no length."""
    intersection = (np.minimum(a_2R[1], b_2R[1]) - np.maximum(a_2R[0], b_2R[0])).clip(min=0)
    union = (a_2R[1] - a_2R[0]) + (b_2R[1] - b_2R[0]) - intersection
    if union.min(initial=1) > 0:
        return intersection / union
    instants = (union == 0) & (a_2R == b_2R).all(axis=0)
    return np.divide(intersection, union, out=instants.astype(np.float64), where=union > 0)


def match(pred_R: np.ndarray, gt_R: np.ndarray, num_gt: int) -> tuple[np.ndarray, np.ndarray]:
    """The true positives, ascending, and the segment of each, among pairs that overlap enough for one threshold.

    Claiming segments one prediction at a time is the stable matching in which every segment prefers the prediction that
    comes first. It is unique, so deferred acceptance finds it for all classes and videos at once: each unmatched
    prediction proposes to its next best segment, a segment keeps its first-ranked proposer, until nobody can propose.
    """
    num_pairs = len(pred_R)
    nobody = num_pairs  # of the pairs, which are sorted by prediction, so that an earlier pair is a better proposer
    holder_G = np.full(num_gt, nobody)
    last_R = np.ones(num_pairs, bool)
    last_R[:-1] = pred_R[1:] != pred_R[:-1]
    proposing = np.flatnonzero(np.concatenate([[True], last_R[:-1]])[:num_pairs])
    while len(proposing):
        target = gt_R[proposing]
        previous = holder_G[target]
        np.minimum.at(holder_G, target, proposing)
        accepted = holder_G[target] == proposing
        displaced = previous[accepted]
        rejected = np.concatenate([proposing[~accepted], displaced[displaced != nobody]])
        proposing = rejected[~last_R[rejected]] + 1
    held = np.flatnonzero(holder_G != nobody)
    matched = pred_R[holder_G[held]]
    order = np.argsort(matched)
    return matched[order], held[order]


def average_precision(rank: np.ndarray, class_of: np.ndarray, num_gt_C: np.ndarray) -> np.ndarray:
    """AP of every class from its true positives: their `rank` among the predictions of the class, and their class.

    Precision only rises at true positives, so AP = 1/G sum over true positives of the best precision from there on.
    """
    count = len(rank)
    first_C = np.searchsorted(class_of, np.arange(len(num_gt_C)))
    precision = (np.arange(count) - first_C[class_of] + 1) / (rank + 1)
    # The running maximum from the end, of all classes at once: precision is replaced by its height among all of them,
    # which classes further to the front have more of.
    by_height = np.argsort(precision, kind="stable")
    height = np.empty(count, np.int64)
    height[by_height] = np.arange(count)
    shift = count * class_of
    best = np.maximum.accumulate((height - shift)[::-1])[::-1] + shift
    return np.bincount(class_of, precision[by_height[best]], minlength=len(num_gt_C)) / num_gt_C


def _recall(pred_R, gt_R, iou_R, group_M, count_G, multiple: int, tiou_K, gt_class_G) -> np.ndarray:
    """Mean recall per threshold of the best `multiple` times as many predictions as there is ground truth, by group."""
    order = np.argsort(group_M, kind="stable")
    ordered_M = group_M[order]
    nth_M = np.empty(len(group_M), np.int64)  # place among the predictions of the group
    nth_M[order] = np.arange(len(order)) - np.searchsorted(ordered_M, ordered_M)
    among_best_R = nth_M[pred_R] < multiple * count_G[group_M[pred_R]]
    found_KG = np.zeros((len(tiou_K), len(gt_class_G)), bool)
    for found_G, threshold in zip(found_KG, tiou_K):
        found_G[gt_R[among_best_R & (iou_R >= threshold)]] = True
    num_gt_C = np.bincount(gt_class_G)
    return np.array([(np.bincount(gt_class_G, found_G) / num_gt_C).mean() for found_G in found_KG])
