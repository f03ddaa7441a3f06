"""The LoadGen scenarios of every backend, as rows.

A backend first answers the videos that LoadGen draws from, and its answers are compared with the float64 model; so is
the last answer that it gave under load. Backends run one after the other, since a load on one would disturb the next.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

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
from rdfa.bench.scenarios.loadgen import Job, Mode, Outcome
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
    bound_s = request.p99_s or BOUND_FACTOR * fastest
    return [
        _row(scenario, entry, request, sweep, samples, case, oracle, bound_s, progress)
        for scenario in request.scenarios
        for entry in entries
    ]


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


def _row(scenario, entry, request, sweep, samples, case, oracle, bound_s, progress) -> Row:
    group = 1 if scenario == "SingleStream" else request.group
    row = make_row(sweep, entry.candidate, scenario, Shape(group, request.time))
    row.verdict, row.parity, row.detections = entry.checked.verdict, entry.checked.parity, entry.checked.detections
    if not row.valid:
        row.drop_speed(row.verdict)
        return row
    progress(f"{scenario}: {row.backend}, {row.dtype}")
    logs = request.logs / scenario / f"{row.backend}-{row.dtype}"
    server = scenario == "Server"
    row.loadgen = {
        "result": "INVALID",
        "reasons": [],
        "queries": 0,
        "mode": request.mode.name,
        "target_qps": request.rate if server else None,
        "p99_bound_ms": round(1e3 * bound_s, 3) if server else None,
        "logs": None,
    }
    row.throughput_videos_per_s, row.samples, row.other_load = 0.0, 0, None
    nvml = Nvml.open() if sweep.device == "cuda" else None
    energy = nvml.energy_j() if nvml else None
    try:
        with Watch() as watch:
            outcome = (_server if server else _plain)(scenario, entry, request, samples, bound_s, logs, row.loadgen)
    except RunError as error:
        row.drop_speed(f"invalid: {candidates_.line(error)}")
        return row
    row.other_load = watch.other_load
    if outcome is not None:
        _fill(row, outcome, logs, request, case, oracle)
    if row.valid and energy is not None and not server and outcome.videos:
        row.energy_j_per_video = round((nvml.energy_j() - energy) / outcome.videos, 4)
    return row


def _plain(scenario, entry: _Entry, request: Request, samples, bound_s, logs, column) -> Outcome:
    # One video at a time for a stream of them; the others in groups, if that is what is faster.
    group = 1 if scenario == "SingleStream" else request.group
    rate = {
        "SingleStream": 1 / entry.single_s,
        "MultiStream": group / entry.group_s,
        "Offline": group / entry.group_s,
    }[scenario]
    workers = 1 if scenario in ("SingleStream", "MultiStream") else request.workers
    test = Job(scenario, request.mode, rate, group if scenario == "MultiStream" else 1)
    return run_test(test, entry.candidate.backend, Serving(workers, group), samples, logs)


def _server(scenario, entry: _Entry, request: Request, samples, bound_s, logs, column) -> Outcome | None:
    serving = Serving(request.workers, request.group)
    if entry.single_s > bound_s:
        column["reasons"] = [f"one video alone takes {1e3 * entry.single_s:.4g} ms, more than the bound"]
        return None

    def test(rate: float, mode: Mode, folder: Path) -> Outcome:
        return run_test(Job(scenario, mode, rate, bound_s=bound_s), entry.candidate.backend, serving, samples, folder)

    rate = request.rate
    if rate is None:
        probe = Mode("probe", request.mode.probe_s, 1, request.mode.percentile, 0.0)

        def keeps_bound(qps: float) -> bool:
            return test(qps, probe, logs / "search").latency_ms["p99"] <= 1e3 * bound_s

        low, high = highest_rate(entry.capacity(request.group) * request.workers, keeps_bound)
        rate = low or high
    outcome = test(rate, request.mode, logs)
    for _ in range(RETRIES if request.rate is None else 0):
        if outcome.result == "VALID" or outcome.latency_ms["p99"] <= 1e3 * bound_s:
            break
        rate *= LOWER
        outcome = test(rate, request.mode, logs)
    column["target_qps"] = round(rate, 4)
    return outcome


def _fill(row: Row, outcome: Outcome, logs: Path, request: Request, case: Case, oracle: Oracle) -> None:
    reason = _differs(outcome, row, case, oracle)
    if reason:
        row.drop_speed(f"invalid: under load, {reason}")
        return
    row.loadgen |= {
        "result": outcome.result,
        "reasons": outcome.reasons,
        "queries": outcome.queries,
        "logs": str(logs.relative_to(request.logs.parent)),
    }
    row.samples = outcome.queries
    # The one query of an Offline test has no latency that says anything.
    row.latency_ms = None if row.scenario == "Offline" else outcome.latency_ms
    rate = outcome.videos_per_s
    row.throughput_videos_per_s = rate if rate is not None else row.batch / outcome.latency_ms["mean"] * 1e3


def _differs(outcome: Outcome, row: Row, case: Case, oracle: Oracle) -> str:
    """Why the last answer under load is not what it should be; "" when it is."""
    indices, outputs = outcome.last
    baseline = case.rounded.get(row.dtype)
    exact, plain = (None if o is None else Outputs(*(part[indices] for part in o)) for o in (case.exact, baseline))
    return compare_outputs(outputs, exact, oracle.level_lengths(row.time), plain)[1]
