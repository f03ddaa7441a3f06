"""Backends of `rdfa.runtime`, and those of them that are measured in more than one way. Imports no torch by itself."""

import os
from pathlib import Path
from typing import Any

from rdfa import runtime
from rdfa.runtime import manifest as manifests

# Row -> backend, its options, and the format of the file without which both ways are one.
VARIANTS: dict[str, tuple[str, dict[str, Any], str]] = {
    "onnxruntime_plain": ("onnxruntime", {"native": False}, "onnx_library"),
}


def availability(artifact: str | os.PathLike) -> dict[str, str | None]:
    """For each row None if it can be measured here, else the reason in one line."""
    reasons = runtime.availability(artifact)
    manifest = manifests.read(Path(artifact))
    for name, (backend, _, file_format) in VARIANTS.items():
        if backend in reasons:
            absent = f"{backend} runs without a native library here: the artifact has no {file_format} file"
            found = manifests.find(manifest, file_format)
            reasons[name] = reasons[backend] or (None if found else absent)
    return reasons


def load(artifact: str | os.PathLike, name: str, device: str, threads: int | None) -> runtime.Session:
    """Open a backend for the row `name`; raises what `rdfa.runtime.load` raises."""
    backend, options, _ = VARIANTS.get(name, (name, {}, ""))
    return runtime.load(artifact, backend, device=device, threads=threads, **options)
