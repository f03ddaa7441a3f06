"""The Triton kernels between the products of inference on CPU tensors, where Triton interprets them. Run by
test_triton.py."""

import pytest
import torch
from torch.nn import functional as F

from ops.rows import gpu
from tests.ops import triton_tools
from tests.ops.conftest import assert_as_exact

triton_tools.round_like_a_gpu()

SHAPES = [(1, 1, 1), (2, 7, 13), (3, 5, 40), (1, 33, 64)]
PARTS = ("bias", "mask", "norm", "factor", "relu", "gate", "residual", "next_norm")
CHOICES = [(), PARTS, ("mask", "gate", "residual", "next_norm"), ("bias", "mask", "norm", "factor", "relu")]
all_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=["f32", "f16", "bf16"])


def finished(x, taps, bias, mask, norm, factor, relu, gate, residual, next_norm):
    """The formula of `finish` in PyTorch's operators, and what `next_norm` makes of the rounded result."""
    if taps > 1:
        x = F.pad(x, (0, 0, 0, 0, taps // 2, taps // 2))
        x = sum(x[:, w : x.shape[1] - taps + 1 + w, w] for w in range(taps))
    x = x if bias is None else x + bias
    x = x if mask is None else x * mask[..., None]
    x = x if norm is None else F.layer_norm(x, x.shape[-1:], *norm)
    x = x if factor is None else x * factor[:, None]
    x = x.relu() if relu else x
    x = x if gate is None else x * gate.sigmoid()[:, None]
    x = x if residual is None else x + residual
    return (x,) if next_norm is None else (x, F.layer_norm(x, x.shape[-1:], *next_norm))


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
    results = gpu.finish(arguments["x"], **{k: v for k, v in arguments.items() if k != "x"})
    results = results if isinstance(results, tuple) else (results,)
    truths, plains = finished(**converted(arguments, torch.float64)), finished(**arguments)
    assert len(results) == len(truths)
    for result, plain, truth in zip(results, plains, truths):
        assert result.dtype == dtype and result.is_contiguous()
        assert_as_exact("y", result, plain, truth)


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
    pooled = F.max_pool1d(x.float().transpose(1, 2), 3, 2, 1).transpose(1, 2) * mask[:, ::2, None]
    y, v = gpu.halve(x, mask, norm)
    assert torch.equal(y, pooled.to(dtype)) and torch.equal(gpu.halve(x, mask), y)
    truth = F.layer_norm(pooled.double(), shape[2:], *norm.double())
    assert_as_exact("norm", v, F.layer_norm(pooled, shape[2:], *norm).to(dtype), truth)


@all_dtypes
@pytest.mark.parametrize("length, bins", [(1, 3), (37, 8), (5, 9), (64, 16)])
def test_average(length, bins, dtype):
    x = torch.randn(2, length, 24).to(dtype)
    truth = F.adaptive_avg_pool1d(x.double().transpose(1, 2), bins).transpose(1, 2)
    assert_as_exact("y", gpu.average(x, bins), truth.to(dtype), truth)


def test_nothing_to_do():
    assert gpu.finish(torch.empty(0, 3, 4)).shape == (0, 3, 4)
    assert gpu.halve(torch.empty(2, 0, 4), torch.empty(2, 0, dtype=torch.bool)).shape == (2, 0, 4)
    assert gpu.average(torch.empty(0, 3, 4), 2).shape == (0, 2, 4)
