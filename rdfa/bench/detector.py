"""The whole detector, every backend against every other: the scenario ``sweep`` over batch sizes and lengths.

Per shape: the float64 model says what the outputs should be; each backend's outputs and detections, on the first of the
inputs it is timed with, are compared with that; those that pass are timed together, interleaved. A backend that fails,
or runs elsewhere than it was told to, gets a row that says why and shows no speed.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from rdfa.bench import cold_start, timing
from rdfa.bench.cold_start import Shape, Start
from rdfa.bench.parity import compare_detections, compare_outputs
from rdfa.bench.results import Row
from rdfa.errors import RunError, UsageError
from rdfa.inference.decode import Detections
from rdfa.runtime.session import Outputs

SCENARIO = "sweep"
DTYPE = "float32"  # of the graphs that an artifact holds
PLAIN = "eager_plain"
TWIN = "A/A twin"
INPUTS = 3
# A plain run that takes longer than this per call is left out of the timing (the float64 run takes about as long).
PLAIN_LIMIT_S = 60.0


class Oracle(Protocol):
    """What `rdfa.bench.reference.PlainDetector` does for the sweep."""

    def exact(self, features: np.ndarray, mask: np.ndarray) -> Outputs: ...

    def run(self, features: np.ndarray, mask: np.ndarray) -> Outputs: ...

    def detections(self, outputs: Outputs, mask: np.ndarray) -> list[Detections]: ...

    def level_lengths(self, time: int) -> list[int]: ...


@dataclass(frozen=True)
class Sweep:
    """What to measure."""

    artifact: Path
    backends: tuple[str, ...]  # empty: all
    device: str
    shapes: tuple[Shape, ...]
    channels: int
    seconds: float
    threads: int | None


@dataclass
class _Candidate:
    """One backend on its way to its rows; `verdict` is why it cannot be timed."""

    name: str
    run: Callable[..., Outputs] | None = None
    verdict: str = ""
    starts: dict[Shape, Start] = field(default_factory=dict)


def make_shapes(features: dict[str, Any], batches: Sequence[int], times: Sequence[int]) -> tuple[Shape, ...]:
    """Every batch with every time; by default 1 and 2 videos, of the artifact's clip length and of a quarter of it.

    Args:
        features: the manifest's section of that name.

    Raises:
        UsageError: a time that the artifact does not take.
    """
    multiple, clip = features["multiple"], features["max_seq_len"]
    for value in times:
        if value % multiple or not 0 < value <= features["max_time"]:
            limits = f"a multiple of {multiple} up to {features['max_time']}"
            raise UsageError(f"--time {value}: this artifact takes {limits}")
    quarter = max(multiple, clip // 4 // multiple * multiple)
    return tuple(Shape(b, t) for t in times or sorted({quarter, clip}) for b in batches or (1, 2))


def run(
    sweep: Sweep,
    runtime: Any,
    oracle: Oracle,
    *,
    native_operators: bool = True,
    cold: Callable[..., dict[Shape, Start]] = cold_start.measure,
    clock: timing.Clock = time.perf_counter,
    progress: Callable[[str], None] = lambda line: None,
) -> list[Row]:
    """All rows of the sweep, those of one shape together.

    Args:
        runtime: the module `rdfa.runtime`, or what stands in for it.
        oracle: the float64 model and the plain float32 one.
        native_operators: False when the backend ``eager`` itself runs the plain operators and is its own reference.
        cold: measures load time, first inference and peak memory; see `cold_start.measure`.
        progress: called with a line before each step that takes long.

    Raises:
        UsageError: an unknown backend.
        RunError: no backend is present, or the artifact is damaged.
    """
    reasons = _choose(runtime.availability(sweep.artifact), sweep.backends)
    candidates = [_open(name, reason, sweep, runtime, cold, progress) for name, reason in reasons.items()]
    if all(c.verdict.startswith("skipped") for c in candidates):
        lines = "; ".join(f"{c.name}: {c.verdict.removeprefix('skipped: ')}" for c in candidates)
        raise RunError(f"no backend can run this artifact on {sweep.device} here: {lines}")
    if native_operators:
        candidates.insert(0, _Candidate(PLAIN, oracle.run))
    return [row for shape in sweep.shapes for row in _measure_shape(shape, sweep, candidates, oracle, clock, progress)]


def _choose(available: dict[str, str | None], wanted: tuple[str, ...]) -> dict[str, str | None]:
    for name in wanted:
        if name not in available:
            raise UsageError(f"--backends: {name!r} is unknown; valid: all, {', '.join(available)}")
    return {name: reason for name, reason in available.items() if not wanted or name in wanted}


def _open(name: str, reason: str | None, sweep: Sweep, runtime: Any, cold: Callable, progress: Callable) -> _Candidate:
    if reason is not None:
        return _Candidate(name, verdict=f"skipped: {reason}")
    progress(f"{name}: start in a new process")
    try:
        session = runtime.load(sweep.artifact, name, device=sweep.device, threads=sweep.threads)
        if session.device.split(":")[0] != sweep.device:
            return _Candidate(name, verdict=f"invalid: runs on {session.device}, not on {sweep.device} as asked")
        starts = cold(sweep.artifact, name, sweep.device, sweep.threads, sweep.shapes)
    except UsageError as error:  # a device that this backend does not serve
        return _Candidate(name, verdict=f"skipped: {_line(error)}")
    except RunError as error:
        return _Candidate(name, verdict=f"invalid: {_line(error)}")
    return _Candidate(name, session.run, starts=starts)


def _measure_shape(
    shape: Shape,
    sweep: Sweep,
    candidates: list[_Candidate],
    oracle: Oracle,
    clock: timing.Clock,
    progress: Callable[[str], None],
) -> list[Row]:
    label = f"batch {shape.batch}, time {shape.time}"
    inputs = make_inputs(shape, sweep.channels)
    progress(f"{label}: float64 reference")
    start = clock()
    exact = oracle.exact(*inputs[0])
    exact_s = clock() - start
    expected = oracle.detections(exact, inputs[0][1])
    rows = []
    for candidate in candidates:
        device = "cpu" if candidate.name == PLAIN else sweep.device
        row = Row(candidate.name, device, DTYPE, SCENARIO, *shape, verdict=candidate.verdict)
        if candidate.name == PLAIN and exact_s > PLAIN_LIMIT_S:
            row.verdict = f"skipped: one call would take about {exact_s:.0f} s, more than {PLAIN_LIMIT_S:.0f} s"
        if not row.verdict:
            progress(f"{label}: parity of {candidate.name}")
            _check(row, candidate, inputs[0], exact, oracle, expected)
        rows.append(row)
    runs = {c.name: c.run for c, row in zip(candidates, rows) if row.valid}
    if runs:
        progress(f"{label}: timing of {', '.join(runs)}")
        _time(rows, runs, inputs, sweep.seconds, clock)
    for candidate, row in zip(candidates, rows):
        if row.valid and shape in candidate.starts:
            row.load_s, row.first_inference_ms, row.peak_memory_mb = candidate.starts[shape]
    return rows


def make_inputs(shape: Shape, channels: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Inputs to rotate: normal features, every step valid; only the last video of several ends after three quarters."""
    random = np.random.default_rng([shape.batch, shape.time])
    mask = np.ones((shape.batch, shape.time), np.bool_)
    if shape.batch > 1:
        mask[-1, -(shape.time // 4) :] = False
    inputs = []
    for _ in range(INPUTS):
        features = random.standard_normal((shape.batch, channels, shape.time), np.float32)
        inputs.append((features * mask[:, None], mask))
    return inputs


def _check(
    row: Row, candidate: _Candidate, example: tuple, exact: Outputs, oracle: Oracle, expected: list[Detections]
) -> None:
    """Fill parity, detections and the verdict that follows from them."""
    try:
        outputs = candidate.run(*example)
    except Exception as error:  # whatever a backend raises says that it cannot serve this input, and belongs in its row
        row.verdict = f"invalid: raised {type(error).__name__}: {_line(error)}"
        return
    row.parity, reason = compare_outputs(outputs, exact, oracle.level_lengths(row.time))
    row.verdict = f"invalid: {reason}" if reason else "valid"
    if row.valid:
        row.detections = compare_detections(oracle.detections(outputs, example[1]), expected)


def _time(rows: list[Row], runs: dict[str, Callable], inputs: list, seconds: float, clock: timing.Clock) -> None:
    """Time what passed, with a twin of one backend, and fill the columns of speed."""
    twin_of = next((name for name in runs if name != PLAIN), PLAIN)
    calls = {
        name: lambda i, run=run: run(*inputs[i % len(inputs)]) for name, run in (runs | {TWIN: runs[twin_of]}).items()
    }
    samples = timing.measure(calls, seconds, clock)
    spread = timing.compare(samples[twin_of], samples.pop(TWIN)).spread
    latency = {name: timing.latency_ms(s) for name, s in samples.items()}
    fastest = min(latency, key=lambda name: latency[name]["p50"])
    reference = next((name for name in (PLAIN, "eager") if name in latency), None)
    for row in rows:
        if not row.valid:
            continue
        row.latency_ms = latency[row.backend]
        row.samples = len(samples[row.backend].all)
        row.throughput_videos_per_s = row.batch / row.latency_ms["mean"] * 1e3
        row.aa_spread = spread
        row.equal_to_fastest = timing.compare(samples[fastest], samples[row.backend]).equal(spread)
        if reference is not None:
            row.reference = reference
            row.speedup_vs_reference = latency[reference]["p50"] / row.latency_ms["p50"]


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
