"""Pictures of detections."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from rdfa.files import replacing

MAX_CLASSES = 8  # rows of a picture that still fits on a screen
WIDTH, DPI = 6.4, 150  # inches; text stays readable on a phone's width
GROUND_TRUTH, DETECTION = "#1b3a5c", "#e4572e"


def draw_timeline(
    path: str | os.PathLike,
    video: Any,
    detections: Any | None,
    class_names: Mapping[int, str],
) -> None:
    """Draw one video's detections against its ground truth on a time line, as a PNG.

    One row per class: ground truth above, detections below, the more opaque the higher their score. Shown are the
    classes with ground truth and those of the best detections, at most `MAX_CLASSES`.

    Args:
        video: `id`, `duration` (seconds or None), `segments_N2` (seconds), `labels_N`.
        detections: `segments_N2` (seconds), `scores_N`, `labels_N`; None: the video has none.

    Raises:
        UsageError: the file cannot be written.
    """
    gt_labels = np.asarray(video.labels_N)
    segments, scores, labels = _sorted_columns(detections)
    rows = _choose_classes(gt_labels, scores, labels)
    # Without pyplot there is no global state and no display to look for.
    figure = Figure(figsize=(WIDTH, 1.3 + 0.55 * max(len(rows), 1)), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    for y, label in enumerate(rows):
        for start, end in np.asarray(video.segments_N2)[gt_labels == label]:
            axes.barh(y - 0.2, end - start, 0.34, left=start, color=GROUND_TRUTH, linewidth=0)
        mine = labels == label
        for (start, end), score in zip(segments[mine], scores[mine]):
            axes.barh(y + 0.2, end - start, 0.34, left=start, color=DETECTION, alpha=score, linewidth=0)
    axes.set_yticks(range(len(rows)), [class_names.get(label, str(label)) for label in rows])
    axes.set_ylim(max(len(rows), 1) - 0.4, -0.6)
    ends = [video.duration or 0.0, *np.asarray(video.segments_N2)[:, 1], *segments[:, 1], 1e-3]
    axes.set_xlim(0, max(ends))
    axes.set_xlabel("seconds")
    axes.set_title(video.id, fontsize=11, loc="left")
    axes.grid(axis="x", alpha=0.3, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    handles = [
        Patch(color=GROUND_TRUTH, label="ground truth"),
        Patch(color=DETECTION, label="detections (opacity: score)"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")


def _sorted_columns(detections: Any | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Segments, scores in [0, 1] and labels by rising score, so that the best are drawn on top."""
    if detections is None:
        return np.empty((0, 2)), np.empty(0), np.empty(0, np.int64)
    scores = np.asarray(detections.scores_N)
    order = np.argsort(scores, kind="stable")
    segments, labels = np.asarray(detections.segments_N2)[order], np.asarray(detections.labels_N)[order]
    return segments, scores[order].clip(0, 1), labels


def _choose_classes(gt_labels: np.ndarray, scores: np.ndarray, labels: np.ndarray) -> list[int]:
    """Class ids of the rows: those with ground truth, then those whose best score is at least half of the highest."""
    rows = [int(label) for label in np.unique(gt_labels)]
    good = labels[scores >= 0.5 * scores.max(initial=0.0)][::-1]
    rows += [label for label in dict.fromkeys(good.tolist()) if label not in rows]
    return rows[:MAX_CLASSES]
