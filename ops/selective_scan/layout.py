"""How B and C are grouped, and how their gradients lie in memory, on every device."""

import torch
from torch import Tensor


def count_groups(B: Tensor, C: Tensor, channels: int) -> int:
    """Groups that the kernels form: no two channels of one group differ in B or C."""
    return max(channels if m.dim() == 2 else 1 if m.dim() == 3 else m.shape[1] for m in (B, C))


def empty_projection(m: Tensor) -> Tensor:
    """Memory for the gradient of B or C: its N states adjacent."""
    if m.dim() == 2:
        return torch.empty_like(m, memory_format=torch.contiguous_format)
    return m.new_empty((*m.shape[:-2], m.shape[-1], m.shape[-2])).transpose(-1, -2)
