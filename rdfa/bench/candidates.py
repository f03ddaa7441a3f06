"""Backends on their way to rows: opened, looked at, and compared with the float64 model before anything is timed."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from rdfa.bench.cold_start import Shape, Start
from rdfa.bench.parity import compare_detections, compare_outputs
from rdfa.bench.results import Row
from rdfa.errors import RunError, UsageError
from rdfa.inference.decode import Detections
from rdfa.runtime.session import Outputs

PLAIN, PUBLISHED = "eager_plain", "published"
# A plain run that takes longer than this per call is left out of the timing (the float64 run takes about as long).
PLAIN_LIMIT_S = 60.0

Inputs = tuple[np.ndarray, np.ndarray]


class Oracle(Protocol):
    """What `rdfa.bench.reference.PlainDetector` does for the benchmark."""

    def exact(self, features: np.ndarray, mask: np.ndarray) -> Outputs: ...

    def rounded(self, features: np.ndarray, mask: np.ndarray, dtype: str) -> Outputs: ...

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
    dtypes: tuple[str, ...] = ("float32",)
    resident: bool = False  # inputs lie on the device, outputs stay there

    @property
    def one_thread(self) -> bool:
        return self.device == "cpu" and self.threads == 1


@dataclass
class Candidate:
    """One backend in one dtype; `verdict` is why it cannot be timed."""

    name: str
    dtype: str
    backend: Any = None
    verdict: str = ""
    starts: dict[Shape, Start] = field(default_factory=dict)


@dataclass
class Case:
    """One input, and what should come out of it."""

    inputs: Inputs
    exact: Outputs
    expected: list[Detections]
    lengths: list[int]
    exact_s: float
    rounded: dict[str, Outputs] = field(default_factory=dict)  # of the plain operators, by dtype


def make_case(inputs: Inputs, oracle: Oracle, clock: Callable[[], float]) -> Case:
    start = clock()
    exact = oracle.exact(*inputs)
    seconds = clock() - start
    return Case(inputs, exact, oracle.detections(exact, inputs[1]), oracle.level_lengths(inputs[1].shape[1]), seconds)


def open_all(
    sweep: Sweep, dtype: str, suite: Any, cold: Callable[..., dict[Shape, Start]], progress: Callable[[str], None]
) -> list[Candidate]:
    """All backends that were asked for, and a reference to compare their speed with.

    Raises:
        UsageError: an unknown backend. RunError: none is present, or the artifact is damaged.
    """
    reasons = _choose(suite.availability(sweep.artifact, sweep.device, dtype), sweep.backends)
    candidates = [_open(name, reason, sweep, dtype, suite, cold, progress) for name, reason in reasons.items()]
    if all(c.verdict.startswith("skipped") for c in candidates if c.name != PLAIN):
        lines = "; ".join(f"{c.name}: {c.verdict.removeprefix('skipped: ')}" for c in candidates if c.name != PLAIN)
        raise RunError(f"no backend can run this artifact on {sweep.device} in {dtype} here: {lines}")
    return candidates


def _choose(available: dict[str, str | None], wanted: tuple[str, ...]) -> dict[str, str | None]:
    for name in wanted:
        if name not in available:
            raise UsageError(f"--backends: {name!r} is unknown; valid: all, {', '.join(available)}")
    # Some reference is always there: the published one if it was asked for and can run, else the plain operators.
    if PUBLISHED not in wanted or available[PUBLISHED] is not None:
        wanted = wanted and (*wanted, PLAIN)
    return {name: reason for name, reason in available.items() if not wanted or name in wanted}


def _open(name, reason, sweep: Sweep, dtype: str, suite: Any, cold: Callable, progress: Callable) -> Candidate:
    if reason is not None:
        return Candidate(name, dtype, verdict=f"skipped: {reason}")
    try:
        backend = suite.load(sweep.artifact, name, device=sweep.device, dtype=dtype, threads=sweep.threads)
        if elsewhere(backend, sweep.device):
            return Candidate(name, dtype, verdict=elsewhere(backend, sweep.device))
        if sweep.resident and not hasattr(backend, "resident"):
            return Candidate(name, dtype, verdict="skipped: it takes its inputs from the host; leave --resident out")
        if name == PLAIN:  # nothing that is served: what it costs to start is no figure of interest
            return Candidate(name, dtype, backend)
        progress(f"{name}: start in a new process")
        starts = cold(sweep.artifact, name, sweep.device, sweep.threads, sweep.shapes, dtype)
    except UsageError as error:  # a device that this backend does not serve
        return Candidate(name, dtype, verdict=f"skipped: {line(error)}")
    except RunError as error:
        return Candidate(name, dtype, verdict=f"invalid: {line(error)}")
    return Candidate(name, dtype, backend, starts=starts)


def elsewhere(backend: Any, device: str) -> str:
    """The verdict on a backend that computes on another device than it was told to; "" for one that obeys."""
    found = backend.device.partition(":")[0]
    return "" if found == device else f"invalid: runs on {backend.device}, not on {device} as asked"


def check(
    row: Row, candidate: Candidate, case: Case, oracle: Oracle, on_device: Callable[[Callable[[], object]], bool]
) -> None:
    """Run the backend once; fill parity, detections and the verdict that follows from them.

    Args:
        on_device: whether anything ran on the row's device in the course of a call: see `rdfa.bench.witness`.
    """
    row.verdict = candidate.verdict
    if candidate.name == PLAIN and not row.verdict and case.exact_s > PLAIN_LIMIT_S:
        row.verdict = f"skipped: one call would take about {case.exact_s:.0f} s, more than {PLAIN_LIMIT_S:.0f} s"
    if row.verdict:
        return
    try:
        outputs = candidate.backend.run(*case.inputs)
        row.verdict = elsewhere(candidate.backend, row.device)
        if not row.verdict and not on_device(lambda: candidate.backend.run(*case.inputs)):
            row.verdict = f"invalid: nothing ran on {row.device} during a call, whatever the backend says"
    except Exception as error:  # whatever a backend raises says that it cannot serve this input, and belongs in its row
        row.verdict = f"invalid: raised {type(error).__name__}: {line(error)}"
    if not row.verdict:
        judge(row, outputs, case, oracle)


def judge(row: Row, outputs: Outputs, case: Case, oracle: Oracle) -> None:
    """Parity and detections of `outputs`, and the verdict."""
    baseline = None
    if row.dtype != "float32":
        if row.dtype not in case.rounded:
            case.rounded[row.dtype] = oracle.rounded(*case.inputs, row.dtype)
        baseline = case.rounded[row.dtype]
    row.parity, reason = compare_outputs(outputs, case.exact, case.lengths, baseline)
    row.verdict = f"invalid: {reason}" if reason else "valid"
    if row.valid:
        row.detections = compare_detections(oracle.detections(outputs, case.inputs[1]), case.expected)


def line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
