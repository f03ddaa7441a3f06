"""Load an artifact directory and run it: eager, TorchScript, ONNX Runtime, AOTInductor or OpenVINO, one interface.

    session = rdfa.runtime.load("OUT", "onnxruntime", threads=2)
    outputs = session.run(features, mask)            # numpy in, numpy out

Nothing here imports torch or onnxruntime before a backend that needs it is loaded, and every file is checked against
the manifest's hashes before anything in it is read.
"""

import importlib.util
import os
from pathlib import Path
from typing import Any, NamedTuple

from rdfa.errors import UsageError
from rdfa.runtime import manifest as manifests
from rdfa.runtime.session import DTYPES, Node, Outputs, Session
from rdfa.settings import nearest

__all__ = ["DTYPES", "Node", "Outputs", "Session", "availability", "backends", "load", "open_file"]


class _Backend(NamedTuple):
    """Module of this package with `start(path, manifest, device, threads) -> call`, and what it needs."""

    module: str
    models: dict[str, str]  # device -> format of the artifact's file
    packages: tuple[str, ...]
    remedy: str
    library: str | None = None  # format of the native library that it cannot do without
    kernels: dict[str, tuple[str, ...]] = {}  # device -> formats of the files with kernels that it uses where there are


_BACKENDS = {
    "eager": _Backend(
        "eager_backend", dict.fromkeys(("cpu", "cuda"), "safetensors"), ("torch", "safetensors"), "pip install rdfa-s6"
    ),
    "torchscript": _Backend(
        "torchscript_backend",
        dict.fromkeys(("cpu", "cuda"), "torchscript"),
        ("torch",),
        "pip install rdfa-s6",
        library="library",
        kernels={"cuda": ("cubins",)},  # which the library opens by itself
    ),
    "onnxruntime": _Backend(
        "onnx_backend",
        {"cpu": "onnx", "cuda": "onnx_gpu"},
        ("onnxruntime",),
        "pip install 'rdfa-s6[onnx]'",
        kernels={"cpu": ("onnx_library",), "cuda": ("onnx_library", "cubins")},
    ),
    "openvino": _Backend("openvino_backend", {"cpu": "onnx_inlined"}, ("openvino",), "pip install 'rdfa-s6[openvino]'"),
    "aoti": _Backend(
        "aoti_backend",
        dict.fromkeys(("cpu", "cuda"), "aoti"),
        ("torch",),
        "pip install rdfa-s6",
        library="library",
        kernels={"cuda": ("cubins",)},
    ),
}


def backends() -> list[str]:
    """Names of all backends this code knows, whether or not they can run here."""
    return list(_BACKENDS)


def availability(artifact_dir: str | os.PathLike, dtype: str = "float32") -> dict[str, str | None]:
    """For each backend None if it can run this artifact here, in `dtype`, else the reason in one line."""
    manifest = manifests.read(artifact_dir)
    return {
        name: _missing_package(backend) or _missing_file(backend, manifest, backend.models["cpu"], dtype)
        for name, backend in _BACKENDS.items()
    }


def load(
    artifact_dir: str | os.PathLike,
    backend: str = "onnxruntime",
    device: str | None = "cpu",
    threads: int | None = None,
    dtype: str = "float32",
    **options: Any,
) -> Session:
    """Open an artifact with one backend.

    Args:
        artifact_dir: folder with a manifest.json, as export.py writes it.
        backend: "eager", "torchscript", "onnxruntime", "openvino" or "aoti".
        device: "cpu" or "cuda". Files of AOTInductor run where they were exported for; None: there, and on the CPU what
            is not bound to a device.
        threads: CPU threads of one run; None leaves the backend's default.
        dtype: number format inside the model; inputs and outputs are float32 always.
        options: of onnxruntime: `native`, `host_nodes`; see `rdfa.runtime.onnx_backend.start`.

    Raises:
        UsageError: no artifact, an unknown or unavailable backend, a device or dtype the artifact does not serve.
        RunError: a file that differs from the manifest; a session that computes elsewhere than on `device`.
    """
    if backend not in _BACKENDS:
        raise UsageError(f"unknown backend {backend!r}: {nearest(backend, _BACKENDS)}")
    chosen, manifest = _BACKENDS[backend], manifests.read(artifact_dir)
    if device is None:
        file = manifests.find(manifest, chosen.models["cpu"], dtype)
        device = manifest["files"][file].get("device", "cpu") if file else "cpu"
    kind = device.partition(":")[0]
    if kind not in chosen.models:
        raise UsageError(f"backend {backend} has no device {device!r}: it runs on {' or '.join(chosen.models)}")
    reason = _missing_file(chosen, manifest, chosen.models[kind], dtype)
    if reason is not None:
        raise UsageError(f"backend {backend} cannot run {os.fspath(artifact_dir)}: {reason}")
    file = manifests.find(manifest, chosen.models[kind], dtype)
    exported_for = manifest["files"][file].get("device", kind)
    if exported_for != kind:
        raise UsageError(f"backend {backend} has no device {device!r} here: {file} was exported for {exported_for!r}")
    return open_file(artifact_dir, file, backend, device, threads, **options)


def open_file(
    artifact_dir: str | os.PathLike,
    file: str,
    backend: str,
    device: str = "cpu",
    threads: int | None = None,
    **options: Any,
) -> Session:
    """Like `load`, for one file of the artifact by its name, whatever device it was made for."""
    if threads is not None and threads < 1:
        raise UsageError(f"threads = {threads}: give at least 1, or None for the backend's default")
    chosen = _BACKENDS[backend]
    reason = _missing_package(chosen)
    if reason is not None:
        raise UsageError(f"backend {backend} cannot run {os.fspath(artifact_dir)}: {reason}")
    manifest = manifests.read(artifact_dir)
    natives = [chosen.library, *chosen.kernels.get(device.partition(":")[0], ())]
    names = [manifests.find(manifest, file_format) for file_format in natives if file_format]
    manifests.verify(artifact_dir, manifest, [file, *filter(None, names)])
    manifests.check_features(artifact_dir, manifest)
    module = importlib.import_module(f"{__name__}.{chosen.module}")
    call = module.start(Path(artifact_dir) / file, manifest, device, threads, **options)
    return Session(manifest, backend, device, call, manifest["files"][file].get("dtype", "float32"))


def _missing_package(backend: _Backend) -> str | None:
    absent = [name for name in backend.packages if importlib.util.find_spec(name) is None]
    return f"{', '.join(absent)} is not installed: {backend.remedy}" if absent else None


def _missing_file(backend: _Backend, manifest: dict, model: str, dtype: str = "float32") -> str | None:
    if manifests.find(manifest, model, dtype) is None:
        what = model if dtype == "float32" else f"{dtype} {model}"
        if model == "safetensors":
            return f"the artifact has no {what} file: its weights are of float32"
        return f"the artifact has no {what} file: export it with --formats {model} --dtype {dtype}"
    if backend.library and manifests.find(manifest, backend.library) is None:
        return f"the artifact has no {backend.library} file: export it again"
    return None
