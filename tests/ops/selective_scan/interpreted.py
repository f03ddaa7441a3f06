"""The Triton kernels on CPU tensors, in a process where Triton interprets them. Run by test_triton.py."""

import pytest
import torch

from ops.selective_scan import bidirectional, cuda, tiles
from ops.selective_scan.reference import selective_scan_reference
from ops.selective_scan.tiles import FORWARD_TILES
from tests.ops import triton_tools
from tests.ops.conftest import assert_as_exact
from tests.ops.selective_scan import cases

triton_tools.round_like_a_gpu()

# (B, D, N, L), odd sizes first. A tile has 1 to 32 rows and 16 to 256 steps; more than 16 states take several launches.
SHAPES = [(2, 9, 2, 65), (1, 1, 1, 1), (1, 2, 17, 7), (1, 33, 1, 32)]


class Scan(torch.autograd.Function):
    """The launchers as one differentiable function, as torch's dispatcher joins them for CUDA tensors."""

    @staticmethod
    def forward(ctx, *arguments):
        ctx.arguments = arguments
        y, last_state, ctx.states = cuda.forward_train(*arguments)
        return y, last_state

    @staticmethod
    def backward(ctx, grad_y, grad_last_state):
        *inputs, softplus, reverse = ctx.arguments
        gradients = cuda.backward(grad_y, grad_last_state, *inputs, ctx.states, softplus, reverse)
        return *(None if t is None else g for t, g in zip(inputs, gradients)), None, None


def check(shape, kind="BNL", softplus=True, reverse=False, only=None, dy_layout=cases.contiguous, **options):
    """Values and gradients against the reference in float64, and the memory order of the results."""

    def scan(*arguments, return_last_state, reverse):
        return Scan.apply(*arguments, reverse)

    tensors = cases.make(shape, kind, **options)
    dy, dstate = cases.output_gradients(shape, tensors["u"].dtype)
    gradients = dy_layout(dy) if only != "last_state" else None, dstate if only != "y" else None
    value, same = (cases.run(f, tensors, *gradients, softplus, reverse) for f in (scan, selective_scan_reference))
    exact = {k: None if t is None else t.double() for k, t in tensors.items()}
    truth = cases.run(selective_scan_reference, exact, *gradients, softplus, reverse)
    assert value.keys() == truth.keys()
    for name in truth:
        assert value[name].dtype == same[name].dtype, name
        assert_as_exact(name, value[name], same[name], truth[name])
    u = tensors["u"]
    if u.shape[1] > 1 and u.shape[2] > 1:
        assert (value["y"].stride(1) < value["y"].stride(2)) == (u.stride(1) < u.stride(2))


@pytest.fixture(params=FORWARD_TILES, ids=lambda tile: f"{tile.rows}x{tile.lanes}")
def tile(request, monkeypatch):
    monkeypatch.setattr(tiles, "forward_tile", lambda *sizes: request.param)
    return request.param


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=["f32", "f16", "bf16"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients(shape, dtype):
    check(shape, kind="BLN" if shape[3] % 2 else "BNL", dtype=dtype, reverse=shape[1] % 2 == 1)


@pytest.mark.parametrize("length, dtype", [(31, torch.float32), (256, torch.bfloat16), (272, torch.float32)], ids=str)
def test_every_tile(tile, length, dtype):
    """Lengths that leave accesses incomplete, that fill every block, and that fill accesses but not blocks."""
    check((1, 3, 1, length), dtype=dtype, reverse=length == 272)


@pytest.mark.parametrize("length, blocks", [(150, 2), (33, 1)])
def test_segments(monkeypatch, length, blocks):
    """Cut into segments, a sequence gives what it gives in one piece, up to rounding; the last one may be shorter."""
    monkeypatch.setattr(tiles, "segment", lambda *sizes: blocks)
    check((1, 3, 2, length))
    check((1, 3, 17, length), reverse=True)


def test_repeats_to_the_last_bit():
    tensors = cases.make((2, 9, 2, 37))
    y, last_state, states = cuda.forward_train(*tensors.values(), True, False)
    assert all(torch.equal(a, b) for a, b in zip((y, last_state), cuda.forward(*tensors.values(), True, False)))
    first, second = (cuda.backward(y, last_state, *tensors.values(), states, True, False) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second))


@pytest.mark.parametrize("kind, groups", [("BGNL", 1), ("BGNL", 3), ("DN", 1)])
def test_groups_and_constant_projections(kind, groups):
    check((2, 9, 1, 35), kind, groups=groups, reverse=groups == 3)


@pytest.mark.parametrize("without", [("D",), ("z",), ("delta_bias",), ("D", "z", "delta_bias")], ids="-".join)
@pytest.mark.parametrize("softplus", [True, False])
def test_options(without, softplus):
    # Without softplus a negative step would let the state grow: all are small ones.
    check((1, 5, 2, 37), without=without, softplus=softplus, delta_shift=-1.0 if softplus else 4.0)


@pytest.mark.parametrize("layout, dy_layout", list(zip(cases.LAYOUTS, cases.LAYOUTS[1:] + cases.LAYOUTS[:1])))
def test_strides(layout, dy_layout):
    check((2, 5, 1, 37), layout=layout, dy_layout=dy_layout, reverse=True)


@pytest.mark.parametrize("only", ["y", "last_state"])
def test_gradient_of_one_output(only):
    check((2, 5, 2, 20), only=only)


@pytest.mark.parametrize("shift", [-30.0, 200.0])
def test_extreme_steps(shift):
    check((1, 9, 1, 40), delta_shift=shift)


@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 3, 4, 0), (2, 0, 4, 5)], ids=str)
@pytest.mark.parametrize("kind", ["BNL", "DN"])
def test_empty(shape, kind):
    check(shape, kind)


# Sequences, branches, channels of each, states, steps
@pytest.mark.parametrize("sizes", [(2, 3, 5, 1, 37), (1, 1, 3, 17, 24)], ids=str)
def test_both_directions_and_all_branches(tile, sizes):
    tensors, grad_y = cases.make_bidirectional(*sizes, torch.float16)
    y, states = bidirectional._forward_train(*tensors.values())
    assert torch.equal(y, bidirectional.forward(*tensors.values())), "inference differs from training"
    gradients = bidirectional._backward(grad_y, *tensors.values(), states)
    value = {"y": y} | dict(zip(tensors, gradients))
    same, truth = (cases.run_bidirectional(bidirectional._composed, t, grad_y) for t in cases.also_exact(tensors))
    for name in truth:
        assert value[name].dtype == same[name].dtype, name
        assert_as_exact(name, value[name], same[name], truth[name])
