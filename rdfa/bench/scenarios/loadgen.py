"""One test of MLPerf LoadGen, and what its logs say about it.

`import mlperf_loadgen` is the package mlcommons-loadgen, extra 'bench'.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlperf_loadgen as lg
import numpy as np

from rdfa.bench.scenarios.backend import Backend, Serving
from rdfa.bench.scenarios.sut import SystemUnderTest
from rdfa.errors import RunError
from rdfa.runtime.session import Outputs

SCENARIOS = ("SingleStream", "MultiStream", "Server", "Offline")
PERCENTILES = {"50.00": "p50", "90.00": "p90", "95.00": "p95", "97.00": "p97", "99.00": "p99", "99.90": "p99.9"}
TOO_SHORT = "ended before the least duration"
# LoadGen's own check of a test's form -> what to say when it is false.
CHECKS = {
    "result_perf_constraints_met": "too many answers later than the bound",
    "result_min_duration_met": TOO_SHORT,
    "result_min_queries_met": "fewer queries than the least number",
    "early_stopping_met": "too few queries for its percentile",
}
# An Offline test is one query, made beforehand as large as it should last; it must not end early when the machine turns
# out faster than the estimate. The streams end by themselves when their time is over, if the queries last so long.
OFFLINE_MARGIN, STREAM_MARGIN = 1.4, 4.0


@dataclass(frozen=True)
class Mode:
    """How long a test is. `percentile` is the one that LoadGen's verdict of MultiStream and Server is about."""

    name: str
    duration_s: float
    min_queries: int
    percentile: float
    probe_s: float  # of one step of the search for the highest rate


# Ninety-nine in a hundred needs 662 queries, nine in ten 64: what a slow detector answers within a quick test.
QUICK = Mode("quick", duration_s=2.0, min_queries=1, percentile=0.90, probe_s=0.5)
FULL = Mode("full", duration_s=600.0, min_queries=662, percentile=0.99, probe_s=60.0)


@dataclass(frozen=True)
class Job:
    """One test of LoadGen.

    rate: expected samples per second; of a Server test the target. group: samples of a MultiStream query.
    bound_s: what the latency of a Server test must keep.
    """

    scenario: str
    mode: Mode
    rate: float
    group: int = 1
    bound_s: float = 0.0


@dataclass
class Outcome:
    """What LoadGen's logs say. `videos_per_s` is None in a test of latency alone."""

    result: str
    reasons: list[str]
    latency_ms: dict[str, float]
    queries: int
    videos_per_s: float | None
    videos: int = 0
    last: tuple[list[int], Outputs] | None = field(default=None, repr=False)


def run(
    test: Job, backend: Backend, serving: Serving, samples: Sequence[tuple[np.ndarray, np.ndarray]], logs: Path
) -> Outcome:
    """Run a test; LoadGen's logs stay in `logs`.

    Raises:
        RunError: the backend failed in the course of it.
    """
    logs.mkdir(parents=True, exist_ok=True)
    log_settings = lg.LogSettings()
    log_settings.log_output.outdir = str(logs)
    log_settings.log_output.copy_summary_to_stdout = False
    log_settings.enable_trace = False
    library = lg.ConstructQSL(len(samples), len(samples), _keep, _keep)
    with SystemUnderTest(backend, serving, samples) as system:
        handle = lg.ConstructSUT(system.issue, system.flush)
        try:
            lg.StartTestWithLogSettings(handle, library, _settings(test, len(samples)), log_settings)
        finally:
            lg.DestroySUT(handle)
            lg.DestroyQSL(library)
    if system.error is not None:
        raise RunError(f"raised {type(system.error).__name__} in {test.scenario}: {system.error}") from system.error
    for empty in ("mlperf_log_accuracy.json", "mlperf_log_trace.json"):  # of modes that are not used here
        (logs / empty).unlink(missing_ok=True)
    outcome = read(logs, test)
    outcome.last, outcome.videos = system.last, system.answered
    return outcome


def _keep(indices: Sequence[int]) -> None:
    """Samples are in memory all the time."""


def _settings(test: Job, samples: int) -> lg.TestSettings:
    settings = lg.TestSettings()
    settings.scenario = getattr(lg.TestScenario, test.scenario)
    settings.mode = lg.TestMode.PerformanceOnly
    settings.min_duration_ms = round(1e3 * test.mode.duration_s)
    settings.min_query_count = 1 if test.scenario == "Offline" else test.mode.min_queries
    settings.performance_sample_count_override = samples
    query_ns = max(1, round(1e9 * test.group / test.rate / STREAM_MARGIN))
    settings.single_stream_expected_latency_ns = query_ns
    settings.multi_stream_expected_latency_ns = query_ns
    settings.multi_stream_samples_per_query = test.group
    settings.multi_stream_target_latency_percentile = test.mode.percentile
    settings.server_target_qps = test.rate
    settings.server_target_latency_ns = round(1e9 * test.bound_s)
    settings.server_target_latency_percentile = test.mode.percentile
    settings.offline_expected_qps = OFFLINE_MARGIN * test.rate
    return settings


def read(logs: Path, test: Job) -> Outcome:
    """Verdict and figures from `mlperf_log_detail.txt`.

    Raises:
        RunError: LoadGen wrote no result.
    """
    entries = _entries(logs / "mlperf_log_detail.txt")
    result = entries.get("result_validity")
    if result not in ("VALID", "INVALID"):
        raise RunError(f"LoadGen wrote no result into {logs}: see mlperf_log_detail.txt there")
    per_query = "_per_query" if test.scenario == "MultiStream" else ""
    names = {f"result_{name}_percentile{per_query}_latency_ns": label for name, label in PERCENTILES.items()}
    middle = "_query" if per_query else ""
    names |= {f"result_min{middle}_latency_ns": "min", f"result_mean{middle}_latency_ns": "mean"}
    latency = {label: round(entries[name] / 1e6, 6) for name, label in names.items()}
    reasons = [text for name, text in CHECKS.items() if entries.get(name) is False]
    if test.scenario == "Server" and latency["p99"] > 1e3 * test.bound_s:
        result = "INVALID"
        reasons = [f"p99 {latency['p99']:.4g} ms is over the bound of {1e3 * test.bound_s:.4g} ms", *reasons]
    rate = entries.get("result_completed_samples_per_sec", entries.get("result_samples_per_second"))
    return Outcome(result, reasons, latency, int(entries["result_query_count"]), rate)


def _entries(path: Path) -> dict[str, Any]:
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        start = line.find("{")
        if line.startswith(":::MLLOG") and start >= 0:
            entry = json.loads(line[start:])
            found[entry["key"]] = entry["value"]
    return found
