"""ONNX Runtime backend: numpy and onnxruntime, nothing else.

The detector's file carries each selective scan as a node with a function that defines it. With the artifact's
``librdfa_ort.so`` registered the node runs as one native kernel, on a GPU those of ``librdfa_ops.cubins`` beside it;
without it ONNX Runtime inlines the function.
"""

import contextlib
import json
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from rdfa.errors import RunError, UsageError
from rdfa.runtime import manifest as manifests
from rdfa.runtime.session import Node, Outputs

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
KERNEL = "SelectiveScan"  # nodes of its function are called SelectiveScan/<number>
FLOATS = {"float", "float16", "bfloat16", "double"}


def start(
    path: Path,
    manifest: dict[str, Any],
    device: str,
    threads: int | None,
    native: bool = True,
    host_nodes: bool = False,
) -> "OnnxCall":
    """Open the file.

    Args:
        native: use the artifact's operator library where there is one and it serves `device`.
        host_nodes: on "cuda", accept nodes that compute on the CPU; by default they are an error, because a graph that
            was quietly split is slower than either device alone.

    Raises:
        UsageError: the installed onnxruntime does not serve `device`.
        RunError: it does, and left computing nodes on the CPU.
    """
    kind = device.partition(":")[0]
    if PROVIDERS[kind] not in onnxruntime.get_available_providers():
        raise UsageError(f"this onnxruntime has no {PROVIDERS[kind]}: pip install 'rdfa-s6[gpu]' in place of [onnx]")
    if kind == "cuda":
        # Those of CUDA and cuDNN that pip installed, which nothing else finds; it prints what is missing.
        with contextlib.redirect_stdout(sys.stderr):
            onnxruntime.preload_dlls()
    library = _library(path.parent, manifest) if native and _has_kernels(manifest, kind) else None
    call = OnnxCall(path, library, device, threads, manifest["features"])
    if kind != "cpu" and not host_nodes:
        _refuse_host_nodes(path, device, _tried(path, device, call))
    return call


def _tried(path: Path, device: str, call: "OnnxCall") -> list[Node]:
    """The nodes of a trial run, in which a GPU's libraries show what they lack."""
    try:
        return call.nodes()
    except Exception as error:  # the exceptions of ONNX Runtime have no base of their own
        reason = str(error).partition("\n")[0]
        raise RunError(f"{path} does not run on {device}: {reason}") from error


def _has_kernels(manifest: dict[str, Any], kind: str) -> bool:
    """Whether the artifact's library computes there: on a GPU it needs the compiled kernels."""
    return kind == "cpu" or manifests.find(manifest, "cubins") is not None


def _library(directory: Path, manifest: dict[str, Any]) -> Path | None:
    """The artifact's operator library, if there is one and it loads here; else the functions do, which warns."""
    name = manifests.find(manifest, "onnx_library")
    if name is None:
        return None
    try:
        onnxruntime.SessionOptions().register_custom_ops_library(str(directory / name))
    except Exception as error:  # the exceptions of ONNX Runtime have no base of their own
        reason = str(error).partition("\n")[0]
        warnings.warn(
            f"{directory / name} is left out, which is slower: it does not load here ({reason})", stacklevel=5
        )
        return None
    return directory / name


class OnnxCall:
    """Maps (features, mask) to the three outputs."""

    def __init__(self, path: Path, library: Path | None, device: str, threads: int | None, features: dict[str, Any]):
        self._path, self._library, self._device, self._threads = path, library, device, threads
        self._smallest = {
            "features": np.zeros((1, features["dimension"], features["multiple"]), np.float32),
            "mask": np.ones((1, features["multiple"]), bool),
        }
        self._session = self._open(self._options())

    def __call__(self, features: np.ndarray, mask: np.ndarray) -> list[np.ndarray]:
        return self._session.run(list(Outputs._fields), {"features": features, "mask": mask})

    def nodes(self) -> list[Node]:
        """Every node that ran on the smallest input, from ONNX Runtime's own profile of a second session."""
        with tempfile.TemporaryDirectory(prefix="rdfa_profile_") as folder:
            options = self._options()
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(folder) / "ort")
            session = self._open(options)
            session.run(None, self._smallest)
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        return list(_nodes(events))

    def _options(self) -> onnxruntime.SessionOptions:
        options = onnxruntime.SessionOptions()
        if self._threads is not None:
            options.intra_op_num_threads = self._threads
            options.inter_op_num_threads = 1
        if self._library is not None:
            options.register_custom_ops_library(str(self._library))
        return options

    def _open(self, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
        kind, _, index = self._device.partition(":")
        settings = {"device_id": index} if index else {}
        if kind == "cuda":
            # By default products and convolutions of float32 round their inputs to TF32, which costs three digits.
            settings["use_tf32"] = "0"
        provider = (PROVIDERS[kind], settings)
        session = onnxruntime.InferenceSession(str(self._path), options, providers=[provider])
        if PROVIDERS[kind] not in session.get_providers():
            raise RunError(f"onnxruntime finds no device for {PROVIDERS[kind]} here: use 'cpu'")
        session.disable_fallback()  # to the CPU, in the middle of a run that fails
        return session


def _nodes(events: list[dict[str, Any]]) -> Iterator[Node]:
    """The nodes in a profile's events, each once; a loop's body is in there once a step."""
    seen = set()
    suffix = "_kernel_time"
    for event in events:
        name, facts = event.get("name", ""), event.get("args", {})
        if event.get("cat") != "Node" or not name.endswith(suffix) or name in seen:
            continue
        seen.add(name)
        operator = facts["op_name"]
        path = "kernel" if operator == KERNEL else "function" if f"{KERNEL}/" in name else "standard"
        made = {kind for tensor in facts["output_type_shape"] for kind in tensor}
        yield Node(name.removesuffix(suffix), operator, path, facts["provider"], bool(made & FLOATS))


def _refuse_host_nodes(path: Path, device: str, nodes: list[Node]) -> None:
    strays = [node for node in nodes if node.computes and node.provider == PROVIDERS["cpu"]]
    if strays:
        kinds = ", ".join(sorted({node.operator for node in strays}))
        raise RunError(
            f"{path}: {len(strays)} of {len(nodes)} nodes compute on the CPU, not on {device} as asked ({kinds}): "
            "use another onnxruntime, or allow it with host_nodes=True"
        )
