"""Detections and average mAP of a detector on the test subset: after an epoch of training, and for --mode test."""

import dataclasses
from pathlib import Path

import numpy as np

from rdfa.config import Config
from rdfa.data.annotations import AnnotationSet, load_annotations
from rdfa.data.dataset import FeatureDataset, make_loader
from rdfa.errors import UsageError
from rdfa.evaluation.mean_ap import MeanAP, mean_average_precision
from rdfa.inference.decode import Detections
from rdfa.inference.fusion import AGNOSTIC_NAMES, ClassScores
from rdfa.inference.pipeline import detect_videos, run_module
from rdfa.inference.results import write_json, write_results
from rdfa.modeling.detector import Detector
from rdfa.run_dir import RunDirectory, load_detector
from rdfa.training.logging import ProgressReport, say
from rdfa.training.processes import ALONE, Processes, joined, resolve_device


class Evaluator:
    """The test subset of a configuration, ready to be detected in, by several processes together.

    With `Dataset.class_agnostic` and no class scores, the actions of all classes are evaluated as one.

    Raises:
        UsageError: features or class scores are missing, or no video of the subset has an action: before the training,
            not after it.
    """

    def __init__(self, config: Config, annotations: AnnotationSet, processes: Processes = ALONE):
        self.config, self.processes = config, processes
        dataset = FeatureDataset(
            config.dataset, annotations, config.dataset.test_subset, False, config.model.embedding.input_c
        )
        self.videos = dataset.videos
        if not any(len(video.labels_N) for video in self.videos):
            raise UsageError(
                f"subset {config.dataset.test_subset!r} of {config.dataset.annotation_file} has no action to evaluate "
                f"against: choose another with Dataset.test_subset"
            )
        self.loader = make_loader(dataset, config.loader, config.model.coarsest_stride, processes)
        self.class_names, self.class_scores = annotations.class_names, None
        if config.post.ext_score_file:
            self.class_scores = ClassScores(config.post.ext_score_file, self.class_names, config.dataset.num_classes)
            self.class_scores.require(video.id for video in self.videos)
        elif config.dataset.class_agnostic:
            say("no PostProcessing.ext_score_file: actions of all classes are evaluated as one")
            self.class_names = AGNOSTIC_NAMES
            self.videos = [dataclasses.replace(v, labels_N=np.zeros_like(v.labels_N)) for v in self.videos]

    def detections(self, detector: Detector) -> dict[str, Detections]:
        """Video id -> detections of `detector`, which is in eval mode; the same in every process.

        Each process detects in videos of its own, one at a time, so that their number changes nothing.
        """
        runner, found = run_module(detector), {}
        batches = detect_videos(runner, self.loader.epoch(1), self.config.dataset, self.config.post, self.class_scores)
        with ProgressReport("test", len(self.loader), every=100) as progress:
            for video_id, detections in batches:
                found[video_id] = detections
                progress.step(f"{len(detections.scores_N)} detections in {video_id}")
        everywhere = {video_id: part for share in self.processes.collect(found) for video_id, part in share.items()}
        return {video.id: everywhere[video.id] for video in self.videos}  # order decides between equal scores

    def evaluate(self, detections: dict[str, Detections]) -> MeanAP:
        """mAP at the thresholds of Training.tiou."""
        return mean_average_precision(self.videos, detections, self.config.engine.training.tiou, self.class_names)


def measure(config: Config, run_dir: Path, checkpoint: str = "auto") -> None:
    """Measure the averaged weights of a checkpoint; writes test.json and detections.json beside it in `run_dir`.

    Args:
        config: data and post-processing; the detector is built as the run's own configuration says.
        checkpoint: path of a step folder, or "auto" for the best one.
    """
    if checkpoint == "none":
        raise UsageError("--mode test needs a checkpoint: --resume auto takes the best one, --resume PATH another")
    with joined(resolve_device(config.engine.training.device)) as processes:
        _measure(config, run_dir, checkpoint, processes)


def _measure(config: Config, run_dir: Path, checkpoint: str, processes: Processes) -> None:
    folder = RunDirectory(run_dir).checkpoint(None if checkpoint == "auto" else checkpoint)
    detector, _ = load_detector(run_dir, folder)
    evaluator = Evaluator(config, load_annotations(config.dataset.annotation_file), processes)
    detections = evaluator.detections(detector.to(resolve_device(config.engine.training.device)))
    if not processes.is_main:
        return
    result = evaluator.evaluate(detections)
    numbers = {label: str(label) for label in range(config.dataset.num_classes)}  # for classes without a name
    used = evaluator.class_scores.description if evaluator.class_scores else ""
    write_results(run_dir / "detections.json", detections, numbers | evaluator.class_names, used)
    write_json(run_dir / "test.json", {"checkpoint": folder.name, **result.summary()}, indent=1)
    say(f"{folder}: {describe(result)}. Written: {run_dir / 'test.json'}, {run_dir / 'detections.json'}")


def describe(result: MeanAP) -> str:
    """'average mAP 0.6512 (mAP@0.3 0.8123  mAP@0.5 ...)'"""
    per_threshold = "  ".join(f"mAP@{tiou:g} {mAP:.4f}" for tiou, mAP in zip(result.tiou_K, result.mAP))
    return f"average mAP {result.average:.4f} ({per_threshold})"
