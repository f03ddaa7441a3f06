"""A trained detector in the form that computes it fastest where it lies."""

from collections.abc import Callable

from torch import Tensor

from ops import library
from rdfa.modeling.detector import Detector
from rdfa.modeling.folded import fold
from rdfa.modeling.folded_gpu import fold_for_gpu, why_not_folded
from rdfa.runtime.cuda_graph import GraphedDetector

Outputs = tuple[Tensor, Tensor, Tensor]


def inference_form(detector: Detector) -> Callable[[Tensor, Tensor], Outputs]:
    """Same call and same outputs, up to rounding, with weights of its own; for one thread at a time.

    On a CPU the folded detector; on a GPU with Triton the one folded for it, recorded as CUDA graphs; elsewhere, and
    where the detector has a part that is not folded, the detector itself in eval mode.
    """
    weight = next(detector.parameters())
    if weight.device.type == "cpu":
        return fold(detector)
    if library.runs_triton(weight) and why_not_folded(detector) is None:
        return GraphedDetector(fold_for_gpu(detector))
    return detector.eval()
