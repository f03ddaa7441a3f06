"""`bidirectional_scan`: all scans of an FA-Bi-S6 block in one launch, written as its output projection reads them.

Shape suffixes: 2 the directions of time, S sequences (the batch), D channels of one branch, E = K D those of all K
branches, N states, L steps.
"""

import torch
from torch import Tensor

from ops import library
from ops.selective_scan import launch
from ops.selective_scan.op import selective_scan


def bidirectional_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, delta_bias: Tensor
) -> Tensor:
    """The selective scan of K branches in both directions of time, for direction r and branch k

        y[:, (r K + k) D : (r K + k + 1) D] = selective_scan(u[r, :, branch k], delta[r, :, branch k], A, B[r], C[r], D,
                                                             z[r], delta_bias, delta_softplus=True, reverse=r == 1)

    The branches of a direction share B, C and the gate; A, D and delta_bias serve both directions as well. Time is in
    its natural order everywhere.

    Args:
        u, delta: [2,S,E,L], branch k in the channels k D to (k + 1) D. Time adjacent in memory needs no copy.
        A: [D,N] real. B, C: [2,S,N,L]. D, delta_bias: [D]. z: [2,S,D,L]; any strides.

    Returns:
        y [S,2E,L] in u's dtype; the state and all sums are float32.

    One kernel on a GPU with Triton, for float32, float16 and bfloat16; elsewhere, and in graphs that are traced or
    exported, a call of `selective_scan` for each direction and branch. Differentiable once in every argument; results
    and gradients repeat to the last bit.

    Raises:
        TypeError, ValueError: an argument of the wrong dtype, shape or device.

    Source: RDFA-S6, arXiv 2407.13078; that branches share B and C is what its published code computes.
    """
    recorded = torch.jit.is_tracing() or torch.compiler.is_exporting()
    if not torch.jit.is_tracing():
        _check(u, delta, A, B, C, D, z, delta_bias)
    if recorded or not library.runs_triton(u, delta, B, C, z):
        return _composed(u, delta, A, B, C, D, z, delta_bias)
    inputs = u, delta, A.float(), B, C, D.float(), z, delta_bias.float()
    if torch.is_grad_enabled() and any(t.requires_grad for t in inputs):
        return torch.ops.rdfa.bidirectional_scan_train(*inputs)[0]
    return torch.ops.rdfa.bidirectional_scan(*inputs)


def _composed(u, delta, A, B, C, D, z, delta_bias):
    branches = [slice(first, first + len(A)) for first in range(0, u.shape[2], len(A))]
    outputs = [
        selective_scan(
            u[r, :, branch], delta[r, :, branch], A, B[r], C[r], D, z[r], delta_bias,
            delta_softplus=True, reverse=r == 1,
        )
        for r in (0, 1)
        for branch in branches
    ]  # fmt: skip
    return torch.cat(outputs, 1)


def _check(u, delta, A, B, C, D, z, delta_bias):
    if u.dim() != 4 or u.shape[0] != 2:
        raise ValueError(f"u has shape {list(u.shape)}: expected [2, S, E, L]")
    if A.dim() != 2 or A.shape[0] == 0 or u.shape[2] % A.shape[0]:
        raise ValueError(f"A has shape {list(A.shape)}: expected [D, N] with D a divisor of E = {u.shape[2]}")
    (_, S, _, L), (channels, N) = u.shape, A.shape
    shapes = {"delta": (delta, u.shape), "z": (z, (2, S, channels, L))}
    shapes |= {"B": (B, (2, S, N, L)), "C": (C, (2, S, N, L)), "D": (D, (channels,))}
    for name, (tensor, expected) in (shapes | {"delta_bias": (delta_bias, (channels,))}).items():
        if tensor.shape != torch.Size(expected):
            raise ValueError(f"{name} has shape {list(tensor.shape)}: expected {list(expected)}")


def forward(u, delta, A, B, C, D, z, delta_bias, states=None, *, scaled=False):
    """``rdfa::bidirectional_scan``. states: to fill for the backward. scaled: A is `launch.scale_A` of it already."""
    _, S, E, L = u.shape
    y = u.new_empty(S, 2 * E, L)
    launch.forward(
        u, delta, A, B[:, :, None], C[:, :, None], D, z, delta_bias, y.view(S, 2, E, L).transpose(0, 1),
        softplus=True, states=states, scaled=scaled,
    )  # fmt: skip
    return y


def _forward_train(u, delta, A, B, C, D, z, delta_bias):
    states = torch.empty(launch.states_shape(u, A.shape[1]), dtype=torch.float32, device=u.device)
    return forward(u, delta, A, B, C, D, z, delta_bias, states), states


def _backward(grad_y, u, delta, A, B, C, D, z, delta_bias, states):
    _, S, E, L = u.shape
    du, ddelta = (torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (u, delta))
    dz = torch.empty(u.shape, dtype=z.dtype, device=z.device)
    grad_y = grad_y.reshape(S, 2, E, L).transpose(0, 1)
    dA, dB, dC, dD, dbias = launch.backward(
        grad_y, None, u, delta, A, B[:, :, None], C[:, :, None], D, z, delta_bias, states, du, ddelta, dz,
        softplus=True,
    )  # fmt: skip
    dB, dC = (m[:, :, 0].to(B.dtype) for m in (dB, dC))
    branches = E // len(A)
    if branches > 1:  # each has its share
        dz = dz.view(2, S, branches, len(A), L).sum(2)
    return du, ddelta, dA, dB, dC, dD, dz, dbias


def _fake(u, delta, A, B, C, D, z, delta_bias):
    return u.new_empty(u.shape[1], 2 * u.shape[2], u.shape[3])


def _fake_train(u, delta, A, B, C, D, z, delta_bias):
    states = u.new_empty(launch.states_shape(u, A.shape[1]), dtype=torch.float32)
    return _fake(u, delta, A, B, C, D, z, delta_bias), states


def _fake_backward(grad_y, u, delta, A, B, C, D, z, delta_bias, states):
    return tuple(torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (u, delta, A, B, C, D, z, delta_bias))


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs, *output[1:])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _autograd(ctx, grad_y, grad_states):
    if grad_y is None:
        return (None,) * 8
    return torch.ops.rdfa.bidirectional_scan_backward(grad_y, *ctx.saved_tensors)


_ARGUMENTS = "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor D, Tensor z, Tensor delta_bias"
_OPERATORS = {
    "bidirectional_scan": (f"({_ARGUMENTS}) -> Tensor", forward, _fake),
    "bidirectional_scan_train": (f"({_ARGUMENTS}) -> (Tensor, Tensor)", _forward_train, _fake_train),
    "bidirectional_scan_backward": (
        f"(Tensor grad_y, {_ARGUMENTS}, Tensor states) -> ({', '.join(['Tensor'] * 8)})",
        _backward,
        _fake_backward,
    ),
}
# Compositions and Triton kernels only, so Python may define them; an exported graph holds `selective_scan` instead.
for _name, (_schema, _implementation, _meta) in _OPERATORS.items():
    torch.library.define(f"rdfa::{_name}", _schema)
    torch.library.impl(f"rdfa::{_name}", "CUDA", _implementation)
    torch.library.register_fake(f"rdfa::{_name}", _meta)
torch.library.register_autograd("rdfa::bidirectional_scan_train", _autograd, setup_context=_setup_context)
for _name in ("bidirectional_scan", "bidirectional_scan_backward"):
    library.refuse_gradients(_name, "call ops.selective_scan.bidirectional.bidirectional_scan")
