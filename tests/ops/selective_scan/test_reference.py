"""The reference against the written formula, and its gradients against finite differences."""

import math

import pytest
import torch

from ops.selective_scan.reference import selective_scan_reference
from tests.ops.selective_scan.cases import make


def by_hand(u, delta, A, B, C, D, z, bias, d, reverse):
    """One channel of batch element 0 in Python numbers, B and C [B,N,L]."""
    length, states = u.shape[2], A.shape[1]
    h, y = [0.0] * states, [0.0] * length
    for t in reversed(range(length)) if reverse else range(length):
        dt = math.log1p(math.exp(delta[0, d, t] + bias[d]))
        x, gate = u[0, d, t].item(), z[0, d, t].item()
        h = [math.exp(dt * A[d, n]) * h[n] + dt * B[0, n, t].item() * x for n in range(states)]
        y[t] = sum(C[0, n, t].item() * h[n] for n in range(states)) + D[d].item() * x
        y[t] *= gate / (1 + math.exp(-gate))
    return y, h


@pytest.mark.parametrize("reverse", [False, True])
def test_formula(reverse):
    tensors = {k: t.double() for k, t in make((2, 3, 2, 9)).items()}
    y, last_state = selective_scan_reference(
        *tensors.values(), delta_softplus=True, return_last_state=True, reverse=reverse
    )
    for d in range(3):
        expected_y, expected_state = by_hand(*tensors.values(), d=d, reverse=reverse)
        torch.testing.assert_close(y[0, d], torch.tensor(expected_y, dtype=torch.float64))
        torch.testing.assert_close(last_state[0, d], torch.tensor(expected_state, dtype=torch.float64))


def test_groups_share_B_and_C():
    tensors = make((2, 6, 3, 5), "BGNL", groups=2)
    y = selective_scan_reference(*tensors.values())
    for g in range(2):
        own = slice(3 * g, 3 * g + 3)
        part = {k: t[:, own] if k in ("u", "delta", "z") else t[own] for k, t in tensors.items() if k not in ("B", "C")}
        part = {k: part[k] if k in part else tensors[k][:, g] for k in tensors}
        torch.testing.assert_close(selective_scan_reference(*part.values()), y[:, own])


def test_constant_projections_are_repeated_over_time():
    tensors = make((2, 6, 3, 5), "DN")
    spread = {k: tensors[k][None, :, :, None].expand(2, 6, 3, 5) for k in ("B", "C")}
    y = selective_scan_reference(*(tensors | spread).values())
    torch.testing.assert_close(selective_scan_reference(*tensors.values()), y)


@pytest.mark.parametrize("kind", ["BNL", "BGNL", "DN"])
@pytest.mark.parametrize("reverse, without", [(False, ()), (True, ("D", "z", "delta_bias"))])
def test_gradcheck(kind, reverse, without):
    tensors = make((2, 4, 2, 5), kind, groups=2, dtype=torch.float64, without=without)
    names = [k for k, t in tensors.items() if t is not None]

    def scan(*leaves):
        arguments = tensors | dict(zip(names, leaves))
        return selective_scan_reference(*arguments.values(), True, return_last_state=True, reverse=reverse)

    leaves = [tensors[k].double().requires_grad_() for k in names]
    assert torch.autograd.gradcheck(scan, leaves)
    assert torch.autograd.gradgradcheck(scan, leaves)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes(dtype):
    y, last_state = selective_scan_reference(*make((1, 3, 2, 4), dtype=dtype).values(), return_last_state=True)
    assert y.dtype == dtype
    assert last_state.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize("shape", [(0, 4, 3, 5), (2, 0, 3, 5), (2, 4, 3, 0)])
@pytest.mark.parametrize("kind", ["BNL", "BGNL", "DN"])
def test_nothing_in_it(shape, kind):
    y, last_state = selective_scan_reference(*make(shape, kind, groups=2).values(), return_last_state=True)
    assert y.shape == (*shape[:2], shape[3]) and last_state.shape == shape[:3]
