"""Accuracy beside speed: raw outputs against a float64 run, and final detections against the detections of that run.

Shapes: B batch, P points of all pyramid levels, K classes, N detections of a video.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from rdfa.inference.decode import Detections
from rdfa.runtime import parity
from rdfa.runtime.session import Outputs

TOLERANCE = {"absolute": parity.ABSOLUTE, "relative": parity.RELATIVE, "relative_l2_of_a_level": parity.RELATIVE_L2}
# Two detections of one class are the same if neither end differs by more than this, in seconds.
SAME_SEGMENT_S = 0.05


# In less than float32: the most that a backend's error may be, in multiples of the plain operators' in that dtype.
FACTOR = 3.0


def compare_outputs(
    outputs: Outputs, exact: Outputs, level_lengths: Sequence[int], baseline: Outputs | None = None
) -> tuple[dict[str, Any], str]:
    """The column ``parity`` of a row, and why it failed ("" when it did not): see `rdfa.runtime.parity.compare`.

    Args:
        exact: outputs of the float64 model. level_lengths: points per pyramid level.
        baseline: outputs of the plain operators in the row's dtype, when that is less than float32: rounding of the
            weights alone exceeds the bounds for float32 then, so the bounds are `FACTOR` times the baseline's errors.
    """
    if baseline is not None:
        return _compare_narrow(outputs, exact, level_lengths, baseline)
    result = parity.compare(outputs, exact, level_lengths)
    comparable = np.isfinite(result.max_abs)
    column = {
        "max_abs": result.max_abs if comparable else None,
        "relative_l2": result.relative_l2 if comparable else None,
        "ok": result.ok,
    }
    return column, "" if result.ok else _reason(outputs, exact, result)


def _compare_narrow(outputs, exact, level_lengths, baseline: Outputs) -> tuple[dict[str, Any], str]:
    result, bound = (parity.compare(o, exact, level_lengths) for o in (outputs, baseline))
    if not np.isfinite(bound.max_abs):
        reason = f"the plain operators themselves fail in this dtype: {_reason(baseline, exact, bound)}"
    elif not np.isfinite(result.max_abs):
        reason = _reason(outputs, exact, result)
    elif result.max_abs > FACTOR * bound.max_abs:
        reason = f"off by {result.max_abs:.3g} at most, the plain operators in this dtype by {bound.max_abs:.3g}"
    elif result.relative_l2 > FACTOR * bound.relative_l2:
        reason = f"relative L2 error {result.relative_l2:.2g}, the plain operators' {bound.relative_l2:.2g}"
    else:
        reason = ""
    comparable = np.isfinite(result.max_abs)
    return {
        "max_abs": result.max_abs if comparable else None,
        "relative_l2": result.relative_l2 if comparable else None,
        "ok": not reason,
    }, reason


def _reason(outputs: Outputs, exact: Outputs, result: parity.Parity) -> str:
    for name in Outputs._fields:
        value, wanted = getattr(outputs, name), getattr(exact, name)
        if value.shape != wanted.shape:
            return f"{name} has shape {value.shape}, not {wanted.shape}"
        if not np.isfinite(value).all():
            return f"{name} has values that are not finite"
    different = int((outputs.point_mask != exact.point_mask).sum())
    if different:
        return f"point_mask differs at {different} points"
    for name in ("cls_logits", "offsets"):
        value, wanted = getattr(outputs, name), getattr(exact, name)
        difference = np.abs(value - wanted)
        excess = difference - (parity.ABSOLUTE + parity.RELATIVE * np.abs(wanted))
        worst = np.unravel_index(excess.argmax(), excess.shape)
        if excess[worst] > 0:
            return f"{name} is off by {difference[worst]:.3g} where the float64 model gives {wanted[worst]:.3g}"
    return f"a level's relative L2 error is {result.relative_l2:.2g}, more than {parity.RELATIVE_L2:.2g}"


def compare_detections(found: Sequence[Detections], reference: Sequence[Detections]) -> dict[str, Any]:
    """Counts, and the largest differences over the pairs of equal class whose ends agree within `SAME_SEGMENT_S`.

    Informative, not a gate: with equal scores or a score on a threshold, one rounding error changes what is kept.
    """
    matched, max_segment, max_score = 0, 0.0, 0.0
    for ours, theirs in zip(found, reference):
        for label in np.intersect1d(ours.labels_N, theirs.labels_N):
            segments, scores = _of_class(ours, label)
            wanted_segments, wanted_scores = _of_class(theirs, label)
            distance = np.abs(segments[:, None] - wanted_segments[None]).max(-1)
            for i, j in _pairs(distance, np.abs(scores[:, None] - wanted_scores[None])):
                matched += 1
                max_segment = max(max_segment, float(distance[i, j]))
                max_score = max(max_score, float(abs(scores[i] - wanted_scores[j])))
    return {
        "count": sum(len(d) for d in found),
        "reference_count": sum(len(d) for d in reference),
        "matched": matched,
        "max_abs_segment_s": max_segment if matched else None,
        "max_abs_score": max_score if matched else None,
    }


def _of_class(detections: Detections, label: int) -> tuple[np.ndarray, np.ndarray]:
    chosen = detections.labels_N == label
    return detections.segments_N2[chosen].astype(np.float64), detections.scores_N[chosen].astype(np.float64)


def _pairs(distance: np.ndarray, score_gap: np.ndarray) -> list[tuple[int, int]]:
    """One-to-one pairs (i, j) with `distance` inside the limit, nearest first; ties go to the nearer score."""
    candidates = np.argwhere(distance <= SAME_SEGMENT_S)
    i, j = candidates.T
    order = np.lexsort((score_gap[i, j], distance[i, j]))
    used_i, used_j, pairs = set(), set(), []
    for a, b in candidates[order]:
        if a not in used_i and b not in used_j:
            used_i.add(a)
            used_j.add(b)
            pairs.append((int(a), int(b)))
    return pairs
