"""A trained detector in the form that computes it fastest where it lies."""

from collections.abc import Callable

from torch import Tensor, nn

from ops import library
from rdfa.modeling.detector import Detector
from rdfa.modeling.folded import fold
from rdfa.modeling.folded_gpu import GpuDetector, fold_for_gpu, why_not_folded
from rdfa.runtime.cuda_graph import GraphedDetector


def inference_form(detector: Detector) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
    """Same call and same outputs as `detector`, up to rounding, with weights of its own; for one thread at a time.

    `folded`, and on a GPU recorded as CUDA graphs.
    """
    form = folded(detector)
    return GraphedDetector(form) if isinstance(form, GpuDetector) else form


def folded(detector: Detector) -> nn.Module:
    """The folded detector of a CPU, or of a GPU with Triton; elsewhere, and where the detector has a part that is not
    folded, the detector itself in eval mode."""
    weight = next(detector.parameters())
    if weight.device.type == "cpu":
        return fold(detector)
    if library.runs_triton(weight) and why_not_folded(detector) is None:
        return fold_for_gpu(detector)
    return detector.eval()
