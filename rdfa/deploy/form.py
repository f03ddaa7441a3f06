"""The detector as TorchScript and AOTInductor files hold it: for one device and one number format.

Shape suffixes: B batch, C channels, T time, P points, K classes.
"""

import copy

import torch
from torch import Tensor, nn

from rdfa.deploy.gate_pool import GatherGatePool
from rdfa.deploy.replace import replace_modules
from rdfa.modeling.detector import Detector
from rdfa.modeling.folded import fold
from rdfa.modeling.layers import GatePool


def deployed(detector: Detector, dtype: str, device: str = "cpu") -> nn.Module:
    """(features_BCT, mask_BT) -> (cls_logits_BPK, offsets_BP2, point_mask_BP), float32 outside, `dtype` inside.

    Callers need not know the type: features are rounded on the way in, logits and offsets widened on the way out. For a
    CPU it is the folded detector, whose packed weights only a CPU can multiply; for a GPU, and in float16, the detector
    as it was trained, whose operators have kernels that need no Python.
    """
    # Float16 has no packed products; and of the folded detector in float16 AOTInductor freezes the length.
    if device == "cpu" and dtype != "float16":
        return fold(detector, getattr(torch, dtype))
    narrow = copy.deepcopy(detector).to(getattr(torch, dtype))
    replace_modules(narrow, {GatePool: GatherGatePool})  # torch's freeze the length in what is exported
    return NarrowDetector(narrow, getattr(torch, dtype)).eval().requires_grad_(False)


class NarrowDetector(nn.Module):
    """A detector that computes in another number format behind the interface of the float32 one."""

    def __init__(self, detector: Detector, dtype: torch.dtype):
        super().__init__()
        self.settings, self.generator = detector.settings, detector.generator
        self.dtype = dtype
        self.detector = detector

    def forward(self, features_BCT: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        cls_logits_BPK, offsets_BP2, point_mask_BP = self.detector(features_BCT.to(self.dtype), mask_BT)
        return cls_logits_BPK.float(), offsets_BP2.float(), point_mask_BP
