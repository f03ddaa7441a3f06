"""Fusion of detections with external video-level class scores, as is usual for data sets of one activity per video."""

import io
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rdfa.data.pickles import load_pickle
from rdfa.errors import RunError, UsageError
from rdfa.files import parse_json, read_bytes
from rdfa.inference.decode import Detections
from rdfa.inference.results import THUMOS14_CLASSES, read_text
from rdfa.inference.videos import find_video

TOPK = 2  # classes taken per video
NUM_PRED = 200  # detections taken per video
AGNOSTIC_NAMES = {0: "action"}  # of a detector that does not tell classes apart, before fusion


def fuse(detections: Detections, class_scores_C: np.ndarray, topk: int = TOPK, num_pred: int = NUM_PRED) -> Detections:
    """Detections of one video, relabelled by its best classes.

    The `num_pred` highest detections are kept as segments; each is given every one of the `topk` highest classes of the
    video, with score sqrt(class score * detection score). The result runs by falling class score, then by falling
    detection score; of equal classes the larger id comes first, of equal detections the earlier one.

    Args:
        class_scores_C: score per class id, as `ClassScores` gives them: not negative, not necessarily below 1. A class
            of score 0 is left out, so that a list that names only the best classes of a video gives no detections of
            the others.

    Raises:
        ValueError: scores that are negative, not finite, or of no class.
    """
    scores_C = np.asarray(class_scores_C, np.float64)
    if scores_C.ndim != 1 or not scores_C.size or not (np.isfinite(scores_C) & (scores_C >= 0)).all():
        raise ValueError(f"class scores of shape {np.shape(class_scores_C)}: expected finite numbers, one per class")
    classes = np.argsort(scores_C, kind="stable")[::-1][:topk]
    classes = classes[scores_C[classes] > 0]
    scores_N = np.asarray(detections.scores_N, np.float64)
    best = np.argsort(-scores_N, kind="stable")[:num_pred]
    return Detections(
        np.tile(np.asarray(detections.segments_N2, np.float64)[best], (len(classes), 1)),
        np.sqrt(scores_C[classes, None] * scores_N[best]).reshape(-1),
        np.repeat(classes, len(best)).astype(np.int64),
    )


class ClassScores:
    """Video-level class scores from a file; `scores[video_id]` is float64 [C] by class id.

    Read are, plain or gzip-compressed:

    - ``{video id: scores}``, also under ``results``, as JSON or as a pickle of arrays (ActionFormer). Scores are one
      number per class, in the order of the class ids, nested at most once: [views, C] is averaged.
    - the same with the names of the classes under ``class`` or ``classes``, which then give the order (CUHK, TCANet,
      InternVideo: it need not be that of the ids).
    - the best classes of a video, ``{"label", "score"}`` (``class`` for ``label`` too), or a list of these. Classes
      that are not named get 0.
    - a .npy array [videos, 101] of UntrimmedNet: row n - 1 is video_test_n of THUMOS14, columns are its class numbers.

    Files differ in what a score is. A file with a negative number anywhere holds logits: softmax over the classes, for
    all its videos. All other scores are used as they are, also above 1, as the code published with them does: in
    ActionFormer's file for THUMOS14 they are sums over two streams.

    Video ids match with or without the prefix ``v_``. A pickle that names anything but arrays is refused unread.

    Args:
        class_names: class id -> name, to find the ids of classes given by name; empty: the names of the file are
            numbered in its order, or sorted where it has none.
        num_classes: C.

    Attributes:
        class_names: those given, or those of the file; a class without a name is called by its number.

    Raises:
        UsageError: the file cannot be opened.
        RunError: the file is damaged or refused, or lacks the video asked for, or holds malformed scores for it.
    """

    def __init__(self, path: str | os.PathLike, class_names: Mapping[int, str], num_classes: int):
        self.path, self._num_classes = Path(path), num_classes
        names, self._videos = self._read(class_names)
        self._order = names  # of the columns; None: that of the ids
        known = dict(class_names) or dict(enumerate(names if names is not None else self._labels()))
        self.class_names = {label: str(label) for label in range(num_classes)} | known
        self._ids = {name: label for label, name in known.items() if 0 <= label < num_classes}
        if names is not None and self._ids.keys().isdisjoint(names):
            raise RunError(f"{path} has scores of {names[0]!r} and others, none of which is a class of the annotations")
        self._logits = any(_lowest(value) < 0 for value in self._videos.values())

    @property
    def description(self) -> str:
        """What went into fused scores, for the file of results."""
        return f"class scores {self.path.name}"

    def __getitem__(self, video_id: str) -> np.ndarray:
        found = find_video(video_id, self._videos)
        if found is None:
            raise RunError(f"{self.path} has no class scores for video {video_id}: add them, or leave the file out")
        scores_C = self._array(video_id, self._videos[found])
        if not self._logits:
            return scores_C
        exponentials = np.exp(scores_C - scores_C.max())
        return exponentials / exponentials.sum()

    def require(self, video_ids: Iterable[str]) -> None:
        """Raises UsageError unless there are scores for all these videos: before the work, not in the midst of it."""
        video_ids = list(video_ids)
        missing = [video_id for video_id in video_ids if find_video(video_id, self._videos) is None]
        if missing:
            more = ", ..." if len(missing) > 5 else ""
            raise UsageError(
                f"{self.path} has no class scores for {len(missing)} of {len(video_ids)} videos: "
                f"{', '.join(missing[:5])}{more}: add them, or leave these videos out with Dataset.exclude"
            )

    def _read(self, class_names: Mapping[int, str]) -> tuple[list[str] | None, dict[str, Any]]:
        """Names of the columns, where the file has them, and what it holds for each video."""
        kind = Path(self.path.name.removesuffix(".gz")).suffix
        if kind == ".npy":
            return list(THUMOS14_CLASSES.values()), self._untrimmed_net()
        pickled = kind in (".pkl", ".pickle")
        content = self._unpickled() if pickled else parse_json(self.path, read_text(self.path))
        names = None
        if isinstance(content, dict) and isinstance(content.get("results"), dict):
            names = content.get("class", content.get("classes"))
            content = content["results"]
        listed = names is None or (isinstance(names, list) and all(isinstance(name, str) for name in names))
        if not isinstance(content, dict) or not listed:
            raise RunError(f"{self.path}: no class scores found; expected {{video id: [score per class]}}")
        return (names or None), content

    def _untrimmed_net(self) -> dict[str, np.ndarray]:
        try:
            array = np.load(io.BytesIO(read_bytes(self.path)), allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise RunError(f"{self.path} is damaged, or no array: {error}") from error
        if array.ndim != 2 or array.shape[1] < max(THUMOS14_CLASSES) or array.dtype.kind not in "fiu":
            raise RunError(f"{self.path}: an array of shape {array.shape}; expected UntrimmedNet's [videos, 101]")
        columns = array[:, [number - 1 for number in THUMOS14_CLASSES]]
        return {f"video_test_{row:07d}": scores for row, scores in enumerate(columns, start=1)}

    def _unpickled(self) -> Any:
        data = read_bytes(self.path)
        try:
            return load_pickle(data)
        except Exception as error:  # damaged bytes lead to almost any exception
            raise RunError(f"{self.path}: refused as a pickle of class scores: {error}; convert it to JSON") from error

    def _labels(self) -> list[str]:
        """The names of the classes that the videos' best scores are of, sorted."""
        entries = (entry for value in self._videos.values() for entry in _entries(value) or ())
        return sorted({str(name) for entry in entries if (name := entry.get("label", entry.get("class"))) is not None})

    def _array(self, video_id: str, value: Any) -> np.ndarray:
        try:
            entries = _entries(value)
            if entries is not None:
                scores = np.zeros(self._num_classes)
                for entry in entries:
                    scores[self._ids[entry["label"] if "label" in entry else entry["class"]]] = entry["score"]
            else:
                scores = np.asarray(value, np.float64)
                scores = scores.mean(axis=0) if scores.ndim == 2 and len(scores) else scores
        except KeyError as error:
            raise RunError(f"{self.path}: video {video_id}: {error} is no field of it, or no class") from error
        except (IndexError, OverflowError, TypeError, ValueError) as error:
            raise RunError(f"{self.path}: video {video_id}: {error}") from error
        columns = self._num_classes if self._order is None or entries is not None else len(self._order)
        if scores.shape != (columns,) or not np.isfinite(scores).all():
            raise RunError(
                f"{self.path}: video {video_id}: scores of shape {list(scores.shape)}; "
                f"expected {columns} finite numbers, one per class"
            )
        if entries is not None and scores.min() < 0:  # of logits, those of the other classes would be missing
            raise RunError(f"{self.path}: video {video_id}: score {scores.min():g}: give scores from 0 up")
        return scores if self._order is None or entries is not None else self._by_id(scores)

    def _by_id(self, scores: np.ndarray) -> np.ndarray:
        """Scores in the order of the file's names -> in that of the ids; what is no class of ours is left out."""
        lowest = -np.inf if self._logits else 0.0
        ordered = np.full(self._num_classes, lowest)
        for name, score in zip(self._order, scores):
            if name in self._ids:
                ordered[self._ids[name]] = score
        return ordered


def _entries(value: Any) -> list[dict] | None:
    """The best classes of a video, where it is given so."""
    entries = [value] if isinstance(value, dict) else value
    return entries if isinstance(entries, list) and entries and isinstance(entries[0], dict) else None


def _lowest(value: Any) -> float:
    """The lowest number of a video's scores; 0 where they are none, which is said when they are asked for."""
    try:
        return float(np.min(np.asarray(value, np.float64))) if _entries(value) is None else 0.0
    except (OverflowError, TypeError, ValueError):
        return 0.0
