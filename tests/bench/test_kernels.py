"""Rows of the operators' benchmark, on operators whose speed and error are known."""

import csv
from dataclasses import fields
from functools import partial

import pytest
import torch

from ops.selective_scan.reference import selective_scan_reference
from rdfa.bench import kernel_cases, kernel_report, kernels
from rdfa.bench.kernel_cases import Case
from rdfa.bench.kernel_rows import KernelRow
from rdfa.modeling.settings import ModelSettings
from tests.bench.fakes import MACHINE, FakeClock

SCAN = Case("stem time", 2, 3, 5, states=4)
CONV = Case("branch 1", 1, 3, 5, width=3)


def providers(case, clock, native_error=0.0):
    """The plain operator twice; "native" takes 1 ms, "plain" 10 ms, and "native" may be off by a factor."""

    def timed(function, seconds, factor, *tensors):
        clock.sleep(seconds)
        output = function(*tensors) * factor
        if output.requires_grad:
            output.register_hook(lambda gradient: clock.sleep(2 * seconds))
        return output

    plain = case.functions()[kernels.PLAIN]
    return {
        kernel_cases.NATIVE: partial(timed, plain, 0.001, 1 + native_error),
        kernels.PLAIN: partial(timed, plain, 0.010, 1.0),
    }


def run(case, native_available=True, native_error=0.0):
    clock = FakeClock()
    rows = kernels.run(
        [case], 0.5, 1, native_available=native_available, clock=clock,
        functions=partial(providers, clock=clock, native_error=native_error),
    )  # fmt: skip
    return {(row.provider, row.mode, row.dtype): row for row in rows}


def test_the_published_detector_has_these_scans_and_convolutions():
    found = kernel_cases.cases(ModelSettings(), (1, 4), 2304)
    scans = [(c.channels, c.length) for c in found if c.states and c.batch == 1]
    assert scans == [(512, 2304), (576, 512), (512, 1152), (512, 576), (512, 288), (512, 144)]
    convolutions = [(c.channels, c.length, c.width) for c in found if c.width and c.batch == 4]
    assert convolutions[:6] == [(512, 2304, w) for w in (2, 3, 4)] + [(576, 512, w) for w in (2, 3, 4)]
    assert convolutions[6:] == [(512, 2304 // 2**i, 4) for i in range(1, 5)]
    assert found[0].layer == "stem time, branch 1"


def test_only_the_backward_is_timed_as_backward():
    assert run(CONV)["native", "backward", "float32"].p50_ms == pytest.approx(2.0)


def test_elements():
    assert (SCAN.elements, CONV.elements) == (2 * 3 * 5 * 4, 3 * 5)


def test_speeds_of_the_forward():
    rows = run(SCAN)
    native, plain = rows["native", "forward", "float32"], rows["plain", "forward", "float32"]
    assert (native.p50_ms, plain.p50_ms) == (pytest.approx(1.0), pytest.approx(10.0))
    assert native.speedup_vs_plain == pytest.approx(10.0)
    assert native.ns_per_element == pytest.approx(1e6 / 120)
    assert native.samples > plain.samples > 0
    assert 0 < native.relative_l2 < 1e-6
    assert 1e-4 < rows["native", "forward", "bfloat16"].relative_l2 < 1e-2


@pytest.mark.parametrize("case", [SCAN, CONV], ids=lambda c: c.kernel)
@pytest.mark.parametrize("mode", kernels.MODES)
def test_a_wrong_kernel_shows_no_speed(case, mode):
    row = run(case, native_error=1e-4)["native", mode, "float32"]
    assert row.verdict.startswith("invalid: relative error 0.0001, the plain reference has ")
    assert (row.p50_ms, row.samples, row.speedup_vs_plain, row.ns_per_element) == (None, 0, None, None)


def test_nan_is_wrong():
    assert run(SCAN, native_error=float("nan"))["native", "forward", "float32"].verdict.startswith("invalid")


def test_every_gradient_counts():
    """A kernel whose gradient of D alone is wrong fails backward and passes forward."""

    class WrongInBackward(torch.autograd.Function):
        @staticmethod
        def forward(ctx, D):
            return D.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * 1.001

    def native(u, delta, A, B, C, D, z, bias):
        return selective_scan_reference(u, delta, A, B, C, WrongInBackward.apply(D), z, bias, delta_softplus=True)

    def functions(case):
        return case.functions() | {kernel_cases.NATIVE: native}

    rows = kernels.run([SCAN], 0.01, 1, native_available=True, functions=functions)
    verdicts = {row.mode: row.verdict for row in rows if (row.provider, row.dtype) == (kernel_cases.NATIVE, "float32")}
    assert verdicts["forward"] == "valid"
    assert verdicts["backward"].startswith("invalid: relative error 0.001")


def test_without_the_library_native_rows_are_skipped():
    rows = run(CONV, native_available=False)
    assert rows["native", "forward", "float32"].verdict.startswith("skipped: the native library is not built")
    assert rows["plain", "forward", "float32"].verdict == "valid"


def test_a_plain_backward_that_would_not_fit_is_skipped(monkeypatch):
    monkeypatch.setattr(kernels, "PLAIN_ELEMENTS", 100)
    rows = run(SCAN)
    assert rows["plain", "backward", "float32"].verdict.startswith("skipped: the plain backward would keep")
    native = rows["native", "backward", "float32"]
    assert (native.verdict, native.speedup_vs_plain) == ("valid", None)


def test_tensors_lie_as_in_the_detector():
    u, delta, A, B, C, D, z, bias, gradient = SCAN.tensors(2, torch.bfloat16, seed=0)
    assert u.shape == gradient.shape == (2, 3, 5) and u.stride() == (15, 1, 3)
    assert B.shape == (2, 4, 5) and B.stride() == (20, 1, 4)
    assert {t.dtype for t in (u, delta, B, C, z, gradient)} == {torch.bfloat16}
    assert {t.dtype for t in (A, D, bias)} == {torch.float32}
    assert not torch.equal(u, SCAN.tensors(2, torch.bfloat16, seed=1)[0])


def test_csv_has_the_fields_in_order_and_the_machine_in_every_row(tmp_path):
    rows = list(run(CONV).values())
    kernel_report.stamp(rows, MACHINE)
    kernel_report.write(tmp_path, MACHINE, rows)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["kernels.csv", "kernels.json", "kernels.png"]
    with open(tmp_path / "kernels.csv", newline="") as file:
        reader = csv.DictReader(file)
        assert reader.fieldnames == [field.name for field in fields(KernelRow)]
        records = list(reader)
    assert len(records) == 2 * 2 * 2
    assert all("<Imaginary> CPU" in record["machine"] for record in records)


def test_table_has_a_line_per_measurement_with_both_providers():
    lines = list(kernel_report.cells(list(run(SCAN).values())))
    assert {len(line) for line in lines} == {len(kernel_report.COLUMNS)}
    assert lines[0][6:12] == ("float32", "forward", "1", "8.33e+03", "10", "10.0x")
    skipped = next(kernel_report.cells(list(run(SCAN, native_available=False).values())))
    assert skipped[8].startswith("skipped: the native library is not built") and skipped[10:12] == ("10", "")


def test_the_native_operators_pass_at_an_odd_size():
    """The real operators, through the public functions; without the native library they are the plain ones."""
    odd = [Case("odd", 2, 19, 37, states=16), Case("odd", 2, 19, 37, width=4)]
    rows = kernels.run(odd, 0.005, 1, native_available=True)
    assert {row.verdict for row in rows} == {"valid"}
