"""Reading the manifest of an artifact directory, and refusing what it does not vouch for.

    OUT/manifest.json        what the artifact is: configuration, features, classes, files and their hashes, parity
    OUT/detector.ts.pt       TorchScript        OUT/detector.onnx     ONNX (.gpu, .inlined, .float16: its variants)
    OUT/detector.pt2         AOTInductor        OUT/model.safetensors weights
    OUT/librdfa_ops.so       operators for TorchScript and AOTInductor, librdfa_ort.so for ONNX Runtime
    OUT/librdfa_ops.cubins   their kernels for GPUs

Standard library only: an artifact is read on machines that have nothing else.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rdfa.errors import RunError, UsageError

MANIFEST = "manifest.json"
FORMAT_VERSION = 1
# The sections a manifest of this version has, and their types.
SECTIONS = {"config": str, "features": dict, "classes": list, "files": dict, "versions": dict}
# What `rdfa.deploy.manifest.feature_spec` writes, as far as running a detector takes it.
FEATURES = {
    "dimension",
    "stride",
    "num_frames",
    "downsample_rate",
    "max_seq_len",
    "multiple",
    "max_time",
    "padding_value",
}


def read(directory: str | os.PathLike) -> dict[str, Any]:
    """The manifest of an artifact directory, with every file entry checked for form (not yet for content).

    Raises:
        UsageError: there is no artifact at `directory`.
        RunError: the manifest is damaged, of another format version, or names a file outside the directory.
    """
    path = Path(directory) / MANIFEST
    if not path.is_file():
        raise UsageError(f"{os.fspath(directory)} is no artifact: it has no {MANIFEST}; make one with export.py")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path} is damaged ({error}): export the artifact again") from error
    version = manifest.get("format_version") if isinstance(manifest, dict) else None
    if version != FORMAT_VERSION:
        raise RunError(f"{path} has format version {version!r}, this code reads {FORMAT_VERSION}: export it again")
    for name, kind in SECTIONS.items():
        if not isinstance(manifest.get(name), kind):
            raise RunError(f"{path} has no section {name!r}: export the artifact again")
    for name, entry in manifest["files"].items():
        _inside(directory, name)
        if not isinstance(entry, dict) or not {"format", "sha256", "size"} <= entry.keys():
            raise RunError(f"{path}: the entry of {name!r} lacks format, size or sha256: export the artifact again")
    return manifest


def check_features(directory: str | os.PathLike, manifest: dict[str, Any]) -> None:
    """Raises RunError unless the manifest says all about features that running a detector takes."""
    if missing := FEATURES - manifest["features"].keys():
        path = Path(directory) / MANIFEST
        raise RunError(f"{path}: 'features' lacks {', '.join(sorted(missing))}: export the artifact again")


def verify(directory: str | os.PathLike, manifest: dict[str, Any], names: Iterable[str] | None = None) -> None:
    """Check size and SHA-256 of the files `names` (default: all); raises RunError naming the first that differs."""
    for name in manifest["files"] if names is None else names:
        entry = manifest["files"][name]
        path = _inside(directory, name)
        if not path.is_file():
            raise RunError(f"{path} is missing, though the manifest lists it: copy or export the artifact again")
        size = path.stat().st_size
        if size != entry["size"]:
            raise RunError(f"{path} has {size} bytes, the manifest says {entry['size']}: copy or export it again")
        if sha256(path) != entry["sha256"]:
            raise RunError(f"{path} differs from the SHA-256 in the manifest: copy or export it again")


def find(manifest: dict[str, Any], file_format: str, dtype: str = "float32") -> str | None:
    """Name of the artifact's file of that format and number format (libraries have none), or None."""
    for name, entry in manifest["files"].items():
        if entry["format"] == file_format and entry.get("dtype", dtype) == dtype:
            return name
    return None


def sha256(path: str | os.PathLike) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _inside(directory: str | os.PathLike, name: str) -> Path:
    """The path of file `name`, which must be a plain file name: no folders, no way out of the directory, no link."""
    path = Path(directory) / name
    if not name or name in (".", "..") or "/" in name or "\\" in name or "\0" in name or path.is_symlink():
        raise RunError(f"{Path(directory) / MANIFEST} names the file {name!r}, which leaves the directory: refused")
    return path
