"""The kernels of the pack on a GPU, against Triton's: RDFA_GPU_KERNELS=aot python -m pytest -m gpu tests/ops/aot"""

import itertools
import shutil
import subprocess
import sys

import pytest
import torch

from ops import library
from ops.causal_conv1d import cuda as conv
from ops.selective_scan import cuda as scan
from tests.ops.aot import tools
from tests.ops.causal_conv1d import cases as conv_cases
from tests.ops.selective_scan import cases

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(library.HAS_TRITON, reason="Triton is in charge: set RDFA_GPU_KERNELS=aot"),
    pytest.mark.skipif(not library.pack_path().exists(), reason="there is no pack: python -m ops.aot"),
]

all_dtypes = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16], ids=["f32", "f16", "bf16"]
)


def assert_same(value, expected):
    """Up to the last digits: the same operations, but another compiler may contract them differently."""
    assert value.dtype == expected.dtype and value.stride() == expected.stride()
    torch.testing.assert_close(value, expected)


@all_dtypes
@pytest.mark.parametrize("options", [(), ("z",), ("D", "delta_bias")], ids="-".join)
@pytest.mark.parametrize(
    "shape",
    [(1, 1, 1, 1), (2, 17, 3, 65), (1, 64, 16, 2304), (4, 512, 16, 1152), (1, 2, 16, 20001), (2, 9, 35, 40)],
    ids=str,
)
def test_scan(shape, options, dtype):
    pytest.importorskip("triton")
    tensors = {k: None if t is None else t.cuda() for k, t in cases.make(shape, dtype=dtype, without=options).items()}
    for softplus, reverse in ((True, False), (True, True), (False, True)):
        arguments = (*tensors.values(), softplus, reverse)
        for value, expected in zip(torch.ops.rdfa.selective_scan(*arguments), scan.forward(*arguments)):
            assert_same(value, expected)


@all_dtypes
@pytest.mark.parametrize("layout", [cases.contiguous, cases.channels_last])
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 67, 129), (2, 512, 2304)], ids=str)
def test_convolution(shape, layout, dtype):
    pytest.importorskip("triton")
    for width, silu, reverse in itertools.product((2, 3, 4), (False, True), (False, True)):
        (x, weight, bias), _ = conv_cases.make(shape, width, True, dtype, device="cuda")
        arguments = (layout(x), weight, bias, silu, reverse)
        assert_same(torch.ops.rdfa.causal_conv1d(*arguments), conv.forward(*arguments))


def test_another_stream_and_its_order():
    """On a stream of its own behind work that takes a while: a launch elsewhere would read what is not yet there."""
    tensors = {k: t.cuda() for k, t in cases.make((2, 64, 16, 512)).items()}
    expected = torch.ops.rdfa.selective_scan(*tensors.values(), True, False)[0]
    later = {k: torch.full_like(t, float("nan")) for k, t in tensors.items()}
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(20_000_000)
        for k, t in tensors.items():
            later[k].copy_(t)
        y = torch.ops.rdfa.selective_scan(*later.values(), True, False)[0]
        y = y.clone()
    torch.cuda.synchronize()
    assert torch.equal(y, expected)


@pytest.mark.parametrize("name", ["A", "B", "z", "delta_bias"])
def test_an_argument_that_was_left_on_the_cpu(name):
    tensors = {k: t.cuda() for k, t in cases.make((1, 4, 16, 8)).items()}
    with pytest.raises(RuntimeError, match=f"{name} is on another device"):
        torch.ops.rdfa.selective_scan(*(tensors | {name: tensors[name].cpu()}).values(), True, False)


# By the library that is named, in a process that has nothing else of ours.
CALLS = """
import sys
import torch
library, inputs, results = sys.argv[1:]
torch.ops.load_library(library)
*scans, x, weight, bias = torch.load(inputs)
values = [torch.ops.rdfa.selective_scan(*scan, True, False) for scan in scans]
torch.save([*values, torch.ops.rdfa.causal_conv1d(x, weight, bias, True, False)], results)
"""


def test_ptx_where_the_pack_has_no_machine_code(tmp_path):
    """As on a GPU that is newer than the pack: the driver compiles."""
    copy, inputs, results = (tmp_path / name for name in (library.path().name, "inputs", "results"))
    shutil.copyfile(library.path(), copy)
    tools.strip(library.pack_path(), copy.with_suffix(".cubins"), torch.cuda.get_device_capability()[0])
    scans = [[t.cuda() for t in cases.make(shape).values()] for shape in [(2, 17, 3, 65), (1, 2, 16, 20001)]]
    convolution = [t.cuda() for t in conv_cases.make((2, 67, 129), 4, True, torch.float32)[0]]
    torch.save([*scans, *convolution], inputs)
    command = [sys.executable, "-c", CALLS, copy, inputs, results]
    answer = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    *found, y = torch.load(results)
    for values, tensors in zip(found, scans, strict=True):
        for value, expected in zip(values, torch.ops.rdfa.selective_scan(*tensors, True, False), strict=True):
            assert_same(value, expected)
    assert_same(y, torch.ops.rdfa.causal_conv1d(*convolution, True, False))


def test_each_gpu_has_its_own_kernels():
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU")
    tensors = cases.make((1, 8, 16, 64))
    first, second = (
        torch.ops.rdfa.selective_scan(*(t.to(f"cuda:{i}") for t in tensors.values()), True, False)[0] for i in (0, 1)
    )
    assert second.device.index == 1 and torch.equal(first.cpu(), second.cpu())
