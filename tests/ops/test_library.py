"""Finding and loading the native library: once, with a remedy when it is not there, and its instruction sets."""

import os
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ops import causal_conv1d, library

ROOT = Path(library.__file__).parent.parent


@pytest.fixture
def unloaded(monkeypatch):
    """As if nothing had been tried: the operators of this process stay registered, but do not count."""
    monkeypatch.setattr(library, "_tried", False)
    monkeypatch.setattr(library, "_problem", None)
    monkeypatch.setattr(library, "_warned", False)
    monkeypatch.setattr(library, "OPERATORS", ("no_such_operator",))


def test_the_library_is_loaded_from_beside_its_module():
    library.require()
    assert library.available() and library.path() == Path(library.__file__).parent / "librdfa_ops.so"


def test_missing_library_warns_once_and_names_the_remedy(unloaded, monkeypatch, tmp_path):
    monkeypatch.setattr(library, "path", lambda: tmp_path / "librdfa_ops.so")
    with pytest.warns(UserWarning, match=r"librdfa_ops\.so is not built.*python -m ops\.build"):
        assert not library.available()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not library.available()
    with pytest.raises(RuntimeError, match=r"python -m ops\.build"):
        library.require()


def test_a_broken_library_is_reported_in_one_line(unloaded, monkeypatch, tmp_path):
    (tmp_path / "librdfa_ops.so").write_bytes(b"not a library")
    monkeypatch.setattr(library, "path", lambda: tmp_path / "librdfa_ops.so")
    with pytest.raises(RuntimeError, match="does not load") as caught:
        library.require()
    assert "\n" not in str(caught.value)


def test_an_outdated_library_is_reported(unloaded):
    with pytest.raises(RuntimeError, match=r"out of date \(it lacks no_such_operator\)"):
        library.require()


def test_a_copy_loaded_by_somebody_else_is_used(tmp_path):
    """An artifact carries a copy; registering the same operators twice would abort."""
    code = (
        "import shutil, sys, torch, pathlib\n"
        "copy = shutil.copy('ops/librdfa_ops.so', sys.argv[1])\n"
        "torch.ops.load_library(copy)\n"
        "from ops import library, causal_conv1d\n"
        "library.require()\n"
        "print(causal_conv1d(torch.ones(1, 1, 3), torch.ones(1, 2)).tolist())\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "copy.so")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.stdout.strip() == "[[[1.0, 2.0, 2.0]]]", result.stderr


def test_unknown_instruction_set_is_refused(monkeypatch):
    monkeypatch.setenv("RDFA_CPU_ISA", "sse9")
    with pytest.raises(RuntimeError, match="RDFA_CPU_ISA=sse9 is unknown: use avx512, avx2 or portable"):
        causal_conv1d(torch.ones(1, 1, 3), torch.ones(1, 2))


def test_each_instruction_set_runs(isa):
    value = causal_conv1d(torch.linspace(-4, 4, 300).reshape(1, 1, 300), torch.ones(1, 2), activation="silu")
    assert value.isfinite().all()


@pytest.mark.parametrize("channels", [1, 4, 5, 8, 9, 16, 17, 23, 33])
@pytest.mark.parametrize("groups", [1, 2])
def test_each_instruction_set_defines_all_it_returns(isa, channels, groups):
    """The kept states too, whose rows are as wide as the widest registers. Allocations are NaN first (conftest)."""
    channels, states, length = groups * channels, 3, 37
    x, A = torch.rand(2, channels, length), -torch.rand(channels, states)
    B = torch.rand(2, groups, states, length)
    for returned in torch.ops.rdfa.selective_scan_train(x, x, A, B, B, None, None, None, True, False):
        assert returned.isfinite().all()


@pytest.mark.parametrize("dtype, native", [(torch.float32, True), (torch.bfloat16, True), (torch.float16, False)])
def test_which_tensors_run_natively(dtype, native):
    x = torch.zeros(1, dtype=dtype)
    assert library.runs_native(x, None) is native
    assert not library.runs_native(x, x.double()) and not library.runs_native(x.to("meta"))


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (2, 1, 0), (1, 0, 2)])
@pytest.mark.parametrize("shape", [(2, 3, 5), (2, 1, 5), (2, 3, 1), (1, 1, 1)])
def test_results_are_laid_out_as_the_fake_ones(shape, order):
    x = torch.zeros([shape[i] for i in order]).permute([order.index(i) for i in range(3)])
    assert x.shape == shape
    real = torch.ops.rdfa.causal_conv1d(x, torch.zeros(shape[1], 2), None, False, False)
    assert real.stride() == library.empty_bdl(x).stride()


# Prints which file registered the kernels that CUDA tensors get, for inference and for training.
GPU_KERNELS = """
import sys, torch
if "copy" in sys.argv:
    torch.ops.load_library("ops/librdfa_ops.so")
from ops import library
for name in ("selective_scan", "causal_conv1d", "selective_scan_train"):
    (line, *_) = [l for l in torch._C._dispatch_dump("rdfa::" + name).splitlines() if l.startswith("CUDA: ")] or [""]
    print("library" if "gpu_register.cpp" in line else "triton" if "library.py" in line else "none")
"""


def test_the_gpu_is_served_by_triton_where_it_is_installed_and_by_the_library_elsewhere():
    """Never by both, of which torch would warn. A copy of the library that was loaded before stays in charge."""
    pytest.importorskip("triton")
    cases = {
        ("jit",): "triton triton triton",
        ("aot",): "library library none",
        ("jit", "copy"): "library library triton",
    }
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", GPU_KERNELS, *words], cwd=ROOT, text=True,
            env={k: v for k, v in os.environ.items() if k != library.GPU_SWITCH}
            | ({library.GPU_SWITCH: "aot"} if kernels == "aot" else {}),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for kernels, *words in cases
    ]  # fmt: skip
    for expected, run in zip(cases.values(), runs):
        output, errors = run.communicate()
        assert (output.split(), errors) == (expected.split(), "")


def on_gpu(dtype=torch.float32, requires_grad=False):
    """As much of a tensor as is asked of it."""
    return SimpleNamespace(device=torch.device("cuda"), dtype=dtype, requires_grad=requires_grad)


@pytest.mark.parametrize(
    "triton, pack, tensors, expected",
    [
        (False, True, (on_gpu(), None, on_gpu(torch.float16)), True),
        (True, True, (on_gpu(),), False),
        (False, False, (on_gpu(),), False),
        (False, True, (on_gpu(torch.float64),), False),
        (False, True, (on_gpu(), torch.zeros(1)), False),
        (False, True, (on_gpu(), on_gpu(requires_grad=True)), False),
    ],
)
def test_which_tensors_take_kernels_compiled_ahead_of_time(monkeypatch, tmp_path, triton, pack, tensors, expected):
    monkeypatch.setattr(library, "HAS_TRITON", triton)
    monkeypatch.setattr(library, "pack_path", lambda: tmp_path if pack else tmp_path / "missing")
    assert library.runs_aot(*tensors) is expected
    with torch.no_grad():
        assert library.runs_aot(*tensors) is (expected or getattr(tensors[-1], "requires_grad", False))
