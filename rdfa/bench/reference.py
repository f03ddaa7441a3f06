"""What every backend is measured against: the detector on the plain PyTorch operators, in float64.

Shapes: B batch, C feature channels, T time steps.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from rdfa.bench.backends import detectors
from rdfa.inference.decode import Detections, VideoTiming, detect
from rdfa.inference.settings import PostProcessingSettings
from rdfa.runtime import manifest as manifests
from rdfa.runtime.session import Outputs

# Frame rate that detections are put in seconds with when the artifact's data set names none.
DEFAULT_FPS = 30.0


class PlainDetector:
    """The artifact's detector on the plain operators of `ops`, on the device that is measured."""

    def __init__(self, artifact: Path, threads: int | None, post: PostProcessingSettings, device: str = "cpu"):
        self.manifest = manifests.read(artifact)
        self._threads, self._post, self._device = threads, post, device
        self._detector = detectors.load_weights(artifact, "the float64 reference")
        self._backends: dict[str, Any] = {}

    def exact(self, features_BCT: np.ndarray, mask_BT: np.ndarray) -> Outputs:
        """The three outputs in float64: what every backend should give."""
        return self.rounded(features_BCT, mask_BT, "float64")

    def rounded(self, features_BCT: np.ndarray, mask_BT: np.ndarray, dtype: str) -> Outputs:
        """The same in another dtype: what its rounding does to the outputs."""
        if dtype not in self._backends:
            copy = detectors.converted(self._detector, self._device, dtype)
            self._backends[dtype] = detectors.eager_plain(copy, self._device, dtype, self._threads)
        return self._backends[dtype].run(features_BCT, mask_BT)

    def detections(self, outputs: Outputs, mask_BT: np.ndarray) -> list[Detections]:
        """Final detections of each video, by the same decoding whatever backend `outputs` come from."""
        logits, offsets, point_mask = (torch.from_numpy(np.ascontiguousarray(o)) for o in outputs)
        points = self._detector.points(mask_BT.shape[1])
        timings = [self._timing(int(valid)) for valid in mask_BT.sum(1)]
        return detect(logits, offsets, point_mask, points, timings, self._post)

    def level_lengths(self, time: int) -> list[int]:
        """Points per pyramid level of an input of `time` steps."""
        return self._detector.level_lengths(time)

    def _timing(self, valid: int) -> VideoTiming:
        spec = self.manifest["features"]
        stride = spec["stride"] * spec["downsample_rate"]
        fps = spec["default_fps"] or DEFAULT_FPS
        duration = (valid * stride + spec["num_frames"]) / fps
        return VideoTiming(fps=fps, duration=duration, feat_stride=stride, num_frames=spec["num_frames"])


def resolve_device(device: str) -> str:
    """'auto' -> 'cuda' where torch finds a GPU, else 'cpu'."""
    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"


def describe(artifact: Path) -> dict[str, Any]:
    """What identifies the artifact in a result: the folder's name, its versions and the hash of its manifest; and what
    the mAP of its files in int8 was."""
    manifest = manifests.read(artifact)
    return {
        "artifact": artifact.resolve().name,
        "manifest_sha256": manifests.sha256(artifact / manifests.MANIFEST),
        "exported_with": manifest["versions"],
        "map_gates": {name: entry["map_gate"] for name, entry in manifest["files"].items() if "map_gate" in entry},
    }
