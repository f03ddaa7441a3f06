"""Fusion of detections with external video-level class scores, as is usual for data sets of one activity per video."""

import io
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rdfa.errors import RunError, UsageError
from rdfa.inference.decode import Detections
from rdfa.inference.results import parse_json, read_text
from rdfa.inference.videos import find_video

TOPK = 2  # classes taken per video
NUM_PRED = 200  # detections taken per video


def fuse(detections: Detections, class_scores_C: np.ndarray, topk: int = TOPK, num_pred: int = NUM_PRED) -> Detections:
    """Detections of one video, relabelled by its best classes.

    The `num_pred` highest detections are kept as segments; each is given every one of the `topk` highest classes of the
    video, with score sqrt(class score * detection score). The result runs by falling class score, then by falling
    detection score; of equal classes the larger id comes first, of equal detections the earlier one.

    Args:
        class_scores_C: score per class id, [C], or [views, C], which is averaged. Scores outside [0, 1] are taken for
            logits: softmax over the classes. A class of score 0 is left out, so that a list that names only the best
            classes of a video gives no detections of the others.

    Raises:
        ValueError: scores that are not finite or have no classes.
    """
    scores_C = np.asarray(class_scores_C, np.float64)
    scores_C = scores_C.mean(axis=0) if scores_C.ndim == 2 else scores_C
    if scores_C.ndim != 1 or not scores_C.size or not np.isfinite(scores_C).all():
        raise ValueError(f"class scores of shape {np.shape(class_scores_C)}: expected finite numbers, one per class")
    if scores_C.min() < 0 or scores_C.max() > 1:
        exponentials = np.exp(scores_C - scores_C.max())
        scores_C = exponentials / exponentials.sum()
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
    """Video-level class scores from a file; `scores[video_id]` is an array by class id.

    Read are JSON (plain or gzip-compressed) and pickled dictionaries of numpy arrays; a pickle that names anything but
    numpy arrays is refused unread. Per video: a list of one number per class id, nested at most once, or the best
    classes as ``{"label", "score"}`` (``class`` for ``label`` too) or a list of these; classes not named get 0. The
    mapping may lie under ``results``. Video ids match with or without the prefix ``v_``.

    Args:
        class_names: class id -> name, to find the ids of classes given by name.
        num_classes: classes of the detector.

    Raises:
        UsageError: the file cannot be opened.
        RunError: the file is damaged or refused, or lacks the video asked for, or holds malformed scores for it.
    """

    def __init__(self, path: str | os.PathLike, class_names: Mapping[int, str], num_classes: int):
        self.path = Path(path)
        self._num_classes = num_classes
        self._ids = {name: label for label, name in class_names.items()}
        is_pickle = self.path.suffix in (".pkl", ".pickle")
        content = _load_pickle(self.path) if is_pickle else parse_json(path, read_text(path))
        content = content.get("results", content) if isinstance(content, dict) else None
        if not isinstance(content, dict):
            raise RunError(f"{path}: no class scores found; expected {{video id: [score per class]}}")
        self._videos = content

    def __getitem__(self, video_id: str) -> np.ndarray:
        found = find_video(video_id, self._videos)
        if found is None:
            raise RunError(f"{self.path} has no class scores for video {video_id}: add them, or leave the file out")
        return self._array(video_id, self._videos[found])

    def _array(self, video_id: str, value: Any) -> np.ndarray:
        try:
            entries = [value] if isinstance(value, dict) else value
            if isinstance(entries, list) and entries and isinstance(entries[0], dict):
                scores = np.zeros(self._num_classes)
                for entry in entries:
                    scores[self._ids[entry["label"] if "label" in entry else entry["class"]]] = entry["score"]
            else:
                scores = np.asarray(value, np.float64)
        except KeyError as error:
            raise RunError(f"{self.path}: video {video_id}: {error} is no field of it, or no class") from error
        except (IndexError, TypeError, ValueError) as error:
            raise RunError(f"{self.path}: video {video_id}: {error}") from error
        if scores.shape[-1:] != (self._num_classes,) or scores.ndim > 2 or not np.isfinite(scores).all():
            raise RunError(
                f"{self.path}: video {video_id}: scores of shape {list(scores.shape)}; "
                f"expected {self._num_classes} finite numbers, one per class"
            )
        return scores


class _ArrayUnpickler(pickle.Unpickler):
    """Builds plain containers and numpy arrays; everything else a pickle can ask for is refused."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        # Where numpy keeps the two functions that rebuild an array depends on its version: ask it.
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return np.empty(1).__reduce__()[0]
        if module in ("numpy.core.numeric", "numpy._core.numeric") and name == "_frombuffer":
            return np.empty(1).__reduce_ex__(5)[0]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which could run code")


def _load_pickle(path: Path) -> Any:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}; check the path") from error
    try:
        return _ArrayUnpickler(io.BytesIO(data)).load()
    except Exception as error:  # damaged bytes lead to almost any exception
        raise RunError(f"{path}: refused as a pickle of class scores: {error}; convert it to JSON") from error
