"""The folded detector for GPUs: on a CPU with plain operators in the place of its kernels, and on a GPU."""

import math
from types import SimpleNamespace

import pytest
import torch

from ops import library
from ops.selective_scan.bidirectional import bidirectional_scan
from rdfa.errors import RunError
from rdfa.modeling import folded_gpu
from rdfa.modeling.folded_gpu import fold_for_gpu
from tests.golden import rebuild
from tests.modeling import cases
from tests.modeling.test_golden import check_outputs, outputs_per_level
from tests.ops.rows import plain

SIZES = [([31], 32), ([64, 9], 64), ([70, 96, 1], 96)]


def plain_scans(u, delta, A, B, C, D, z, delta_bias, *, scaled):
    assert scaled
    return bidirectional_scan(u, delta, A.t() / math.log2(math.e), B, C, D, z, delta_bias)


@pytest.fixture
def on_cpu(monkeypatch):
    for name in ("finish", "halve", "average"):
        monkeypatch.setattr(folded_gpu, name, getattr(plain, name))
    monkeypatch.setattr(folded_gpu, "bidirectional", SimpleNamespace(forward=plain_scans))


@pytest.mark.parametrize("valid, frames", SIZES, ids=str)
@pytest.mark.parametrize("start_level", (0, 1))
def test_outputs_are_those_of_the_detector(on_cpu, valid, frames, start_level):
    detector = cases.tiny_detector(torch.float64, start_level=start_level)
    inputs = cases.random_input(valid, frames, dtype=torch.float64)
    with torch.no_grad():
        expected, result = detector(*inputs), fold_for_gpu(detector)(*inputs)
    for value, truth in zip(result[:2], expected[:2]):
        assert cases.relative_l2(value, truth) < 1e-6  # A, D and the bias of delta are float32
    assert torch.equal(result[2], expected[2])


@pytest.mark.parametrize("case", ("small_a", "small_d"))
def test_outputs_are_those_of_the_published_code(on_cpu, case):
    folded = fold_for_gpu(cases.golden_detector(case))
    check_outputs(outputs_per_level(folded, *cases.golden_input(case)), rebuild.load_npz(f"model_{case}"))


def test_weights_are_its_own(on_cpu):
    detector = cases.tiny_detector()
    inputs = cases.random_input([32], 32)
    with torch.no_grad():
        folded = fold_for_gpu(detector)
        before = folded(*inputs)
        for parameter in detector.parameters():
            parameter.zero_()
        assert all(torch.equal(a, b) for a, b in zip(before, folded(*inputs)))


def test_wrong_input_is_refused(on_cpu):
    folded = fold_for_gpu(cases.tiny_detector())
    with pytest.raises(RunError, match=r"float64, expected torch\.float32"):
        folded(*cases.random_input([32], 32, dtype=torch.float64))
    with pytest.raises(RunError, match="multiple of"):
        folded(*cases.random_input([33], 33))


def test_what_is_not_folded_says_so():
    with pytest.raises(RunError, match="FPN1D"):
        fold_for_gpu(cases.tiny_detector(neck="FPN1D"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available() or not library.HAS_TRITON, reason="no CUDA device, or no Triton")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=["f32", "f16", "bf16"])
@pytest.mark.parametrize("valid, frames", SIZES, ids=str)
def test_on_a_gpu(valid, frames, dtype):
    """As close to the truth as the detector itself in the same dtype."""
    detector, inputs = cases.tiny_detector().cuda(), [t.cuda() for t in cases.random_input(valid, frames)]
    with torch.inference_mode():
        truth = detector.double()(inputs[0].double(), inputs[1])
        detector.to(dtype)
        plain_outputs, result = (f(inputs[0].to(dtype), inputs[1]) for f in (detector, fold_for_gpu(detector)))
    for value, same, exact in zip(result[:2], plain_outputs[:2], truth[:2]):
        assert cases.relative_l2(value, exact) < 2 * cases.relative_l2(same, exact) + 1e-6
    assert torch.equal(result[2], truth[2])
