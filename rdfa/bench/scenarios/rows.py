"""The LoadGen scenarios of every backend, as rows.

A backend first answers the videos that LoadGen draws from, and its answers are compared with the float64 model; so is
the last answer that it gave under load. Backends run one after the other, since a load on one would disturb the next.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rdfa.bench import candidates as candidates_
from rdfa.bench.candidates import Candidate, Case, Inputs, Oracle, Sweep
from rdfa.bench.cold_start import Shape
from rdfa.bench.detector import INPUTS, make_row
from rdfa.bench.load import Watch
from rdfa.bench.nvml import Nvml
from rdfa.bench.parity import compare_outputs
from rdfa.bench.results import Row
from rdfa.bench.scenarios.backend import Backend, Serving
from rdfa.bench.scenarios.loadgen import TOO_SHORT, Job, Mode, Outcome
from rdfa.bench.scenarios.loadgen import run as run_test
from rdfa.bench.scenarios.search import highest_rate
from rdfa.errors import RunError
from rdfa.runtime.session import Outputs

# Without a bound of the user's: this many times what the fastest backend takes for one video.
BOUND_FACTOR = 10.0
ESTIMATE_S, ESTIMATE_CALLS = 0.5, 3
# The confirming test of a search may lower its rate so often, to this part each time.
RETRIES, LOWER = 2, 0.85


@dataclass(frozen=True)
class Request:
    """What to run.

    time: steps per video. group: videos of a MultiStream query, and the most that one call of the others may carry.
    p99_s: bound of Server; None: `BOUND_FACTOR` times the fastest's time. rate: of Server, in place of a search.
    workers: see `Serving`. logs: where LoadGen's logs go, a folder for each row.
    """

    scenarios: tuple[str, ...]
    mode: Mode
    time: int
    group: int
    logs: Path
    p99_s: float | None = None
    rate: float | None = None
    workers: int = 1


@dataclass
class _Entry:
    """A backend that may run: seconds of one call with one video, and with a group of them."""

    candidate: Candidate
    checked: Row
    single_s: float = 0.0
    group_s: float = 0.0

    def capacity(self, group: int) -> float:
        return max(1 / self.single_s, group / self.group_s)


def run(
    request: Request,
    sweep: Sweep,
    opened: Sequence[Candidate],
    oracle: Oracle,
    *,
    on_device: Callable[[Callable[[], object]], bool],
    progress: Callable[[str], None] = lambda line: None,
) -> list[Row]:
    """All rows, those of one scenario together. Arguments as those of `rdfa.bench.detector.run`."""
    samples = make_samples(request.time, sweep.channels)
    progress(f"time {request.time}: float64 reference")
    stacked = tuple(np.stack(part) for part in zip(*samples))
    case = candidates_.make_case(stacked, oracle, time.perf_counter)
    entries = []
    for candidate in opened:
        progress(f"{candidate.name}: parity and estimate")
        row = make_row(sweep, candidate, "", Shape(1, request.time))
        candidates_.check(row, candidate, case, oracle, on_device)
        entry = _Entry(candidate, row)
        if row.valid:
            entry.single_s = _estimate(candidate.backend, samples, 1)
            entry.group_s = _estimate(candidate.backend, samples, request.group)
        entries.append(entry)
    fastest = min((e.single_s for e in entries if e.checked.valid), default=0.0)
    bench = _Bench(request, sweep, samples, case, oracle, bound_s=request.p99_s or BOUND_FACTOR * fastest)
    rows = []
    for scenario in request.scenarios:
        for entry in entries:
            progress(f"{scenario}: {entry.candidate.name}, {entry.candidate.dtype}")
            rows.append(bench.row(scenario, entry))
    return rows


def make_samples(time_steps: int, channels: int) -> list[Inputs]:
    """Videos that LoadGen draws from: normal features [C,T], mask [T]; the last one ends after three quarters."""
    random = np.random.default_rng(time_steps)
    masks = np.ones((INPUTS, time_steps), np.bool_)
    masks[-1, -(time_steps // 4) :] = False
    return [(random.standard_normal((channels, time_steps), np.float32) * mask, mask) for mask in masks]


def _estimate(backend: Backend, samples: Sequence[Inputs], batch: int) -> float:
    """Seconds of a call, after one that warms up."""
    features, masks = (np.stack([samples[i % len(samples)][part] for i in range(batch)]) for part in (0, 1))
    backend.run(features, masks)
    times: list[float] = []
    while len(times) < ESTIMATE_CALLS and sum(times) < ESTIMATE_S:
        start = time.perf_counter()
        backend.run(features, masks)
        times.append(time.perf_counter() - start)
    return min(times)


@dataclass(frozen=True)
class _Bench:
    """What all rows have in common."""

    request: Request
    sweep: Sweep
    samples: Sequence[Inputs]
    case: Case
    oracle: Oracle
    bound_s: float

    def row(self, scenario: str, entry: _Entry) -> Row:
        group = 1 if scenario == "SingleStream" else self.request.group
        row = make_row(self.sweep, entry.candidate, scenario, Shape(group, self.request.time))
        row.verdict, row.parity, row.detections = entry.checked.verdict, entry.checked.parity, entry.checked.detections
        if not row.valid:
            row.drop_speed(row.verdict)
            return row
        row.throughput_videos_per_s, row.loadgen = 0.0, self._no_result(scenario)
        if scenario == "Server" and entry.single_s > self.bound_s:
            row.loadgen["reasons"] = [f"one video alone takes {1e3 * entry.single_s:.4g} ms, more than the bound"]
            return row
        logs = self.request.logs / scenario / f"{row.backend}-{row.dtype}"
        nvml = Nvml.open() if self.sweep.device == "cuda" else None
        energy = nvml.energy_j() if nvml else None
        try:
            with Watch() as watch:
                measure = self._server if scenario == "Server" else self._all_at_capacity
                outcome, rate = measure(scenario, entry, logs)
        except RunError as error:
            row.drop_speed(f"invalid: {candidates_.line(error)}")
            return row
        row.other_load = watch.other_load
        if energy is not None and scenario != "Server":  # a search spends energy on more than the last test
            row.energy_j_per_video = round((nvml.energy_j() - energy) / outcome.videos, 4)
        self._fill(row, outcome, rate, logs)
        return row

    def _no_result(self, scenario: str) -> dict[str, Any]:
        bound_ms = round(1e3 * self.bound_s, 3) if scenario == "Server" else None
        no_result = {"result": "INVALID", "reasons": [], "queries": 0, "target_qps": None, "logs": None}
        return no_result | {"mode": self.request.mode.name, "p99_bound_ms": bound_ms}

    def _all_at_capacity(self, scenario: str, entry: _Entry, logs: Path) -> tuple[Outcome, None]:
        """The scenarios that ask for the next answer when the last is there, or for all of them at once."""
        single = scenario == "SingleStream"
        group = 1 if single else self.request.group
        serving = Serving(self.request.workers if scenario == "Offline" else 1, group)

        def test(rate: float) -> Outcome:
            job = Job(scenario, self.request.mode, rate, group if scenario == "MultiStream" else 1)
            return run_test(job, entry.candidate.backend, serving, self.samples, logs)

        outcome = test(1 / entry.single_s if single else group / entry.group_s)
        if TOO_SHORT in outcome.reasons:  # the estimate was too low; now the rate is known better
            outcome = test(outcome.videos_per_s or 1e3 * group / outcome.latency_ms["min"])
        return outcome, None

    def _server(self, scenario: str, entry: _Entry, logs: Path) -> tuple[Outcome, float]:
        """The outcome, and the rate that it was measured at."""
        request, serving = self.request, Serving(self.request.workers, self.request.group)

        def test(rate: float, mode: Mode, folder: Path) -> Outcome:
            job = Job(scenario, mode, rate, bound_s=self.bound_s)
            return run_test(job, entry.candidate.backend, serving, self.samples, folder)

        def in_time(outcome: Outcome) -> bool:
            return outcome.latency_ms["p99"] <= 1e3 * self.bound_s

        if request.rate is not None:
            return test(request.rate, request.mode, logs), request.rate
        probe = Mode("probe", request.mode.probe_s, 1, request.mode.percentile, 0.0)
        capacity = entry.capacity(request.group) * request.workers
        low, high = highest_rate(capacity, lambda rate: in_time(test(rate, probe, logs / "search")))
        rate = low or high
        outcome = test(rate, request.mode, logs)
        for _ in range(RETRIES):
            if in_time(outcome):
                break
            rate *= LOWER
            outcome = test(rate, request.mode, logs)
        return outcome, rate

    def _fill(self, row: Row, outcome: Outcome, rate: float | None, logs: Path) -> None:
        reason = self._differs(outcome, row.dtype)
        if reason:
            row.drop_speed(f"invalid: under load, {reason}")
            return
        row.loadgen |= {
            "result": outcome.result,
            "reasons": outcome.reasons,
            "queries": outcome.queries,
            "target_qps": None if rate is None else round(rate, 4),
            "logs": str(logs.relative_to(self.request.logs.parent)),
        }
        row.samples = outcome.queries
        # The one query of an Offline test has no latency that says anything.
        row.latency_ms = None if row.scenario == "Offline" else outcome.latency_ms
        per_s = outcome.videos_per_s
        row.throughput_videos_per_s = per_s if per_s is not None else row.batch / outcome.latency_ms["mean"] * 1e3

    def _differs(self, outcome: Outcome, dtype: str) -> str:
        """Why the last answer under load is not what it should be; "" when it is."""
        indices, outputs = outcome.last
        wanted = (self.case.exact, self.case.rounded.get(dtype))
        exact, plain = (o and Outputs(*(part[indices] for part in o)) for o in wanted)
        return compare_outputs(outputs, exact, self.case.lengths, plain)[1]
