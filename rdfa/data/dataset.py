"""Data sets of clip features, and loaders that can be continued at any batch of any epoch, bit for bit.

Shapes: B videos, C channels, T clips of the feature grid, N actions of a video, 2 = (start, end).

Order and random crops are functions of (Loader.seed, epoch, item) alone: no generator has a state that would have to be
saved, and neither the number of workers nor that of processes that share the batches changes anything.
"""

import dataclasses
import os
import random
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from rdfa.data.annotations import AnnotationSet, Video, spellings
from rdfa.data.features import FeatureFile, FeatureFinder, check_channels, count_clips, join_features, load_features
from rdfa.data.settings import DatasetSettings, LoaderSettings
from rdfa.data.share import ALL, Share
from rdfa.data.transforms import (
    crop_segments,
    draw_crop,
    pad_features,
    padded_length,
    resize_features,
    seconds_to_grid,
)
from rdfa.errors import RunError, UsageError
from rdfa.settings import nearest


class ItemKey(NamedTuple):
    """An item of a data set, and the seed of everything random about it this time."""

    index: int
    seed: str


class Batch(NamedTuple):
    """Padded videos. Actions are in grid units, one tensor per video."""

    features: Tensor  # float32 [B, C, T]
    mask: Tensor  # bool [B, T]: True where a clip is
    segments: list[Tensor]  # float32 [N, 2]
    labels: list[Tensor]  # int64 [N]
    videos: list[Video]

    @property
    def video_ids(self) -> list[str]:
        return [video.id for video in self.videos]


class FeatureDataset(Dataset):
    """The videos of one subset as features and actions on the feature grid.

    `dataset[index]` or `dataset[ItemKey(index, seed)]` is a dict: video_id; features_CT float32; segments_N2 float32,
    grid; labels_N int64; fps; duration in seconds or None; video, the `Video` itself. For training the items are crops
    (see `draw_crop`), and with `Dataset.class_agnostic` all labels are 0; for evaluation they are whole videos. The
    video of an item that is resized (`Dataset.resize`) has the frame rate that goes with it (see
    `DatasetSettings.grid`), and a duration.

    Attributes:
        videos: the videos, each with the frame rate in use. `Dataset.default_fps`, where given, replaces the rate of
            the annotations, as in the published code.
        files: of each video, the files that its features are joined from.
        missing: ids left out because a feature file is missing (`Dataset.skip_missing`).
    """

    def __init__(
        self,
        settings: DatasetSettings,
        annotations: AnnotationSet,
        subset: str,
        training: bool,
        feature_dim: int | None,
    ):
        """
        Args:
            feature_dim: channels that the features must have (EmbeddingModule.input_c); None accepts any.

        Raises:
            UsageError: an unknown subset; a label that is not below `num_classes`; a video without frame rate (or, if
                it is to be resized, without duration too); missing feature files.
        """
        self.settings, self.training, self.feature_dim = settings, training, feature_dim
        videos = annotations.subset(subset)
        if not videos:
            available = {video.subset for video in annotations.videos.values()} - {""}
            hint = nearest(subset, available) if available else "none has a subset, add it there"
            raise UsageError(f"no video of {settings.annotation_file} is in subset {subset!r}: {hint}")
        excluded = {name for video_id in settings.exclude for name in spellings(video_id)}
        videos = [video for video in videos if video.id not in excluded]
        if training and not any(len(video.labels_N) for video in videos):
            raise UsageError(
                f"subset {subset!r} of {settings.annotation_file} has no action to train on: choose another"
            )
        for video in videos:
            self._check_labels(video)
        videos = [self._with_fps(video) for video in videos]
        self.finder = FeatureFinder(settings)
        found = [self.finder.find(video.id) for video in videos]
        self.missing = [video.id for video, files in zip(videos, found) if files is None]
        if self.missing:
            self._report_missing(subset, len(videos))
        self.videos = [video for video, files in zip(videos, found) if files is not None]
        self.files: list[tuple[FeatureFile, ...]] = [files for files in found if files is not None]

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, key: int | ItemKey) -> dict[str, Any]:
        key = key if isinstance(key, ItemKey) else ItemKey(key, str(key))
        settings = self.settings
        features_TC, video = self._load(key.index)
        segments_N2 = seconds_to_grid(video.segments_N2, video.fps, *settings.grid)
        labels_N = np.zeros_like(video.labels_N) if settings.class_agnostic and self.training else video.labels_N
        if self.training:
            crop = draw_crop(
                len(features_TC),
                segments_N2,
                settings.max_seq_len,
                settings.trunc_thresh,
                settings.crop_ratio,
                random.Random(key.seed),
            )
            if crop is not None:
                features_TC = features_TC[slice(*crop)]
                segments_N2, kept_N = crop_segments(segments_N2, *crop, settings.trunc_thresh)
                labels_N = labels_N[kept_N]
        return {
            "video_id": video.id,
            "features_CT": torch.from_numpy(features_TC).T,
            "segments_N2": torch.from_numpy(segments_N2),
            "labels_N": torch.from_numpy(np.array(labels_N)),
            "fps": video.fps,
            "duration": video.duration,
            "video": video,
        }

    def num_clips(self, index: int) -> int:
        """T of `dataset[index]` when it is a whole video, without reading its features where that is possible."""
        if self.settings.resize:
            return self.settings.max_seq_len
        return -(-min(map(count_clips, self.files[index])) // self.settings.downsample_rate)

    def _load(self, index: int) -> tuple[np.ndarray, Video]:
        """Features on the grid, and the video with the frame rate of the grid."""
        settings, video, files = self.settings, self.videos[index], self.files[index]
        parts = [load_features(file, self.feature_dim if len(files) == 1 else None) for file in files]
        if settings.resize:
            video = resized_video(video, len(parts[0]), settings)
            parts = [resize_features(part, settings.max_seq_len) for part in parts]
        features_TC = join_features(parts, files)
        check_channels(features_TC, " + ".join(map(str, files)), self.feature_dim)
        return features_TC[:: settings.downsample_rate], video

    def _check_labels(self, video: Video) -> None:
        highest = int(video.labels_N.max(initial=-1))
        if highest >= self.settings.num_classes:
            raise UsageError(
                f"video {video.id!r} of {self.settings.annotation_file} has label_id {highest}, but "
                f"Dataset.num_classes = {self.settings.num_classes}: set it (and PtTransformerClsHead.num_classes) to "
                f"{highest + 1} or more"
            )

    def _with_fps(self, video: Video) -> Video:
        fps = self.settings.default_fps or video.fps
        if fps is None and not (self.settings.resize and video.duration is not None):
            neither = "neither duration nor fps" if self.settings.resize else "no fps"
            raise UsageError(
                f"video {video.id!r} of {self.settings.annotation_file} has {neither}: add it there, "
                "or set Dataset.default_fps"
            )
        return dataclasses.replace(video, fps=fps)

    def _report_missing(self, subset: str, total: int) -> None:
        names = ", ".join(self.finder.expected(video_id) for video_id in self.missing[:5])
        more = ", ..." if len(self.missing) > 5 else ""
        of_subset = f" of subset {subset!r}" if subset else ""
        folders = ", ".join(repr(folder) for folder in dict.fromkeys(f for f, _ in self.settings.streams))
        found = f"{len(self.missing)} of {total} feature files{of_subset} are missing in {folders}: {names}{more}"
        if len(self.missing) == total or not self.settings.skip_missing:
            remedy = "check Dataset.feature_dir, feature_prefix, feature_type and feature_ext"
            if len(self.missing) < total:
                remedy += ", or set Dataset.skip_missing = True to go on without these videos"
            raise UsageError(f"{found}: {remedy}")
        print(f"warning: {found}: going on without them", file=sys.stderr)


def resized_video(video: Video, num_clips: int, settings: DatasetSettings) -> Video:
    """The video of `num_clips` feature vectors after they are resized: its frame rate is that of the new grid.

    Its duration is what it was, or else what the feature vectors cover.
    """
    duration = video.duration
    if duration is None:
        duration = ((num_clips - 1) * settings.feat_stride + settings.num_frames) / video.fps
    return dataclasses.replace(video, duration=duration, fps=settings.max_seq_len / duration)


def pad_batch(
    items: list[dict[str, Any]], max_seq_len: int, padding_value: float, multiple: int, training: bool
) -> Batch:
    """Pad items of a `FeatureDataset` to one length, by the rule of `padded_length`, and stack them.

    Raises:
        RunError: items of different channels; a training item longer than `max_seq_len`; evaluation items whose padded
            lengths differ, since the padding that one would get from the other changes its detections.
    """
    channels = {item["features_CT"].shape[0]: item["video_id"] for item in items}
    if len(channels) > 1:
        raise RunError(f"features of one batch differ in channels, {channels}: use features of one kind")
    lengths = {padded_length(item["features_CT"].shape[1], max_seq_len, multiple, training) for item in items}
    if len(lengths) > 1:
        raise RunError(f"videos padded to {sorted(lengths)} clips cannot share a batch in evaluation: batch equal ones")
    features_BCT, mask_BT = pad_features([item["features_CT"] for item in items], lengths.pop(), padding_value)
    return Batch(
        features_BCT,
        mask_BT,
        [item["segments_N2"] for item in items],
        [item["labels_N"] for item in items],
        [item["video"] for item in items],
    )


def padding_batch(channels: int, max_seq_len: int, padding_value: float) -> Batch:
    """What a process gets of a batch that has too few videos for all: one row of padding, which is no video."""
    none = torch.zeros(0, channels).T
    features_BCT, mask_BT = pad_features([none], max_seq_len, padding_value)
    return Batch(features_BCT, mask_BT, [torch.zeros(0, 2)], [torch.zeros(0, dtype=torch.int64)], [])


class EpochSampler(Sampler):
    """Batches of item keys of one epoch, from a chosen batch on; shuffled anew per epoch, or in order.

    Args:
        num_items: items of the data set.
        batch_size: items of a batch.
        shuffle: training: shuffled, and of each batch the rows of `share`, which may be none. Otherwise the items of
            `share` in order, in batches of their own.
        seed: of order and crops.
        share: the part of one of several processes; all of them see the same number of shuffled batches.
    """

    def __init__(self, num_items: int, batch_size: int, shuffle: bool, seed: int, share: Share = ALL):
        self.items = list(range(num_items)) if shuffle else list(share.every(num_items))
        self.batch_size, self.shuffle, self.seed, self.share = batch_size, shuffle, seed, share
        self.set_position(epoch=1, batch=0)

    def set_position(self, epoch: int, batch: int) -> None:
        """The next iteration yields what remains of `epoch` after its first `batch` batches."""
        self.epoch, self.batch = epoch, batch

    def __len__(self) -> int:
        """Batches of a whole epoch. The last one may be smaller: no video is dropped."""
        return -(-len(self.items) // self.batch_size)

    def rows(self, batch: int) -> tuple[range, int]:
        """Of batch number `batch` of any epoch: the rows that are ours, and how many there are."""
        total = min(self.batch_size, len(self.items) - batch * self.batch_size)
        return self.share.rows(total) if self.shuffle else range(total), total

    def __iter__(self) -> Iterator[list[ItemKey]]:
        order = list(self.items)
        if self.shuffle:
            random.Random(f"{self.seed}/{self.epoch}").shuffle(order)
        keys = [ItemKey(index, f"{self.seed}/{self.epoch}/{index}") for index in order]
        for batch in range(self.batch, len(self)):
            rows, start = self.rows(batch)[0], batch * self.batch_size
            yield keys[start + rows.start : start + rows.stop]


class Loader:
    """Batches of a `FeatureDataset`; see `make_loader`."""

    def __init__(self, batches: DataLoader, sampler: EpochSampler):
        self._batches, self._sampler = batches, sampler

    def __len__(self) -> int:
        """Batches of an epoch."""
        return len(self._sampler)

    def rows(self, batch: int) -> tuple[range, int]:
        """Of batch number `batch` of any epoch: the rows that this loader gives, and how many the whole batch has."""
        return self._sampler.rows(batch)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of `epoch` from number `start` on, the same however often and from wherever they are asked for.

        Touches no global random generator. Raises while iterating what the data set raised.
        """
        self._sampler.set_position(epoch, start)
        return _raising(iter(self._batches))


def make_loader(dataset: FeatureDataset, settings: LoaderSettings, coarsest_stride: int, share: Share = ALL) -> Loader:
    """A loader of `dataset`: shuffled batches for training, single videos in order for evaluation.

    Args:
        coarsest_stride: of the detector (`ModelSettings.coarsest_stride`): the length of a batch is a multiple of it.
        share: what one of several processes gets: in training its rows of each batch of `Loader.batch_size` videos (a
            `padding_batch` where it has none), in evaluation some of the videos.
    """
    batch_size = settings.batch_size if dataset.training else 1
    sampler = EpochSampler(len(dataset), batch_size, dataset.training, settings.seed, share)
    # More workers than processors or batches would only cost memory; the batches do not depend on their number.
    workers = min(settings.num_workers, len(sampler), _processors())
    batches = DataLoader(
        _Outcomes(dataset),
        batch_sampler=sampler,
        collate_fn=_Collate(
            dataset.settings.max_seq_len,
            settings.padding_value,
            settings.padding_multiple(coarsest_stride),
            dataset.training,
            dataset.feature_dim,
        ),
        num_workers=workers,
        pin_memory=settings.pin_memory and torch.cuda.is_available(),
        persistent_workers=workers > 0,
        generator=torch.Generator(),  # the loader draws a seed for its workers: not from the global generator
    )
    return Loader(batches, sampler)


class _Outcomes(Dataset):
    """Items, or the error in place of the item: raised in a worker it would arrive as a traceback in a message."""

    def __init__(self, dataset: FeatureDataset):
        self.dataset = dataset

    def __getitem__(self, key: ItemKey) -> dict[str, Any] | Exception:
        try:
            return self.dataset[key]
        except (UsageError, RunError) as error:
            return error


@dataclasses.dataclass(frozen=True)
class _Collate:
    """`pad_batch` with its settings; picklable, for workers that are not forked."""

    max_seq_len: int
    padding_value: float
    multiple: int
    training: bool
    channels: int | None

    def __call__(self, items: list[dict[str, Any] | Exception]) -> Batch | Exception:
        if not items:
            return padding_batch(self.channels, self.max_seq_len, self.padding_value)
        for item in items:
            if isinstance(item, Exception):
                return item
        try:
            return pad_batch(items, self.max_seq_len, self.padding_value, self.multiple, self.training)
        except RunError as error:
            return error


def _raising(outcomes: Iterator[Batch | Exception]) -> Iterator[Batch]:
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome
        yield outcome


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
