"""The detector in float16 or bfloat16 behind the interface of the float32 one.

Shape suffixes: B batch, C channels, T time, P points, K classes.
"""

import copy

import torch
from torch import Tensor, nn

from rdfa.modeling.detector import Detector


class NarrowDetector(nn.Module):
    """(features_BCT, mask_BT) -> (cls_logits_BPK, offsets_BP2, point_mask_BP), float32 outside, `dtype` inside.

    Callers need not know the type: features are rounded on the way in, logits and offsets widened on the way out.
    """

    def __init__(self, detector: Detector, dtype: torch.dtype):
        super().__init__()
        self.settings, self.generator = detector.settings, detector.generator
        self.dtype = dtype
        self.detector = copy.deepcopy(detector).to(dtype)

    def forward(self, features_BCT: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        cls_logits_BPK, offsets_BP2, point_mask_BP = self.detector(features_BCT.to(self.dtype), mask_BT)
        return cls_logits_BPK.float(), offsets_BP2.float(), point_mask_BP


def narrowed(detector: Detector, dtype: str) -> Detector | NarrowDetector:
    """`detector` itself for "float32", else a copy that computes in `dtype`."""
    return detector if dtype == "float32" else NarrowDetector(detector, getattr(torch, dtype))
