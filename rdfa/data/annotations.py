"""Annotations: which actions a video shows, when, and how fast it runs.

Reads the layout of ActionFormer's THUMOS14 file,

    {"database": {"<video id>": {"subset": "Test", "duration": 33.83, "fps": 30.0, "annotations": [
        {"label": "CricketBowling", "label_id": 5, "segment": [0.2, 1.1]}, ...]}, ...}}

and its relatives, such as those of ActivityNet, HACS, FineAction, OpenTAD, BMN and Ego4D: the table of videos under
another key or at the top, other names of a field (see `NAMES`), numbers as strings, no `fps` (the number of frames
divided by `duration` gives it, or it stays unknown), no `duration`, no `label_id` (classes are then numbered by sorted
name), `start_time` and `end_time` for `segment`.
"""

import math
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rdfa.errors import RunError, UsageError
from rdfa.files import parse_json, read_bytes

LEAST, MOST = 1e-6, 1e9  # of a frame rate, of seconds, of frames: a number beyond these is a mistake
# The names that a field of a video goes by.
NAMES = {
    "subset": ("subset", "split"),
    "duration": ("duration", "duration_second"),
    "fps": ("fps",),
    "frame": ("frame", "num_frames", "duration_frame"),
}
# The spellings of a subset, without case and punctuation, that mean the same.
SUBSETS = {"train": "training", "trn": "training", "val": "validation", "valid": "validation", "testing": "test"}


@dataclass(frozen=True, eq=False)
class Video:
    """One annotated video; N actions in file order, as they are: repeated, empty, reversed, past the video's end."""

    id: str
    subset: str
    duration: float | None  # seconds; None: unknown
    fps: float | None  # None: unknown
    segments_N2: np.ndarray  # float64, (start, end) in seconds
    labels_N: np.ndarray  # int64 class ids


@dataclass(frozen=True, eq=False)
class AnnotationSet:
    """All videos of an annotation file, in file order, and the name of each class.

    `texts` counts, for each field of numbers, those that the file gives as text.
    """

    videos: dict[str, Video]
    class_names: dict[int, str]
    texts: Mapping[str, int] = field(default_factory=dict)

    def subset(self, name: str) -> list[Video]:
        """The videos whose subset is `name`, in any spelling: 'Val' and 'validation' are one."""
        wanted = canonical_subset(name)
        return [video for video in self.videos.values() if canonical_subset(video.subset) == wanted]

    def summary(self, name: str) -> str:
        """What there is in a subset, in a few words for the screen."""
        videos = self.subset(name)
        return f"{name}: {len(videos):,} videos with {sum(len(video.labels_N) for video in videos):,} actions"


def canonical_subset(name: str) -> str:
    """One spelling for all names of a subset: lower case, letters and digits only, `SUBSETS` applied."""
    plain = "".join(character for character in name.lower() if character.isalnum())
    return SUBSETS.get(plain, plain)


def spellings(video_id: str) -> tuple[str, str, str]:
    """The names that mean `video_id`, itself first: data sets add or leave out the prefix ``v_`` at will."""
    return video_id, f"v_{video_id}", video_id.removeprefix("v_")


def load_annotations(path: str | os.PathLike) -> AnnotationSet:
    """Read an annotation file, .json or gzip-compressed .json, of the layouts above.

    Raises:
        UsageError: there is no such file, or `path` is empty.
        RunError: not JSON, truncated, no videos in it, or an entry that does not say what it must; the message names
            file, video and remedy.
    """
    if not os.fspath(path):
        raise UsageError("no annotation file is given: choose a --gin_file, or set Dataset.annotation_file")
    path = Path(path)
    data = read_bytes(path, "check Dataset.annotation_file, or the path given")
    table = _find_videos(parse_json(path, data), path)
    entries = {video_id: _Entry(video_id, fields, path) for video_id, fields in table.items()}
    _warn_of_reversed(entries.values(), path)
    class_ids, class_names = _number_classes(entries.values(), path)
    texts = sum((entry.texts for entry in entries.values()), Counter())
    return AnnotationSet({video_id: entry.video(class_ids) for video_id, entry in entries.items()}, class_names, texts)


def _find_videos(content: Any, path: Path) -> dict[str, Any]:
    """The table of videos: the file itself, or what stands under "database", "GT" or any other key."""
    if isinstance(content, dict):
        named = [content[key] for key in ("database", "GT") if key in content]
        for table in (*named, content, *content.values()):
            if isinstance(table, dict) and any(_is_video(fields) for fields in table.values()):
                return table
    raise RunError(
        f'{path}: no videos found: expected {{"database": {{id: {{"subset", "duration", "fps", "annotations"}}}}}}'
    )


def _is_video(fields: Any) -> bool:
    return isinstance(fields, dict) and not {"annotations", *NAMES["subset"]}.isdisjoint(fields)


class _Entry:
    """One video of the file, checked; its classes are numbered later, when those of the whole file are known."""

    def __init__(self, video_id: str, fields: Any, path: Path):
        self.where = f"{path}: video {video_id!r}"
        if not _is_video(fields):
            raise RunError(f"{self.where}: {fields!r:.80} has neither 'annotations' nor 'subset': not a video's entry")
        self.id = video_id
        self.texts: Counter[str] = Counter()
        self.subset = str(_first(fields, "subset")[1] or "")
        self.duration = self._positive(fields, "duration")
        if self.duration is None and "parent_start_sec" in fields:  # a clip of a longer video
            start, end = (self._number(name, fields.get(name)) for name in ("parent_start_sec", "parent_end_sec"))
            self.duration = end - start if start is not None and end is not None and end > start else None
        self.fps = self._positive(fields, "fps")
        frames = self._positive(fields, "frame")
        if self.fps is None and frames is not None and self.duration is not None:
            self.fps = frames / self.duration
        annotations = fields.get("annotations") or []
        if not isinstance(annotations, list):
            raise RunError(f"{self.where}: 'annotations' is {annotations!r:.80}: expected a list of segments")
        self.segments = [self._segment(number, annotation) for number, annotation in enumerate(annotations)]
        self.classes = [self._class(number, annotation) for number, annotation in enumerate(annotations)]

    def video(self, class_ids: dict[str, int]) -> Video:
        segments_N2 = np.array(self.segments, dtype=np.float64).reshape(-1, 2)
        labels_N = np.array([class_ids[name] for name, _ in self.classes], dtype=np.int64)
        return Video(self.id, self.subset, self.duration, self.fps, segments_N2, labels_N)

    def _number(self, name: str, value: Any) -> float | None:
        self.texts[name] += isinstance(value, str)
        return _number(value)

    def _positive(self, fields: dict, name: str) -> float | None:
        name, given = _first(fields, name)
        if given is None:
            return None
        value = self._number(name, given)
        if value is None or not LEAST <= value <= MOST:
            raise RunError(
                f"{self.where}: {name} = {given!r}: expected a positive number ({LEAST:g} to {MOST:g}), or leave it out"
            )
        return value

    def _segment(self, number: int, annotation: Any) -> tuple[float, float]:
        segment = annotation.get("segment") if isinstance(annotation, dict) else None
        if segment is None and isinstance(annotation, dict) and "start_time" in annotation:
            segment = [annotation["start_time"], annotation.get("end_time")]
        if isinstance(segment, list) and len(segment) == 2:
            start, end = (self._number("segment", value) for value in segment)
            if start is not None and end is not None:
                return start, end
        raise RunError(
            f"{self.where}: annotation {number}: segment = {segment!r:.80}: expected [start, end] in seconds"
        )

    def _class(self, number: int, annotation: dict) -> tuple[str, int | None]:
        label, label_id = annotation.get("label"), annotation.get("label_id")
        if label is None and label_id is None:
            raise RunError(f"{self.where}: annotation {number} names no class: give it a 'label'")
        if label_id is not None:
            value = self._number("label_id", label_id)
            if value is None or not 0 <= value <= MOST or value != int(value):
                raise RunError(
                    f"{self.where}: annotation {number}: label_id = {label_id!r}: expected an integer from 0 up, "
                    "or leave it out"
                )
            label_id = int(value)
        return str(label_id if label is None else label), label_id


def _first(fields: dict, name: str) -> tuple[str, Any]:
    """The name in use among those of a field, and its value; None where there is none."""
    return next(((n, fields[n]) for n in NAMES[name] if fields.get(n) not in (None, "")), (name, None))


def _warn_of_reversed(entries: Iterable[_Entry], path: Path) -> None:
    """Such a segment can neither be learnt nor found, but one of them is no reason to refuse a whole data set."""
    found = [(entry, segment) for entry in entries for segment in entry.segments if segment[0] > segment[1]]
    if found:
        entry, segment = found[0]
        print(
            f"warning: {path}: {len(found)} segments end before they start, the first {list(segment)} of video "
            f"{entry.id!r}: they will not be learnt",
            file=sys.stderr,
        )


def _number(value: Any) -> float | None:
    """`value` as a finite number, also from a string; None if it is not one."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _number_classes(entries: Iterable[_Entry], path: Path) -> tuple[dict[str, int], dict[int, str]]:
    """Class name -> id, and id -> name; the ids of the file, or, where it has none, the rank among the sorted names."""
    ids: dict[str, int] = {}
    unnumbered: dict[str, str] = {}  # name -> a video that uses it
    for entry, name, label_id in _classes(entries):
        if label_id is None:
            unnumbered.setdefault(name, entry.where)
        elif ids.setdefault(name, label_id) != label_id:
            raise RunError(
                f"{entry.where}: class {name!r} has label_id {label_id} here and {ids[name]} before: keep one"
            )
    if not ids:
        ids = {name: number for number, name in enumerate(sorted(unnumbered))}
    for name, where in unnumbered.items():
        if name not in ids:
            raise RunError(f"{where}: class {name!r} has no label_id, others have: give all classes one, or none")
    names: dict[int, str] = {}
    for name, label_id in ids.items():
        if names.setdefault(label_id, name) != name:
            print(
                f"warning: {path}: label_id {label_id} stands for {names[label_id]!r} and {name!r}: "
                f"they are one class, called {names[label_id]!r}",
                file=sys.stderr,
            )
    return ids, dict(sorted(names.items()))


def _classes(entries: Iterable[_Entry]) -> Iterator[tuple[_Entry, str, int | None]]:
    for entry in entries:
        for name, label_id in entry.classes:
            yield entry, name, label_id
