"""Everything that can be measured: what `rdfa.runtime` loads, and detectors of torch built from the same weights.

backends.availability(artifact, "cpu", "float32")      {"eager_plain": None, ..., "openvino": "... pip install ..."}
backend = backends.load(artifact, "torch_compile", device="cpu", dtype="float32", threads=2)
outputs = backend.run(features, mask)
"""

import importlib.util
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ops import library
from rdfa.bench import exported
from rdfa.bench.backends import detectors, published
from rdfa.bench.backends.torch_backend import DTYPES
from rdfa.errors import UsageError
from rdfa.settings import nearest

PLAIN, EAGER, PUBLISHED, COMPILED, GRAPH = "eager_plain", "eager", "published", "torch_compile", "cuda_graph"

_BUILDERS = {
    PLAIN: detectors.eager_plain,
    PUBLISHED: detectors.reference,
    EAGER: detectors.eager,
    COMPILED: detectors.compiled,
    GRAPH: detectors.graph,
}


def availability(artifact: str | os.PathLike, device: str = "cpu", dtype: str = "float32") -> dict[str, str | None]:
    """For each backend None if it can run this artifact here, else the reason in one line."""
    files = exported.availability(artifact)
    reasons: dict[str, str | None] = {name: files.get(EAGER) or _missing(name, device) for name in _BUILDERS}
    for name, reason in files.items():
        if name not in reasons:
            reasons[name] = reason or _only_float32(dtype)
    return reasons


def load(
    artifact: str | os.PathLike, backend: str, device: str = "cpu", dtype: str = "float32", threads: int | None = None
) -> Any:
    """Open a backend.

    Returns:
        What has `device` and `run(features, mask)`, as `rdfa.bench.scenarios.backend.Backend` says; detectors of torch
        have `resident(features, mask)` beside it.

    Raises:
        UsageError: an unknown or unavailable backend, or a device that it does not serve. RunError: a damaged file.
    """
    reasons = availability(artifact, device, dtype)
    if backend not in reasons:
        raise UsageError(f"unknown backend {backend!r}: {nearest(backend, reasons)}")
    if reasons[backend] is not None:
        raise UsageError(f"backend {backend} cannot run {os.fspath(artifact)}: {reasons[backend]}")
    builder: Callable | None = _BUILDERS.get(backend)
    # On a CPU `eager` is what rdfa.runtime serves, however that makes the detector faster.
    if builder is None or (backend, device, dtype) == (EAGER, "cpu", "float32"):
        return exported.load(artifact, backend, device, threads)
    detector = detectors.converted(detectors.load_weights(Path(artifact), f"backend {backend}"), device, dtype)
    return builder(detector, device, dtype, threads)


def _only_float32(dtype: str) -> str | None:
    return None if dtype == "float32" else f"the artifact's files hold float32; {dtype} is for detectors of torch"


def _missing(name: str, device: str) -> str | None:
    if name in (GRAPH, PUBLISHED) and device != "cuda":
        return f"a CUDA device alone runs it, not {device}"
    if name == PLAIN and not library.loaded():
        return f"eager itself runs the plain operators here: {library.REMEDY}"
    if name == PUBLISHED and (packages := published.missing()):
        return f"{', '.join(packages)} is not installed: pip install 'rdfa-s6[reference]'"
    if name == COMPILED and device == "cpu" and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++"))):
        return "it needs a C++ compiler: install g++"
    if name == COMPILED and device == "cuda" and importlib.util.find_spec("triton") is None:
        return "triton is not installed: pip install 'rdfa-s6[gpu]'"
    return None


__all__ = ["DTYPES", "EAGER", "PLAIN", "availability", "load"]
