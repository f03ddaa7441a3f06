"""Each replacement computes what the part it stands for computes, in torch and as an ONNX graph of its own."""

import copy

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ops
from ops.selective_scan import export
from rdfa.deploy import onnx_modules
from rdfa.modeling.backbone import DualBiS6Block
from rdfa.modeling.fa_bi_s6 import AGGREGATED, SINGLE, FeatureAggregatedBiS6
from rdfa.modeling.layers import GatePool
from tests.deploy import artifacts

# Of torch.onnx, about its own use of torch.
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")


@pytest.fixture
def eager_scan(monkeypatch):
    """Outside an export the node computes nothing; let it run the operator it stands for."""
    monkeypatch.setattr(export, "node", ops.selective_scan)


def make_block(widths, d_model=6, expand=1):
    torch.manual_seed(3)
    block = FeatureAggregatedBiS6(d_model, widths, d_state=5, expand=expand)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return block.eval()


def export_alone(module, example, axes):
    """The module as a model of its own, dynamic in `axes`, ready to run."""
    dims = dict.fromkeys(axes, torch.export.Dim.DYNAMIC)
    program = torch.onnx.export(
        module.eval(), (example,), dynamo=True, opset_version=18, dynamic_shapes=(dims,), optimize=False, verbose=False
    )
    model = program.model_proto
    export.add_functions(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {model.graph.input[0].name: x.numpy()})[0]


@pytest.mark.parametrize("length", [1, 2, 7, 64, 577])
@pytest.mark.parametrize("widths, expand", [(AGGREGATED, 1), (SINGLE, 1), (AGGREGATED, 2), ((2, 3), 1)], ids=str)
@torch.no_grad()
def test_fused_block_equals_the_block(eager_scan, widths, expand, length):
    block = make_block(widths, expand=expand)
    x = torch.randn(3, length, 6)
    torch.testing.assert_close(onnx_modules.FusedBiS6(block)(x), block(x), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_fused_block_does_not_change_the_block():
    block = make_block(AGGREGATED)
    before = copy.deepcopy(block.state_dict())
    onnx_modules.FusedBiS6(block)
    for name, value in block.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


@given(length=st.integers(1, 5000), bins=st.sampled_from([1, 7, 576]))
@settings(max_examples=60, deadline=None)
@torch.no_grad()
def test_gate_pool_equals_adaptive_pooling(length, bins):
    pool = GatePool(bins)
    x = torch.randn(2, length, 3)
    y = onnx_modules.GatherGatePool(pool)(x)
    torch.testing.assert_close(y, pool(x), rtol=1e-5, atol=2e-6)


@torch.no_grad()
def test_exported_gate_pool_is_right_at_every_length():
    pool = GatePool(576)
    run = export_alone(onnx_modules.GatherGatePool(pool), torch.randn(2, 160, 3), [0, 1])
    for batch, length in [(1, 2), (2, 575), (1, 576), (3, 577), (2, 1184), (1, 2304), (1, 2336), (2, 4608)]:
        x = torch.randn(batch, length, 3)
        np.testing.assert_allclose(run(x), pool(x).numpy(), rtol=1e-5, atol=2e-6)


@torch.no_grad()
def test_exported_block_is_right_at_every_size():
    block = make_block(AGGREGATED)
    run = export_alone(onnx_modules.FusedBiS6(block), torch.randn(2, 24, 6), [0, 1])
    for batch, length in [(1, 1), (1, 2), (5, 33), (2, 600)]:
        x = torch.randn(batch, length, 6)
        np.testing.assert_allclose(run(x), block(x).numpy(), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_column_gate_equals_the_gate(eager_scan):
    detector = artifacts.tiny_detector(artifacts.tiny_config())
    stem = detector.backbone.stem_module
    x = torch.randn(2, 40, 8)
    expected = stem.blocks[0].gate(x)
    replaced = copy.deepcopy(stem)
    onnx_modules.replace_parts(replaced)
    torch.testing.assert_close(replaced.blocks[0].gate(x), expected, rtol=1e-5, atol=1e-6)


def test_every_part_is_replaced():
    detector = artifacts.tiny_detector(artifacts.tiny_config())
    onnx_modules.replace_parts(detector)
    kinds = [type(module) for module in detector.modules()]
    assert kinds.count(onnx_modules.FusedBiS6) == 3
    assert kinds.count(onnx_modules.GatherGatePool) == 1
    assert FeatureAggregatedBiS6 not in kinds and GatePool not in kinds
    assert "gate" in vars(next(module for module in detector.modules() if isinstance(module, DualBiS6Block)))
