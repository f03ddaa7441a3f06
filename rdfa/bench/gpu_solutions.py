"""Outputs and gradients of the fused operators in plain PyTorch, in float64 or as precisely as their dtype allows.

The scan's gradients are written out, and its recurrence is solved by doubling: some dozen passes over memory in the
place of a loop over time, and nothing kept per step. So every size of the benchmark can be checked in full, in float64,
which the reference's loop under autograd cannot.

Letters as in `gpu_cases`; R channels that are solved together.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ops.causal_conv1d.reference import causal_conv1d_reference
from rdfa.bench.gpu_cases import FusedCase

# [R,N,L] tensors of at most this many elements; about ten are alive at once.
CHUNK_ELEMENTS = 2**25


def solve(case: FusedCase, inputs: dict[str, Tensor], *, exact: bool) -> dict[str, Tensor]:
    """The output under its name, and the gradient of each argument under 'd' + its name.

    With `exact` all in float64. Without: computed in float32 and rounded once to the dtype of the argument, as a plain
    kernel would.
    """
    if not case.states:
        return _convolution(case, inputs, exact)
    compute = torch.float64 if exact else torch.float32
    results = _scan(inputs, compute)
    if exact:
        return results
    dtypes = {case.output: inputs["u"].dtype} | {f"d{name}": t.dtype for name, t in inputs.items()}
    return {name: t.to(dtypes[name]) for name, t in results.items()}


def plain_convolution(case: FusedCase, arguments: dict[str, Tensor]) -> Tensor:
    """The fused convolution by the plain reference, differentiable: arguments by name -> u."""
    return torch.stack(
        [
            torch.cat(
                [
                    causal_conv1d_reference(x, arguments[f"weight{w}"], arguments[f"bias{w}"], "silu", reverse=reverse)
                    for w in case.widths
                ],
                dim=1,
            )
            for x, reverse in zip(arguments["x"], (False, True))
        ]
    )


def _convolution(case: FusedCase, inputs: dict[str, Tensor], exact: bool) -> dict[str, Tensor]:
    arguments = {name: t.double() if exact else t for name, t in inputs.items()}
    gradient = arguments.pop("grad_u")
    leaves = {name: t.detach().requires_grad_() for name, t in arguments.items()}
    u = plain_convolution(case, leaves)
    gradients = torch.autograd.grad(u, list(leaves.values()), gradient)
    return {"u": u.detach()} | {f"d{name}": g for name, g in zip(leaves, gradients)}


def _scan(inputs: dict[str, Tensor], compute: torch.dtype) -> dict[str, Tensor]:
    _, S, rows, L = inputs["u"].shape
    D, N = inputs["A"].shape
    grad_y = torch.stack(inputs["grad_y"].chunk(2, dim=1))
    y = torch.zeros_like(inputs["u"], dtype=compute)
    gradients = {f"d{name}": torch.zeros_like(t, dtype=compute) for name, t in inputs.items() if name != "grad_y"}
    for direction, s, branch, chunk in _parts(S, rows // D, D, max(1, CHUNK_ELEMENTS // (N * L))):
        wide = slice(branch * D + chunk.start, branch * D + chunk.stop)
        where = {"u": wide, "delta": wide, "z": chunk, "B": slice(None), "C": slice(None)}

        def in_order(t, direction=direction):
            return t.flip(-1) if direction else t

        over_time = {name: in_order(inputs[name][direction, s, index].to(compute)) for name, index in where.items()}
        per_channel = {name: inputs[name][chunk].to(compute) for name in ("A", "D", "delta_bias")}
        output, parts = _one_sequence(
            **over_time, **per_channel, grad_y=in_order(grad_y[direction, s, wide].to(compute))
        )
        y[direction, s, wide] = in_order(output)
        for name, index in where.items():
            gradients[f"d{name}"][direction, s, index] += in_order(parts[name])
        for name in per_channel:
            gradients[f"d{name}"][chunk] += parts[name]
    return {"y": torch.cat(tuple(y), dim=1)} | gradients


def _parts(S: int, K: int, D: int, channels: int) -> Iterator[tuple[int, int, int, slice]]:
    """Direction, sequence, branch and channels of each piece of the work."""
    for direction in range(2):
        for s in range(S):
            for branch in range(K):
                for start in range(0, D, channels):
                    yield direction, s, branch, slice(start, min(start + channels, D))


def _one_sequence(u, delta, A, B, C, D, z, delta_bias, grad_y) -> tuple[Tensor, dict[str, Tensor]]:
    """y [R,L] and the gradients of all else; u, delta, z, grad_y [R,L], A [R,N], B, C [N,L], D, delta_bias [R]."""
    raw = delta + delta_bias[:, None]
    dt, gate = F.softplus(raw), torch.sigmoid(z)
    x = dt * u
    decay = torch.exp(dt[:, None] * A[:, :, None])
    h = recurrence(decay, x[:, None] * B)
    inner = (h * C).sum(1) + D[:, None] * u
    y = inner * z * gate

    g = grad_y * z * gate
    # The gradient of h_t is g_t C_t and what h_t+1 hands back; the decay of the step after the last one is 0.
    dh = recurrence(F.pad(decay[..., 1:], (0, 1)).flip(-1), (g[:, None] * C).flip(-1)).flip(-1)
    dexponent = dh * F.pad(h[..., :-1], (1, 0)) * decay
    dx = (dh * B).sum(1)
    draw = ((dexponent * A[:, :, None]).sum(1) + dx * u) * torch.sigmoid(raw)
    return y, {
        "u": dx * dt + g * D[:, None],
        "delta": draw,
        "A": (dexponent * dt[:, None]).sum(2),
        "B": (dh * x[:, None]).sum(0),
        "C": (g[:, None] * h).sum(0),
        "D": (g * u).sum(1),
        "z": grad_y * inner * gate * (1 + z * (1 - gate)),
        "delta_bias": draw.sum(1),
    }


def recurrence(a: Tensor, x: Tensor) -> Tensor:
    """h_t = a_t h_t-1 + x_t along the last dimension, h_-1 = 0; each pass doubles the steps that h_t looks back."""
    reach, h = 1, x
    while reach < a.shape[-1]:
        h = torch.cat((h[..., :reach], torch.addcmul(h[..., reach:], a[..., reach:], h[..., :-reach])), -1)
        a = torch.cat((a[..., :reach], a[..., reach:] * a[..., :-reach]), -1)
        reach *= 2
    return h
