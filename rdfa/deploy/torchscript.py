"""The detector as one TorchScript file that libtorch runs with ``librdfa_ops.so`` and without Python.

    forward(features, mask) -> Outputs(cls_logits, offsets, point_mask)
    detect(features, mask, fps, duration) -> per video Detections(segments, scores, labels), in seconds, best first

`detect` decodes and suppresses with the run's settings. Attributes: class_names, and feature_spec as in the manifest
(numbers only). The extra file ``rdfa.json`` holds both, with the versions.

Shape suffixes: B batch, C channels, T time, P points of all levels (finest first), K classes, M detections of a video.
"""

import json
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ops import library
from ops.nms.reference import METHODS
from rdfa.deploy.gate_pool import GatherGatePool
from rdfa.deploy.replace import replace_modules
from rdfa.errors import UsageError
from rdfa.inference.settings import PostProcessingSettings
from rdfa.runtime.torch_device import full_precision

EXTRA_FILE = "rdfa.json"


class Outputs(NamedTuple):
    """What `forward` returns: [B,P,K] float32, [B,P,2] float32 in strides, [B,P] bool."""

    cls_logits: Tensor
    offsets: Tensor
    point_mask: Tensor


class Detections(NamedTuple):
    """Final detections of one video: [M,2] seconds, [M], [M] int64 (index of class_names)."""

    segments: Tensor
    scores: Tensor
    labels: Tensor


def export(
    detector: nn.Module,
    path: Path,
    manifest: dict[str, Any],
    post: PostProcessingSettings,
    time: int,
) -> None:
    """Trace `detector`, as `form.deployed` made it, over the operators of the library and write it to `path`.

    Args:
        manifest: its "classes", "features" and "versions" go into the file.
        post: how `detect` turns outputs into detections.
        time: length of the example that is traced; the file serves every multiple of the coarsest stride.

    Raises:
        UsageError: the native library is not built.
    """
    if not library.loaded():
        raise UsageError(f"TorchScript files run on the native operators, which are missing here: {library.REMEDY}")
    features = torch.zeros(2, detector.settings.embedding.input_c, time)
    mask = torch.ones(2, time, dtype=torch.bool)
    with torch.no_grad(), warnings.catch_warnings():
        # TorchScript is deprecated as a whole; AOTInductor does not yet serve every platform this file does.
        warnings.filterwarnings("ignore", message=".*torch.jit.*deprecated", category=DeprecationWarning)
        # The operators check shapes in Python; those checks are not part of the file.
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
        # These make their indices: a trace would make them on the device of its example, wherever the file runs.
        replace_modules(detector, {GatherGatePool: torch.jit.script})
        # A traced convolution keeps this setting of its trace, wherever the file will run.
        with full_precision("cuda"):
            traced = torch.jit.trace(detector, (features, mask), check_trace=False)
        module = torch.jit.script(DeployedDetector(traced, detector, manifest, post).eval())
        facts = {"classes": manifest["classes"], "features": manifest["features"], "versions": manifest["versions"]}
        torch.jit.save(module, str(path), _extra_files={EXTRA_FILE: json.dumps(facts)})


class DeployedDetector(nn.Module):
    """The traced detector with its decoding; scripted, so written in what TorchScript understands."""

    class_names: list[str]
    feature_spec: dict[str, float]
    level_strides: list[int]
    level_ranges: list[tuple[float, float]]

    def __init__(self, traced, detector: nn.Module, manifest: dict[str, Any], post: PostProcessingSettings):
        super().__init__()
        self.detector = traced
        self.class_names = list(manifest["classes"])
        self.feature_spec = {
            name: float(value) for name, value in manifest["features"].items() if isinstance(value, (int, float))
        }
        self.level_strides = list(detector.generator.strides)
        self.level_ranges = [(float(low), float(high)) for low, high in detector.generator.regression_ranges]
        self.pre_nms_thresh, self.pre_nms_topk = post.pre_nms_thresh, post.pre_nms_topk
        self.duration_thresh, self.method = post.duration_thresh, METHODS.index(post.nms_method)
        self.multiclass, self.iou_threshold = post.multiclass_nms, post.iou_threshold
        self.min_score, self.max_seg_num = post.min_score, post.max_seg_num
        self.sigma, self.voting_thresh = post.nms_sigma, post.voting_thresh

    def forward(self, features: Tensor, mask: Tensor) -> Outputs:
        cls_logits, offsets, point_mask = self.detector(features, mask)
        return Outputs(cls_logits, offsets, point_mask)

    @torch.jit.export
    def points(self, time: int) -> Tensor:
        """float32 [P,4]: position, smallest and largest offset, stride; in time steps."""
        levels: list[Tensor] = []
        for stride, bounds in zip(self.level_strides, self.level_ranges):
            position = torch.arange(time // stride).to(torch.float32) * stride
            rest = torch.tensor([bounds[0], bounds[1], float(stride)]).expand(position.shape[0], 3)
            levels.append(torch.cat([position.unsqueeze(1), rest], dim=1))
        return torch.cat(levels)

    @torch.jit.export
    def detect(self, features: Tensor, mask: Tensor, fps: list[float], duration: list[float]) -> list[Detections]:
        """Final detections of each video.

        Args:
            features: float32 [B,C,T], padded. mask: bool [B,T], True on the frames of the video.
            fps: frame rate of each video. duration: its length in seconds; 0 where unknown, then nothing is clipped at
                the end.
        """
        cls_logits, offsets, point_mask = self.detector(features, mask)
        cls_logits, offsets, point_mask = cls_logits.cpu(), offsets.cpu(), point_mask.cpu()  # where decode_nms runs
        points = self.points(features.shape[2])
        stride = self.feature_spec["stride"] * self.feature_spec["downsample_rate"]
        results: list[Detections] = []
        for i in range(features.shape[0]):
            segments, scores, labels = torch.ops.rdfa.decode_nms(
                cls_logits[i],
                offsets[i],
                point_mask[i],
                points,
                self.pre_nms_thresh,
                self.pre_nms_topk,
                self.duration_thresh,
                self.method,
                self.multiclass,
                self.iou_threshold,
                self.min_score,
                self.max_seg_num,
                self.sigma,
                self.voting_thresh,
            )
            seconds = (segments * stride + 0.5 * self.feature_spec["num_frames"]) / fps[i]
            seconds = seconds.clamp(min=0.0)
            if duration[i] > 0:
                seconds = seconds.clamp(max=duration[i])
            results.append(Detections(seconds, scores, labels))
        return results
