"""What is served: the detector's raw outputs, and final detections.

Shapes: B videos, C channels, T clips, P points of all pyramid levels, K classes, N detections.

    detector     features FP32 [B,C,T], mask BOOL [B,T], padded by the client, as in the exported graph
                 -> cls_logits FP32 [B,P,K], offsets FP32 [B,P,2], point_mask BOOL [B,P]
    detections   features FP32 [T,C] of one video, as its feature file has them; fps, duration FP64 [1], both optional
                 where the artifact knows the frame rate
                 -> segments FP32 [N,2] in seconds, scores FP32 [N], labels INT64 [N], label_names BYTES [N]

The second does what `rdfa.detect` does with a video: resizing, padding, decoding, NMS.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from rdfa.data.annotations import LEAST, MOST
from rdfa.data.dataset import resized_video
from rdfa.data.transforms import pad_features, padded_length, resize_features
from rdfa.errors import RunError
from rdfa.inference.decode import detect
from rdfa.inference.detectors import Source
from rdfa.inference.fusion import AGNOSTIC_NAMES
from rdfa.inference.inputs import blank_video
from rdfa.inference.pipeline import timing
from rdfa.serve.refusals import BadRequest
from rdfa.settings import nearest

Arrays = dict[str, np.ndarray]
DTYPES = {"FP32": np.float32, "FP64": np.float64, "INT64": np.int64, "BOOL": np.bool_, "BYTES": np.object_}


class TensorSpec(NamedTuple):
    """A tensor as the protocol describes it; -1 is a size that varies."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Job:
    """A checked request: what the detector computes for it, and what is made of its rows of the outputs."""

    features_BCT: torch.Tensor
    mask_BT: torch.Tensor
    finish: Callable[..., Arrays]  # (cls_logits, offsets, point_mask) -> the outputs of the model

    @property
    def size(self) -> int:
        return self.features_BCT.shape[0]

    @property
    def length(self) -> int:
        return self.features_BCT.shape[2]


class Detector:
    """The model `detector`."""

    name = "detector"

    def __init__(self, source: Source, spec: Mapping[str, Any], max_videos: int):
        """
        Args:
            spec: "features" of the artifact's manifest. max_videos: of one request.
        """
        self._spec, self._max_videos = spec, max_videos
        channels, classes = spec["dimension"], source.config.model.cls_head.num_classes
        self.inputs = (TensorSpec("features", "FP32", (-1, channels, -1)), TensorSpec("mask", "BOOL", (-1, -1)))
        self.outputs = (
            TensorSpec("cls_logits", "FP32", (-1, -1, classes)),
            TensorSpec("offsets", "FP32", (-1, -1, 2)),
            TensorSpec("point_mask", "BOOL", (-1, -1)),
        )

    def prepare(self, arrays: Arrays) -> Job:
        """Check the inputs of a request; raises BadRequest."""
        check(arrays, self.inputs)
        features_BCT, mask_BT = arrays["features"], arrays["mask"]
        batch, _, time = features_BCT.shape
        if mask_BT.shape != (batch, time):
            raise BadRequest(f"mask has shape {list(mask_BT.shape)}, the features ask for {[batch, time]}")
        if not 1 <= batch <= self._max_videos:
            raise BadRequest(f"a batch of {batch} videos: send 1 to {self._max_videos} in a request")
        spec = self._spec
        if not 0 < time <= spec["max_time"] or time % spec["multiple"]:
            raise BadRequest(
                f"features have {time} time steps: pad them to {spec['max_seq_len']}, longer videos to the next "
                f"multiple of {spec['multiple']}, at most {spec['max_time']}"
            )
        return Job(_tensor(features_BCT), _tensor(mask_BT), self._finish)

    def _finish(self, *outputs: torch.Tensor) -> Arrays:
        return {spec.name: output.numpy() for spec, output in zip(self.outputs, outputs)}


class Detections:
    """The model `detections`."""

    name = "detections"

    def __init__(self, source: Source, spec: Mapping[str, Any]):
        self._source, self._spec = source, spec
        self._class_names = AGNOSTIC_NAMES if source.config.dataset.class_agnostic else source.class_names
        self.inputs = (
            TensorSpec("features", "FP32", (-1, spec["dimension"])),
            TensorSpec("fps", "FP64", (1,)),
            TensorSpec("duration", "FP64", (1,)),
        )
        self.outputs = (
            TensorSpec("segments", "FP32", (-1, 2)),
            TensorSpec("scores", "FP32", (-1,)),
            TensorSpec("labels", "INT64", (-1,)),
            TensorSpec("label_names", "BYTES", (-1,)),
        )

    def prepare(self, arrays: Arrays) -> Job:
        """Check the inputs of a request and bring the video onto the detector's grid; raises BadRequest."""
        check(arrays, self.inputs, optional=("fps", "duration"))
        features_TC, spec, dataset = arrays["features"], self._spec, self._source.config.dataset
        numbers = {name: float(arrays[name][0]) for name in ("fps", "duration") if name in arrays}
        for name, value in numbers.items():
            if not LEAST <= value <= MOST:
                raise BadRequest(f"{name} = {value}: give a positive number ({LEAST:g} to {MOST:g})")
        fps, duration = numbers.get("fps", dataset.default_fps), numbers.get("duration")
        if fps is None and not (dataset.resize and duration is not None):
            raise BadRequest(f"the frame rate of the video is unknown: send fps{' or duration' * dataset.resize}")
        if not len(features_TC):
            raise BadRequest("features have no time step: send at least one")
        video = blank_video("", duration, fps)
        if dataset.resize:
            video = resized_video(video, len(features_TC), dataset)
            features_TC = resize_features(features_TC, dataset.max_seq_len)
        features_CT = _tensor(features_TC)[:: dataset.downsample_rate].T
        clips = features_CT.shape[1]
        length = padded_length(clips, spec["max_seq_len"], spec["multiple"], training=False)
        if length > spec["max_time"]:
            raise BadRequest(f"the video has {clips} clips on the detector's grid: it takes at most {spec['max_time']}")
        when = timing(video, clips, dataset)

        def finish(*outputs: torch.Tensor) -> Arrays:
            (found,) = detect(*outputs, self._source.runner.points(length), [when], self._source.config.post)
            names = [self._class_names[label] for label in found.labels_N.tolist()]
            return {
                "segments": found.segments_N2,
                "scores": found.scores_N,
                "labels": found.labels_N,
                "label_names": np.array([name.encode() for name in names], np.object_),
            }

        return Job(*pad_features([features_CT], length, spec["padding_value"]), finish)


def run(source: Source, jobs: Sequence[Job]) -> list[Arrays | Exception]:
    """Compute jobs of one length together; of each its outputs, or why there are none.

    Raises whatever the detector raised, which concerns all of them.
    """
    features_BCT = torch.cat([job.features_BCT for job in jobs])
    mask_BT = torch.cat([job.mask_BT for job in jobs])
    with torch.inference_mode():
        outputs = source.runner.forward(features_BCT, mask_BT)
    results, start = [], 0
    for job in jobs:
        rows, start = slice(start, start + job.size), start + job.size
        try:
            results.append(job.finish(*(output[rows] for output in outputs)))
        except RunError as error:  # not finite: that is this video's fault alone
            results.append(BadRequest(f"no detections: {error}"))
        except Exception as error:  # no fault of the other videos
            results.append(error)
    return results


def check(arrays: Arrays, specs: Sequence[TensorSpec], optional: Sequence[str] = ()) -> None:
    """Names, types and shapes of a request's inputs, and that every number is finite; raises BadRequest."""
    by_name = {spec.name: spec for spec in specs}
    for name in arrays:
        if name not in by_name:
            raise BadRequest(f"unknown input {name!r}: {nearest(name, by_name)}")
    for name, spec in by_name.items():
        if name not in arrays:
            if name in optional:
                continue
            raise BadRequest(f"input {name!r} is missing: send it as {spec.datatype} {list(spec.shape)}")
        value = arrays[name]
        if value.dtype != DTYPES[spec.datatype]:
            raise BadRequest(f"input {name!r} is {value.dtype}: send it as {spec.datatype}")
        if value.ndim != len(spec.shape) or any(n not in (-1, m) for n, m in zip(spec.shape, value.shape)):
            raise BadRequest(f"input {name!r} has shape {list(value.shape)}: send {list(spec.shape)}, where -1 is any")
        if value.dtype == np.bool_ and (value.view(np.uint8) > 1).any():
            raise BadRequest(f"input {name!r} holds bytes other than 0 and 1: BOOL has no others")
        if not np.isfinite(value).all():
            raise BadRequest(f"input {name!r} holds NaN or infinity: send finite numbers")


def _tensor(array: np.ndarray) -> torch.Tensor:
    """The array as PyTorch can take it: a request's bytes may be read-only, and begin at an odd address."""
    return torch.from_numpy(np.require(array, requirements=["C", "A", "W"]))
