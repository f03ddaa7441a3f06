"""LoadGen on a backend that takes known times. Short tests: a fifth of a second each."""

import threading
import time

import numpy as np
import pytest

pytest.importorskip("mlperf_loadgen", reason="mlcommons-loadgen is not installed: pip install 'rdfa-s6[bench]'")

from rdfa.bench.scenarios import loadgen
from rdfa.bench.scenarios.backend import Serving
from rdfa.bench.scenarios.loadgen import Job, Mode
from rdfa.errors import RunError
from tests.bench.fakes import outputs_of

FEW = "too few queries for its percentile"
MODE = Mode("quick", 0.2, 1, 0.9, 0.1)
SAMPLES = [(np.full((4, 32), i, np.float32), np.ones(32, bool)) for i in range(3)]


class Backend:
    """Takes `seconds` per call and remembers the size of each; more calls at a time than `workers` is an error."""

    device = "cpu"

    def __init__(self, seconds=0.002, workers=1, fails_at=None):
        self.seconds, self.workers, self.fails_at = seconds, workers, fails_at
        self.batches, self.running, self.most = [], 0, 0
        self._lock = threading.Lock()

    def run(self, features, mask):
        with self._lock:
            self.running += 1
            self.most = max(self.most, self.running)
            self.batches.append(len(features))
            if self.fails_at is not None and len(self.batches) >= self.fails_at:
                raise ValueError("out of memory")
        time.sleep(self.seconds)
        with self._lock:
            self.running -= 1
        return outputs_of(features, mask)


def test_single_stream_is_one_video_after_the_other(tmp_path):
    backend = Backend()
    outcome = loadgen.run(Job("SingleStream", MODE, 500), backend, Serving(), SAMPLES, tmp_path)
    enough = outcome.queries >= 64  # a busy machine answers fewer
    assert (outcome.result, outcome.reasons) == (("VALID", []) if enough else ("INVALID", [FEW]))
    assert set(backend.batches) == {1} and len(backend.batches) == outcome.queries == outcome.videos > 1
    assert 2.0 <= outcome.latency_ms["min"] <= outcome.latency_ms["p50"] <= outcome.latency_ms["p99.9"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mlperf_log_detail.txt", "mlperf_log_summary.txt"]
    indices, outputs = outcome.last
    assert np.array_equal(outputs.cls_logits[0, :, 1], np.full(32, indices[0]))


def test_too_few_queries_are_invalid_with_the_reason(tmp_path):
    outcome = loadgen.run(Job("MultiStream", MODE, 75, group=3), Backend(0.04), Serving(1, 3), SAMPLES, tmp_path)
    assert outcome.result == "INVALID"
    assert outcome.reasons == [FEW]
    assert outcome.videos == 3 * outcome.queries
    assert outcome.latency_ms["p50"] >= 40


def test_offline_fills_batches(tmp_path):
    backend = Backend()
    outcome = loadgen.run(Job("Offline", MODE, 2000), backend, Serving(1, 4), SAMPLES, tmp_path)
    assert max(backend.batches) == 4 and backend.batches.count(4) >= len(backend.batches) - 2
    assert outcome.videos == sum(backend.batches)
    assert 200 < outcome.videos_per_s <= 2000


def test_server_runs_as_many_calls_at_a_time_as_there_are_workers(tmp_path):
    backend = Backend(0.02, workers=3)
    test = Job("Server", MODE, 120, bound_s=2.0)
    outcome = loadgen.run(test, backend, Serving(3, 1), SAMPLES, tmp_path)
    assert set(backend.batches) == {1} and 1 < backend.most <= 3
    assert outcome.latency_ms["min"] >= 20 and outcome.videos_per_s > 30


def test_server_over_its_bound_is_invalid(tmp_path):
    outcome = loadgen.run(Job("Server", MODE, 400, bound_s=0.004), Backend(0.005), Serving(), SAMPLES, tmp_path)
    assert outcome.result == "INVALID"
    assert "over the bound of 4 ms" in outcome.reasons[0]


def test_a_backend_that_fails_ends_the_test_with_its_error(tmp_path):
    with pytest.raises(RunError, match="raised ValueError in SingleStream: out of memory"):
        loadgen.run(Job("SingleStream", MODE, 500), Backend(fails_at=3), Serving(), SAMPLES, tmp_path)


def test_logs_without_a_result_are_an_error(tmp_path):
    (tmp_path / "mlperf_log_detail.txt").write_text(':::MLLOG {"key": "loadgen_version", "value": "5"}\n')
    with pytest.raises(RunError, match="LoadGen wrote no result into"):
        loadgen.read(tmp_path, Job("Offline", MODE, 1))
