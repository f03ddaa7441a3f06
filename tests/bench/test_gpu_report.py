"""What a GPU's benchmark writes and prints, and what it says of the device."""

import csv
import json
import subprocess
from dataclasses import fields
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

import serve_bench
from rdfa import cli
from rdfa.bench import (
    environment,
    gpu_accuracy,
    gpu_kernels,
    gpu_limits,
    gpu_warmup,
    kernel_command,
    kernel_plot,
    kernel_report,
    reference,
)
from rdfa.bench.gpu_accuracy import AccuracyRow
from rdfa.bench.gpu_cases import ALIGNED
from rdfa.bench.kernel_rows import KernelRow
from rdfa.modeling.settings import ModelSettings
from tests.bench.fakes import MACHINE

GPU = {"gpu": "Imaginary H1", "gpu_details": {
    "driver": "580.1", "cuda": "13.0", "sm_clock_mhz": 1755.0, "sm_clock_max_mhz": 1980.0,
}}  # fmt: skip
LIMITS = gpu_limits.Limits(132, 1.98e9, 50_000_000, 3e12)


def row(provider, layer, length, mode="forward", p50_ms=None, kernel="selective_scan", **more):
    values = {"verdict": "valid" if p50_ms else "skipped: mamba-ssm: no module", "p50_ms": p50_ms} | more
    states, width = (16, None) if kernel == "selective_scan" else (None, "4")
    return KernelRow(
        kernel, layer, mode, provider, 1, 512, states, width, length, "bfloat16", "cuda", 16, directions=2,
        floor_ms=0.01 * length, **values,
    )  # fmt: skip


def measurement(layer, length, mode="forward", kernel="selective_scan"):
    return [
        row("ours", layer, length, mode, 0.02 * length, kernel, speedup_vs_mamba=3.5, times_floor=2.0, aa_spread=0.004,
            relative_l2=0.0017, note="one call"),
        row("mamba", layer, length, mode, 0.07 * length, kernel, relative_l2=0.002, note="1 call"),
        row("plain", layer, length, mode, None, kernel),
    ]  # fmt: skip


ROWS = [
    r
    for kernel in ("selective_scan", "causal_conv1d")
    for mode in ("forward", "backward")
    for layer, length in (("branch 1", 2304), ("branch 2", 1152), (ALIGNED, 1024), (ALIGNED, 2048))
    for r in measurement(layer, length, mode, kernel)
]
ACCURACY = [AccuracyRow("dA", "bfloat16", 64, "valid", 1e-7, 2e-7, 1e-7, 0.5, 1.0)]


@pytest.fixture
def faked(monkeypatch):
    monkeypatch.setattr(gpu_limits, "probe", lambda: LIMITS)
    monkeypatch.setattr(environment, "describe", lambda threads: MACHINE | GPU)
    monkeypatch.setattr(gpu_accuracy, "run", lambda cases, progress: list(ACCURACY))
    monkeypatch.setattr(gpu_warmup, "run", lambda work, processes, progress: None)
    monkeypatch.setattr(gpu_kernels, "run", lambda cases, setup, progress: iter(ROWS))


def request(output):
    return kernel_command.Request(ModelSettings(), output, 16)


def test_everything_is_written_with_the_machine_and_printed(tmp_path, faked):
    console = Console(width=160, record=True, quiet=True)
    rows = kernel_command.on_gpu(request(tmp_path), console, print)
    assert rows == ROWS
    names = ["accuracy.csv", "kernels.csv", "kernels.json", "kernels.png"]
    assert sorted(p.name for p in tmp_path.iterdir()) == names
    for name, kind, count in (("kernels.csv", KernelRow, len(ROWS)), ("accuracy.csv", AccuracyRow, 1)):
        with open(tmp_path / name, newline="") as file:
            reader = csv.DictReader(file)
            assert reader.fieldnames == [field.name for field in fields(kind)]
            records = list(reader)
        assert len(records) == count
        said = "Imaginary H1 (driver 580.1, CUDA 13.0, SM clock 1755 MHz of 1980)"
        assert all(said in record["machine"] for record in records)
    document = json.loads((tmp_path / "kernels.json").read_text())
    assert document["accuracy"][0]["ratio"] == 0.5
    assert document["environment"]["benchmark"]["limits"]["copy_bytes_per_s"] == 3e12
    assert document["environment"]["benchmark"]["seconds_per_row"] == 0.03
    assert document["rows"][0]["floor_ms"] == pytest.approx(23.04)


def test_rows_measured_before_a_failure_are_written(tmp_path, faked, monkeypatch):
    def fails(cases, setup, progress):
        yield from ROWS[:3]
        raise RuntimeError("CUDA error")

    monkeypatch.setattr(gpu_kernels, "run", fails)
    with pytest.raises(RuntimeError, match="CUDA error"):
        kernel_command.on_gpu(request(tmp_path), Console(quiet=True), print)
    with open(tmp_path / "kernels.csv", newline="") as file:
        assert [record["provider"] for record in csv.DictReader(file)] == ["ours", "mamba", "plain"]


def test_a_line_of_the_table():
    lines = list(kernel_report.gpu_cells(ROWS[:6]))
    assert len(lines) == 2 and {len(line) for line in lines} == {len(kernel_report.GPU_COLUMNS)}
    assert lines[0] == (
        "branch 1", "1", "1 x 512", "2304", "bfloat16", "forward", "46.08", "161.3", "skipped", "3.50x", "23.04",
        "2.00", "0.4%", "1.7e-03", "2.0e-03",
    )  # fmt: skip


def test_notes_say_how_and_why_not():
    assert kernel_report.gpu_notes(ROWS) == [
        "ours: one call",
        "mamba: 1 call",
        "plain: skipped: mamba-ssm: no module (16 rows)",
    ]


def test_the_accuracy_table_has_a_cell_per_column():
    (line,) = kernel_report.accuracy_cells(ACCURACY)
    assert line == ("dA", "bfloat16", "64", "1.00e-07", "2.00e-07", "1.00e-07", "0.50", "1.00", "valid")
    assert len(line) == len(kernel_report.ACCURACY_COLUMNS)


def test_the_plot_tells_lengths_of_the_detector_from_powers_of_two(monkeypatch):
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *a, **k: drawn.append(figure))
    kernel_plot.png(ROWS)
    axes = drawn[0].axes
    assert [a.get_title() for a in axes] == [
        f"{kernel}, bfloat16, {mode}"
        for kernel in ("selective_scan", "causal_conv1d")
        for mode in ("forward", "backward")
    ]
    for panel in axes:
        assert (panel.get_xscale(), panel.get_yscale()) == ("log", "log")
        lines = {line.get_label(): list(line.get_xdata()) for line in panel.get_lines()}
        assert lines == {
            "ours, the detector's lengths": [1152, 2304],
            "mamba, the detector's lengths": [1152, 2304],
            "ours, powers of two": [1024, 2048],
            "mamba, powers of two": [1024, 2048],
            "floor": [1024, 1152, 2048, 2304],
        }


def test_a_plot_of_nothing_is_a_picture():
    assert kernel_plot.png([]).startswith(b"\x89PNG")
    assert kernel_plot.png([row("ours", "stem time", 2304, branches=3)]).startswith(b"\x89PNG")


@pytest.fixture
def device(monkeypatch):
    """A CUDA device, and what nvidia-smi answers."""
    properties = SimpleNamespace(
        major=9, minor=0, multi_processor_count=132, total_memory=80 * 2**30, L2_cache_size=50 * 2**20, uuid="ab-cd",
        clock_rate=1_980_000,
    )  # fmt: skip
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Imaginary H1")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: properties)
    answer = SimpleNamespace(returncode=0, stdout="580.1, 1980, 1755, 2619, [N/A]\n", asked=[])

    def run(command, **options):
        answer.asked.append(command)
        return answer

    monkeypatch.setattr(subprocess, "run", run)
    return answer


def test_a_gpu_is_described_with_its_driver_and_clocks(device):
    assert environment.gpu_details() == {
        "compute_capability": "9.0", "multiprocessors": 132, "memory_gb": 80.0, "l2_mb": 50.0,
        "cuda": torch.version.cuda, "driver": "580.1", "sm_clock_max_mhz": 1980.0, "sm_clock_mhz": 1755.0,
        "memory_clock_mhz": 2619.0, "power_limit_w": None,
    }  # fmt: skip
    assert device.asked[0][-2:] == ["-i", "GPU-ab-cd"]


@pytest.mark.parametrize("stdout", ["", "No devices were found\n"])
def test_without_the_driver_s_tool_the_highest_clock_is_torch_s(device, stdout):
    device.stdout = stdout
    details = environment.gpu_details()
    assert (details["driver"], details["sm_clock_mhz"], details["sm_clock_max_mhz"]) == (None, None, 1980.0)
    summary = environment.summary(MACHINE | {"gpu": "H1", "gpu_details": details})
    assert f"H1 (driver None, CUDA {torch.version.cuda})" in summary


def test_without_a_gpu_there_are_no_details(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert environment.gpu_details() is None
    assert environment.describe()["gpu_details"] is None


@pytest.mark.parametrize(("verdict", "code"), [("valid", 0), ("skipped: no", 0), ("invalid: relative error 1", 1)])
def test_the_command_measures_the_gpu_and_fails_for_a_wrong_kernel(verdict, code, tmp_path, monkeypatch, capsys):
    asked = []

    def on_gpu(request, console, progress):
        asked.append(request)
        return [row("ours", "stem time", 2304, verdict=verdict)]

    monkeypatch.setattr(reference, "resolve_device", lambda device: "cuda")
    monkeypatch.setattr(kernel_command, "on_gpu", on_gpu)
    argv = ["--kernels", "--device", "cuda", "--batch", "1,4", "--time", "64", "--output", str(tmp_path)]
    assert cli.run(serve_bench.main, argv) == code
    (request,) = asked
    assert (request.batches, request.lengths, request.seconds, request.output) == ((1, 4), (64,), None, tmp_path)
    assert ("differs from its reference" in capsys.readouterr().err) == bool(code)
