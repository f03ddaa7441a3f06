"""Rows of a GPU's benchmark, on providers whose speed and error are known."""

import math
import sys
from dataclasses import replace

import pytest
import torch

from rdfa.bench import gpu_accuracy, gpu_kernels, gpu_providers
from rdfa.bench.gpu_cases import ALIGNED, FusedCase, cases
from rdfa.bench.gpu_kernels import MAMBA, OURS, Setup
from rdfa.bench.gpu_limits import Limits
from rdfa.bench.gpu_providers import Missing, Stage, plain, verdict_of
from rdfa.bench.gpu_solutions import solve
from rdfa.bench.gpu_timing import Timed
from rdfa.bench.kernel_rows import MODES, PLAIN, judge
from rdfa.modeling.settings import ModelSettings
from tests.bench.fakes import FakeClock

SCAN = FusedCase("stem time", 2, 3, 5, (2, 3, 4), states=4)
CONV = FusedCase("branch 1", 1, 3, 5, (4,))
# At these limits the floor of 2 ms is that of the exponential unit for the scan, of the memory for the convolution.
LIMITS = Limits(multiprocessors=1, clock_hz=SCAN.exponentials / 16 / 2e-3, l2_bytes=1, copy_bytes_per_s=1e9)


def provider(seconds, change=lambda name, t: t):
    """The plain solution, changed, which takes so many seconds forward and twice as many backward."""

    def provide(case, mode, inputs):
        def named(_):
            results = gpu_kernels.of_mode(solve(case, inputs, exact=False), case, mode)
            return {name: change(name, t) for name, t in results.items()}

        return Stage(seconds * (1 if mode == "forward" else 2), lambda arguments: None, named, "a note")

    return provide


def off(factor, only=None):
    return lambda name, t: t * factor if only in (None, name) else t


def run(case, setup_of=lambda setup: setup, **providers):
    clock = FakeClock()

    def prepare(stage, l2_bytes):
        assert l2_bytes == LIMITS.l2_bytes
        return Timed(lambda i: clock.sleep(10 * stage.arguments), 10)

    by_default = {OURS: provider(0.004), MAMBA: provider(0.020), PLAIN: provider(0.100)}
    setup = Setup(1.0, LIMITS, device="cpu", providers=by_default | providers, prepare=prepare, clock=clock)
    lines = []
    rows = list(gpu_kernels.run([case], setup_of(setup), lines.append))
    return {(row.provider, row.mode, row.dtype): row for row in rows}, lines


def test_the_published_detector_has_these_cases():
    found = cases(ModelSettings(), (1, 16), ())
    scans = [c for c in found if c.states]
    of_one = [(c.layer, len(c.widths), c.channels, c.length) for c in scans if c.batch == 1 and c.layer != ALIGNED]
    assert of_one == [("stem time", 3, 512, 2304), ("stem gate", 3, 576, 512)] + [
        (f"branch {i + 1}", 1, 512, 2304 // 2**i) for i in range(5)
    ]
    assert [c.length for c in scans if c.layer == ALIGNED] == [1024, 2048, 4096, 8192, 16384, 32768, 65536]
    assert len(scans) == 2 * 7 + 7 and [replace(c, states=0) for c in scans] == found[len(scans) :]


def test_lengths_that_are_asked_for_leave_the_powers_of_two_out():
    found = cases(ModelSettings(), (1,), (4608, 64))
    assert {c.length for c in found if c.layer in ("stem time", "branch 1")} == {4608, 64}
    assert not any(c.layer == ALIGNED for c in found)


def test_the_stem_has_these_elements_exponentials_and_bytes():
    stem = cases(ModelSettings(), (1,), ())[0]
    assert (stem.elements, stem.exponentials) == (113_246_208, 113_246_208 // 16 * 19)
    inputs = {name: t.to("meta") for name, t in replace(SCAN, length=7).inputs("cpu", torch.bfloat16).items()}
    case = replace(SCAN, length=7)
    inner, BC, z = 2 * 2 * 9 * 7 * 2, 2 * 2 * 4 * 7 * 2, 2 * 2 * 3 * 7 * 2  # bytes of bfloat16
    constants = 4 * (3 * 4 + 3 + 3)
    assert case.memory_bytes(inputs, "forward") == 3 * inner + 2 * BC + z + constants
    assert case.memory_bytes(inputs, "backward") == 5 * inner + 2 * (2 * BC + z + constants)


def test_inputs_are_contiguous_along_time_and_differ_by_seed():
    inputs = SCAN.inputs("cpu", torch.bfloat16)
    shapes = {"u": (2, 2, 9, 5), "B": (2, 2, 4, 5), "z": (2, 2, 3, 5), "A": (3, 4), "grad_y": (2, 18, 5)}
    assert {name: tuple(inputs[name].shape) for name in shapes} == shapes
    assert all(t.is_contiguous() for t in inputs.values())
    assert {name for name, t in inputs.items() if t.dtype == torch.float32} == {"A", "D", "delta_bias"}
    assert not torch.equal(inputs["u"], SCAN.inputs("cpu", torch.bfloat16, seed=1)["u"])


def test_speeds_floors_and_spread():
    rows, lines = run(SCAN)
    ours = rows[OURS, "forward", "bfloat16"]
    assert (ours.p50_ms, ours.speedup_vs_mamba) == (pytest.approx(4.0), pytest.approx(5.0))
    assert ours.speedup_vs_plain == pytest.approx(25.0)
    assert (ours.floor_ms, ours.floor_by, ours.times_floor) == (
        pytest.approx(2.0), "exponentials", pytest.approx(2.0)
    )  # fmt: skip
    assert ours.aa_spread == pytest.approx(0.0, abs=1e-9)
    assert rows[MAMBA, "backward", "float32"].p50_ms == pytest.approx(40.0)
    assert (ours.branches, ours.directions, ours.device, ours.note) == (3, 2, "cuda", "a note")
    assert ours.ns_per_element == pytest.approx(4e6 / SCAN.elements)
    assert 1e-4 < ours.relative_l2 == ours.plain_relative_l2 < 1e-2
    assert "selective_scan, stem time, batch 2, L 5, bfloat16, forward: ours 4 ms, mamba 20 ms, plain 100 ms" in lines
    assert len(rows) == 3 * 2 * 2


def test_the_floor_of_a_convolution_is_the_memory_s():
    rows, _ = run(CONV)
    row = rows[OURS, "forward", "float32"]
    expected = CONV.memory_bytes(CONV.inputs("cpu", torch.float32), "forward") / 1e9 * 1e3
    assert (row.floor_ms, row.floor_by, row.width) == (pytest.approx(expected), "memory", "4")


@pytest.mark.parametrize("case", [SCAN, CONV], ids=lambda c: c.kernel)
@pytest.mark.parametrize("mode", MODES)
def test_a_wrong_kernel_shows_no_speed(case, mode):
    rows, _ = run(case, **{OURS: provider(0.004, off(1 + 1e-4))})
    row = rows[OURS, mode, "float32"]
    assert row.verdict.startswith("invalid: relative error 0.0001, the plain reference has ")
    assert (row.p50_ms, row.samples, row.speedup_vs_mamba, row.times_floor, row.aa_spread) == (None, 0) + (None,) * 3
    assert rows[MAMBA, mode, "float32"].p50_ms is not None


def test_one_wrong_gradient_counts_though_others_may_be_rounder():
    """In bfloat16 the other gradients are off by 1e-3; that of D is a float32 and may not be."""
    rows, _ = run(SCAN, **{OURS: provider(0.004, off(1 + 1e-4, only="dD"))})
    row = rows[OURS, "backward", "bfloat16"]
    assert row.verdict.startswith("invalid: relative error 0.0001") and row.verdict.endswith("(dD)")
    assert rows[OURS, "forward", "bfloat16"].verdict == "valid"


def test_the_rival_may_be_further_off():
    def noisy(name, t):
        return t.float() * (1 + 0.01 * torch.randn(t.shape, generator=torch.Generator().manual_seed(0)))

    rows, _ = run(SCAN, **{MAMBA: provider(0.020, noisy), OURS: provider(0.004, noisy)})
    assert rows[MAMBA, "forward", "bfloat16"].valid
    assert not rows[OURS, "forward", "bfloat16"].valid
    assert not rows[MAMBA, "forward", "float32"].valid


def test_ours_are_measured_by_the_plain_reference_or_else_by_the_rival():
    def missing(case, mode, inputs):
        raise Missing("slow")

    less, more = (provider(0.020, off(factor)) for factor in (1 + 1.5e-6, 1 + 2.5e-6))
    for others, verdict in (
        ({MAMBA: less}, "invalid"),  # the plain provider has the error of the solution in float32
        ({PLAIN: less}, "valid"),
        ({MAMBA: less, PLAIN: missing}, "valid"),
        ({PLAIN: missing}, "invalid"),
        ({PLAIN: provider(0.1, off(2.0)), MAMBA: less}, "valid"),  # what computes something else is no measure
    ):
        rows, _ = run(SCAN, **{OURS: more} | others)
        assert rows[OURS, "forward", "float32"].verdict.split(":")[0] == verdict, others
    # A measure that is named in the verdict.
    wrong = {OURS: provider(0.004, off(2.0)), PLAIN: missing}
    for others, measure in (({MAMBA: less}, "mamba-ssm"), ({MAMBA: missing}, "the solution in float32")):
        rows, _ = run(SCAN, **wrong | others)
        assert f"relative error 1, {measure} has" in rows[OURS, "forward", "float32"].verdict


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_number_is_wrong_and_not_written(value):
    rows, _ = run(SCAN, **{OURS: provider(0.004, off(value))})
    row = rows[OURS, "forward", "float32"]
    assert row.verdict.startswith("invalid: relative error ") and row.relative_l2 is None


def test_a_missing_or_broken_provider_leaves_the_others_their_figures():
    def missing(case, mode, inputs):
        raise Missing("no such package (install the extra 'reference')")

    def broken(case, mode, inputs):
        raise RuntimeError("CUDA error: an illegal memory access\nmore lines")

    rows, _ = run(SCAN, **{MAMBA: missing, OURS: broken})
    assert rows[MAMBA, "forward", "float32"].verdict == "skipped: no such package (install the extra 'reference')"
    assert rows[OURS, "forward", "float32"].verdict == "invalid: RuntimeError: CUDA error: an illegal memory access"
    assert rows[PLAIN, "forward", "float32"].p50_ms == pytest.approx(100.0)
    assert rows[PLAIN, "forward", "float32"].speedup_vs_mamba is None


def test_a_provider_that_fails_while_being_captured_is_invalid():
    def fails(stage, l2_bytes):
        raise RuntimeError("operation not permitted when stream is capturing")

    rows, _ = run(SCAN, lambda setup: replace(setup, prepare=fails))
    assert {row.p50_ms for row in rows.values()} == {None}
    assert all("stream is capturing" in row.verdict for row in rows.values())


def test_too_little_memory_is_no_error():
    assert verdict_of(torch.OutOfMemoryError("CUDA out of memory")) == "skipped: the device has too little memory"


def test_ours_is_called_as_the_operators_are_declared(monkeypatch):
    """Forward, training forward and backward get their arguments in order, and gradients get their names."""
    for case in (SCAN, CONV):
        inputs = case.inputs("cpu", torch.float32)
        count = len(inputs) - 1
        kept = (torch.zeros(3),) if case.states else ()

        def flat(arguments):
            return list(gpu_providers.flatten(arguments))

        def forward(*arguments, inputs=inputs, count=count):
            assert all(t is i for t, i in zip(flat(arguments), inputs.values())) and len(flat(arguments)) == count
            return inputs[list(inputs)[-1]]

        def train(*arguments, kept=kept, forward=forward):
            return forward(*arguments), *kept

        def backward(gradient, *arguments, inputs=inputs, kept=kept, count=count, case=case):
            assert gradient is inputs[f"grad_{case.output}"]
            assert all(t is i for t, i in zip(flat(arguments), [*inputs.values()][:-1] + list(kept)))
            assert len(flat(arguments)) == count + len(kept)
            first, *others = (t * 2 for t in flat(arguments)[:count])
            return first, others

        operators = forward, train if case.states else None, backward
        monkeypatch.setattr(gpu_providers, "operators", lambda kernel, operators=operators: operators)
        stage = gpu_providers.ours(case, "forward", inputs)
        assert list(stage.named(stage.call(stage.arguments))) == [case.output]
        stage = gpu_providers.ours(case, "backward", inputs)
        gradients = stage.named(stage.call(stage.arguments))
        assert list(gradients) == [f"d{name}" for name in list(inputs)[:-1]]
        assert all(torch.equal(g, 2 * inputs[name[1:]]) for name, g in gradients.items())


def test_the_plain_scan_is_left_out_where_it_is_slow():
    for case in (replace(SCAN, batch=4), replace(SCAN, batch=1, length=4096, channels=1)):
        with pytest.raises(Missing, match="at batch 1 and up to 2304 steps"):
            plain(case, "forward", {})


def test_judge_names_the_worst_tensor():
    plain_errors = {"a": 1e-3, "b": 1e-7}
    assert judge({"a": 2e-3, "b": 1e-6}, plain_errors) == "valid"
    assert judge({"a": 2.1e-3, "b": 1e-4}, plain_errors).endswith("0.0001, the plain reference has 1e-07 (b)")


def accuracy(**changes):
    providers = {OURS: provider(0, changes.get("ours", off(1))), MAMBA: provider(0, changes.get("mamba", off(1)))}
    providers |= changes.get("providers", {})
    rows = gpu_accuracy.run(gpu_accuracy.cases(3, (4, 37)), device="cpu", providers=providers)
    return {(row.tensor, row.dtype, row.length): row for row in rows}


def test_accuracy_has_a_row_per_tensor_dtype_and_length():
    rows = accuracy()
    assert len(rows) == 9 * 3 * 2
    row = rows["dA", "float16", 37]
    assert (row.ours, row.mamba, row.ratio, row.verdict) == (row.plain, row.plain, 1.0, "valid")
    assert row.growth == pytest.approx(row.ours / rows["dA", "float16", 4].ours)


def test_accuracy_names_a_tensor_twice_as_far_off_as_the_rival_s():
    rows = accuracy(ours=off(1 + 1e-3, only="dD"))
    assert rows["dD", "bfloat16", 4].verdict.startswith("exceeds: ")
    assert "times the error of mamba-ssm, 2 are allowed" in rows["dD", "bfloat16", 4].verdict
    assert rows["dA", "bfloat16", 4].verdict == "valid"


def test_accuracy_names_an_error_that_grows_with_the_length():
    def growing(name, t):
        return t * 1.01 if name == "y" and t.shape[-1] == 37 else t

    rows = accuracy(ours=growing, mamba=growing)
    assert "times the error at the shortest length, 4 are allowed" in rows["y", "float32", 37].verdict
    assert rows["y", "float32", 4].verdict == "valid"


def test_accuracy_without_the_rival_and_with_a_broken_kernel():
    def missing(case, mode, inputs):
        raise Missing("mamba-ssm: none")

    row = accuracy(providers={MAMBA: missing})["y", "float32", 37]
    assert (row.mamba, row.ratio) == (None, None) and row.ours is not None and row.growth is not None
    row = accuracy(providers={OURS: missing})["y", "float32", 37]
    assert (row.verdict, row.ours, row.ratio) == ("skipped: mamba-ssm: none", None, None) and row.mamba is not None
    row = accuracy(ours=off(math.nan))["y", "float32", 37]
    assert (row.verdict, row.ours) == ("invalid: no finite error", None)


def test_ours_names_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.setattr(gpu_providers.library, "loaded", lambda: True)
    with pytest.raises(Missing, match="Triton is not installed"):
        gpu_providers.ours(SCAN, "forward", {})
    monkeypatch.setattr(gpu_providers.library, "loaded", lambda: False)
    with pytest.raises(Missing, match=r"python -m ops\.build"):
        gpu_providers.ours(SCAN, "forward", {})
