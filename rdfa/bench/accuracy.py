"""Mean average precision of every backend on a set of videos: what the differences in its outputs come to."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rdfa.bench.candidates import Candidate, line
from rdfa.bench.results import Row
from rdfa.config import Config
from rdfa.data.annotations import load_annotations
from rdfa.errors import UsageError
from rdfa.evaluation.mean_ap import mean_average_precision
from rdfa.inference.batches import load_batches, plan_batches
from rdfa.inference.inputs import open_features
from rdfa.inference.pipeline import Runner, detect_videos
from rdfa.inference.results import read_results, write_results
from rdfa.inference.settings import PostProcessingSettings
from rdfa.inference.videos import select_subset
from rdfa.modeling.detector import build_detector

TIOU = np.linspace(0.3, 0.7, 5)


@dataclass(frozen=True)
class GivenSet:
    """Videos with features and ground truth; their average precision is the mean over tIoU 0.3 to 0.7."""

    annotations: str
    features: tuple[str, ...]
    subset: str | None


def fill(
    rows: Sequence[Row],
    given: GivenSet,
    opened: Sequence[Candidate],
    settings: Config,
    post: PostProcessingSettings,
    class_names: Sequence[str],
    progress: Callable[[str], None],
) -> None:
    """The column `average_map` of all rows of a backend that has a valid one.

    Raises:
        UsageError: no such files, or videos without features; a class-agnostic detector, whose detections are of no
            class by themselves.
    """
    if settings.dataset.class_agnostic:
        raise UsageError("--annotations: this detector is class-agnostic; measure its mAP with detect and evaluate")
    dataset = open_features(
        settings.dataset, settings.model.embedding.input_c, given.features, given.annotations, given.subset, None
    )
    annotations = load_annotations(given.annotations)
    videos = select_subset(annotations, given.subset)
    multiple = int(np.lcm(settings.loader.max_div_factor, settings.model.coarsest_stride))
    plan = plan_batches(dataset, 1, multiple)
    generator = build_detector(settings.model).generator
    for candidate in opened:
        own = [r for r in rows if (r.backend, r.dtype) == (candidate.name, candidate.dtype) and r.valid]
        if not own:
            continue
        progress(f"{candidate.name}, {candidate.dtype}: mean average precision on {len(videos)} videos")
        runner = Runner(_forward(candidate.backend), lambda clips: generator.points(clips, device="cpu"))
        batches = load_batches(dataset, plan, settings.loader.padding_value, multiple)
        try:
            found = dict(detect_videos(runner, batches, dataset.settings, post))
        except Exception as error:  # whatever a backend raises belongs in its rows
            for row in own:
                row.drop_speed(f"invalid: on the given set, raised {type(error).__name__}: {line(error)}")
            continue
        average = _evaluate(found, dict(enumerate(class_names)), videos, annotations.class_names)
        for row in own:
            row.average_map = round(average, 6)


def _evaluate(found: dict, names: dict[int, str], videos: list, annotated: dict[int, str]) -> float:
    """As `rdfa.detect` and `rdfa.evaluate` do it: through the file, which holds classes by name."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "detections.json"
        write_results(path, found, names)
        predictions, class_names = read_results(path, annotated)
    return float(mean_average_precision(videos, predictions, TIOU, class_names).average)


def _forward(backend: Any) -> Callable:
    def forward(features, mask):
        return tuple(map(torch.from_numpy, backend.run(features.numpy(), mask.numpy())))

    return forward
