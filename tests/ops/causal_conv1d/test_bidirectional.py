"""`bidirectional_conv1d` without a GPU, where it is a composition: values, gradients, recorded graphs, wrong inputs."""

import io
import re

import pytest
import torch

from ops import library
from ops.causal_conv1d.bidirectional import bidirectional_conv1d
from tests.ops.causal_conv1d import cases
from tests.ops.conftest import assert_as_exact


class Convolutions(torch.nn.Module):
    def __init__(self):
        super().__init__()
        _, weights, biases, _ = cases.make_bidirectional((1, 5, 1), (2, 3, 4), torch.float32)
        self.weights, self.biases = torch.nn.ParameterList(weights), torch.nn.ParameterList(biases)

    def forward(self, x):
        return bidirectional_conv1d(x, list(self.weights), list(self.biases)) * 2


def example(S=2, L=11):
    return cases.make_bidirectional((S, 5, L), (4,), torch.float32)[0].contiguous()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=["f32", "f16", "bf16"])
@pytest.mark.parametrize("widths", [(2, 3, 4), (4,)], ids=str)
@pytest.mark.parametrize("shape", [(1, 5, 1), (2, 67, 129), (0, 3, 4), (2, 0, 4), (2, 3, 0)], ids=str)
def test_values_and_gradients(shape, widths, dtype):
    x, weights, biases, du = cases.make_bidirectional(shape, widths, dtype)
    value = cases.run_bidirectional(bidirectional_conv1d, x, weights, biases, du)
    same = cases.run_bidirectional(cases.bidirectional_reference, x, weights, biases, du)
    exact = (x.double(), cases.doubled(weights), cases.doubled(biases), du.double())
    truth = cases.run_bidirectional(cases.bidirectional_reference, *exact)
    assert value["u"].is_contiguous()
    for name in truth:
        assert value[name].dtype == same[name].dtype
        assert_as_exact(name, value[name], same[name], truth[name])


def test_directions_are_mirror_images():
    x, weights, biases, _ = cases.make_bidirectional((2, 5, 23), (2, 3, 4), torch.float32)
    u = bidirectional_conv1d(x, weights, biases)
    mirrored = bidirectional_conv1d(x.flip(0, 3), weights, biases).flip(0, 3)
    torch.testing.assert_close(mirrored, u, rtol=1e-6, atol=1e-6)


def test_compiled_training():
    module, x = Convolutions(), example()
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    results = []
    for call in (module, compiled):
        module.zero_grad()
        leaf = x.clone().requires_grad_()
        u = call(leaf)
        u.square().sum().backward()
        results.append((u.detach(), leaf.grad, *(p.grad.clone() for p in module.parameters())))
    for expected, value in zip(*results):
        torch.testing.assert_close(value, expected)


def test_recorded_graphs_hold_the_operator_of_the_contract(monkeypatch):
    module, x = Convolutions(), example(S=3, L=31)
    expected = module(x)
    monkeypatch.setattr(library, "runs_triton", lambda *tensors: True)  # as on a GPU
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(module, example(), check_trace=False), buffer)  # which would run it eagerly
    traced = torch.jit.load(io.BytesIO(buffer.getvalue()))
    dynamic = {"x": {1: torch.export.Dim("sequences"), 3: torch.export.Dim("time")}}
    exported = torch.export.export(module, (example(),), dynamic_shapes=dynamic)
    for graph, call in ((traced.graph, traced), (exported.graph, exported.module())):
        operators = set(re.findall(r"rdfa[:.]+(\w+)", str(graph)))
        assert operators == {"causal_conv1d"}
        torch.testing.assert_close(call(x), expected)


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"x": torch.zeros(3, 2, 5, 7)}, ValueError, r"x is \[3, 2, 5, 7\]: expected \[2, S, D, L\]"),
        ({"x": torch.zeros(2, 5, 7)}, ValueError, r"x is \[2, 5, 7\]: expected \[2, S, D, L\]"),
        ({"x": None}, ValueError, r"x is NoneType: expected \[2, S, D, L\]"),
        ({"x": torch.zeros(2, 2, 5, 7, dtype=torch.int64)}, TypeError, "x is torch.int64"),
        ({"weight": []}, ValueError, "there are 0 weights and 2 biases: expected one of each for every branch"),
        ({"bias": [torch.zeros(5)]}, ValueError, "there are 2 weights and 1 biases"),
        ({"weight": [torch.zeros(5, 2), torch.zeros(5, 5)]}, ValueError, r"weight has shape \[5, 5\]"),
        ({"bias": [torch.zeros(5), torch.zeros(4)]}, ValueError, r"bias has shape \[4\]: expected \[D\] = \[5\]"),
    ],
    ids=str,
)
def test_wrong_input_is_refused_in_one_line(change, error, message):
    x, weight, bias, _ = cases.make_bidirectional((2, 5, 7), (2, 3), torch.float32)
    with pytest.raises(error, match=message) as caught:
        bidirectional_conv1d(**({"x": x, "weight": weight, "bias": bias} | change))
    assert "\n" not in str(caught.value)
