"""Rows of LoadGen scenarios: verdicts, bounds, and wrong answers under load."""

import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mlperf_loadgen", reason="mlcommons-loadgen is not installed: pip install 'rdfa-s6[bench]'")

from rdfa.bench.candidates import Candidate, Sweep
from rdfa.bench.cold_start import Shape
from rdfa.bench.results import document
from rdfa.bench.scenarios import loadgen, rows
from rdfa.bench.scenarios.loadgen import SCENARIOS, Mode
from rdfa.runtime.session import Outputs
from tests.bench import fakes
from tests.bench.fakes import FakeClock, FakeOracle, outputs_of

MODE = Mode("quick", 0.2, 1, 0.9, 0.05)


class Backend:
    device = "cpu"

    def __init__(self, seconds=0.002, answer=outputs_of):
        self.seconds, self.answer = seconds, answer

    def run(self, features, mask):
        time.sleep(self.seconds)
        return self.answer(features, mask)


def run(tmp_path, backends, scenarios=SCENARIOS, **request):
    sweep = Sweep(Path("artifact"), (), "cpu", (Shape(1, 32),), fakes.CHANNELS, 1.0, 1)
    opened = [Candidate(name, "float32", backend) for name, backend in backends.items()]
    wanted = rows.Request(scenarios, MODE, 32, 2, tmp_path / "loadgen", **request)
    found = rows.run(wanted, sweep, opened, FakeOracle(FakeClock()), on_device=lambda call: True)
    document(fakes.MACHINE, found)
    return {(row.scenario, row.backend): row for row in found}


def test_every_scenario_has_a_row_with_verdict_and_parity(tmp_path):
    found = run(tmp_path, {"eager": Backend()})
    assert list(found) == [(scenario, "eager") for scenario in SCENARIOS]
    for (scenario, _), row in found.items():
        assert row.valid and row.parity["ok"] and row.detections["matched"] == 3
        assert row.loadgen["result"] in ("VALID", "INVALID") and row.loadgen["queries"] > 0
        assert (tmp_path / row.loadgen["logs"] / "mlperf_log_summary.txt").is_file()
        assert row.throughput_videos_per_s > 0
        assert (row.latency_ms is None) is (scenario == "Offline")
        assert row.batch == (1 if scenario == "SingleStream" else 2)
    server = found["Server", "eager"].loadgen
    assert server["target_qps"] > 0 and server["p99_bound_ms"] > 10 * 2


def test_one_bound_for_all_and_a_backend_that_cannot_keep_it(tmp_path):
    found = run(tmp_path, {"fast": Backend(0.001), "slow": Backend(0.03)}, ("Server",), p99_s=0.02, rate=50.0)
    slow = found["Server", "slow"]
    assert slow.loadgen["reasons"][0].startswith("one video alone takes")
    assert (slow.loadgen["result"], slow.throughput_videos_per_s, slow.latency_ms) == ("INVALID", 0.0, None)
    assert found["Server", "fast"].loadgen["target_qps"] == 50.0


def test_answers_mixed_up_under_load_are_refused(tmp_path):
    """Right one at a time, and with the three videos of the check; but of two it gives each the other's answer."""

    def mixed_up(features, mask):
        outputs = outputs_of(features, mask)
        return Outputs(*(part[::-1].copy() for part in outputs)) if len(features) == 2 else outputs

    row = run(tmp_path, {"eager": Backend(answer=mixed_up)}, ("MultiStream",))["MultiStream", "eager"]
    assert row.verdict.startswith("invalid: under load, ")
    assert (row.latency_ms, row.throughput_videos_per_s) == (None, None)


def test_a_backend_that_fails_under_load_is_refused(tmp_path):
    calls = []

    def failing(features, mask):
        calls.append(len(features))
        if len(calls) > 12:
            raise MemoryError("no more")
        return outputs_of(features, mask)

    row = run(tmp_path, {"eager": Backend(answer=failing)}, ("SingleStream",))["SingleStream", "eager"]
    assert row.verdict == "invalid: raised MemoryError in SingleStream: no more"


def test_a_wrong_backend_runs_no_scenario(tmp_path):
    def wrong(features, mask):
        logits, offsets, point_mask = outputs_of(features, mask)
        return Outputs(logits + np.float32(3e-3), offsets, point_mask)

    found = run(tmp_path, {"eager": Backend(answer=wrong)})
    assert all(row.verdict.startswith("invalid: cls_logits is off by") for row in found.values())
    assert not (tmp_path / "loadgen").exists()


def test_offline_is_repeated_when_the_estimate_was_too_low(tmp_path, monkeypatch):
    jobs = []

    def run_test(job, backend, serving, samples, logs):
        jobs.append(job)
        last = [0], outputs_of(*(part[None] for part in samples[0]))
        reasons = [loadgen.TOO_SHORT] if len(jobs) == 1 else []
        return loadgen.Outcome("INVALID" if reasons else "VALID", reasons, {}, 1, 1234.0 * len(jobs), 10, last)

    monkeypatch.setattr(rows, "run_test", run_test)
    row = run(tmp_path, {"eager": Backend()}, ("Offline",))["Offline", "eager"]
    assert [job.rate for job in jobs][1:] == [1234.0]
    assert (row.loadgen["result"], row.throughput_videos_per_s) == ("VALID", 2468.0)
