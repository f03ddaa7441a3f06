"""Load an artifact directory and run it: eager, TorchScript, ONNX Runtime or AOTInductor behind one interface.

    session = rdfa.runtime.load("OUT", "onnxruntime", threads=2)
    outputs = session.run(features, mask)            # numpy in, numpy out

Nothing here imports torch or onnxruntime before a backend that needs it is loaded, and every file is checked against
the manifest's hashes before anything in it is read.
"""

import importlib.util
import os
from pathlib import Path
from typing import NamedTuple

from rdfa.errors import UsageError
from rdfa.runtime import manifest as manifests
from rdfa.runtime.session import DTYPES, Outputs, Session
from rdfa.settings import nearest

__all__ = ["DTYPES", "Outputs", "Session", "availability", "backends", "load"]


class _Backend(NamedTuple):
    """Module of this package with `start(path, manifest, device, threads) -> call`, and what it needs."""

    module: str
    formats: tuple[str, ...]  # files of the artifact; the first is the model
    packages: tuple[str, ...]
    remedy: str


_BACKENDS = {
    "eager": _Backend("eager_backend", ("safetensors",), ("torch", "safetensors"), "pip install rdfa-s6"),
    "torchscript": _Backend("torchscript_backend", ("torchscript", "library"), ("torch",), "pip install rdfa-s6"),
    "onnxruntime": _Backend("onnx_backend", ("onnx",), ("onnxruntime",), "pip install 'rdfa-s6[onnx]'"),
    "aoti": _Backend("aoti_backend", ("aoti", "library"), ("torch",), "pip install rdfa-s6"),
}


def backends() -> list[str]:
    """Names of all backends this code knows, whether or not they can run here."""
    return list(_BACKENDS)


def availability(artifact_dir: str | os.PathLike, dtype: str | None = None) -> dict[str, str | None]:
    """For each backend None if it can run this artifact here (in `dtype`, see `load`), else the reason in one line."""
    manifest = manifests.read(artifact_dir)
    return {name: _missing(backend, manifest, dtype) for name, backend in _BACKENDS.items()}


def load(
    artifact_dir: str | os.PathLike,
    backend: str = "onnxruntime",
    device: str | None = "cpu",
    threads: int | None = None,
    dtype: str | None = None,
) -> Session:
    """Open an artifact with one backend.

    Args:
        artifact_dir: folder with a manifest.json, as export.py writes it.
        backend: "eager", "torchscript", "onnxruntime" or "aoti".
        device: "cpu" or "cuda"; a file runs where it was exported for, the eager backend on both. None: there.
        threads: CPU threads of one run; None leaves the backend's default.
        dtype: of the computation (inputs and outputs are float32): "float32", "float16" or "bfloat16", as far as the
            artifact has a file of it. None: the first that it has, which is float32 where it has that.

    Raises:
        UsageError: no artifact, an unknown or unavailable backend, a device the backend does not serve.
        RunError: a file that differs from the manifest.
    """
    if backend not in _BACKENDS:
        raise UsageError(f"unknown backend {backend!r}: {nearest(backend, _BACKENDS)}")
    if threads is not None and threads < 1:
        raise UsageError(f"threads = {threads}: give at least 1, or None for the backend's default")
    manifest = manifests.read(artifact_dir)
    chosen = _BACKENDS[backend]
    reason = _missing(chosen, manifest, dtype)
    if reason is not None:
        raise UsageError(f"backend {backend} cannot run {os.fspath(artifact_dir)}: {reason}")
    model, *others = chosen.formats
    names = [manifests.find(manifest, model, dtype), *(manifests.find(manifest, name) for name in others)]
    entry = manifest["files"][names[0]]
    exported_for = entry.get("device", "cpu")
    device = device or exported_for
    if device.partition(":")[0] != exported_for and backend != "eager":
        raise UsageError(f"backend {backend} has no device {device!r}: {names[0]} runs on {exported_for!r}")
    manifests.verify(artifact_dir, manifest, names)
    module = importlib.import_module(f"{__name__}.{chosen.module}")
    call = module.start(Path(artifact_dir) / names[0], manifest, device, threads)
    return Session(manifest, backend, device, call, entry.get("dtype", "float32"))


def _missing(backend: _Backend, manifest: dict, dtype: str | None = None) -> str | None:
    model, *others = backend.formats
    if manifests.find(manifest, model, dtype) is None and manifests.find(manifest, model) is not None:
        present = [entry.get("dtype") for entry in manifest["files"].values() if entry["format"] == model]
        return f"the artifact has no {model} file of dtype {dtype!r}, but of {', '.join(present)}"
    for file_format in (model, *others):
        if manifests.find(manifest, file_format) is None:
            return f"the artifact has no {file_format} file: export it with --formats torchscript,onnx,aoti"
    absent = [name for name in backend.packages if importlib.util.find_spec(name) is None]
    return f"{', '.join(absent)} is not installed: {backend.remedy}" if absent else None
