"""The library for CPU tensors, built once."""

import ctypes

import pytest

from tests.ops.aot import tools


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """``on_cpu.so`` with a pack of fake kernels beside it, and the driver that runs them in ``driver``."""
    pytest.importorskip("triton")
    folder = tmp_path_factory.mktemp("aot")
    tools.build_library(folder)
    (folder / "driver").mkdir()
    tools.build_driver(folder / "driver")
    tools.write_pack(folder / "librdfa_ops.cubins")
    return folder


@pytest.fixture(scope="session")
def native(folder):
    """The functions that `on_cpu.cpp` exports."""
    functions = ctypes.CDLL(str(folder / "on_cpu.so"))
    functions.content.restype = ctypes.c_int64
    return functions


@pytest.fixture(scope="session")
def ort_folder(folder):
    """`folder` with ``ort_on_cpu.so`` in it."""
    pytest.importorskip("onnxruntime")
    if tools.ort_headers() is None:
        pytest.skip("librdfa_ort.so is not built: python -m ops.build --onnxruntime_headers DIR")
    tools.build_ort_library(folder)
    return folder
