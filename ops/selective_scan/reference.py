"""Selective scan, step by step: what every kernel is compared with.

Shapes: B batch, D channels, N states per channel, L time, G groups of channels that share B and C.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def selective_scan_reference(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    reverse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """The recurrence as a plain loop, in float32 (float64 for float64 inputs), differentiable by autograd.

    Arguments and results as in `ops.selective_scan`.
    """
    state_dtype = torch.float64 if u.dtype == torch.float64 else torch.float32
    batch, channels, length = u.shape

    dt_BDL = delta.to(state_dtype)
    if delta_bias is not None:
        dt_BDL = dt_BDL + delta_bias.to(state_dtype)[:, None]
    if delta_softplus:
        dt_BDL = F.softplus(dt_BDL)
    A_DN = A.to(state_dtype)

    # One unbind instead of an index per step: its gradient is one stack, not a full-length tensor of zeros per step.
    u_steps, dt_steps = u.to(state_dtype).unbind(2), dt_BDL.unbind(2)
    B_steps, C_steps = (_per_channel(m.to(state_dtype), batch, channels, length) for m in (B, C))

    state_BDN = u.new_zeros(batch, channels, A.shape[1], dtype=state_dtype)
    outputs = [u.new_zeros(batch, channels, dtype=state_dtype)] * length
    for t in reversed(range(length)) if reverse else range(length):
        dt, x = dt_steps[t][:, :, None], u_steps[t][:, :, None]
        state_BDN = torch.exp(dt * A_DN) * state_BDN + dt * B_steps[t] * x
        outputs[t] = (state_BDN * C_steps[t]).sum(2)

    y_BDL = torch.stack(outputs, 2) if length else u.new_zeros(u.shape, dtype=state_dtype)
    if D is not None:
        y_BDL = y_BDL + u.to(state_dtype) * D.to(state_dtype)[:, None]
    if z is not None:
        y_BDL = y_BDL * F.silu(z.to(state_dtype))
    y_BDL = y_BDL.to(u.dtype)
    return (y_BDL, state_BDN) if return_last_state else y_BDL


def _per_channel(matrix: Tensor, batch: int, channels: int, length: int) -> list[Tensor] | tuple[Tensor, ...]:
    """B or C at each step, broadcastable to [B, D, N]."""
    if matrix.dim() == 2:
        return [matrix] * length
    if matrix.dim() == 3:
        return matrix[:, None].unbind(3)
    groups = matrix.shape[1]
    steps = matrix[:, :, None].expand(-1, -1, channels // groups, -1, -1).unbind(4)
    return [step.reshape(batch, channels, matrix.shape[2]) for step in steps]
