"""Files of detections: the ActivityNet format, written and read, and two more that published detectors use, read."""

import contextlib
import gzip
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from rdfa.errors import RunError
from rdfa.files import parse_json, read_bytes, replacing
from rdfa.inference.decode import Detections

# Class numbers of the THUMOS14 text format (1..101, the classes of UCF101) that take part in detection.
THUMOS14_CLASSES = {
    7: "BaseballPitch", 9: "BasketballDunk", 12: "Billiards", 21: "CleanAndJerk", 22: "CliffDiving",
    23: "CricketBowling", 24: "CricketShot", 26: "Diving", 31: "FrisbeeCatch", 33: "GolfSwing", 36: "HammerThrow",
    40: "HighJump", 45: "JavelinThrow", 51: "LongJump", 68: "PoleVault", 79: "Shotput", 85: "SoccerPenalty",
    92: "TennisSwing", 93: "ThrowDiscus", 97: "VolleyballSpiking",
}  # fmt: skip
COLUMNS = ("video-id", "t-start", "t-end", "label", "score")


def write_results(
    path: str | os.PathLike,
    detections: Mapping[str, Detections],
    class_names: Mapping[int, str],
    external_data: str = "",
) -> None:
    """Write detections in the ActivityNet format; compressed when `path` ends in ``.gz``.

    ``{"version", "results": {video_id: [{"label", "score", "segment": [s, e]}]}, "external_data"}``, seconds, in the
    order given. `external_data` says what besides the detector went into the scores; empty: nothing. The file appears
    under its name only when it is complete.

    Raises:
        RunError: a score or segment that is not finite, or a class without a name.
        UsageError: the file cannot be written.
    """
    rows = ((video_id, entries_text(video_id, d, class_names)) for video_id, d in detections.items())
    write_rows(path, rows, external_data)


def write_rows(path: str | os.PathLike, rows: Iterable[tuple[str, str]], external_data: str = "") -> None:
    """As `write_results`, of (video id, `entries_text`): one video at a time is in memory."""
    external = {"used": bool(external_data), "details": external_data}
    with replacing(path) as temporary, _open(temporary, compressed=Path(path).suffix == ".gz") as file:
        file.write(b'{"version": "VERSION 1.3", "results": {')
        for i, (video_id, text) in enumerate(rows):
            file.write(f"{', ' if i else ''}{_dumps(video_id)}: {text}".encode())
        file.write(f'}}, "external_data": {_dumps(external)}}}\n'.encode())


def entries_text(video_id: str, detections: Detections, class_names: Mapping[int, str]) -> str:
    """What a file of results says of one video, in one line.

    Raises:
        RunError: as `write_results`.
    """
    return _dumps(_entries(video_id, detections, class_names))


def write_json(path: str | os.PathLike, content: Any, indent: int | None = None) -> None:
    """Write `content` as JSON, whole or not at all; compressed for ``.gz``."""
    data = (json.dumps(content, indent=indent, allow_nan=False, ensure_ascii=False) + "\n").encode()
    with replacing(path) as temporary:
        temporary.write_bytes(gzip.compress(data, mtime=0) if Path(path).suffix == ".gz" else data)


def _dumps(content: Any) -> str:
    return json.dumps(content, allow_nan=False, ensure_ascii=False)


@contextlib.contextmanager
def _open(path: Path, compressed: bool) -> Iterator[IO[bytes]]:
    with open(path, "wb") as file:
        if not compressed:
            yield file
            return
        # Neither time nor name: equal detections are equal files.
        with gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as packed:
            yield packed


def read_results(
    path: str | os.PathLike, class_names: Mapping[int, str]
) -> tuple[dict[str, Detections], dict[int, str]]:
    """Read a file of detections, plain or gzip-compressed; the content decides the format, not the name.

    Understood are the ActivityNet format (labels as names or ids, under ``label`` or ``label_id``; the mapping under
    ``results`` may also stand alone), a JSON object of the five columns ``video-id, t-start, t-end, label, score``, and
    the THUMOS14 text format: ``video start end class_index score`` per line, with the official class numbers 1..101.

    Args:
        class_names: class id -> name, from the annotations; gives the ids of the labels read.

    Returns:
        video id -> Detections (float64), in file order; and `class_names` with every unknown name added under a
        negative id (an unknown integer label keeps its number).

    Raises:
        UsageError: the file cannot be opened.
        RunError: the file is damaged, or an entry is malformed or not finite; names the file and the entry.
    """
    text = read_text(path)
    detections: dict[str, tuple[list, list, list]] = {}
    labels = _Labels(class_names)
    parse, rows = _text_rows(text) if text.lstrip()[:1] not in ("{", "[") else _json_rows(path, parse_json(path, text))
    for video_id, where, row in rows:
        segments, scores, ids = detections.setdefault(video_id, ([], [], []))
        if row is None:
            continue
        try:
            start, end, label, score = parse(row)
            start, end, score = float(start), float(end), float(score)
            ids.append(labels.id_of(label))
        except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else error
            raise RunError(f"{path}: {where}: {reason}; expected segment [start, end], label and score") from error
        if not math.isfinite(start + end + score):
            raise RunError(f"{path}: {where}: segment [{start}, {end}], score {score}: every number must be finite")
        segments.append((start, end))
        scores.append(score)
    return {i: _detections(*columns) for i, columns in detections.items()}, labels.names


def read_text(path: str | os.PathLike) -> str:
    """The text of a file, decompressed if it is a gzip file."""
    try:
        text = read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RunError(f"{path} is damaged or no text file: {error}; copy it again") from error
    if not text.strip():
        raise RunError(f"{path} is empty: whatever should have written it did not end well")
    return text


def _entries(video_id: str, detections: Detections, class_names: Mapping[int, str]) -> list[dict]:
    segments, scores = np.asarray(detections.segments_N2), np.asarray(detections.scores_N)
    labels = np.asarray(detections.labels_N)
    if not (np.isfinite(segments).all() and np.isfinite(scores).all()):
        raise RunError(f"video {video_id}: a detection is not finite; check the weights and the features")
    unknown = set(labels.tolist()) - class_names.keys()
    if unknown:
        raise RunError(f"video {video_id}: class {min(unknown)} has no name among {len(class_names)} class names")
    rows = zip(labels.tolist(), scores.tolist(), segments.tolist())
    return [{"label": class_names[label], "score": score, "segment": segment} for label, score, segment in rows]


def _detections(segments: list, scores: list, labels: list) -> Detections:
    return Detections(np.array(segments, float).reshape(-1, 2), np.array(scores, float), np.array(labels, np.int64))


class _Labels:
    """Class ids of labels read from a file."""

    def __init__(self, names: Mapping[int, str]):
        self.names = dict(names)
        self._ids = {name: label for label, name in names.items()}
        self._next = -1

    def id_of(self, label: str | int) -> int:
        if isinstance(label, str):
            return self._id_of_name(label)
        if isinstance(label, bool) or int(label) != label:
            raise ValueError(f"label {label!r} is neither a name nor an id")
        number = int(np.int64(int(label)))  # OverflowError: no id is so large
        self.names.setdefault(number, str(number))
        return number

    def _id_of_name(self, name: str) -> int:
        if name not in self._ids:
            is_id = name.isdecimal() and int(name) in self.names
            self._ids[name] = int(name) if is_id else self._next
            if not is_id:
                self.names[self._next] = name
                self._next -= 1
        return self._ids[name]


# Each reader returns (parse, rows): rows of (video id, where it stands, row); parse(row) -> (start, end, label, score).
# A row of None stands for a video without detections.
_Rows = tuple[Callable[[Any], tuple], Iterator[tuple[str, str, Any]]]


def _text_rows(text: str) -> _Rows:
    def parse(fields):
        if len(fields) != 5:
            raise ValueError(f"{len(fields)} fields instead of 'video start end class_index score'")
        return fields[1], fields[2], THUMOS14_CLASSES.get(int(fields[3]), f"THUMOS14 class {fields[3]}"), fields[4]

    lines = ((number, line.replace(",", " ").split()) for number, line in enumerate(text.splitlines(), 1))
    return parse, ((fields[0], f"line {number}", fields) for number, fields in lines if fields)


def _json_rows(path: str | os.PathLike, content: Any) -> _Rows:
    results = content.get("results", content) if isinstance(content, dict) else content
    if isinstance(results, dict) and set(COLUMNS) <= results.keys():
        columns = [results[name] for name in COLUMNS]
        if not all(isinstance(c, list) and len(c) == len(columns[0]) for c in columns):
            raise RunError(f"{path}: the columns {', '.join(COLUMNS)} must be lists of equal length")
        return (lambda row: row[1:]), ((row[0], f"row {i}", row) for i, row in enumerate(zip(*columns)))
    if not isinstance(results, dict) or not all(isinstance(entries, list) for entries in results.values()):
        raise RunError(f"{path}: no results found; expected {{'results': {{video id: [entry, ...]}}}}")
    return _parse_entry, (
        (video_id, f"video {video_id!r}, entry {number}", entry)
        for video_id, entries in results.items()
        for number, entry in enumerate(entries or [None])
    )


def _parse_entry(entry: dict) -> tuple:
    start, end = entry["segment"]
    return start, end, entry["label"] if "label" in entry else entry["label_id"], entry["score"]
