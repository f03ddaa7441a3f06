"""OpenVINO backend: numpy and openvino, on the CPU."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino

from rdfa.runtime.session import Outputs


def start(path: Path, manifest: dict[str, Any], device: str, threads: int | None) -> Callable[..., Any]:
    """Compile the file; the result maps (features, mask) to the three outputs."""
    # By default OpenVINO computes in bfloat16 where the processor has instructions for it.
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
    core = openvino.Core()
    request = core.compile_model(core.read_model(path), device.upper(), settings).create_infer_request()

    def call(features, mask):
        request.infer({"features": features, "mask": mask}, share_inputs=True)
        # Copies, which outlive the next run; OpenVINO keeps a bool as a byte.
        outputs = [np.array(request.get_tensor(name).data) for name in Outputs._fields]
        return [*outputs[:2], outputs[2].astype(bool)]

    return call
