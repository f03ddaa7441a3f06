"""Which videos to detect in: from a folder of features or one file, with annotations or without."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rdfa.data.annotations import AnnotationSet, Video, load_annotations
from rdfa.data.dataset import FeatureDataset
from rdfa.data.features import ANY_EXTENSION, HDF5, FeatureFinder, list_entries
from rdfa.data.settings import DatasetSettings
from rdfa.errors import UsageError
from rdfa.inference.videos import select_subset


def open_features(
    settings: DatasetSettings,
    feature_dim: int,
    features: Sequence[str],
    annotation_file: str | None,
    subset: str | None,
    fps: float | None,
) -> FeatureDataset:
    """The videos to detect in.

    Args:
        features: folder of feature files, or one file; several folders where `Dataset.feature_dir` is a list.
        annotation_file: which videos there are; None: one per feature file.
        subset: of the annotations; None: `Dataset.test_subset` if they have it, else the only one. A single file may
            belong to any subset then.
        fps: frame rate of the videos, in place of the annotations'.

    Raises:
        UsageError: there is no such file or folder, or it holds features of no video; no frame rate.
    """
    paths = [Path(name) for name in features]
    for path in paths:
        if not path.exists():
            raise UsageError(f"--features {path}: no such file or folder")
    # A folder, or an HDF5 file of many videos, takes the place of the folders that were trained on.
    single = len(paths) == 1 and paths[0].is_file() and not paths[0].name.endswith(HDF5)
    folders = tuple(str(path.parent if single else path) for path in paths)
    settings = dataclasses.replace(
        settings,
        feature_dir=folders[0] if len(folders) == 1 else folders,
        annotation_file=annotation_file or "",
        default_fps=fps or settings.default_fps,
        exclude=(),
    )
    if annotation_file is None:
        if settings.default_fps is None:
            raise UsageError("without --annotations the frame rate of the videos is unknown: give --fps")
        videos = _videos_of_files(settings, paths[0])
    elif single:
        settings, videos = _video_of_file(settings, paths[0], annotation_file, subset)
    else:
        videos = _videos_of_annotations(settings, annotation_file, subset)
    table = {video.id: video for video in videos}
    return FeatureDataset(settings, AnnotationSet(table, {}), "", training=False, feature_dim=feature_dim)


def _videos_of_files(settings: DatasetSettings, path: Path) -> list[Video]:
    names = list_entries(path) if path.is_dir() or path.name.endswith(HDF5) else [path.name]
    finder = FeatureFinder(settings)
    videos = [blank_video(video_id) for name in names if (video_id := finder.video_id(name)) is not None]
    if not videos:
        raise UsageError(f"--features {path}: no feature file ({settings.feature_ext or ANY_EXTENSION})")
    return videos


def _videos_of_annotations(settings: DatasetSettings, annotation_file: str, subset: str | None) -> list[Video]:
    annotations = load_annotations(annotation_file)
    if subset is None and annotations.subset(settings.test_subset):
        subset = settings.test_subset
    return [blank_video(video.id, video.duration, video.fps) for video in select_subset(annotations, subset)]


def _video_of_file(
    settings: DatasetSettings, path: Path, annotation_file: str, subset: str | None
) -> tuple[DatasetSettings, list[Video]]:
    annotations = load_annotations(annotation_file)
    videos = select_subset(annotations, subset) if subset is not None else annotations.videos.values()
    # A single file need not be named as the files of the training set were.
    plain = dataclasses.replace(settings, feature_prefix="", feature_type="", feature_ext="")
    for naming in (settings, plain):
        finder = FeatureFinder(naming)
        for video in videos:
            if any(file.path == path for file in finder.find(video.id) or ()):
                return naming, [blank_video(video.id, video.duration, video.fps)]
    raise UsageError(
        f"--features {path} belongs to none of {len(videos)} videos of {annotation_file}: "
        "name it after its video, or leave --annotations out and give --fps"
    )


def blank_video(video_id: str, duration: float | None = None, fps: float | None = None) -> Video:
    """Annotated actions play no part in detection: their classes need not be those of the detector."""
    return Video(video_id, "", duration, fps, np.empty((0, 2)), np.empty(0, np.int64))
