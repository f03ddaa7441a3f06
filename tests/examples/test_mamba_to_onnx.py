"""The example of another Mamba-1 model: equal outputs and gradients on `ops`, and in ONNX Runtime at any length."""

import importlib.util
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

pytest.importorskip("transformers", reason="transformers is not installed: pip install 'rdfa-s6[transformers]'")
pytestmark = pytest.mark.slow

EXAMPLE = Path(__file__).parents[2] / "examples" / "mamba_to_onnx.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("mamba_to_onnx", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def models(example):
    """The model as transformers has it, and the same on `ops`."""
    plain, ours = (example.make(hidden_size=24) for _ in range(2))
    example.use_ops(ours)
    return plain, ours


def outputs_and_gradients(model, ids):
    model.zero_grad()
    hidden = model(ids)
    weights = torch.linspace(-1, 2, hidden.numel()).reshape(hidden.shape).to(hidden.dtype)
    (hidden * weights).mean().backward()
    return {"hidden": hidden.detach()} | {name: p.grad for name, p in model.named_parameters()}


def test_outputs_and_gradients_are_those_of_transformers(models):
    ids = torch.randint(100, (2, 37), generator=torch.Generator().manual_seed(1))
    plain, ours = (outputs_and_gradients(model, ids) for model in models)
    assert sum("A_log" in name for name in plain) == 2
    for name, wanted in plain.items():
        error = (ours[name] - wanted).norm() / wanted.norm()
        assert error < 1e-5, f"{name}: {error:.1e}"


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (3, 130)], ids=str)
def test_onnx_file_at_lengths_that_were_not_traced(models, session, size):
    ids = torch.randint(100, size, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        wanted = models[0](ids).numpy()
    (found,) = session.run(None, {"ids": ids.numpy()})
    assert np.linalg.norm(found - wanted) <= 1e-5 * np.linalg.norm(wanted)


@pytest.fixture(scope="module")
def session(example, models, tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "mamba.onnx"
    example.export(models[1], path)
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
