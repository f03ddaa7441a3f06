"""Pictures of detections."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from rdfa.files import replacing

MAX_CLASSES = 8  # rows of a picture that still fits on a screen
# Soft NMS leaves hundreds of faint detections; shown are those that score at least this share of the video's best.
SHARE_OF_BEST = 0.5
WIDTH, DPI = 6.4, 150  # inches; text stays readable on a phone's width
LANE = 0.24  # inches from one bar to the next one below
GROUND_TRUTH, DETECTION = "#1b3a5c", "#e4572e"


def draw_timeline(
    path: str | os.PathLike,
    video: Any,
    detections: Any | None,
    class_names: Mapping[int, str],
) -> None:
    """Draw one video's best detections against its ground truth on a time line, as a PNG.

    One row per class: ground truth in the upper lane, below it the detections with their scores, in as many lanes as
    they need not to cover each other. Shown are the classes with ground truth and those of the detections, at most
    `MAX_CLASSES`.

    Args:
        video: `id`, `duration` (seconds or None), `segments_N2` (seconds), `labels_N`.
        detections: `segments_N2` (seconds), `scores_N`, `labels_N`; None: the video has none.

    Raises:
        UsageError: the file cannot be written.
    """
    gt_segments, gt_labels = np.asarray(video.segments_N2), np.asarray(video.labels_N)
    segments, scores, labels = _best(detections)
    rows = list(dict.fromkeys([*np.unique(gt_labels).tolist(), *labels.tolist()]))[:MAX_CLASSES]
    lanes = {label: _lanes(segments[labels == label]) for label in rows}
    heights = [1 + max(lanes[label], default=0) for label in rows]  # in lanes; no detection leaves its lane empty
    tops = np.cumsum([0, *(height + 0.6 for height in heights)])
    # Without pyplot there is no global state and no display to look for.
    figure = Figure(figsize=(WIDTH, 1.25 + LANE * max(tops[-1], 1.0)), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    for label, top in zip(rows, tops):
        for start, end in gt_segments[gt_labels == label]:
            axes.barh(top, end - start, 0.8, left=start, color=GROUND_TRUTH, linewidth=0)
        mine = labels == label
        for (start, end), score, lane in zip(segments[mine], scores[mine], lanes[label]):
            shade = 0.3 + 0.7 * score / max(scores[0], 1e-9)
            axes.barh(top + lane, end - start, 0.8, left=start, color=DETECTION, alpha=shade, linewidth=0)
            axes.annotate(
                f"{score:.2f}", (end, top + lane), (3, 0), textcoords="offset points", va="center", fontsize=8
            )
    axes.set_yticks(tops[:-1] + (np.array(heights) - 1) / 2, [class_names.get(label, str(label)) for label in rows])
    axes.set_ylim(max(tops[-1], 1.0) - 0.8, -0.7)
    ends = [video.duration or 0.0, *gt_segments[:, 1], *segments[:, 1], 1e-3]
    axes.set_xlim(0, max(ends))
    axes.set_xlabel("seconds")
    axes.set_title(video.id, fontsize=11, loc="left")
    axes.grid(axis="x", alpha=0.3, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    handles = [
        Patch(color=GROUND_TRUTH, label="ground truth"),
        Patch(color=DETECTION, label=f"detections (from {SHARE_OF_BEST:.0%} of the best score on)"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")


def _best(detections: Any | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Segments, scores and labels of the detections worth showing, by falling score."""
    if detections is None or not len(detections.scores_N):
        return np.empty((0, 2)), np.empty(0), np.empty(0, np.int64)
    scores = np.asarray(detections.scores_N)
    order = np.argsort(-scores, kind="stable")
    order = order[scores[order] >= SHARE_OF_BEST * scores.max()]
    return np.asarray(detections.segments_N2)[order], scores[order], np.asarray(detections.labels_N)[order]


def _lanes(segments_N2: np.ndarray) -> list[int]:
    """The lane of each segment, from 1 on: the first in which it overlaps none of those before it."""
    lanes: list[list[tuple[float, float]]] = []
    chosen = []
    for start, end in segments_N2.tolist():
        free = (n for n, taken in enumerate(lanes) if all(end <= s or e <= start for s, e in taken))
        lane = next(free, len(lanes))
        if lane == len(lanes):
            lanes.append([])
        lanes[lane].append((start, end))
        chosen.append(lane + 1)
    return chosen
