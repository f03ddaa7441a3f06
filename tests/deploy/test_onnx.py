"""The ONNX file: what it computes where it was not traced, and what is in it."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import rdfa
from rdfa.deploy import manifest as manifests
from rdfa.deploy import onnx as exporter
from rdfa.errors import RunError
from tests.deploy import artifacts

INTERFACE = {
    "features": ["batch", 6, "time"],
    "mask": ["batch", "time"],
    "cls_logits": ["batch", "points", 3],
    "offsets": ["batch", "points", 2],
    "point_mask": ["batch", "points"],
}


@pytest.fixture(scope="module")
def path():
    return artifacts.tiny_artifact() / "detector.onnx"


def run(path, features, mask):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(list(INTERFACE)[2:], {"features": features, "mask": mask})


@pytest.mark.parametrize("batch, time", [(1, 2), (5, 34), (2, 576), (1, 1154), (3, 2304)])
@torch.no_grad()
def test_equals_the_detector_at_sizes_that_were_not_traced(path, batch, time):
    features = np.random.default_rng(time).standard_normal((batch, 6, time), dtype=np.float32)
    mask = np.arange(time) < np.linspace(1, time, batch)[:, None]
    features *= mask[:, None]
    expected = artifacts.tiny_detector(artifacts.tiny_config())(torch.from_numpy(features), torch.from_numpy(mask))
    for value, wanted in zip(run(path, features, mask), expected):
        assert value.shape == wanted.shape
        np.testing.assert_allclose(value, wanted.numpy(), rtol=1e-4, atol=1e-4)


def test_names_and_axes(path):
    graph = onnx.load(path).graph
    axes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }
    assert axes == INTERFACE
    assert list(axes) == list(INTERFACE)


def test_graph_is_small_standard_and_checked(path):
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    scans = [node for node in model.graph.node if node.domain == "rdfa"]
    # Two FA-Bi-S6 blocks in the stem's one pass, one in the branch.
    assert [node.op_type for node in scans] == ["SelectiveScan"] * 3
    assert {node.domain for node in model.graph.node} == {"", "rdfa"}
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": 18, "rdfa": 1}
    assert len(model.functions) == 1
    assert len(model.graph.node) < 360


def test_metadata_says_what_the_file_is_and_not_where_it_was_made(path):
    model = onnx.load(path)
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(facts["classes"]) == ["jump", "class_1", "throw"]
    assert json.loads(facts["features"])["dimension"] == 6
    assert facts["rdfa_version"] == model.producer_version == rdfa.__version__
    content = path.read_bytes()
    assert str(Path(rdfa.__file__).parent).encode() not in content
    assert b"stack_trace" not in content


def test_graph_with_other_axes_is_refused(path, monkeypatch, tmp_path):
    """An exporter that writes a traced size into an output must not pass unseen."""
    config = artifacts.tiny_config()
    interface = manifests.interface(config)
    interface["outputs"][1]["shape"][2] = 3
    monkeypatch.setattr(exporter, "_trace", lambda *arguments: onnx.load(path))
    manifest = manifests.describe(config, ["a", "b", "c"], {})
    with pytest.raises(RunError, match="axis of offsets is 2, expected 3"):
        exporter.export(artifacts.tiny_detector(config), {"onnx": tmp_path / "x"}, manifest, interface, 10)
    assert not (tmp_path / "x").exists()
