"""The Triton kernels on CPU tensors, in a process where Triton interprets them. Run by test_triton.py."""

import os

import pytest
import torch

from ops.selective_scan import cuda, tiles
from ops.selective_scan.reference import selective_scan_reference
from tests.ops import conftest
from tests.ops.selective_scan import cases


class Scan(torch.autograd.Function):
    """The launchers as one differentiable function, as torch's dispatcher joins them for CUDA tensors."""

    @staticmethod
    def forward(ctx, *arguments):
        ctx.arguments = arguments
        y, last_state, ctx.states = cuda.forward_train(*arguments)
        again = cuda.forward(*arguments)
        assert torch.equal(y, again[0]) and torch.equal(last_state, again[1])
        return y, last_state

    @staticmethod
    def backward(ctx, grad_y, grad_last_state):
        *inputs, softplus, reverse = ctx.arguments
        first, second = (
            cuda.backward(grad_y, grad_last_state, *inputs, ctx.states, softplus, reverse) for _ in range(2)
        )
        assert all(torch.equal(a, b) for a, b in zip(first, second)), "a repeated backward differs"
        return *(None if t is None else g for t, g in zip(inputs, first)), None, None


def start():
    """What the process does first: Triton reads the variable when it is imported; no kernel may miss an element."""
    os.environ["TRITON_INTERPRET"] = "1"
    torch.set_num_threads(1)
    poison = pytest.MonkeyPatch()
    for name in ("empty", "empty_like"):
        poison.setattr(torch, name, conftest._poisoned(getattr(torch, name)))
    poison.setattr(torch.Tensor, "new_empty", conftest._poisoned(torch.Tensor.new_empty))


def check(tensors, dy, dstate, softplus=True, reverse=False, tile=None):
    """Values and gradients against the reference in float64, and the memory order of the results."""

    def scan(*arguments, return_last_state, reverse):
        return Scan.apply(*arguments, reverse)

    with pytest.MonkeyPatch.context() as patch:
        if tile is not None:
            patch.setattr(tiles, "FORWARD_TILES", (tiles.FORWARD_TILES[tile],))
        value = cases.run(scan, tensors, dy, dstate, softplus, reverse)
    same = cases.run(selective_scan_reference, tensors, dy, dstate, softplus, reverse)
    exact = {k: None if t is None else t.double() for k, t in tensors.items()}
    truth = cases.run(selective_scan_reference, exact, dy, dstate, softplus, reverse)
    assert value.keys() == truth.keys()
    for name in truth:
        assert value[name].dtype == same[name].dtype, name
        conftest.assert_as_exact(name, value[name], same[name], truth[name])
    u = tensors["u"]
    if u.shape[1] > 1 and u.shape[2] > 1:
        assert (value["y"].stride(1) < value["y"].stride(2)) == (u.stride(1) < u.stride(2))


def check_made(shape, *, dtype=torch.float32, softplus=True, reverse=False, tile=None, **options):
    check(cases.make(shape, dtype=dtype, **options), *cases.output_gradients(shape, dtype), softplus, reverse, tile)
