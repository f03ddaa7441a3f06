"""TorchScript backend: torch and the native operator library, no model code."""

import importlib
import importlib.util
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from rdfa.runtime import manifest as manifests
from rdfa.runtime.torch_device import check_device, numpy_call


def start(path: Path, manifest: dict[str, Any], device: str, threads: int | None) -> Callable[..., Any]:
    """Load the file; the result maps numpy (features, mask) to the three outputs."""
    check_device(device)
    load_operators(path.parent, manifest)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.*deprecated", category=DeprecationWarning)
        module = torch.jit.load(str(path), map_location=device)
    return numpy_call(module, device, threads)


def load_operators(directory: Path, manifest: dict[str, Any]) -> None:
    """Make the operators known to torch: those loaded or installed already, else the artifact's own library.

    A process can register them once, so the artifact's copy is left alone where there is another.
    """
    if hasattr(torch.ops.rdfa, "selective_scan"):
        return
    if importlib.util.find_spec("ops") is not None and importlib.import_module("ops.library").loaded():
        return
    torch.ops.load_library(directory / manifests.find(manifest, "library"))
