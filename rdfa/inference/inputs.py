"""Which videos to detect in: from a folder of features or one file, with annotations or without."""

import dataclasses
from pathlib import Path

import numpy as np

from rdfa.data.annotations import AnnotationSet, Video, load_annotations
from rdfa.data.dataset import FeatureDataset
from rdfa.data.features import EXTENSIONS, find_feature_file
from rdfa.data.settings import DatasetSettings
from rdfa.errors import UsageError
from rdfa.inference.videos import select_subset


def open_features(
    settings: DatasetSettings,
    feature_dim: int,
    features: str,
    annotation_file: str | None,
    subset: str | None,
    fps: float | None,
) -> FeatureDataset:
    """The videos to detect in.

    Args:
        features: folder of feature files, or one file.
        annotation_file: which videos there are; None: one per feature file.
        subset: of the annotations; None: `Dataset.test_subset` if they have it, else the only one. A single file may
            belong to any subset then.
        fps: frame rate of the videos, in place of the annotations'.

    Raises:
        UsageError: there is no such file or folder, or it holds features of no video; no frame rate.
    """
    path = Path(features)
    if not path.exists():
        raise UsageError(f"--features {features}: no such file or folder")
    settings = dataclasses.replace(
        settings,
        feature_dir=str(path if path.is_dir() else path.parent),
        annotation_file=annotation_file or "",
        default_fps=fps or settings.default_fps,
    )
    if annotation_file is None:
        if settings.default_fps is None:
            raise UsageError("without --annotations the frame rate of the videos is unknown: give --fps")
        settings, videos = _videos_of_files(settings, path)
    else:
        settings, videos = _videos_of_annotations(settings, path, annotation_file, subset)
    table = {video.id: video for video in videos}
    return FeatureDataset(settings, AnnotationSet(table, {}), "", training=False, feature_dim=feature_dim)


def _videos_of_files(settings: DatasetSettings, path: Path) -> tuple[DatasetSettings, list[Video]]:
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    videos = [_blank(id_) for file in files if (id_ := _video_id(settings, file.name)) is not None]
    if not videos:
        raise UsageError(f"--features {path}: no feature file ({settings.feature_ext or ', '.join(EXTENSIONS)})")
    return settings, videos


def _video_id(settings: DatasetSettings, name: str) -> str | None:
    """The video whose feature file is called `name`; None if it is no feature file."""
    for extension in (settings.feature_ext,) if settings.feature_ext else EXTENSIONS:
        ending = settings.feature_type + extension
        if name.startswith(settings.feature_prefix) and name.endswith(ending) and not name.startswith("."):
            return name.removeprefix(settings.feature_prefix).removesuffix(ending)
    return None


def _videos_of_annotations(
    settings: DatasetSettings, path: Path, annotation_file: str, subset: str | None
) -> tuple[DatasetSettings, list[Video]]:
    annotations = load_annotations(annotation_file)
    if path.is_dir():
        if subset is None and annotations.subset(settings.test_subset):
            subset = settings.test_subset
        return settings, [_blank(video.id, video.duration, video.fps) for video in select_subset(annotations, subset)]
    videos = select_subset(annotations, subset) if subset is not None else annotations.videos.values()
    # A single file need not be named as the files of the training set were.
    plain = dataclasses.replace(settings, feature_prefix="", feature_type="", feature_ext="")
    for naming in (settings, plain):
        for video in videos:
            if find_feature_file(naming, video.id) == path:
                return naming, [_blank(video.id, video.duration, video.fps)]
    raise UsageError(
        f"--features {path} belongs to none of {len(videos)} videos of {annotation_file}: "
        "name it after its video, or leave --annotations out and give --fps"
    )


def _blank(video_id: str, duration: float | None = None, fps: float | None = None) -> Video:
    """Annotated actions play no part in detection: their classes need not be those of the detector."""
    return Video(video_id, "", duration, fps, np.empty((0, 2)), np.empty(0, np.int64))
