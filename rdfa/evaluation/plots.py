"""Pictures of detections."""

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

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
    rows, end, best = timeline_rows(video, detections)
    heights = [row.lanes for row in rows]
    tops = np.cumsum([0, *(height + 0.6 for height in heights)])
    # Without pyplot there is no global state and no display to look for.
    figure = Figure(figsize=(WIDTH, 1.25 + LANE * max(tops[-1], 1.0)), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    for row, top in zip(rows, tops):
        for start, stop in row.truth:
            axes.barh(top, stop - start, 0.8, left=start, color=GROUND_TRUTH, linewidth=0)
        for bar in row.found:
            shade = 0.3 + 0.7 * bar.score / max(best, 1e-9)
            axes.barh(
                top + bar.lane, bar.end - bar.start, 0.8, left=bar.start, color=DETECTION, alpha=shade, linewidth=0
            )
            axes.annotate(
                f"{bar.score:.2f}",
                (bar.end, top + bar.lane),
                (3, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
            )
    axes.set_yticks(
        tops[:-1] + (np.array(heights) - 1) / 2, [class_names.get(row.label, str(row.label)) for row in rows]
    )
    axes.set_ylim(max(tops[-1], 1.0) - 0.8, -0.7)
    axes.set_xlim(0, end)
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


class Bar(NamedTuple):
    """A detection, and the lane it is drawn in, from 1 on."""

    start: float
    end: float
    score: float
    lane: int


class TimelineRow(NamedTuple):
    """One class of a time line."""

    label: int
    truth: list[tuple[float, float]]
    found: list[Bar]

    @property
    def lanes(self) -> int:
        """That of the ground truth, and those of the detections."""
        return 1 + max((bar.lane for bar in self.found), default=0)


def timeline_rows(video: Any, detections: Any | None) -> tuple[list[TimelineRow], float, float]:
    """What a time line shows, where it ends in seconds, and the best score; see `draw_timeline`."""
    gt_segments, gt_labels = np.asarray(video.segments_N2).reshape(-1, 2), np.asarray(video.labels_N)
    segments, scores, labels = _best(detections)
    rows = []
    for label in list(dict.fromkeys([*np.unique(gt_labels).tolist(), *labels.tolist()]))[:MAX_CLASSES]:
        mine = labels == label
        bars = zip(*segments[mine].T.tolist(), scores[mine].tolist(), _lanes(segments[mine]))
        rows.append(
            TimelineRow(label, [tuple(s) for s in gt_segments[gt_labels == label].tolist()], [Bar(*b) for b in bars])
        )
    end = max(video.duration or 0.0, *gt_segments[:, 1], *segments[:, 1], 1e-3)
    return rows, end, float(scores.max(initial=0.0))


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
