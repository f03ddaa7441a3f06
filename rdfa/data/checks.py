"""What is wrong with a data set, or looks wrong: findings with counts, from annotations and from features.

Shapes: T clips, C channels, N actions.
"""

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from rdfa.data.annotations import AnnotationSet, Video, canonical_subset
from rdfa.data.features import FeatureFile, join_features, read_array
from rdfa.data.settings import DatasetSettings
from rdfa.errors import RunError

REPEATED = 1e-3  # seconds: two segments of a class closer than this are one, as in evaluation


class Finding(NamedTuple):
    """`level`: an error makes training fail, a warning may spoil its result, a note says how data was understood."""

    level: Literal["error", "warning", "note"]
    text: str


def check_annotations(annotations: AnnotationSet, subsets: Iterable[str], num_classes: int | None) -> Iterator[Finding]:
    """Findings in the annotations alone.

    Args:
        subsets: those in use, for training and for evaluation.
        num_classes: classes that are expected; None: as many as there are.
    """
    videos = list(annotations.videos.values())
    yield from _check_names(annotations, videos)
    yield from _check_segments(videos)
    yield from _check_classes(annotations, subsets, num_classes)
    for field, count in annotations.texts.items():
        yield Finding("note", f"{count} numbers of {field!r} are given as text: read as numbers")
    for level, field in (("note", "fps"), ("warning", "duration")):
        without = [video.id for video in videos if getattr(video, field) is None]
        if without:
            yield Finding(level, f"{len(without)} of {len(videos)} videos have no {field}: {some(without)}")


def _check_names(annotations: AnnotationSet, videos: list[Video]) -> Iterator[Finding]:
    spellings = defaultdict(set)
    for video in videos:
        spellings[canonical_subset(video.subset)].add(video.subset)
    for names in spellings.values():
        if len(names) > 1:
            yield Finding(
                "warning", f"subset names {', '.join(map(repr, sorted(names)))} are spellings of one: read as one"
            )
    prefixed = sum(video.id.startswith("v_") for video in videos)
    if 0 < prefixed < len(videos):
        yield Finding("warning", f"{prefixed} ids begin with 'v_' and {len(videos) - prefixed} do not")
    twice = [video.id for video in videos if f"v_{video.id}" in annotations.videos]
    if twice:
        yield Finding("warning", f"{len(twice)} videos are there with and without 'v_': {some(twice)}")


def _check_segments(videos: list[Video]) -> Iterator[Finding]:
    kinds: dict[str, list[str]] = {
        "have no length": [],
        "end before they start": [],
        "repeat another of their class": [],
        "end after the video": [],
        "start after the video's end": [],
        "start before 0": [],
    }
    for video in videos:
        seen: list[tuple[float, float, int]] = []
        for (start, end), label in zip(video.segments_N2.tolist(), video.labels_N.tolist()):
            last = video.duration if video.duration is not None else np.inf
            repeats = any(
                label == other and abs(start - a) <= REPEATED and abs(end - b) <= REPEATED for a, b, other in seen
            )
            seen.append((start, end, label))
            holds = (end == start, end < start, repeats, start < last < end, start >= last, start < 0)
            for found, kind in zip(holds, kinds):
                if found:
                    kinds[kind].append(f"{video.id} [{start:g}, {end:g}]")
    for kind, found in kinds.items():
        if found:
            yield Finding("warning", f"{len(found)} segments {kind}: {some(found)}")


def _check_classes(annotations: AnnotationSet, subsets: Iterable[str], num_classes: int | None) -> Iterator[Finding]:
    ids = sorted(annotations.class_names)
    if num_classes is not None and len(ids) != num_classes:
        yield Finding("warning", f"{len(ids)} classes have actions, {num_classes} are expected (Dataset.num_classes)")
    unused = ids[-1] + 1 - len(ids) if ids else 0
    if unused:
        first = list(itertools.islice((n for n in range(ids[-1]) if n not in annotations.class_names), 4))
        yield Finding("warning", f"label ids are not contiguous: {unused} below {ids[-1]} are unused: {some(first)}")
    for subset in dict.fromkeys(subsets):
        videos = annotations.subset(subset)
        if not videos:
            continue  # an error of its own
        shown = Counter(label for video in videos for label in video.labels_N.tolist())
        empty = [annotations.class_names[label] for label in ids if not shown[label]]
        if empty:
            yield Finding("warning", f"{len(empty)} classes have no action in subset {subset!r}: {some(empty)}")
        blank = [video.id for video in videos if not len(video.labels_N)]
        if blank:
            yield Finding("note", f"{len(blank)} videos of subset {subset!r} have no action: {some(blank)}")


@dataclass
class FeatureSummary:
    """What the feature files of a data set turned out to be."""

    kinds: Counter  # of file extensions
    dtypes: Counter
    channels: Counter
    clips: list[int]


class FeatureCheck:
    """Reads features video by video, and says in the end what was wrong with them."""

    def __init__(self, settings: DatasetSettings, feature_dim: int | None, longest: int):
        """
        Args:
            feature_dim: channels that are expected; None: those of most videos.
            longest: clips of the longest video that the detector takes.
        """
        self.settings, self.feature_dim, self.longest = settings, feature_dim, longest
        self.summary = FeatureSummary(Counter(), Counter(), Counter(), [])
        self._broken: list[str] = []
        self._not_finite: dict[str, int] = {}  # video -> clips
        self._by_channels: dict[int, list[str]] = defaultdict(list)
        self._single: list[str] = []
        self._too_long: list[str] = []
        self._beyond: list[str] = []
        self._expected: dict[str, tuple[float, int, Video]] = {}  # video -> clips by duration and stride, clips, itself

    def add(self, video: Video, files: tuple[FeatureFile, ...]) -> None:
        """Read the features of a video."""
        try:
            arrays = [read_array(file) for file in files]
            for file, array in zip(files, arrays):
                name = file.path.name.removesuffix(".gz")
                self.summary.kinds[name[name.rfind(".") :] + ".gz" * file.path.name.endswith(".gz")] += 1
                self.summary.dtypes[str(array.dtype)] += 1
            if self.settings.resize:  # of any lengths
                arrays = [array[: min(map(len, arrays))] for array in arrays]
            features_TC = join_features(arrays, files)
        except RunError as error:
            self._broken.append(str(error))
            return
        length, channels = features_TC.shape
        self.summary.clips.append(length)
        self.summary.channels[channels] += 1
        self._by_channels[channels].append(video.id)
        with np.errstate(over="ignore"):
            bad = int((~np.isfinite(features_TC.astype(np.float32))).any(axis=1).sum())
        if bad:
            self._not_finite[video.id] = bad
        if length == 1:
            self._single.append(video.id)
        if not self.settings.resize and -(-length // self.settings.downsample_rate) > self.longest:
            self._too_long.append(f"{video.id} ({length})")
        self._check_time(video, length)

    def findings(self) -> Iterator[Finding]:
        """What was found in all videos so far."""
        if self._broken:
            more = f" (and {len(self._broken) - 1} more)" if len(self._broken) > 1 else ""
            yield Finding(
                "error", f"{len(self._broken)} videos have features that cannot be read: {self._broken[0]}{more}"
            )
        yield from self._channel_findings()
        if self._not_finite:
            clips = sum(self._not_finite.values())
            named = some([f"{video_id} ({count})" for video_id, count in self._not_finite.items()])
            yield Finding(
                "error", f"{clips} clips of {len(self._not_finite)} videos hold NaN or infinite values: {named}"
            )
        if self._too_long:
            yield Finding(
                "error",
                f"{len(self._too_long)} videos have more clips than the {self.longest} that the detector takes: "
                f"{some(self._too_long)}: raise PointGenerator.max_buffer_len_factor",
            )
        if self._single:
            yield Finding("warning", f"{len(self._single)} videos have a single clip: {some(self._single)}")
        for dtype, count in self.summary.dtypes.items():
            if dtype != "float32":
                yield Finding("note", f"{count} arrays of {dtype}: read as float32")
        yield from self._time_findings()

    def _channel_findings(self) -> Iterator[Finding]:
        if not self._by_channels:
            return
        expected = self.feature_dim or self.summary.channels.most_common(1)[0][0]
        for channels, ids in self._by_channels.items():
            if channels != expected:
                yield Finding("error", f"{len(ids)} videos have {channels} channels instead of {expected}: {some(ids)}")

    def _check_time(self, video: Video, length: int) -> None:
        settings = self.settings
        if video.duration is not None and (video.fps is not None or settings.resize):
            rate = None if settings.resize else video.fps / settings.feat_stride
            covered = video.duration if rate is None else video.duration - settings.num_frames / video.fps
            self._expected[video.id] = (covered * (rate or 1.0) + (rate is not None), length, video)
        if not settings.resize and video.fps is not None:
            last = ((length - 1) * settings.feat_stride + settings.num_frames) / video.fps
            outside = [f"{video.id} [{a:g}, {b:g}]" for a, b in video.segments_N2.tolist() if a >= last]
            self._beyond += outside

    def _time_findings(self) -> Iterator[Finding]:
        if self._beyond:
            yield Finding("warning", f"{len(self._beyond)} segments start after the last clip: {some(self._beyond)}")
        if not self._expected:
            return
        settings = self.settings
        ratios = {i: length / max(expected, 1e-9) for i, (expected, length, _) in self._expected.items()}
        typical = float(np.median(list(ratios.values())))
        if settings.resize:  # no stride is known: videos are compared with each other
            ratios = {i: ratio / typical for i, ratio in ratios.items()}
        # A clip more or less at each end, and what a clip covers beyond its stride, are a matter of convention.
        slack = 2 + settings.num_frames / settings.feat_stride
        off = [
            f"{i} ({length} instead of {length / ratios[i]:.0f})"
            for i, (_, length, _) in self._expected.items()
            if abs(length - length / ratios[i]) > max(slack, 0.05 * length)
        ]
        if not off:
            return
        hint = ""
        if not settings.resize and len(off) > len(ratios) / 2:
            strides = [v.duration * v.fps / length for _, length, v in self._expected.values() if length > 1]
            if strides:
                hint = f": a feat_stride of {np.median(strides):.1f} frames would fit best"
        what = "clips per second as the other videos" if settings.resize else "clips as duration, fps and stride give"
        yield Finding("warning", f"{len(off)} of {len(ratios)} videos have not as many {what}: {some(off)}{hint}")


def suggest_names(missing: Iterable[str], unknown: Iterable[str]) -> str | None:
    """How the files of `missing` videos seem to be called, as settings; None where no `unknown` file resembles them."""
    cores = [video_id.removeprefix("v_") for video_id in missing]
    found: Counter[tuple[str, str]] = Counter()
    for name in list(unknown)[:50]:
        for core in cores:
            prefix, match, rest = name.partition(core)
            kind, dot, _ = rest.partition(".")
            if match and dot:
                found[prefix, kind] += 1
    if not found:
        return None
    (prefix, kind), most = found.most_common(1)[0]
    kinds = [k for (p, k), count in found.items() if p == prefix and count == most]  # as many of rgb as of flow
    return f"Dataset.feature_prefix = {prefix!r}, Dataset.feature_type = {kinds if len(kinds) > 1 else kind!r}"


def some(names: list) -> str:
    """The first three of a list, for messages."""
    shown = ", ".join(map(str, names[:3]))
    return shown if len(names) <= 3 else f"{shown}, ..."
