"""The mean average precision of a detector, whatever runs it, on a set of the user's videos."""

import dataclasses
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rdfa.config import Config
from rdfa.data.annotations import load_annotations
from rdfa.evaluation.mean_ap import mean_average_precision
from rdfa.inference.batches import load_batches, plan_batches
from rdfa.inference.fusion import AGNOSTIC_NAMES
from rdfa.inference.inputs import open_features
from rdfa.inference.pipeline import Runner, detect_videos
from rdfa.inference.results import read_results, write_results
from rdfa.inference.settings import PostProcessingSettings
from rdfa.modeling.detector import build_generator

TIOU = np.linspace(0.3, 0.7, 5)


@dataclass(frozen=True)
class GivenSet:
    """Videos with features and ground truth; their average precision is the mean over tIoU 0.3 to 0.7."""

    annotations: str
    features: tuple[str, ...]
    subset: str | None


class OpenedSet:
    """A given set with what a detector of these settings needs of it; its length is the number of videos.

    For a class-agnostic detector all actions are of one class. subset: as the annotations spell it.

    Raises:
        UsageError: no such files, or videos without features.
    """

    def __init__(self, given: GivenSet, settings: Config):
        self._dataset = open_features(
            settings.dataset, settings.model.embedding.input_c, given.features, given.annotations, given.subset, None
        )
        annotations = load_annotations(given.annotations)
        self._videos = [annotations.videos[video.id] for video in self._dataset.videos]
        self._class_names = annotations.class_names
        if settings.dataset.class_agnostic:
            self._videos = [dataclasses.replace(v, labels_N=np.zeros_like(v.labels_N)) for v in self._videos]
            self._class_names = AGNOSTIC_NAMES
        self._multiple = settings.padding_multiple
        self._plan = plan_batches(self._dataset, 1, self._multiple)
        self._padding = settings.loader.padding_value
        self._generator = build_generator(settings.model)

    @property
    def subset(self) -> str:
        return ", ".join(sorted({video.subset for video in self._videos}))

    def __len__(self) -> int:
        return len(self._videos)

    def average_map(self, backend: Any, post: PostProcessingSettings, class_names: Sequence[str]) -> float:
        """As `rdfa.detect` and `rdfa.evaluate` find it: through the file, which holds classes by name."""

        def forward(features: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return tuple(map(torch.from_numpy, backend.run(features.numpy(), mask.numpy())))

        runner = Runner(forward, lambda clips: self._generator.points(clips, device="cpu"))
        batches = load_batches(self._dataset, self._plan, self._padding, self._multiple)
        found = dict(detect_videos(runner, batches, self._dataset.settings, post))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "detections.json"
            write_results(path, found, dict(enumerate(class_names)))
            predictions, names = read_results(path, self._class_names)
        return round(float(mean_average_precision(self._videos, predictions, TIOU, names).average), 6)
