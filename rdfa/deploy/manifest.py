"""Writing the manifest of an artifact directory; `rdfa.runtime.manifest` reads it and checks against it."""

import importlib.metadata
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import rdfa
from rdfa.config import REPOSITORY, Config, to_gin
from rdfa.modeling.detector import build_generator
from rdfa.runtime.manifest import FORMAT_VERSION, MANIFEST, sha256


def describe(config: Config, classes: list[str], source: dict[str, Any]) -> dict[str, Any]:
    """The manifest of an artifact that has no files yet.

    Args:
        classes: class names by index.
        source: where the weights come from (name of the run and of the checkpoint).
    """
    return {
        "format_version": FORMAT_VERSION,
        "config": to_gin(config),
        "features": feature_spec(config),
        "decoding": decoding(config),
        "classes": classes,
        "source": source,
        "versions": _versions(),
        "files": {},
    }


def feature_spec(config: Config) -> dict[str, Any]:
    """What a caller must know to prepare features, and to read outputs as seconds.

    dimension: channels. stride, num_frames: frames between two feature vectors, and covered by one. downsample_rate:
    every n-th vector is used. default_fps: where given, the rate of every video. resize: where given, the vectors of a
    video are brought to so many by linear interpolation (`rdfa.data.transforms.resize_features`), and its fps is
    `resize` over its duration. A sequence is padded at the end, with `padding_value`, to `max_seq_len` time steps, a
    longer one to the next multiple of `multiple`, at most `max_time`.
    Seconds of a grid position x: (x * stride * downsample_rate + num_frames / 2) / fps.
    """
    dataset = config.dataset
    stride, num_frames = dataset.grid
    return {
        "dimension": config.model.embedding.input_c,
        "stride": stride // dataset.downsample_rate,
        "num_frames": num_frames,
        "downsample_rate": dataset.downsample_rate,
        "default_fps": None if dataset.resize else dataset.default_fps,
        "resize": dataset.max_seq_len if dataset.resize else None,
        "max_seq_len": dataset.max_seq_len,
        "multiple": config.padding_multiple,
        "max_time": build_generator(config.model).max_frames,
        "padding_value": config.loader.padding_value,
    }


def decoding(config: Config) -> dict[str, Any]:
    """What turns outputs into detections, for programs that cannot read the configuration: `ops.decode_nms`'s settings.

    levels: stride, and least and largest offset in frames, of each pyramid level, finest first.
    """
    generator, post = build_generator(config.model), config.post
    levels = zip(generator.strides, generator.regression_ranges)
    return {
        "levels": [{"stride": stride, "range": list(bounds)} for stride, bounds in levels],
        "pre_nms_thresh": post.pre_nms_thresh,
        "pre_nms_topk": post.pre_nms_topk,
        "duration_thresh": post.duration_thresh,
        "method": post.nms_method,
        "multiclass": post.multiclass_nms,
        "iou_threshold": post.iou_threshold,
        "min_score": post.min_score,
        "max_seg_num": post.max_seg_num,
        "sigma": post.nms_sigma,
        "voting_thresh": post.voting_thresh,
    }


def interface(config: Config) -> dict[str, list[dict[str, Any]]]:
    """Names, types and shapes of a detector's inputs and outputs; axes named by a word are dynamic."""

    def tensor(name, dtype, *shape):
        return {"name": name, "dtype": dtype, "shape": list(shape)}

    channels, classes = config.model.embedding.input_c, config.model.cls_head.num_classes
    return {
        "inputs": [
            tensor("features", "float32", "batch", channels, "time"),
            tensor("mask", "bool", "batch", "time"),
        ],
        "outputs": [
            tensor("cls_logits", "float32", "batch", "points", classes),
            tensor("offsets", "float32", "batch", "points", 2),
            tensor("point_mask", "bool", "batch", "points"),
        ],
    }


def add_file(manifest: dict[str, Any], path: Path, file_format: str, **facts: Any) -> None:
    """List a finished file of the artifact, with its size, hash and whatever `facts` are known of it."""
    manifest["files"][path.name] = {"format": file_format, "size": path.stat().st_size, "sha256": sha256(path), **facts}


def write(directory: str | os.PathLike, manifest: dict[str, Any]) -> None:
    """Write manifest.json, whole or not at all."""
    path = Path(directory) / MANIFEST
    temporary = path.with_suffix(".json.tmp")
    temporary.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def _versions() -> dict[str, str | None]:
    names = ("torch", "numpy", "onnx", "onnxruntime", "safetensors")
    versions: dict[str, str | None] = {"rdfa": rdfa.__version__, "python": platform.python_version()}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions | {"git_commit": _git_commit()}


def _git_commit() -> str | None:
    """Commit of the checkout that this code runs from, or None outside one."""
    if not (REPOSITORY / ".git").exists():
        return None
    try:
        answer = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()
