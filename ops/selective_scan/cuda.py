"""The operators ``rdfa::selective_scan*`` for CUDA tensors: one direction, one branch of what `launch` can do.

Where Triton interprets its kernels, CPU tensors are taken as well.
"""

import torch

from ops import library
from ops.selective_scan import launch
from ops.selective_scan.layout import count_groups, empty_gradients, grouped


def forward(u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse):
    """``rdfa::selective_scan``: y and the last state."""
    return _forward(u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse, None)


def forward_train(u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse):
    """``rdfa::selective_scan_train``: also the states that `backward` starts from."""
    states = torch.empty(launch.states_shape(u, A.shape[1]), dtype=torch.float32, device=u.device)
    return *_forward(u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse, states), states


def _forward(u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse, states):
    y = library.empty_bdl(u)
    if u.numel() == 0:
        return y, torch.zeros(*u.shape[:2], A.shape[1], dtype=torch.float32, device=u.device)
    B, C = (grouped(m, count_groups(B, C, u.shape[1]), u) for m in (B, C))
    last_state = launch.forward(
        u[None], delta[None], A, B[None], C[None], D, None if z is None else z[None], delta_bias, y[None],
        softplus=delta_softplus, reverse=reverse, states=states, last=True,
    )  # fmt: skip
    return y, last_state.t().contiguous().view(*u.shape[:2], A.shape[1])


def backward(grad_y, grad_last_state, u, delta, A, B, C, D, z, delta_bias, states, delta_softplus, reverse):
    """``rdfa::selective_scan_backward``: the gradients of u, delta, A, B, C, D, z and delta_bias, empty where None."""
    results = empty_gradients(u, delta, A, B, C, D, z, delta_bias)
    if u.numel() == 0:
        return tuple(result.zero_() for result in results)
    du, ddelta, _, dB, dC, dD, dz, dbias = results
    projections = [grouped(m, count_groups(B, C, u.shape[1]), u) for m in (B, C)]
    dA, dB_grouped, dC_grouped, dD_all, dbias_all = launch.backward(
        grad_y[None], grad_last_state, u[None], delta[None], A, *(m[None] for m in projections), D,
        None if z is None else z[None], delta_bias, states,
        du[None], ddelta[None], None if z is None else dz[None], softplus=delta_softplus, reverse=reverse,
    )  # fmt: skip
    dB.copy_(_ungrouped(dB_grouped[0], B))
    dC.copy_(_ungrouped(dC_grouped[0], C))
    return du, ddelta, dA, dB, dC, dD if D is None else dD_all, dz, dbias if delta_bias is None else dbias_all


def _ungrouped(gradient, m):
    """The gradient of B or C from that of what `grouped` made of it."""
    if m.dim() == 2:
        return gradient.sum((0, 3))
    given = m.shape[1] if m.dim() == 4 else 1
    return gradient.unflatten(1, (given, gradient.shape[1] // given)).sum(2).reshape(m.shape)
