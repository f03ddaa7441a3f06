"""`serve_bench.py --artifact`: from the flags to rows and reports."""

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rdfa import config
from rdfa.bench import (
    accuracy,
    backends,
    candidates,
    cold_start,
    detector,
    environment,
    parity,
    peaks,
    reference,
    resources,
    witness,
)  # fmt: skip
from rdfa.bench.candidates import Sweep
from rdfa.bench.results import Row
from rdfa.errors import UsageError
from rdfa.evaluation.given_set import GivenSet
from rdfa.inference.settings import PostProcessingSettings
from rdfa.runtime import manifest as manifests

SWEEP = "sweep"
LOADGEN = ("SingleStream", "MultiStream", "Server", "Offline")


@dataclass(frozen=True)
class Request:
    """The flags of the command, checked."""

    artifact: Path
    output: Path
    backends: tuple[str, ...]
    device: str
    dtypes: tuple[str, ...]
    scenarios: tuple[str, ...]
    batches: tuple[int, ...]
    times: tuple[int, ...]
    seconds: float
    threads: int
    full: bool
    resident: bool
    post: PostProcessingSettings
    p99_s: float | None = None
    rate: float | None = None
    given: GivenSet | None = None


def run(request: Request, progress: Callable[[str], None]) -> tuple[dict[str, Any], list[Row]]:
    """The environment and all rows.

    Raises:
        UsageError: what the artifact or the machine cannot do. RunError: a damaged artifact, no backend at all.
    """
    manifest = manifests.read(request.artifact)
    if request.device == "cuda" and reference.resolve_device("auto") != "cuda":
        raise UsageError("--device cuda: torch finds no CUDA device here; use --device cpu")
    if request.resident and request.device == "cpu":
        raise UsageError("--resident keeps inputs on a GPU: it goes with --device cuda")
    sweep = Sweep(
        artifact=request.artifact,
        backends=request.backends,
        device=request.device,
        shapes=detector.make_shapes(manifest["features"], request.batches, request.times),
        channels=manifest["features"]["dimension"],
        seconds=request.seconds,
        threads=request.threads,
        dtypes=request.dtypes,
        resident=request.resident,
    )
    loadgen = loadgen_request(request)
    with _pinned_to_cores(request.threads) as cores:
        machine = environment.describe(request.threads)
        oracle = reference.PlainDetector(request.artifact, request.threads, request.post, request.device)
        progress("the machine's peaks")
        machine["peaks"] = peaks.measure(request.device, request.dtypes, request.threads)
        opened = [
            candidate
            for dtype in request.dtypes
            for candidate in candidates.open_all(sweep, dtype, backends, cold_start.measure, progress)
        ]
        on_device, rows = witness.on_device(request.device), []
        if SWEEP in request.scenarios:
            rows += detector.run(sweep, opened, oracle, on_device=on_device, progress=progress)
        if loadgen is not None:
            from rdfa.bench.scenarios import rows as scenario_rows

            rows += scenario_rows.run(loadgen, sweep, opened, oracle, on_device=on_device, progress=progress)
        resources.fill(rows, sweep, opened, machine["peaks"])
        if request.given is not None:
            settings = config.from_text(manifest["config"])
            accuracy.fill(rows, request.given, opened, settings, request.post, manifest["classes"], progress)
    machine["benchmark"] = {
        **reference.describe(request.artifact),
        "device": sweep.device,
        "seconds_per_row": sweep.seconds,
        "cores": cores,
        "tolerance": parity.TOLERANCE,
    }
    return machine, rows


def loadgen_request(request: Request) -> Any:
    """The request of the LoadGen scenarios, None when there are none.

    Raises:
        UsageError: the package is missing.
    """
    wanted = tuple(name for name in request.scenarios if name in LOADGEN)
    if not wanted:
        return None
    try:
        from rdfa.bench.scenarios import loadgen, rows
    except ModuleNotFoundError as error:
        raise UsageError(f"--scenarios {wanted[0]} needs mlcommons-loadgen: pip install 'rdfa-s6[bench]'") from error
    features = manifests.read(request.artifact)["features"]
    return rows.Request(
        scenarios=wanted,
        mode=loadgen.FULL if request.full else loadgen.QUICK,
        time=max(request.times or (features["max_seq_len"],)),
        group=max(request.batches or (2,)),
        logs=request.output / "loadgen",
        p99_s=request.p99_s,
        rate=request.rate,
    )


@contextlib.contextmanager
def _pinned_to_cores(threads: int) -> Iterator[list[int] | None]:
    """Keep this thread, and those and the processes that it starts, on as many cores as it may use threads."""
    if not hasattr(os, "sched_setaffinity"):
        yield None
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:threads])
    try:
        yield sorted(os.sched_getaffinity(0))
    finally:
        os.sched_setaffinity(0, before)
