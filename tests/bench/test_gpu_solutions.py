"""The float64 solution of the fused operators against the references' loops under autograd."""

import pytest
import torch

from rdfa.bench import gpu_solutions
from rdfa.bench.gpu_cases import FusedCase
from rdfa.bench.gpu_providers import plain
from rdfa.bench.gpu_solutions import recurrence, solve
from rdfa.bench.kernel_rows import MODES, judge, relative_l2

ODD = FusedCase("odd", 2, 5, 37, (2, 3, 4), states=3)
CASES = [
    ODD,
    FusedCase("one step", 1, 3, 1, (4,), states=16),
    FusedCase("odd", 2, 5, 37, (2, 3, 4)),
    FusedCase("one branch", 1, 7, 16, (4,)),
]


def reference(case, inputs):
    results = {}
    for mode in MODES:
        stage = plain(case, mode, inputs)
        results |= stage.named(stage.call(stage.arguments))
    return results


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.kernel}-{c.layer}")
@pytest.mark.parametrize("chunk", [1, 250, 2**25])
def test_output_and_every_gradient_equal_the_reference(case, chunk, monkeypatch):
    monkeypatch.setattr(gpu_solutions, "CHUNK_ELEMENTS", chunk)
    case_of_one = FusedCase(case.layer, 1, case.channels, case.length, case.widths, case.states)
    inputs = {name: t.double() for name, t in case_of_one.inputs("cpu", torch.float32).items()}
    errors = relative_l2(solve(case_of_one, inputs, exact=True), reference(case_of_one, inputs))
    assert set(errors) == {case.output, *(f"d{name}" for name in inputs if not name.startswith("grad"))}
    assert max(errors.values()) < 1e-12


def test_sequences_of_a_batch_do_not_mix():
    inputs = ODD.inputs("cpu", torch.float32)
    both = solve(ODD, inputs, exact=True)
    one = FusedCase("odd", 1, 5, 37, (2, 3, 4), states=3)
    totals = {"dA", "dD", "ddelta_bias"}
    parts = []
    for s in range(2):
        batch_of = {n: 0 if n == "grad_y" else 1 for n in ("u", "delta", "B", "C", "z", "grad_y")}
        part = {n: t.narrow(batch_of[n], s, 1) if n in batch_of else t for n, t in inputs.items()}
        parts.append(solve(one, part, exact=True))
    for name, whole in both.items():
        if name in totals:
            joined = parts[0][name] + parts[1][name]
        else:
            joined = torch.cat([p[name] for p in parts], dim=0 if name == "y" else 1)
        assert torch.allclose(whole, joined, rtol=1e-12), name


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.kernel}-{c.layer}")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_plain_solution_has_the_dtypes_and_the_precision_of_a_kernel(case, dtype):
    inputs = case.inputs("cpu", dtype)
    exact, rounded = (solve(case, inputs, exact=e) for e in (True, False))
    assert all(t.dtype == torch.float64 for t in exact.values())
    assert all(rounded[f"d{name}"].dtype == t.dtype for name, t in inputs.items() if not name.startswith("grad"))
    errors = relative_l2(rounded, exact)
    assert max(errors.values()) < (1e-6 if dtype == torch.float32 else 1e-2)
    assert max(errors.values()) > 0
    # The references, whose sums run in another order, are as precise: this is the bound that kernels are held to.
    if case.batch == 1:
        assert judge(relative_l2(reference(case, inputs), exact), errors) == "valid"


def test_recurrence():
    a, x = torch.rand(3, 100, dtype=torch.float64), torch.randn(3, 100, dtype=torch.float64)
    h, expected = torch.zeros(3, dtype=torch.float64), []
    for t in range(100):
        h = a[:, t] * h + x[:, t]
        expected.append(h)
    assert torch.allclose(recurrence(a, x), torch.stack(expected, 1), rtol=1e-13)
