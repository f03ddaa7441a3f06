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
from rdfa.runtime import manifest as manifests
from rdfa.settings import nearest

PLAIN, PUBLISHED, UNFOLDED, EAGER = "eager_plain", "published", "eager_unfolded", "eager"
COMPILED, GRAPH = "torch_compile", "cuda_graph"

_BUILDERS = {
    PLAIN: detectors.eager_plain,
    PUBLISHED: detectors.reference,
    UNFOLDED: detectors.unfolded,
    COMPILED: detectors.compiled,
    GRAPH: detectors.graph,
    EAGER: detectors.eager,
}


def availability(artifact: str | os.PathLike, device: str = "cpu", dtype: str = "float32") -> dict[str, str | None]:
    """For each backend None if it can run this artifact here, else the reason in one line."""
    # Detectors of torch are made from the weights in float32, whatever they compute in.
    weights = exported.availability(artifact).get(EAGER)
    reasons: dict[str, str | None] = {name: weights or _missing(name, device, dtype) for name in _BUILDERS}
    files = {name: why for name, why in exported.availability(artifact, dtype).items() if name not in reasons}
    if dtype == "int8":
        manifest = manifests.read(artifact)
        files = {name: why or _ungated(manifest, name) for name, why in files.items()}
    return reasons | files


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
    # On a CPU `eager` is what rdfa.runtime serves.
    if builder is None or (backend, device, dtype) == (EAGER, "cpu", "float32"):
        return exported.load(artifact, backend, device, threads, dtype)
    detector = detectors.converted(detectors.load_weights(Path(artifact), f"backend {backend}"), device, dtype)
    return builder(detector, device, dtype, threads)


def _missing(name: str, device: str, dtype: str) -> str | None:
    if dtype == "int8" and name != PLAIN:
        return "int8 is measured of files, whose export measured its mAP"
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


def _ungated(manifest: dict[str, Any], backend: str) -> str | None:
    file = manifests.find(manifest, backend, "int8")  # formats that have int8 are called as their backends
    passed = file and "map_gate" in manifest["files"][file]
    return None if passed else "the manifest says nothing of the mAP of its file in int8: export it again"


__all__ = ["DTYPES", "EAGER", "PLAIN", "availability", "load"]
