"""From the detector's outputs to detections in seconds.

Shape suffixes: B batch, P points of all pyramid levels, C classes, M detections.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

import ops
from rdfa.errors import RunError
from rdfa.inference.settings import PostProcessingSettings


@dataclass(frozen=True)
class Detections:
    """The detections of one video, best first (as they came where the NMS method is "none")."""

    segments_N2: np.ndarray  # float32, (start, end) in seconds
    scores_N: np.ndarray  # float32
    labels_N: np.ndarray  # int64, class index of the detector

    def __len__(self) -> int:
        return len(self.scores_N)


@dataclass(frozen=True)
class VideoTiming:
    """How the feature grid of one video lies in time."""

    fps: float
    duration: float | None  # seconds; None: unknown, detections are then clipped at 0 only
    feat_stride: float  # frames from one grid position to the next (after downsampling)
    num_frames: float  # frames that one feature covers

    def seconds(self, grid: torch.Tensor) -> torch.Tensor:
        """(grid feat_stride + num_frames / 2) / fps, clipped to [0, duration]."""
        seconds = (grid * self.feat_stride + 0.5 * self.num_frames) / self.fps
        return seconds.clamp(min=0.0, max=self.duration)


def detect(
    cls_logits_BPC: torch.Tensor,
    offsets_BP2: torch.Tensor,
    point_mask_BP: torch.Tensor,
    points_P4: torch.Tensor,
    videos: Sequence[VideoTiming],
    settings: PostProcessingSettings,
) -> list[Detections]:
    """Decode, suppress and convert to seconds: one `Detections` per video of the batch.

    Args:
        cls_logits_BPC, offsets_BP2 (in strides), point_mask_BP: the detector's outputs, on any device.
        points_P4: (t, range low, range high, stride) on the feature grid, as `Detector.points` gives them.

    Raises:
        RunError: an output is NaN or infinite at a valid point, which no detection can be read from.
        ValueError: shapes that do not belong together.
    """
    if len(videos) != cls_logits_BPC.shape[0]:
        raise ValueError(f"{len(videos)} videos for a batch of {cls_logits_BPC.shape[0]}")
    logits_BPC, offsets_BP2 = cls_logits_BPC.detach().float().cpu(), offsets_BP2.detach().float().cpu()
    mask_BP, points_P4 = point_mask_BP.cpu(), points_P4.float().cpu()
    results = []
    for b, video in enumerate(videos):
        _check_finite(b, logits_BPC[b], offsets_BP2[b], mask_BP[b])
        segments, scores, labels = ops.decode_nms(
            logits_BPC[b],
            offsets_BP2[b],
            mask_BP[b],
            points_P4,
            pre_nms_thresh=settings.pre_nms_thresh,
            pre_nms_topk=settings.pre_nms_topk,
            duration_thresh=settings.duration_thresh,
            method=settings.nms_method,
            multiclass=settings.multiclass_nms,
            iou_threshold=settings.iou_threshold,
            min_score=settings.min_score,
            max_seg_num=settings.max_seg_num,
            sigma=settings.nms_sigma,
            voting_thresh=settings.voting_thresh,
        )
        results.append(Detections(video.seconds(segments).numpy(), scores.numpy(), labels.numpy()))
    return results


def _check_finite(index, logits_PC, offsets_P2, mask_P):
    # A sum is finite only if all its terms are (or they cancel to NaN): one cheap pass for the usual case.
    if torch.isfinite(logits_PC.sum() + offsets_P2.sum()):
        return
    bad = ~(logits_PC.isfinite().all(dim=1) & offsets_P2.isfinite().all(dim=1)) & mask_P
    if bad.any():
        point = int(bad.nonzero()[0])
        raise RunError(
            f"the detector's output for video {index} of the batch is not finite at point {point} of {len(mask_P)}: "
            "check the features and the weights for NaN"
        )
