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
from rdfa.runtime.session import Outputs, Session
from rdfa.settings import nearest

__all__ = ["Outputs", "Session", "availability", "backends", "load"]


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


def availability(artifact_dir: str | os.PathLike) -> dict[str, str | None]:
    """For each backend None if it can run this artifact here, else the reason in one line."""
    manifest = manifests.read(artifact_dir)
    return {name: _missing(backend, manifest) for name, backend in _BACKENDS.items()}


def load(
    artifact_dir: str | os.PathLike, backend: str = "onnxruntime", device: str = "cpu", threads: int | None = None
) -> Session:
    """Open an artifact with one backend.

    Args:
        artifact_dir: folder with a manifest.json, as export.py writes it.
        backend: "eager", "torchscript", "onnxruntime" or "aoti".
        device: "cpu"; "cuda" for the backends eager and torchscript.
        threads: CPU threads of one run; None leaves the backend's default.

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
    reason = _missing(chosen, manifest)
    if reason is not None:
        raise UsageError(f"backend {backend} cannot run {os.fspath(artifact_dir)}: {reason}")
    if device != "cpu" and backend not in ("eager", "torchscript"):
        raise UsageError(f"backend {backend} has no device {device!r}: this artifact runs on 'cpu'")
    names = [manifests.find(manifest, file_format) for file_format in chosen.formats]
    if device != "cpu" and manifests.find(manifest, "cubins"):  # which the library opens by itself
        names.append(manifests.find(manifest, "cubins"))
    manifests.verify(artifact_dir, manifest, names)
    module = importlib.import_module(f"{__name__}.{chosen.module}")
    call = module.start(Path(artifact_dir) / names[0], manifest, device, threads)
    return Session(manifest, backend, device, call)


def _missing(backend: _Backend, manifest: dict) -> str | None:
    for file_format in backend.formats:
        if manifests.find(manifest, file_format) is None:
            return f"the artifact has no {file_format} file: export it with --formats torchscript,onnx,aoti"
    absent = [name for name in backend.packages if importlib.util.find_spec(name) is None]
    return f"{', '.join(absent)} is not installed: {backend.remedy}" if absent else None
