"""Every format in every precision, at sizes that were not traced: against float64, and against PyTorch in that type.

What AOTInductor makes of float16 and bfloat16 is checked when it is exported; to compile it takes too long here.
"""

import functools
import json

import pytest
import torch

from rdfa import deploy, runtime
from rdfa.deploy import form
from rdfa.errors import UsageError
from tests.deploy import artifacts

pytestmark = pytest.mark.slow
FILES = [
    ("torchscript", "float32"),
    ("torchscript", "float16"),
    ("torchscript", "bfloat16"),
    ("onnxruntime", "float32"),
    ("aoti", "float32"),
]


@functools.cache
def session(backend, dtype):
    folder = artifacts.aoti_artifact() if backend == "aoti" else artifacts.tiny_artifact()
    folder = folder if dtype == "float32" else artifacts.narrow_artifact()
    return runtime.load(folder, backend, dtype=dtype, threads=1)


@pytest.mark.parametrize("backend, dtype", FILES, ids=lambda value: value)
@pytest.mark.parametrize("size", artifacts.SIZES, ids=str)
def test_parity(size, backend, dtype):
    artifacts.assert_right(session(backend, dtype), *size, dtype)


@torch.no_grad()
@pytest.mark.parametrize("device", ("cpu", "cuda"))
@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
def test_interface_is_that_of_float32(dtype, device):
    detector = artifacts.tiny_detector(artifacts.tiny_config())
    deployed = form.deployed(detector, dtype, device)  # for a GPU too, whose operators serve CPU tensors as well
    assert {p.dtype for p in detector.parameters()} == {torch.float32}
    outputs = deployed(torch.zeros(1, 6, 32), torch.ones(1, 32, dtype=torch.bool))
    assert [tensor.dtype for tensor in outputs] == [torch.float32, torch.float32, torch.bool]
    inside = {p.dtype for p in deployed.parameters() if p.dim() > 1} | {
        b.dtype for n, b in deployed.named_buffers() if "weight" in n
    }
    assert getattr(torch, dtype) in inside


def test_manifest_tells_the_files_apart():
    files = json.loads((artifacts.narrow_artifact() / "manifest.json").read_text())["files"]
    for dtype in ("float16", "bfloat16"):
        entry = files[f"detector.ts.{dtype}.pt"]
        assert (entry["format"], entry["dtype"], entry["device"]) == ("torchscript", dtype, "cpu")
        assert [value["dtype"] for value in entry["inputs"]] == ["float32", "bool"]
        assert all(row["ok"] for row in entry["parity"])
        assert session("torchscript", dtype).dtype == dtype


def test_dtype_that_the_artifact_lacks():
    with pytest.raises(UsageError, match=r"has no float16 torchscript file: export it with .*--dtype float16"):
        runtime.load(artifacts.tiny_artifact(), "torchscript", dtype="float16")
    assert runtime.availability(artifacts.narrow_artifact(), "bfloat16")["torchscript"] is None
    assert "has no torchscript file" in runtime.availability(artifacts.narrow_artifact())["torchscript"]


@pytest.mark.parametrize(
    "formats, dtypes, message",
    [
        (["onnx"], ["bfloat16"], "onnx has no dtype bfloat16"),
        (["torchscript"], ["float61"], "unknown dtype 'float61'"),
    ],
)
def test_dtypes_that_a_format_lacks(tmp_path, formats, dtypes, message):
    with pytest.raises(UsageError, match=message):
        deploy.export(artifacts.tiny_run(), tmp_path / "out", formats=formats, dtypes=dtypes)
