"""From padded features to final detections, whatever runs the detector.

Shapes: B videos, C channels or classes, T clips of the feature grid, P points of all pyramid levels, N detections.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from rdfa.data.annotations import Video
from rdfa.data.dataset import Batch
from rdfa.data.settings import DatasetSettings
from rdfa.errors import RunError
from rdfa.inference.decode import Detections, VideoTiming, detect
from rdfa.inference.fusion import ClassScores, fuse
from rdfa.inference.settings import PostProcessingSettings
from rdfa.modeling.detector import Detector, build_generator
from rdfa.modeling.settings import ModelSettings
from rdfa.runtime.inference_form import inference_form
from rdfa.runtime.session import Session


class Runner(NamedTuple):
    """A detector of any kind.

    forward: (features_BCT float32, mask_BT bool) on the CPU -> cls_logits_BPC, offsets_BP2, point_mask_BP.
    points: T -> points_P4, on the device of the outputs.
    on_gpu: whether `forward` leaves the processor free, which then decodes the batch before.
    """

    forward: Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
    points: Callable[[int], Tensor]
    on_gpu: bool = False


def run_module(detector: Detector) -> Runner:
    """A detector on the device where it is, in the form that is fastest there."""
    device, form = next(detector.parameters()).device, inference_form(detector)
    forward = lambda features, mask: form(features.to(device), mask.to(device))  # noqa: E731
    return Runner(forward, detector.points, device.type == "cuda")


def run_session(session: Session, settings: ModelSettings) -> Runner:
    """A loaded artifact, and the model settings it was exported with."""

    def forward(features_BCT: Tensor, mask_BT: Tensor) -> tuple[Tensor, ...]:
        return tuple(map(torch.from_numpy, session.run(features_BCT.numpy(), mask_BT.numpy())))

    generator = build_generator(settings)
    points = lambda num_clips: generator.points(num_clips, device="cpu")  # noqa: E731
    return Runner(forward, points, session.device.startswith("cuda"))


def detect_videos(
    runner: Runner,
    batches: Iterable[Batch],
    dataset: DatasetSettings,
    post: PostProcessingSettings,
    class_scores: ClassScores | None = None,
) -> Iterator[tuple[str, Detections]]:
    """(video id, detections in seconds) of every video, batch by batch, as soon as a batch is done.

    Segments are clipped to the video, whose duration is that of the annotations or else what its clips cover. With
    `class_scores` the detections are fused with them (see `rdfa.inference.fusion.fuse`).

    Raises:
        RunError: a video that is too long, or outputs that are not finite; names the video.
    """
    for batch, outputs in _outputs(runner, batches):
        clips = batch.mask.sum(dim=1).tolist()
        timings = [timing(video, n, dataset) for video, n in zip(batch.videos, clips)]
        try:
            points_P4 = runner.points(batch.features.shape[-1])
            found = detect(*outputs(), points_P4, timings, post)
        except RunError as error:
            raise RunError(f"video {', '.join(batch.video_ids)}: {error}") from error
        for video_id, detections in zip(batch.video_ids, found):
            yield video_id, detections if class_scores is None else fuse(detections, class_scores[video_id])


def _outputs(runner: Runner, batches: Iterable[Batch]) -> Iterator[tuple[Batch, Callable[[], tuple[Tensor, ...]]]]:
    """Each batch and what gives its outputs. On a GPU they are computed while the caller is with the batch before."""

    @torch.inference_mode()
    def forward(batch: Batch) -> tuple[Tensor, ...]:
        return runner.forward(batch.features, batch.mask)

    if not runner.on_gpu:
        for batch in batches:
            yield batch, partial(forward, batch)
        return
    batches, last, end = iter(batches), None, None
    with ThreadPoolExecutor(1) as gpu:
        while end is None:
            try:
                batch = next(batches)
                ahead = batch, gpu.submit(forward, batch).result
            except Exception as reason:  # no more batches, or one that cannot be read, after the one before it
                ahead, end = None, reason
            if last is not None:
                yield last
            last = ahead
    if not isinstance(end, StopIteration):
        raise end


def timing(video: Video, num_clips: int, dataset: DatasetSettings) -> VideoTiming:
    """Where the `num_clips` positions of the video's feature grid lie in time."""
    stride, num_frames = dataset.grid
    duration = video.duration
    if duration is None:
        duration = ((num_clips - 1) * stride + num_frames) / video.fps
    return VideoTiming(video.fps, duration, stride, num_frames)
