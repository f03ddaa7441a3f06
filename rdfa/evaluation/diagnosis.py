"""Why a detector's mAP is what it is, in the manner of DETAD (Alwassel et al., ECCV 2018), and its curves.

Differences: the groups of ground truth are those of equal size in the data at hand, so that they mean something for
data sets of short actions too, and a single threshold of temporal IoU is taken.

Suffixes: M predictions, G ground-truth segments, R pairs of both, C classes.
"""

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from rdfa.evaluation.mean_ap import Ranking, average_precision, match, rank_predictions

BACKGROUND_IOU = 0.1  # below it a prediction and a segment have nothing to do with each other
MULTIPLES = 10  # the profile looks at the best 1 G to 10 G predictions of a class of G segments
GROUPS = 5

TRUE, DOUBLE, LOCALIZATION, WRONG_LABEL, CONFUSION, BACKGROUND = range(6)
KINDS = (
    "true positive",
    "double detection",  # of a segment that a better prediction has claimed
    "localization error",  # right class, IoU from 0.1 to the threshold
    "wrong label",  # IoU from the threshold on, with a segment of another class only
    "confusion",  # IoU from 0.1 to the threshold, with a segment of another class only
    "background",
)


class Group(NamedTuple):
    """Ground truth from `low` to `high` of a characteristic."""

    low: float
    high: float
    count: int
    normalized_ap: float
    missed: float  # share that no prediction found


@dataclass(frozen=True)
class Diagnosis:
    """Attributes:
    tiou: the threshold.
    shares: [MULTIPLES, len(KINDS)]: kinds of the best k G predictions, k from 1 on; rows sum to 1.
    gains: kind of error -> mAP that would be gained if the detector made none.
    normalized_ap: mean over classes of the AP whose precision is as of classes of equally many segments.
    sensitivity: characteristic -> groups of the ground truth, ascending.
    """

    tiou: float
    shares: np.ndarray
    gains: dict[str, float]
    normalized_ap: float
    sensitivity: dict[str, list[Group]]


class Curve(NamedTuple):
    """Precision, made non-increasing, where recall rises: at each true positive."""

    recall: np.ndarray
    precision: np.ndarray


def diagnose(
    ground_truth: Iterable[Any], predictions: Mapping[str, Any], tiou: float, keep_duplicates: bool = False
) -> Diagnosis:
    """See `Diagnosis`; arguments as of `mean_average_precision`. A video without `duration` has no coverage."""
    videos = list(ground_truth)
    ranking = rank_predictions(videos, predictions, keep_duplicates)
    matched, segment = _matched(ranking, tiou)
    kind_M = _kinds(ranking, matched, tiou)
    segment_M = np.full(len(kind_M), -1)
    segment_M[matched] = segment

    limit_M = ranking.num_gt_C[ranking.class_M]
    shares = np.zeros((MULTIPLES, len(KINDS)))
    for k in range(MULTIPLES):
        counts = np.bincount(kind_M[ranking.place_M < (k + 1) * limit_M], minlength=len(KINDS))
        shares[k] = counts / max(counts.sum(), 1)
    base = _mean_ap(ranking, kind_M, np.ones(len(kind_M), bool))
    gains = {KINDS[kind]: _mean_ap(ranking, kind_M, kind_M != kind) - base for kind in range(1, len(KINDS))}

    everything_G = np.ones(len(ranking.gt_class_G), bool)
    return Diagnosis(
        tiou=tiou,
        shares=shares,
        gains=gains,
        normalized_ap=_normalized_ap(ranking, segment_M, everything_G),
        sensitivity={
            name: _groups(ranking, segment_M, value_G)
            for name, value_G in _characteristics(ranking, videos).items()
            if np.isfinite(value_G).any()
        },
    )


def curves(
    ground_truth: Iterable[Any],
    predictions: Mapping[str, Any],
    tiou_K: Iterable[float],
    keep_duplicates: bool = False,
) -> list[list[Curve]]:
    """Precision-recall curves per threshold and class, classes in the order of `MeanAP.labels_C`."""
    ranking = rank_predictions(ground_truth, predictions, keep_duplicates)
    result = []
    for tiou in tiou_K:
        matched, _ = _matched(ranking, tiou)
        bounds = np.searchsorted(ranking.class_M[matched], np.arange(len(ranking.labels_C) + 1))
        result.append(
            [
                _curve(ranking.place_M[matched[start:end]], ranking.num_gt_C[c])
                for c, (start, end) in enumerate(itertools.pairwise(bounds))
            ]
        )
    return result


def _curve(place: np.ndarray, num_gt: float, scale: float = 1.0) -> Curve:
    """From the places of the true positives; `scale` weighs them against the false ones."""
    true = np.arange(1, len(place) + 1)
    precision = true * scale / (true * scale + place + 1 - true)
    return Curve(true / num_gt, np.maximum.accumulate(precision[::-1])[::-1])


def _matched(ranking: Ranking, tiou: float) -> tuple[np.ndarray, np.ndarray]:
    pred_R, gt_R, _ = ranking.pairs(tiou)
    return match(pred_R, gt_R, len(ranking.gt_class_G))


def _kinds(ranking: Ranking, matched: np.ndarray, tiou: float) -> np.ndarray:
    pred_R, gt_R, iou_R = ranking.pairs_of_any_class(BACKGROUND_IOU)
    same_R = ranking.class_M[pred_R] == ranking.gt_class_G[gt_R]
    kind_M = np.full(len(ranking.class_M), BACKGROUND)
    # From the least telling overlap to the most telling one.
    for kind, chosen_R in (
        (CONFUSION, ~same_R),
        (LOCALIZATION, same_R),
        (WRONG_LABEL, ~same_R & (iou_R >= tiou)),
        (DOUBLE, same_R & (iou_R >= tiou)),
    ):
        kind_M[pred_R[chosen_R]] = kind
    kind_M[matched] = TRUE
    return kind_M


def _mean_ap(ranking: Ranking, kind_M: np.ndarray, kept_M: np.ndarray) -> float:
    """mAP if only `kept_M` had been predicted, all true positives among them."""
    before_M = np.cumsum(kept_M) - kept_M
    first_C = np.searchsorted(ranking.class_M, np.arange(len(ranking.labels_C)))
    before_class = np.append(before_M, kept_M.sum())[first_C]
    true = np.flatnonzero((kind_M == TRUE) & kept_M)
    class_of = ranking.class_M[true]
    return float(average_precision(before_M[true] - before_class[class_of], class_of, ranking.num_gt_C).mean())


def _normalized_ap(ranking: Ranking, segment_M: np.ndarray, wanted_G: np.ndarray) -> float:
    """Mean normalized AP of the classes that have ground truth in `wanted_G`; what finds other ground truth is left
    out: it is neither right nor wrong."""
    true_M = segment_M >= 0
    kept_M = ~true_M | wanted_G[segment_M]
    class_M, true_M = ranking.class_M[kept_M], true_M[kept_M]
    num_gt_C = np.bincount(ranking.gt_class_G[wanted_G], minlength=len(ranking.labels_C))
    bounds = np.searchsorted(class_M, np.arange(len(num_gt_C) + 1))
    usual = ranking.num_gt_C.mean()
    values = []
    for c in np.flatnonzero(num_gt_C):
        place = np.flatnonzero(true_M[bounds[c] : bounds[c + 1]])
        values.append(_curve(place, num_gt_C[c], usual / num_gt_C[c]).precision.sum() / num_gt_C[c])
    return float(np.mean(values)) if values else 0.0


def _characteristics(ranking: Ranking, videos: list[Any]) -> dict[str, np.ndarray]:
    gt = ranking.gt
    length_G = gt.segments[:, 1] - gt.segments[:, 0]
    duration = np.array([video.duration or np.nan for video in videos])[gt.video]
    _, group_G, count = np.unique(
        gt.video * len(ranking.labels_C) + ranking.gt_class_G, return_inverse=True, return_counts=True
    )
    return {"length": length_G, "coverage": length_G / duration, "instances": count[group_G].astype(float)}


def _groups(ranking: Ranking, segment_M: np.ndarray, value_G: np.ndarray) -> list[Group]:
    found_G = np.zeros(len(value_G), bool)
    found_G[segment_M[segment_M >= 0]] = True
    known = np.isfinite(value_G)
    edges = np.unique(np.quantile(value_G[known], np.linspace(0, 1, GROUPS + 1), method="higher"))
    place_G = np.searchsorted(edges[1:-1], np.where(known, value_G, 0), side="left")
    groups = []
    for place in range(max(len(edges) - 1, 1)):
        wanted_G = known & (place_G == place)
        if not wanted_G.any():
            continue
        values = value_G[wanted_G]
        ap = _normalized_ap(ranking, segment_M, wanted_G)
        groups.append(
            Group(
                float(values.min()), float(values.max()), int(wanted_G.sum()), ap, float(1 - found_G[wanted_G].mean())
            )
        )
    return groups
