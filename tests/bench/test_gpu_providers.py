"""Our provider against the operators as they are declared: on a GPU that exists by name only."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ops import library
from rdfa.bench.gpu_cases import FusedCase
from rdfa.bench.gpu_providers import ours

CASES = [
    FusedCase("odd", 2, 5, 37, (2, 3, 4), states=3),
    FusedCase("one branch", 1, 5, 37, (4,), states=16),
    FusedCase("odd", 2, 5, 37, (2, 3, 4)),
    FusedCase("one branch", 1, 5, 37, (4,)),
]


@pytest.mark.skipif(not library.loaded(), reason="needs the native library: python -m ops.build")
@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.kernel}-{c.layer}")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_results_have_the_names_and_the_layout_of_the_solution(case, dtype):
    pytest.importorskip("triton")
    shapes = {name: (t.shape, t.dtype) for name, t in case.inputs("cpu", dtype).items()}
    with FakeTensorMode():
        inputs = {name: torch.empty(shape, dtype=d, device="cuda") for name, (shape, d) in shapes.items()}
        stage = ours(case, "forward", inputs)
        output = stage.named(stage.call(stage.arguments))
        stage = ours(case, "backward", inputs)
        gradients = stage.named(stage.call(stage.arguments))
    assert {name: (t.shape, t.dtype) for name, t in output.items()} == {case.output: shapes[f"grad_{case.output}"]}
    del shapes[f"grad_{case.output}"]
    assert {name: (t.shape, t.dtype) for name, t in gradients.items()} == {f"d{n}": v for n, v in shapes.items()}
