"""The Triton kernels on CPU tensors, in a process where Triton interprets them. Run by test_triton.py."""

import itertools

import pytest
import torch

import ops.causal_conv1d.bidirectional  # noqa: F401  (declares its operators)
from ops.causal_conv1d import cuda
from ops.causal_conv1d.reference import causal_conv1d_reference
from tests.ops import triton_tools
from tests.ops.causal_conv1d import cases
from tests.ops.conftest import assert_as_exact
from tests.ops.selective_scan.cases import LAYOUTS, channels_last, contiguous

triton_tools.round_like_a_gpu()

# The operators take the launchers for CPU tensors too, so that all of torch's machinery around them is tested as well.
LIBRARY = torch.library.Library("rdfa", "IMPL")
for name, launcher in (
    ("causal_conv1d", cuda.forward),
    ("causal_conv1d_backward", cuda.backward),
    ("bidirectional_conv1d", cuda.bidirectional_forward),
    ("bidirectional_conv1d_backward", cuda.bidirectional_backward),
):
    LIBRARY.impl(name, launcher, "CPU", allow_override=True)

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
all_dtypes = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)

# (B, D, L), odd sizes first. In memory order [B,D,L] tiles have 4 channels and 32, 128 or 256 steps, in [B,L,D] 32 or
# 64 channels and 16, 48 or 64 steps; multiples of 4 or 8 channels or steps are read 16 bytes at a time.
SHAPES = [
    ((1, 1, 1), contiguous),
    ((2, 3, 35), contiguous),
    ((1, 5, 264), contiguous),
    ((2, 3, 2), channels_last),
    ((1, 35, 18), channels_last),
    ((1, 72, 67), channels_last),
]
EMPTY = [(0, 3, 4), (2, 0, 4), (2, 3, 0)]


def operator(x, weight, bias=None, activation=None, reverse=False):
    return torch.ops.rdfa.causal_conv1d(x, weight, bias, activation is not None, reverse)


def check(tensors, dy, activation, reverse):
    value = cases.run(operator, tensors, dy, activation, reverse)
    same = cases.run(causal_conv1d_reference, tensors, dy, activation, reverse)
    truth = cases.run(causal_conv1d_reference, cases.doubled(tensors), dy.double(), activation, reverse)
    for name in truth:
        assert value[name].dtype == same[name].dtype
        assert_as_exact(name, value[name], same[name], truth[name])
    x = tensors[0]
    if x.shape[1] > 1 and x.shape[2] > 1:
        for name in ("y", "dx"):
            channels_inside = value[name].stride(1) < value[name].stride(2)
            assert channels_inside == (x.stride(1) < x.stride(2)), name
    return value


@all_dtypes
@pytest.mark.parametrize("shape, layout", SHAPES, ids=str)
def test_values_and_gradients(shape, layout, dtype):
    for width, activation, reverse in [(4, "silu", False), (3, None, True)]:
        tensors, dy = cases.make(shape, width, with_bias=True, dtype=dtype)
        check([layout(tensors[0]), *tensors[1:]], layout(dy), activation, reverse)


@pytest.mark.parametrize("shape", EMPTY, ids=str)
@pytest.mark.parametrize("layout", [contiguous, channels_last])
def test_empty(shape, layout):
    tensors, dy = cases.make(shape, 4, with_bias=True, dtype=torch.float32)
    check([layout(tensors[0]), *tensors[1:]], layout(dy), "silu", reverse=False)


@pytest.mark.parametrize("layout", [contiguous, channels_last])
def test_repeats_to_the_last_bit(layout):
    tensors, dy = cases.make((3, 8, 72), 4, with_bias=True, dtype=torch.bfloat16)
    first, second = (cases.run(operator, [layout(tensors[0]), *tensors[1:]], dy, "silu", False) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    "width, activation, reverse", list(itertools.product((2, 3, 4), (None, "silu"), (False, True)))
)
def test_every_filter(width, activation, reverse):
    for layout, with_bias in itertools.product((contiguous, channels_last), (False, True)):
        tensors, dy = cases.make((1, 4, 8), width, with_bias, torch.float32)
        check([layout(tensors[0]), *tensors[1:]], dy, activation, reverse)


@pytest.mark.parametrize("dy_layout", LAYOUTS)
@pytest.mark.parametrize("x_layout", LAYOUTS)
def test_strides(x_layout, dy_layout):
    for shape in ((2, 3, 13), (2, 4, 16)):
        tensors, dy = cases.make(shape, 4, with_bias=True, dtype=torch.float32)
        weight = tensors[1].t().contiguous().t()
        bias = tensors[2].repeat_interleave(2)[::2]
        check([x_layout(tensors[0]), weight, bias], dy_layout(dy), "silu", reverse=True)


@pytest.mark.parametrize("layout", [contiguous, channels_last])
@pytest.mark.parametrize("offset", [1, 4])
def test_slices_in_and_out_of_step_with_accesses(layout, offset):
    tensors, dy = cases.make((1, 16, 32), 3, with_bias=True, dtype=torch.float32)
    part = (slice(None), slice(offset, offset + 8), slice(offset, offset + 16))
    check([layout(tensors[0])[part], tensors[1][:8], tensors[2][:8]], layout(dy)[part], "silu", reverse=False)


def test_expanded_gradient():
    tensors, _ = cases.make((2, 4, 8), 4, with_bias=True, dtype=torch.float32)
    check(tensors, torch.ones(()).expand(2, 4, 8), "silu", reverse=False)


@pytest.mark.parametrize("layout", [contiguous, channels_last])
@pytest.mark.parametrize("length", [300, 301])
def test_several_tiles_in_one_program(layout, length, monkeypatch):
    tensors, dy = cases.make((1, 4, length), 4, with_bias=True, dtype=torch.float32)
    tensors[0] = layout(tensors[0])
    expected = check(tensors, dy, "silu", reverse=True)
    monkeypatch.setattr(cuda, "ENOUGH_PROGRAMS", 1)
    value = check(tensors, dy, "silu", reverse=True)
    assert torch.equal(value["y"], expected["y"]) and torch.equal(value["dx"], expected["dx"])


def test_more_slots_than_are_added_up_at_once():
    check(*cases.make((33, 4, 4), 2, with_bias=True, dtype=torch.float32), "silu", reverse=False)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["f16", "bf16"])
def test_narrow_sequence_with_float32_parameters(dtype):
    tensors, dy = cases.make((2, 8, 24), 4, with_bias=True, dtype=torch.float32)
    value = check([tensors[0].to(dtype), *tensors[1:]], dy.to(dtype), "silu", reverse=False)
    assert value["y"].dtype == dtype and value["dweight"].dtype == torch.float32


@pytest.mark.parametrize("layout", [contiguous, channels_last])
def test_large_values_saturate_without_nan(layout):
    x = layout(torch.tensor([-1e4, -100.0, -88.0, 0.0, 88.0, 100.0, 1e4, 1.0]).expand(1, 4, 8))
    value = cases.run(operator, [x, torch.tensor([[0.0, 1.0]] * 4)], torch.ones(1, 4, 8), "silu", False)
    torch.testing.assert_close(value["y"], torch.nn.functional.silu(x), rtol=1e-5, atol=1e-30)
    assert value["dx"].isfinite().all()


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("layout", [contiguous, channels_last])
@pytest.mark.parametrize("shape", [(1, 4, 136), (1, 3, 37)], ids=str)
def test_nan_spreads_exactly_as_far_as_the_filter(shape, layout, reverse):
    tensors, dy = cases.make(shape, 4, with_bias=True, dtype=torch.float32)
    for at in (0, 1, shape[2] // 2, shape[2] - 1):
        x = tensors[0].clone()
        x[0, 1, at] = float("nan")
        args = ([layout(x), *tensors[1:]], dy, "silu", reverse)
        value, reference = cases.run(operator, *args), cases.run(causal_conv1d_reference, *args)
        for name in ("y", "dx", "dweight", "dbias"):
            assert torch.equal(value[name].isnan(), reference[name].isnan()), name


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"x": torch.zeros(2, 5, 11, dtype=torch.float64)}, TypeError, "x is torch.float64: expected float32, float16"),
        ({"weight": torch.zeros(3, 4)}, ValueError, r"weight has shape \[3, 4\]: expected \[D, W\] = \[5, 2..4\]"),
        ({"bias": torch.zeros(3)}, ValueError, r"bias has shape \[3\]"),
        ({"dy": torch.zeros(2, 5, 10)}, ValueError, r"dy has shape \[2, 5, 10\]: expected that of x, \[2, 5, 11\]"),
    ],
    ids=str,
)
def test_the_operator_itself_checks_what_reaches_it(change, error, message):
    (x, weight, bias), dy = cases.make((2, 5, 11), 4, with_bias=True, dtype=torch.float32)
    arguments = {"dy": dy, "x": x, "weight": weight, "bias": bias} | change
    with pytest.raises(error, match=message):
        torch.ops.rdfa.causal_conv1d_backward(*arguments.values(), True, False)


def check_bidirectional(x, weights, biases, du):
    arguments = (x, weights, biases)
    value = cases.run_bidirectional(torch.ops.rdfa.bidirectional_conv1d, *arguments, du)
    same = cases.run_bidirectional(cases.bidirectional_reference, *arguments, du)
    exact = (x.double(), cases.doubled(weights), cases.doubled(biases))
    truth = cases.run_bidirectional(cases.bidirectional_reference, *exact, du.double())
    assert value["u"].is_contiguous()
    for name in truth:
        assert value[name].dtype == same[name].dtype
        assert_as_exact(name, value[name], same[name], truth[name])
    return value


@all_dtypes
@pytest.mark.parametrize("shape", [(1, 5, 1), (2, 5, 7), (1, 4, 264)], ids=str)
def test_bidirectional(shape, dtype):
    check_bidirectional(*cases.make_bidirectional(shape, (2, 3, 4), dtype))


@pytest.mark.parametrize("widths", [(4,), (3, 2)], ids=str)
def test_bidirectional_is_each_filter_alone(widths):
    x, weights, biases, du = cases.make_bidirectional((2, 3, 8), widths, torch.float32)
    u = check_bidirectional(x, weights, biases, du)["u"].unflatten(2, (len(widths), 3))
    for r, k in itertools.product(range(2), range(len(widths))):
        assert torch.equal(u[r][:, k], operator(x[r], weights[k], biases[k], "silu", reverse=r == 1))


@pytest.mark.parametrize("shape", EMPTY, ids=str)
def test_bidirectional_empty(shape):
    check_bidirectional(*cases.make_bidirectional(shape, (2, 4), torch.float32))


def test_bidirectional_with_other_memory_orders():
    x, weights, biases, du = cases.make_bidirectional((2, 4, 12), (2, 4), torch.float32)
    channels_inside = x.transpose(2, 3).contiguous().transpose(2, 3)
    check_bidirectional(channels_inside, weights, [b.repeat_interleave(2)[::2] for b in biases], du)
    check_bidirectional(x, [w.t().contiguous().t() for w in weights], biases, torch.ones(()).expand(du.shape))
    out_of_step = torch.cat([du[..., :1], du], 3)[..., 1:]
    check_bidirectional(x[..., 1:-3], weights, biases, out_of_step[..., 1:-3])
    check_bidirectional(x, weights, biases, out_of_step)


@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(requires_grad):
    x, weights, biases, du = cases.make_bidirectional((1, 2, 4), (2, 3), torch.float32)
    detached = (du, x, weights, biases)
    torch.library.opcheck(torch.ops.rdfa.bidirectional_conv1d_backward, detached)
    for t in (x, *weights, *biases):
        t.requires_grad_(requires_grad)
    torch.library.opcheck(torch.ops.rdfa.bidirectional_conv1d, (x, weights, biases))
