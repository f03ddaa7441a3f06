"""Eager backend: the detector rebuilt from the manifest's configuration and the artifact's weights, in the form that is
fastest on the device."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from rdfa import config
from rdfa.modeling.detector import build_detector
from rdfa.runtime.inference_form import inference_form
from rdfa.runtime.torch_device import check_device, numpy_call


def start(path: Path, manifest: dict[str, Any], device: str, threads: int | None) -> Callable[..., Any]:
    """Build the detector and load the weights; the result maps numpy (features, mask) to the three outputs."""
    check_device(device)
    detector = build_detector(config.from_text(manifest["config"]).model)
    detector.load_state_dict(load_file(path))
    return numpy_call(inference_form(detector.to(device)), device, threads)
