"""The C++ kernels against the reference in float64: values, every gradient, layouts, directions, all ISAs."""

import itertools
import math

import pytest
import torch

from ops import causal_conv1d
from ops.causal_conv1d.reference import causal_conv1d_reference
from tests.ops.causal_conv1d.cases import make, run
from tests.ops.conftest import assert_as_exact
from tests.ops.selective_scan.cases import LAYOUTS, channels_last, contiguous, repeated, slice_of_wider

# Odd sizes first; 64 channels and 64 or 512 steps are the sizes of the kernel's tiles.
SHAPES = [(1, 1, 1), (2, 3, 2), (3, 5, 7), (1, 67, 129), (2, 65, 513), (1, 130, 1030), (0, 3, 4), (2, 0, 4), (2, 3, 0)]


def check(tensors, dy, activation, reverse):
    value = run(causal_conv1d, tensors, dy, activation, reverse)
    same = run(causal_conv1d_reference, tensors, dy, activation, reverse)
    truth = run(causal_conv1d_reference, [t.double() for t in tensors], dy.double(), activation, reverse)
    for name in truth:
        assert value[name].dtype == same[name].dtype
        assert_as_exact(name, value[name], same[name], truth[name])
    return value


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("layout", [contiguous, channels_last])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients(isa, shape, layout, dtype):
    variants = itertools.product((2, 3, 4), (None, "silu"), (False, True))
    if math.prod(shape) > 10_000:
        variants = [(4, "silu", False), (3, None, True)]
    for width, activation, reverse in variants:
        tensors, dy = make(shape, width, with_bias=True, dtype=dtype)
        check([layout(tensors[0]), *tensors[1:]], layout(dy), activation, reverse)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("dy_layout", LAYOUTS)
@pytest.mark.parametrize("x_layout", LAYOUTS)
def test_strides(isa, x_layout, dy_layout, dtype):
    tensors, dy = make((2, 19, 77), 4, with_bias=True, dtype=dtype)
    weight = tensors[1].t().contiguous().t()
    bias = tensors[2].repeat_interleave(2)[::2]
    value = check([x_layout(tensors[0]), weight, bias], dy_layout(dy), "silu", reverse=True)
    channels_inside = x_layout in (channels_last, slice_of_wider, repeated)
    assert value["y"].stride(1 if channels_inside else 2) == 1


@pytest.mark.parametrize("activation", [None, "silu", "swish"])
def test_without_bias(activation):
    check(*make((2, 5, 33), 3, with_bias=False, dtype=torch.float32), activation, reverse=False)


def test_bfloat16_sequence_with_float32_parameters():
    tensors, dy = make((2, 33, 65), 4, with_bias=True, dtype=torch.float32)
    tensors[0] = tensors[0].bfloat16()
    value = check(tensors, dy.bfloat16(), "silu", reverse=False)
    assert value["y"].dtype == torch.bfloat16 and value["dweight"].dtype == torch.float32


@pytest.mark.parametrize("layout", [contiguous, channels_last])
def test_large_values_saturate_without_nan(isa, layout):
    x = layout(torch.tensor([-1e4, -100.0, -88.0, 0.0, 88.0, 100.0, 1e4]).expand(1, 3, 7))
    value = run(causal_conv1d, [x, torch.tensor([[0.0, 1.0]] * 3)], torch.ones(1, 3, 7), "silu", False)
    torch.testing.assert_close(value["y"], torch.nn.functional.silu(x), rtol=1e-6, atol=1e-30)
    assert value["dx"].isfinite().all()


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("layout", [contiguous, channels_last])
def test_nan_spreads_exactly_as_far_as_the_filter(isa, layout, reverse):
    tensors, dy = make((1, 3, 150), 4, with_bias=True, dtype=torch.float32)
    for at in (0, 1, 70, 149):
        x = tensors[0].clone()
        x[0, 1, at] = float("nan")
        args = ([layout(x), *tensors[1:]], dy, "silu", reverse)
        value, reference = run(causal_conv1d, *args), run(causal_conv1d_reference, *args)
        assert torch.equal(value["y"].isnan(), reference["y"].isnan())
        assert torch.equal(value["dx"].isnan(), reference["dx"].isnan())


@pytest.mark.parametrize("layout", [contiguous, channels_last])
def test_thread_count_does_not_change_a_bit(threads, layout):
    tensors, dy = make((3, 130, 700), 4, with_bias=True, dtype=torch.float32)
    results = []
    for count in (1, 2, 3):
        threads(count)
        results.append(run(causal_conv1d, [layout(tensors[0]), *tensors[1:]], dy, "silu", False))
    for other in results[1:]:
        assert all(torch.equal(results[0][name], other[name]) for name in other)


def test_causality_and_reverse_are_mirror_images():
    tensors, _ = make((1, 4, 50), 4, with_bias=True, dtype=torch.float32)
    x, weight, bias = tensors
    y = causal_conv1d(x, weight, bias, "silu")
    later = x.clone()
    later[:, :, 30:] += 1.0
    changed = causal_conv1d(later, weight, bias, "silu")
    assert torch.equal(y[:, :, :30], changed[:, :, :30]) and not torch.equal(y[:, :, 30], changed[:, :, 30])
    mirrored = causal_conv1d(x.flip(2), weight, bias, "silu", reverse=True).flip(2)
    torch.testing.assert_close(mirrored, y, rtol=1e-6, atol=1e-6)
