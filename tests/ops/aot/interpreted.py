"""The kernels of `triton_prepare` on CPU tensors, in a process where Triton interprets them. Run by test_prepare.py."""

import pytest
import torch

from ops.aot.triton_prepare import convert_kernel, scale_kernel
from tests.ops import triton_tools

triton_tools.round_like_a_gpu()
BLOCK = 32
LOG2E = 1.4426950408889634


@pytest.mark.parametrize("wanted", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("given", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "parts, rows, columns, padded", [(1, 3, 37, 37), (1, 2, 33, 70), (3, 2, 31, 31), (0, 1, 5, 65)]
)
def test_convert(given, wanted, parts, rows, columns, padded):
    values = torch.randn(parts, rows, columns, generator=torch.Generator().manual_seed(0)).to(given)
    result = torch.full((rows, padded), float("nan"), dtype=wanted)
    programs = rows * -(-padded // BLOCK)
    convert_kernel[(programs,)](values, result, rows, columns, padded, parts, BLOCK=BLOCK)
    expected = torch.zeros(rows, padded)
    expected[:, :columns] = values.float().sum(0)
    torch.testing.assert_close(result, expected.to(wanted))


@pytest.mark.parametrize("D, N, states", [(5, 3, 16), (1, 1, 1), (7, 35, 48), (16, 16, 16)])
def test_scale(D, N, states):
    A = torch.randn(D, N, generator=torch.Generator().manual_seed(0))
    result = torch.full((states, D), float("nan"))
    scale_kernel[(-(-states * D // BLOCK),)](A, result, D, N, states, BLOCK=BLOCK)
    expected = torch.zeros(states, D)
    expected[:N] = LOG2E * A.T
    torch.testing.assert_close(result, expected)
