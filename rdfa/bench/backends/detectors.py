"""The detectors of torch that the benchmark builds from an artifact's weights, by the names of their rows."""

import contextlib
import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file

from ops import library
from rdfa import config
from rdfa.bench.backends import published
from rdfa.bench.backends.torch_backend import DTYPES, TorchBackend
from rdfa.errors import UsageError
from rdfa.modeling.backbone import BranchBlock, DualBiS6Block
from rdfa.modeling.detector import Detector, build_detector
from rdfa.modeling.folded import fold
from rdfa.runtime import manifest as manifests
from rdfa.runtime.inference_form import folded, inference_form


def load_weights(artifact: Path, needed_for: str) -> Detector:
    """The detector in float32 on the CPU.

    Raises:
        UsageError: the artifact has no weights. RunError: they differ from the manifest.
    """
    manifest = manifests.read(artifact)
    name = manifests.find(manifest, "safetensors")
    if name is None:
        raise UsageError(f"{artifact} has no safetensors file, which {needed_for} needs: export it again")
    manifests.verify(artifact, manifest, [name])
    detector = build_detector(config.from_text(manifest["config"]).model)
    detector.load_state_dict(load_file(artifact / name))
    return detector.eval()


def converted(detector: Detector, device: str, dtype: str) -> Detector:
    """A copy of it."""
    return copy.deepcopy(detector).to(device, DTYPES[dtype])


@contextlib.contextmanager
def plain_operators() -> Iterator[None]:
    """Within the block every operator runs its plain reference, as on a machine without the native library."""
    original = library.available
    library.available = lambda: False
    try:
        yield
    finally:
        library.available = original


def eager_plain(detector: Detector, device: str, dtype: str, threads: int | None) -> TorchBackend:
    """The module on the plain operators of `ops`; in int8 it is folded, and they multiply the rounded in float32."""
    if dtype == "int8":
        detector = fold(detector, torch.int8, packed=False)

    def call(features, mask):
        with plain_operators():
            return detector(features, mask)

    return TorchBackend(call, device, dtype, threads)


def unfolded(detector: Detector, device: str, dtype: str, threads: int | None) -> TorchBackend:
    """The module as it is written, on the operators of this project."""
    return TorchBackend(detector, device, dtype, threads)


def eager(detector: Detector, device: str, dtype: str, threads: int | None) -> TorchBackend:
    """The detector folded for inference, launch by launch."""
    return TorchBackend(folded(detector), device, dtype, threads)


def compiled(detector: Detector, device: str, dtype: str, threads: int | None) -> TorchBackend:
    """`torch.compile` of the repeated parts, with sizes left open.

    They are nearly all of the time, and their code is compiled once for all passes and levels: the whole detector as
    one graph takes minutes on a CPU. A batch of one is compiled apart from larger ones.
    """
    for module in detector.modules():
        if isinstance(module, DualBiS6Block):
            module._pass = _stem_pass(torch.compile(module._pass, dynamic=True))
        elif isinstance(module, BranchBlock):
            module.forward = _branch_pass(torch.compile(module.forward, dynamic=True))
    return TorchBackend(detector, device, dtype, threads)


# What differs between passes and levels, and would compile their code once more for each: in the first pass of the stem
# the input is the residual, and below the first level the mask skips every second step in memory.


def _stem_pass(compiled: Callable) -> Callable:
    return lambda x, residual, mask: compiled(x, residual.view_as(residual), mask)


def _branch_pass(compiled: Callable) -> Callable:
    return lambda x, mask: compiled(x, mask.contiguous())


def graph(detector: Detector, device: str, dtype: str, threads: int | None) -> TorchBackend:
    """The folded detector as a CUDA graph for each shape."""
    return TorchBackend(inference_form(detector), device, dtype, threads)


def reference(detector: Detector, device: str, dtype: str, threads: int | None) -> TorchBackend:
    """The published computation: see `rdfa.bench.backends.published`."""
    return TorchBackend(published.use(detector, published.cuda_kernels()), device, dtype, threads)
