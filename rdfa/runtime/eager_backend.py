"""Eager backend: the detector rebuilt from the manifest's configuration and the artifact's weights, in the form that is
fastest on the device."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from rdfa import config
from rdfa.modeling.detector import build_detector
from rdfa.runtime.inference_form import inference_form
from rdfa.runtime.torch_device import check_device, full_precision
from rdfa.runtime.torch_threads import pinned


def start(path: Path, manifest: dict[str, Any], device: str, threads: int | None) -> Callable[..., Any]:
    """Build the detector and load the weights; the result maps numpy (features, mask) to the three outputs."""
    check_device(device)
    detector = build_detector(config.from_text(manifest["config"]).model)
    detector.load_state_dict(load_file(path))
    detector = inference_form(detector.to(device))

    def call(features, mask):
        with pinned(threads), full_precision(device), torch.inference_mode():
            outputs = detector(torch.from_numpy(features).to(device), torch.from_numpy(mask).to(device))
            return [o.cpu().numpy() for o in outputs]

    return call
