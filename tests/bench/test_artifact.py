"""The command on a real artifact, with every backend that is installed."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import serve_bench
from ops import library
from rdfa import cli, runtime
from rdfa.bench import artifact_command, backends
from rdfa.bench.reference import PlainDetector
from rdfa.inference.settings import PostProcessingSettings
from tests.deploy.artifacts import int8_artifact, tiny_artifact

FAST = ("--device", "cpu", "--threads", "1", "--seconds", "0.02", "--time", "34")

if not library.loaded():
    pytest.skip(f"TorchScript needs the native library: {library.REMEDY}", allow_module_level=True)


def run(output, *flags) -> int:
    return cli.run(serve_bench.main, ["--artifact", str(tiny_artifact()), "--output", str(output), *FAST, *flags])


def rows_of(output) -> dict:
    rows = json.loads((output / "results.json").read_text())["rows"]
    return {(row["backend"], row["batch"]): row for row in rows}


@pytest.mark.slow
def test_every_backend_that_is_present_is_measured(tmp_path, capsys):
    wanted = backends.availability(tiny_artifact())
    del wanted["torch_compile"]  # whose compilation takes a minute, twice
    assert run(tmp_path, "--backends", ",".join(wanted)) == 0, capsys.readouterr().err
    rows = rows_of(tmp_path)
    present = [name for name, reason in wanted.items() if reason is None]
    assert {"eager_plain", "eager", "torchscript", "onnxruntime"} <= set(present)
    absent = {name for name, _ in rows if name not in present}
    assert {"aoti", "published", "cuda_graph"} <= absent
    assert set(rows) == {(name, batch) for name in wanted for batch in (1, 2)}
    for (name, _), row in rows.items():
        if name in absent:
            assert row["verdict"].startswith("skipped: ")
            continue
        assert row["verdict"] == "valid"
        assert 0 < row["parity"]["max_abs"] < 1e-4
        assert row["detections"]["matched"] >= 0.99 * row["detections"]["reference_count"] > 0
        assert (row["peak_memory_mb"] is None) is (name == "eager_plain")
        assert row["gflops"] > 0 and row["percent_of_peak"] > 0 and row["model_mb"] > 0
    assert "no aoti file" in rows["aoti", 1]["verdict"]
    assert rows["onnxruntime", 1]["peak_memory_mb"] < rows["eager", 1]["peak_memory_mb"]  # it imports no torch
    assert rows["eager", 2]["reference"] == "eager_plain"
    assert "torchscript" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["bench", "bench/history.csv"])
def test_a_place_that_cannot_take_the_results_is_told_before_anything_is_measured(tmp_path, monkeypatch, capsys, name):
    monkeypatch.setattr(artifact_command, "run", lambda *arguments: pytest.fail("measured"))
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("backend,p50\n")
    assert run(tmp_path / "bench") == (2 if name == "bench" else 1)
    assert str(tmp_path / name) in capsys.readouterr().err


def test_int8_is_measured_beside_its_errors_and_the_mean_average_precision_of_its_export(tmp_path, capsys):
    flags = ["--artifact", int8_artifact(), "--output", tmp_path, *FAST, "--dtype", "int8", "--backends", "torchscript"]
    assert cli.run(serve_bench.main, [str(flag) for flag in flags]) == 0, capsys.readouterr().err
    for row in rows_of(tmp_path).values():
        assert row["verdict"] == "valid" and row["dtype"] == "int8" and row["parity"]["max_abs"] > 1e-3
    document = json.loads((tmp_path / "results.json").read_text())
    assert document["environment"]["peaks"]["matmul_gflops"]["int8"] > 0
    gate = document["environment"]["benchmark"]["map_gates"]["detector.ts.int8.pt"]
    line = f"detector.ts.int8.pt, when exported: average mAP {gate['average_map']:.4f} on 3 videos"
    assert line in (tmp_path / "report.html").read_text() and line in capsys.readouterr().out


def test_all_scenarios_have_verdict_parity_and_logs(tmp_path, capsys, monkeypatch):
    loadgen = pytest.importorskip("rdfa.bench.scenarios.loadgen", exc_type=ImportError)
    monkeypatch.setattr(loadgen, "QUICK", dataclasses.replace(loadgen.QUICK, duration_s=0.2, probe_s=0.05))
    flags = ("--backends", "eager", "--batch", "2", "--scenarios", "all", "--quick", "--p99_ms", "10000")
    assert run(tmp_path, *flags) == 0, capsys.readouterr().err
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    scenarios = ["sweep", "SingleStream", "MultiStream", "Server", "Offline"]
    names = [(s, b) for s in scenarios for b in ("eager_plain", "eager")]
    assert [(row["scenario"], row["backend"]) for row in rows] == names
    for row in rows:
        assert row["verdict"] == "valid" and row["parity"]["ok"]
        if row["scenario"] != "sweep":
            assert row["loadgen"]["result"] == "VALID" or row["loadgen"]["reasons"]
            assert (tmp_path / row["loadgen"]["logs"] / "mlperf_log_detail.txt").is_file()
    table = capsys.readouterr().out
    assert "MultiStream" in table and "VALID" in table
    assert len((tmp_path / "history.csv").read_text().splitlines()) == 1 + len(rows)


def test_a_backend_made_slightly_wrong_exits_1_and_shows_no_speed(tmp_path, capsys, monkeypatch):
    load = runtime.load

    def tampered(artifact, backend, **options):
        session = load(artifact, backend, **options)
        if backend == "torchscript":
            right = session.run
            session.run = lambda *inputs: right(*inputs)._replace(cls_logits=right(*inputs).cls_logits + 5e-3)
        return session

    monkeypatch.setattr(runtime, "load", tampered)
    assert run(tmp_path, "--backends", "eager,torchscript", "--batch", "1") == 1
    shown = capsys.readouterr()
    assert shown.err.strip().splitlines()[-1].startswith("error: torchscript: no speed shown")
    assert "torchscript (1x34): invalid: cls_logits is off by" in " ".join(shown.out.split())
    rows = rows_of(tmp_path)
    assert rows["torchscript", 1]["latency_ms"] is None
    assert rows["eager", 1]["verdict"] == "valid"


def test_post_processing_can_be_overridden(tmp_path):
    flags = ("--backends", "eager", "--batch", "2", "--gin_param", "PostProcessing.max_seg_num = 1")
    assert run(tmp_path, *flags) == 0
    assert rows_of(tmp_path)["eager", 2]["detections"]["count"] <= 2 * 3  # videos x classes


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ("--gin_param", "StemModule.recurrent = 2"),
            "only PostProcessing can be set, not StemModule.recurrent",
        ),
        (
            ("--backends", "onnx"),
            "'onnx' is unknown; valid: all, eager_plain, published, eager",
        ),
        (("--time", "33"), "--time 33: this artifact takes a multiple of 2"),
    ],
    ids=["model", "backend", "time"],
)
def test_wrong_invocations(tmp_path, capsys, flags, message):
    assert run(tmp_path / "out", *flags) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


class Operators(TorchDispatchMode):
    """Names of the library's operators that run inside."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "rdfa":
            self.names.add(function.__name__)
        return function(*args, **(kwargs or {}))


def test_the_reference_runs_plain_operators_alone_and_is_exact_in_float64():
    plain = PlainDetector(tiny_artifact(), 1, PostProcessingSettings())
    eager = runtime.load(tiny_artifact(), "eager", threads=1)
    features = np.random.default_rng(0).standard_normal((1, 6, 38)).astype(np.float32)
    mask = np.ones((1, 38), bool)
    with Operators() as native, torch.no_grad():
        eager.run(features, mask)
    with Operators() as none, torch.no_grad():
        single = plain.rounded(features, mask, "float32")
        exact = plain.exact(features, mask)
    assert native.names and not none.names
    assert (single.cls_logits.dtype, exact.cls_logits.dtype) == (np.float32, np.float64)
    assert 0 < np.abs(single.cls_logits - exact.cls_logits).max() < 1e-4
    again = plain.rounded(features, mask, "float32")
    assert np.array_equal(single.cls_logits, again.cls_logits)
