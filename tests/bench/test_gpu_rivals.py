"""The layouts in which the rival kernels are called, on stand-ins that demand what the CUDA modules demand."""

import sys
from types import SimpleNamespace

import pytest
import torch

from rdfa.bench.gpu_cases import FusedCase
from rdfa.bench.gpu_kernels import of_mode
from rdfa.bench.gpu_providers import Missing
from rdfa.bench.gpu_rivals import rival
from rdfa.bench.gpu_solutions import solve
from rdfa.bench.kernel_rows import MODES, judge, relative_l2
from tests.bench import rival_modules
from tests.bench.rival_modules import SelectiveScanCuda

SCAN = FusedCase("odd", 2, 5, 37, (2, 3, 4), states=3)
CONV = FusedCase("odd", 2, 5, 37, (2, 3, 4))


@pytest.fixture
def modules(monkeypatch):
    rival_modules.install(monkeypatch)


@pytest.mark.parametrize("case", [SCAN, CONV], ids=lambda c: c.kernel)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mode", MODES)
def test_results_come_back_in_the_layout_of_the_fused_operators(case, dtype, mode, modules):
    inputs = case.inputs("cpu", dtype)
    exact = solve(case, inputs, exact=True)
    plain = relative_l2(solve(case, inputs, exact=False), exact)
    stage = rival(case, mode, inputs)
    results = stage.named(stage.call(stage.arguments))
    chosen = of_mode(exact, case, mode)
    assert {name: t.shape for name, t in results.items()} == {name: t.shape for name, t in chosen.items()}
    assert judge(relative_l2(results, chosen), plain) == "valid"


def test_a_call_per_branch_and_the_note_says_what_is_left_out(modules, monkeypatch):
    monkeypatch.setattr(SelectiveScanCuda, "calls", 0)
    stage = rival(SCAN, "forward", SCAN.inputs("cpu", torch.float32))
    assert SelectiveScanCuda.calls == 0
    stage.call(stage.arguments)
    assert SelectiveScanCuda.calls == 3
    assert stage.note.startswith("3 calls, one per branch; flips")
    assert not stage.eager


@pytest.mark.parametrize(("case", "package"), [(SCAN, "mamba-ssm"), (CONV, "causal-conv1d")])
def test_a_missing_package_names_the_extra(case, package, monkeypatch):
    for name in ("selective_scan_cuda", "causal_conv1d_cuda"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(Missing, match=rf"{package}: .* \(install the extra 'reference'\)"):
        rival(case, "forward", case.inputs("cpu", torch.float32))


def test_only_the_compiled_modules_are_imported(monkeypatch):
    """The packages' top levels need transformers and more."""
    monkeypatch.setitem(sys.modules, "selective_scan_cuda", SimpleNamespace(fwd=None, bwd=None))
    rival(SCAN, "forward", SCAN.inputs("cpu", torch.float32))
    assert not {"mamba_ssm", "causal_conv1d"} & set(sys.modules)
