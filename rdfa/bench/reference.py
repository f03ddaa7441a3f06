"""What every backend is measured against: the detector on the plain PyTorch operators, in float64 and in float32.

The float64 run says what the outputs should be; the float32 run, under the name ``eager_plain``, is the reference row
of speed: the same module that the backend ``eager`` runs, minus the native operators.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from ops import library
from rdfa import config
from rdfa.errors import UsageError
from rdfa.inference.decode import Detections, VideoTiming, detect
from rdfa.inference.settings import PostProcessingSettings
from rdfa.modeling.detector import build_detector
from rdfa.runtime import manifest as manifests
from rdfa.runtime.session import Outputs
from rdfa.runtime.torch_threads import pinned

# Frame rate that detections are put in seconds with when the artifact's data set names none.
DEFAULT_FPS = 30.0


class PlainDetector:
    """The artifact's detector on the plain operators of `ops`, on the CPU."""

    def __init__(self, artifact: Path, threads: int | None, post: PostProcessingSettings):
        self.manifest = manifests.read(artifact)
        self._threads, self._post = threads, post
        name = manifests.find(self.manifest, "safetensors")
        if name is None:
            raise UsageError(f"{artifact} has no safetensors file, which the float64 reference needs: export it again")
        manifests.verify(artifact, self.manifest, [name])
        self._detector = build_detector(config.from_text(self.manifest["config"]).model)
        self._detector.load_state_dict(load_file(artifact / name))
        self._detector.eval()

    def run(self, features_BCT: np.ndarray, mask_BT: np.ndarray) -> Outputs:
        """The three outputs in float32: what speed is compared with."""
        return self._run(features_BCT, mask_BT, torch.float32)

    def exact(self, features_BCT: np.ndarray, mask_BT: np.ndarray) -> Outputs:
        """The three outputs in float64: what every backend should give."""
        return self._run(features_BCT, mask_BT, torch.float64)

    def _run(self, features_BCT: np.ndarray, mask_BT: np.ndarray, dtype: torch.dtype) -> Outputs:
        with pinned(self._threads), plain_operators(), torch.inference_mode():
            self._detector.to(dtype)
            outputs = self._detector(torch.from_numpy(features_BCT).to(dtype), torch.from_numpy(mask_BT))
            return Outputs(*(o.numpy() for o in outputs))

    def detections(self, outputs: Outputs, mask_BT: np.ndarray) -> list[Detections]:
        """Final detections of each video, by the same decoding whatever backend `outputs` come from."""
        timings = [self._timing(int(valid)) for valid in mask_BT.sum(1)]
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


@contextlib.contextmanager
def plain_operators() -> Iterator[None]:
    """Within the block every operator runs its plain reference, as on a machine without the native library."""
    original = library.available
    library.available = lambda: False
    try:
        yield
    finally:
        library.available = original


def native_operators() -> bool:
    """Whether the backend ``eager`` runs anything but the plain operators."""
    return library.loaded()


def resolve_device(device: str) -> str:
    """'auto' -> 'cuda' where torch finds a GPU, else 'cpu'."""
    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"


def describe(artifact: Path) -> dict[str, Any]:
    """What identifies the artifact in a result: the folder's name, its versions and the hash of its manifest."""
    manifest = manifests.read(artifact)
    return {
        "artifact": artifact.resolve().name,
        "manifest_sha256": manifests.sha256(artifact / manifests.MANIFEST),
        "exported_with": manifest["versions"],
    }
