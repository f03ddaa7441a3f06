"""ONNX Runtime backend: numpy and onnxruntime, nothing else."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime

from rdfa.runtime.session import Outputs


def start(path: Path, manifest: dict[str, Any], device: str, threads: int | None) -> Callable[..., Any]:
    """Open the file; the result maps (features, mask) to the three outputs."""
    options = onnxruntime.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def call(features, mask):
        return session.run(list(Outputs._fields), {"features": features, "mask": mask})

    return call
