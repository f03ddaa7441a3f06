"""The Triton kernels between the products of inference on CPU tensors, where Triton interprets them. Run by
test_triton.py."""

import pytest
import torch

from ops.rows import gpu
from tests.ops import triton_tools
from tests.ops.conftest import assert_as_exact
from tests.ops.rows import plain

triton_tools.round_like_a_gpu()

SHAPES = [(1, 1, 1), (2, 7, 13), (3, 5, 40), (1, 33, 64)]
PARTS = ("bias", "mask", "norm", "factor", "relu", "gate", "residual", "next_norm")
CHOICES = [(), PARTS, ("mask", "gate", "residual", "next_norm"), ("bias", "mask", "norm", "factor", "relu")]
all_dtypes = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16], ids=["f32", "f16", "bf16"]
)


def converted(arguments, dtype):
    return {k: v.to(dtype) if torch.is_tensor(v) and v.is_floating_point() else v for k, v in arguments.items()}


@all_dtypes
@pytest.mark.parametrize("parts", CHOICES, ids=lambda parts: "-".join(parts) or "nothing")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("taps", (1, 3))
def test_finish(shape, parts, taps, dtype):
    sequences, length, channels = shape
    torch.manual_seed(0)
    everything = {
        "bias": torch.randn(channels),
        "mask": torch.rand(sequences, 2 * length)[:, ::2] > 0.3,
        "norm": torch.randn(2, channels),
        "factor": torch.randn(length),
        "relu": True,
        "gate": torch.randn(sequences, channels),
        "residual": torch.randn(sequences, length, channels),
        "next_norm": torch.randn(2, channels),
    }
    chosen = {name: everything[name] if name in parts else None for name in PARTS} | {"relu": "relu" in parts}
    # The taps of a product are padded.
    x = torch.randn(sequences, length, taps, channels + 3)[..., :channels] if taps > 1 else torch.randn(shape)
    arguments = converted({"x": x, "taps": taps, **chosen}, dtype)
    pairs = "next_norm" in parts
    result, same, truth = (
        y if pairs else (y,)
        for y in (
            gpu.finish(**arguments),
            plain.finish(**arguments),
            plain.finish(**converted(arguments, torch.float64)),
        )
    )
    assert len(result) == len(truth)
    for i, name in enumerate(("y", "norm")[: len(truth)]):
        assert result[i].dtype == dtype and result[i].is_contiguous()
        assert_as_exact(name, result[i], same[i], truth[i])


def test_finish_writes_where_it_is_told():
    x, whole = torch.randn(2, 5, 16), torch.full((2, 9, 16), 7.0)
    assert gpu.finish(x, relu=True, out=whole[:, 2:7]).data_ptr() == whole[:, 2:7].data_ptr()
    assert torch.equal(whole[:, 2:7], x.relu())
    assert (whole[:, :2] == 7).all() and (whole[:, 7:] == 7).all()


@all_dtypes
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_halve(shape, dtype):
    torch.manual_seed(0)
    x, mask, norm = torch.randn(shape).to(dtype), torch.rand(shape[:2]) > 0.3, torch.randn(2, shape[2])
    y, v = gpu.halve(x, mask, norm)
    truth, norm_truth = plain.halve(x.double(), mask, norm.double())
    assert torch.equal(y, truth.to(dtype)) and torch.equal(gpu.halve(x, mask), y)
    assert_as_exact("norm", v, norm_truth.to(dtype), norm_truth)


@all_dtypes
@pytest.mark.parametrize("length, bins", [(1, 3), (37, 8), (5, 9), (64, 16)])
def test_average(length, bins, dtype):
    x = torch.randn(2, length, 24).to(dtype)
    truth = plain.average(x.double(), bins)
    assert_as_exact("y", gpu.average(x, bins), truth.to(dtype), truth)


def test_nothing_to_do():
    assert gpu.finish(torch.empty(0, 3, 4)).shape == (0, 3, 4)
    assert gpu.halve(torch.empty(2, 0, 4), torch.empty(2, 0, dtype=torch.bool)).shape == (2, 0, 4)
    assert gpu.average(torch.empty(0, 3, 4), 2).shape == (0, 2, 4)
