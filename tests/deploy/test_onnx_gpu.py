"""The ONNX files on a GPU, with ONNX Runtime's own provider: what they compute, where, and by whose kernels."""

import functools

import onnxruntime
import pytest
import torch

from ops import library
from rdfa import runtime
from tests.deploy import artifacts

PROVIDER = "CUDAExecutionProvider"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(
        PROVIDER not in onnxruntime.get_available_providers(),
        reason=f"this onnxruntime has no {PROVIDER}: pip install onnxruntime-gpu in its place",
    ),
]

needs_kernels = pytest.mark.skipif(
    not (library.onnxruntime_path().exists() and library.pack_path().exists()),
    reason="there are no kernels: python -m ops.build --onnxruntime_headers DIR, python -m ops.aot",
)
each_way = pytest.mark.parametrize(
    "native", [False, pytest.param(True, marks=needs_kernels)], ids=["function", "kernel"]
)
each_dtype = pytest.mark.parametrize("dtype", ["float32", "float16"])


@functools.cache
def session(dtype, native):
    """Opening it refuses nodes that compute on the CPU."""
    return runtime.load(artifacts.onnx_artifact(), "onnxruntime", device="cuda", dtype=dtype, native=native)


@each_way
@each_dtype
@pytest.mark.parametrize("size", artifacts.SIZES, ids=str)
def test_parity(size, dtype, native):
    artifacts.assert_right(session(dtype, native), *size, dtype)


@each_way
@each_dtype
def test_all_that_computes_is_on_the_gpu(dtype, native):
    nodes = session(dtype, native).nodes()
    assert {node.provider for node in nodes if node.computes} == {PROVIDER}
    scans = [node for node in nodes if node.path == "kernel"]
    assert [(node.operator, node.provider) for node in scans] == [("SelectiveScan", PROVIDER)] * (3 if native else 0)
    assert ("function" in {node.path for node in nodes}) != native


@needs_kernels
def test_the_file_for_cpus_runs_on_the_kernels_too():
    """Its loop would be a round trip to the host for each step; with the library no function is inlined."""
    on_gpu = runtime.open_file(artifacts.onnx_artifact(), "detector.onnx", "onnxruntime", "cuda")
    artifacts.assert_right(on_gpu, 2, 2304, "float32")
