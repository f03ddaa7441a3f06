"""The TorchScript file: outputs, final detections, what it knows of itself, and the C++ program that runs it."""

import json
import subprocess

import numpy as np
import pytest
import torch

from ops import library
from rdfa import runtime
from rdfa.deploy import form, torchscript
from rdfa.errors import UsageError
from rdfa.inference.decode import VideoTiming, detect
from tests.deploy import artifacts

# Of the whole of TorchScript, in torch 2.13.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated:DeprecationWarning")


@pytest.fixture(scope="module")
def module():
    return torch.jit.load(artifacts.tiny_artifact() / "detector.ts.pt")


@pytest.fixture(scope="module")
def detector():
    return artifacts.tiny_detector(artifacts.tiny_config())


def make_inputs(batch, time, seed=0):
    rng = np.random.default_rng(seed)
    mask = np.arange(time) < np.linspace(1, time, batch)[:, None]
    features = rng.standard_normal((batch, 6, time), dtype=np.float32) * mask[:, None]
    return torch.from_numpy(features.astype(np.float32)), torch.from_numpy(mask)


@pytest.mark.parametrize("batch, time", [(1, 2), (5, 34), (1, 1154), (3, 2304)])
@torch.no_grad()
def test_equals_the_detector_at_sizes_that_were_not_traced(module, detector, batch, time):
    inputs = make_inputs(batch, time)
    outputs = module(*inputs)
    assert outputs._fields == runtime.Outputs._fields
    for value, wanted in zip(outputs, detector(*inputs)):
        torch.testing.assert_close(value, wanted, rtol=1e-5, atol=1e-5)


def test_outputs_need_no_gradient(module):
    assert not any(value.requires_grad for value in module(*make_inputs(1, 4)))


@pytest.fixture(scope="module")
def graph_for_gpus(detector, tmp_path_factory):
    path = tmp_path_factory.mktemp("gpu") / "detector.ts.pt"
    manifest = json.loads((artifacts.tiny_artifact() / "manifest.json").read_text())
    torchscript.export(form.deployed(detector, "float32", "cuda"), path, manifest, artifacts.tiny_config().post, 10)
    return torch.jit.load(path).detector.inlined_graph  # which owns its nodes


def test_convolutions_are_exact_on_a_gpu(graph_for_gpus):
    """The setting of the trace is a constant of the file: the last argument, whether cuDNN may round to TF32."""
    convolutions = graph_for_gpus.findAllNodes("aten::_convolution", recurse=True)
    assert convolutions and not any(list(node.inputs())[-1].toIValue() for node in convolutions)
    assert torch.backends.cudnn.allow_tf32  # the process keeps its own


def test_file_for_gpus_names_no_device(graph_for_gpus):
    """It was traced on a CPU, and makes indices where its inputs lie."""
    constants = graph_for_gpus.findAllNodes("prim::Constant", recurse=True)
    assert not [node for node in constants if node.output().type().str() == "Device"]
    assert graph_for_gpus.findAllNodes("prim::device", recurse=True)


def test_points_are_those_of_the_detector(module, detector):
    for time in (2, 46, 2336):
        torch.testing.assert_close(module.points(time), detector.points(time), rtol=0, atol=0)


@torch.no_grad()
def test_detect_gives_the_detections_of_the_package(module, detector):
    config, inputs = artifacts.tiny_config(), make_inputs(3, 200)
    fps, duration = [25.0, 30.0, 12.5], [20.0, 0.0, 31.0]
    found = module.detect(*inputs, fps, duration)
    timing = [VideoTiming(rate, length or None, 4, 16) for rate, length in zip(fps, duration)]
    expected = detect(*detector(*inputs), detector.points(200), timing, config.post)
    for ours, wanted in zip(found, expected, strict=True):
        assert len(wanted) >= 3
        np.testing.assert_allclose(ours.segments.numpy(), wanted.segments_N2, rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(ours.scores.numpy(), wanted.scores_N, rtol=1e-4)
        np.testing.assert_array_equal(ours.labels.numpy(), wanted.labels_N)


def test_file_knows_its_classes_and_features(module):
    assert module.class_names == ["jump", "class_1", "throw"]
    assert module.feature_spec["stride"] == 4
    assert "default_fps" not in module.feature_spec
    extra = {torchscript.EXTRA_FILE: ""}
    torch.jit.load(artifacts.tiny_artifact() / "detector.ts.pt", _extra_files=extra)
    facts = json.loads(extra[torchscript.EXTRA_FILE])
    assert facts["classes"] == module.class_names
    assert facts["features"]["dimension"] == 6


def test_without_the_library_the_remedy_is_named(monkeypatch, detector, tmp_path):
    monkeypatch.setattr(library, "loaded", lambda: False)
    config = artifacts.tiny_config()
    with pytest.raises(UsageError, match=r"python -m ops\.build"):
        torchscript.export(detector, tmp_path / "x.pt", {"classes": [], "features": {}}, config.post, 10)


@pytest.mark.slow
def test_cpp_program_gives_the_same(module, tmp_path):
    """Compiled against torch's headers; nothing of Python is in the process."""
    features, mask = make_inputs(2, 1154)
    outputs = artifacts.run_in_cpp(artifacts.tiny_artifact(), features.numpy(), mask.numpy(), 25.0, 30.0, tmp_path)
    assert outputs["classes"] == ["jump", "class_1", "throw"]
    for name, wanted in module(features, mask)._asdict().items():
        np.testing.assert_allclose(outputs[name], wanted.numpy(), rtol=1e-5, atol=1e-5)
    for i, wanted in enumerate(module.detect(features, mask, [25.0] * 2, [30.0] * 2)):
        for name, value in wanted._asdict().items():
            np.testing.assert_allclose(outputs[f"{name}_{i}"], value.numpy(), rtol=1e-5, atol=1e-4)
    program = artifacts.cpp_program(artifacts.RUN_TORCHSCRIPT)
    libraries = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    assert "libtorch" in libraries
    assert "libpython" not in libraries
