"""All backends behind one interface: equal outputs, clear refusals, and what they import."""

import importlib.util
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from rdfa import runtime
from rdfa.errors import RunError, UsageError
from tests.deploy import artifacts

BACKENDS = ["eager", "torchscript", "onnxruntime"]  # of the default formats


@pytest.fixture(scope="module")
def artifact():
    return artifacts.tiny_artifact()


OTHERS = {"openvino": artifacts.onnx_artifact, "aoti": artifacts.aoti_artifact}


@pytest.fixture(scope="module", params=[*BACKENDS, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def session(request, artifact):
    if request.param == "openvino":
        pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install 'rdfa-s6[openvino]'")
    folder = OTHERS[request.param]() if request.param in OTHERS else artifact
    return runtime.load(folder, request.param, threads=1)


def make_inputs(batch=2, time=70):
    rng = np.random.default_rng(time)
    mask = np.arange(time) < np.linspace(1, time, batch)[:, None]
    return (rng.standard_normal((batch, 6, time)) * mask[:, None]).astype(np.float32), mask


@pytest.fixture
def copy(artifact, tmp_path):
    return shutil.copytree(artifact, tmp_path / "copy")


def test_every_backend_is_listed_and_available(artifact):
    assert runtime.backends() == [*BACKENDS, *OTHERS]
    reasons = runtime.availability(artifact)
    assert "no aoti file" in reasons.pop("aoti")
    assert reasons.pop("openvino")
    assert reasons == dict.fromkeys(BACKENDS)


@torch.no_grad()
def test_outputs(session):
    features, mask = make_inputs()
    outputs = session.run(features, mask)
    detector = artifacts.tiny_detector(artifacts.tiny_config())
    expected = detector(torch.from_numpy(features), torch.from_numpy(mask))
    assert outputs._fields == ("cls_logits", "offsets", "point_mask")
    assert [value.dtype for value in outputs] == [np.float32, np.float32, np.bool_]
    for value, wanted in zip(outputs, expected):
        np.testing.assert_allclose(value, wanted.numpy(), rtol=1e-4, atol=1e-5)


def test_inputs_are_left_alone_and_need_not_be_contiguous(session):
    features, mask = make_inputs()
    transposed = np.asfortranarray(features)
    before = transposed.copy()
    np.testing.assert_array_equal(session.run(transposed, mask).offsets, session.run(features, mask).offsets)
    np.testing.assert_array_equal(transposed, before)


def test_outputs_outlive_the_next_run(session):
    first = session.run(*make_inputs())
    kept = first.cls_logits.copy()
    session.run(*make_inputs(2, 72))
    session.run(-make_inputs()[0], make_inputs()[1])
    np.testing.assert_array_equal(first.cls_logits, kept)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda f, m: (f.astype(np.float64), m), "float32"),
        (lambda f, m: (f.tolist(), m), "numpy array"),
        (lambda f, m: (f[0], m), "3 axes"),
        (lambda f, m: (f, m.astype(np.uint8)), "bool"),
        (lambda f, m: (f[:, :5], m), "5 channels, the detector was trained on 6"),
        (lambda f, m: (f, m[:, :-2]), "mask has shape"),
        (lambda f, m: (f[:, :, :-1], m[:, :-1]), "multiple of 2"),
        (lambda f, m: (f[:, :, :0], m[:, :0]), "multiple of 2"),
        (lambda f, m: (f[:0], m[:0]), "must not be empty"),
        (lambda f, m: (np.repeat(f, 70, 2), np.repeat(m, 70, 1)), "at most 4608"),
    ],
)
def test_wrong_inputs_are_refused_in_one_line(session, change, message):
    with pytest.raises(RunError, match=message) as caught:
        session.run(*change(*make_inputs()))
    assert "\n" not in str(caught.value)


def test_unknown_backend_device_and_threads(artifact):
    with pytest.raises(UsageError, match="did you mean 'onnxruntime'"):
        runtime.load(artifact, "onnxrutime")
    with pytest.raises(UsageError, match="openvino has no device 'cuda': it runs on cpu"):
        runtime.load(artifact, "openvino", device="cuda")
    with pytest.raises(UsageError, match="no onnx_gpu file: export it with --formats onnx_gpu"):
        runtime.load(artifact, "onnxruntime", device="cuda")
    with pytest.raises(UsageError, match="no float16 safetensors file: its weights are of float32"):
        runtime.load(artifact, "eager", dtype="float16")
    with pytest.raises(UsageError, match="no float16 onnx file: export it with --formats onnx --dtype float16"):
        runtime.load(artifact, "onnxruntime", dtype="float16")
    with pytest.raises(UsageError, match="threads = 0"):
        runtime.load(artifact, "onnxruntime", threads=0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("backend", ["eager", "torchscript"])
def test_a_gpu_that_is_not_there(artifact, backend):
    with pytest.raises(UsageError, match=r"no GPU|was exported for .cpu."):
        runtime.load(artifact, backend, device="cuda")


@pytest.mark.parametrize("backend", ["eager", "torchscript"])
def test_threads_are_those_of_the_session_and_no_others(artifact, backend, monkeypatch):
    seen = []
    original = torch.set_num_threads
    monkeypatch.setattr(torch, "set_num_threads", lambda n: (seen.append(n), original(n)))
    runtime.load(artifact, backend, threads=2).run(*make_inputs())
    assert seen == [2, 1]
    assert torch.get_num_threads() == 1


def test_format_that_was_not_exported(copy):
    manifest = json.loads((copy / "manifest.json").read_text())
    del manifest["files"]["detector.onnx"]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert "no onnx file" in runtime.availability(copy)["onnxruntime"]
    with pytest.raises(UsageError, match="--formats"):
        runtime.load(copy, "onnxruntime")


def test_package_that_is_not_installed(artifact, monkeypatch):
    find = importlib.util.find_spec
    absent = {"onnxruntime", "openvino"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in absent else find(name))
    reasons = runtime.availability(artifact)
    assert reasons["onnxruntime"] == "onnxruntime is not installed: pip install 'rdfa-s6[onnx]'"
    assert reasons["openvino"] == "openvino is not installed: pip install 'rdfa-s6[openvino]'"
    with pytest.raises(UsageError, match="pip install"):
        runtime.load(artifact, "onnxruntime")


@pytest.mark.parametrize(
    "backend, name",
    [("eager", "model.safetensors"), ("torchscript", "librdfa_ops.so"), ("torchscript", "detector.ts.pt")],
)
def test_flipped_bit_in_any_file_of_the_backend(copy, backend, name):
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(RunError, match=f"{name} differs from the SHA-256"):
        runtime.load(copy, backend)
    runtime.load(copy, "onnxruntime")


def run_python(code, *arguments):
    answer = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


def test_onnxruntime_backend_imports_no_torch(artifact):
    code = """
import sys
import numpy as np
from rdfa import runtime
session = runtime.load(sys.argv[1], "onnxruntime", threads=1)
session.run(np.zeros((1, 6, 4), np.float32), np.ones((1, 4), bool))
print(sorted({"torch", "gin", "onnx", "rdfa.training"} & set(sys.modules)))
"""
    assert run_python(code, artifact) == "[]\n"


@pytest.mark.parametrize("backend", ["torchscript", pytest.param("aoti", marks=pytest.mark.slow)])
def test_runs_on_the_artifacts_own_library(artifact, backend):
    """As on a machine that has torch and this file: no operators installed, no compiler imported."""
    code = """
import importlib.util, sys
import numpy as np
find = importlib.util.find_spec
importlib.util.find_spec = lambda name: None if name == "ops" else find(name)
from rdfa import runtime
session = runtime.load(sys.argv[1], sys.argv[2], threads=1)
print(session.run(np.ones((1, 6, 4), np.float32), np.ones((1, 4), bool)).cls_logits.shape)
needless = {"ops", "rdfa.modeling", "rdfa.training", "onnxruntime", "torch._inductor.compile_fx"}
print(sorted(needless & set(sys.modules)))
"""
    folder = OTHERS.get(backend, lambda: artifact)()
    assert run_python(code, folder, backend) == "(1, 6, 3)\n[]\n"
