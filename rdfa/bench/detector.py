"""The whole detector, every backend against every other: the scenario ``sweep`` over batch sizes and lengths.

Per shape: the float64 model says what the outputs should be; each backend's outputs and detections, on the first of the
inputs it is timed with, are compared with that; those that pass are timed together, interleaved. A backend that fails,
or runs elsewhere than it was told to, gets a row that says why and shows no speed.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rdfa.bench import candidates as candidates_
from rdfa.bench import timing
from rdfa.bench.candidates import PLAIN, PUBLISHED, Candidate, Inputs, Oracle, Sweep
from rdfa.bench.cold_start import Shape
from rdfa.bench.load import Watch
from rdfa.bench.results import Row
from rdfa.errors import UsageError

SCENARIO = "sweep"
TWIN = "A/A twin"
INPUTS = 3
# Whose speed the others are compared with: the first that is there.
REFERENCES = (PUBLISHED, PLAIN, "eager")


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
    opened: Sequence[Candidate],
    oracle: Oracle,
    *,
    on_device: Callable[[Callable[[], object]], bool],
    clock: timing.Clock = time.perf_counter,
    progress: Callable[[str], None] = lambda line: None,
) -> list[Row]:
    """All rows of the sweep, those of one shape and dtype together.

    Args:
        opened: from `candidates.open_all`, of one dtype or several.
        oracle: the float64 model. on_device: see `rdfa.bench.witness`.
        progress: called with a line before each step that takes long.
    """
    rows = []
    for shape in sweep.shapes:
        label = f"batch {shape.batch}, time {shape.time}"
        inputs = make_inputs(shape, sweep.channels)
        progress(f"{label}: float64 reference")
        case = candidates_.make_case(inputs[0], oracle, clock)
        for dtype in sweep.dtypes:
            group = [c for c in opened if c.dtype == dtype]
            of_dtype = []
            for candidate in group:
                progress(f"{label}, {dtype}: parity of {candidate.name}")
                row = make_row(sweep, candidate, SCENARIO, shape)
                candidates_.check(row, candidate, case, oracle, on_device)
                of_dtype.append(row)
            _time(of_dtype, group, inputs, sweep, clock, progress)
            rows += of_dtype
    return rows


def make_row(sweep: Sweep, candidate: Candidate, scenario: str, shape: Shape) -> Row:
    """A row without figures; how the backend started is in it."""
    copies = "none" if sweep.device == "cpu" else "not counted" if sweep.resident else "counted"
    row = Row(candidate.name, sweep.device, candidate.dtype, scenario, *shape, verdict="", copies=copies)
    row.threads = sweep.threads
    if shape in candidate.starts:
        start = candidate.starts[shape]
        row.load_s, row.first_inference_ms, row.peak_memory_mb, row.device_memory_mb = start
    return row


def make_inputs(shape: Shape, channels: int) -> list[Inputs]:
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


def rotating(backend: Any, inputs: Sequence[Inputs], resident: bool) -> Callable[[int], object]:
    """A call on input number `i`, modulo how many there are."""
    if resident:
        calls = [backend.resident(*example) for example in inputs]
        return lambda i: calls[i % len(calls)]()
    return lambda i: backend.run(*inputs[i % len(inputs)])


def _time(rows: list[Row], group: list[Candidate], inputs: list[Inputs], sweep: Sweep, clock, progress) -> None:
    """Time what passed, with a twin of one backend, and fill the columns of speed."""
    calls = {
        row.backend: rotating(candidate.backend, inputs, sweep.resident)
        for row, candidate in zip(rows, group)
        if row.valid
    }
    for row in rows:
        if not row.valid:
            row.drop_speed(row.verdict)
    if not calls:
        return
    progress(f"batch {rows[0].batch}, time {rows[0].time}, {rows[0].dtype}: timing of {', '.join(calls)}")
    twin_of = next((name for name in calls if name not in REFERENCES[:2]), next(iter(calls)))
    with Watch() as watch:
        samples = timing.measure(
            calls | {TWIN: calls[twin_of]},
            sweep.seconds,
            clock,
            one_thread=sweep.one_thread,
            twins=(twin_of, TWIN),
        )
    spread = timing.compare(samples[twin_of], samples.pop(TWIN)).spread
    latency = {name: timing.latency_ms(s) for name, s in samples.items()}
    fastest = min(samples, key=lambda name: timing.compare(samples[twin_of], samples[name]).ratio)
    reference = next((name for name in REFERENCES if name in latency), None)
    for row in rows:
        if not row.valid:
            continue
        own = samples[row.backend]
        row.latency_ms, row.samples, row.warmup_calls = latency[row.backend], len(own.all), own.warmup_calls
        row.throughput_videos_per_s = row.batch / row.latency_ms["mean"] * 1e3
        row.aa_spread, row.other_load = spread, watch.other_load
        against_fastest = timing.compare(samples[fastest], own)
        row.equal_to_fastest, row.compared_by = against_fastest.equal(spread), against_fastest.clock
        if reference is not None:
            row.reference = reference
            row.speedup_vs_reference = 1 / timing.compare(samples[reference], own).ratio
