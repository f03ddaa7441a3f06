"""How B and C are grouped, and how gradients lie in memory, on every device."""

import torch
from torch import Tensor

from ops import library


def count_groups(B: Tensor, C: Tensor, channels: int) -> int:
    """Groups that the kernels form: no two channels of one group differ in B or C."""
    return max(channels if m.dim() == 2 else 1 if m.dim() == 3 else m.shape[1] for m in (B, C))


def grouped(m: Tensor, groups: int, u: Tensor) -> Tensor:
    """B or C as [batch, groups, N, L]; copied only where its channels have to be repeated in between."""
    if m.dim() == 2:
        return m[None, :, :, None].expand(u.shape[0], groups, -1, u.shape[2])
    m = m[:, None] if m.dim() == 3 else m
    if m.shape[1] == groups:  # not expanded to what it is: an exported graph would keep that
        return m
    return m.expand(-1, groups, -1, -1) if m.shape[1] == 1 else m.repeat_interleave(groups // m.shape[1], 1)


def empty_projection(m: Tensor) -> Tensor:
    """Memory for the gradient of B or C: its N states adjacent."""
    if m.dim() == 2:
        return torch.empty_like(m, memory_format=torch.contiguous_format)
    return m.new_empty((*m.shape[:-2], m.shape[-1], m.shape[-2])).transpose(-1, -2)


def empty_gradients(u, delta, A, B, C, D, z, delta_bias) -> tuple[Tensor, ...]:
    """Memory for the gradient of each argument, without elements for arguments that are None."""

    def per_channel(tensor):
        return u.new_empty(0 if tensor is None else u.shape[1], dtype=torch.float32)

    return (
        library.empty_bdl(u),
        library.empty_bdl(delta),
        A.new_empty(A.shape),
        empty_projection(B),
        empty_projection(C),
        per_channel(D),
        u.new_empty(0, dtype=torch.float32) if z is None else library.empty_bdl(z),
        per_channel(delta_bias),
    )
