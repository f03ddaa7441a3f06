"""`serve_bench.py --url`: a server in place of the backends, in the same scenarios, judged in the same way."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from rdfa.bench import detector, environment, parity, reference
from rdfa.bench.artifact_command import SWEEP, Request, loadgen_request
from rdfa.bench.candidates import Candidate, Sweep
from rdfa.bench.remote import RemoteBackend
from rdfa.bench.results import Row
from rdfa.runtime import manifest as manifests

NAME = "server"


def run(
    request: Request, url: str, model: str | None, connections: int, progress: Callable[[str], None]
) -> tuple[dict[str, Any], list[Row]]:
    """The environment, which is the client's, and all rows.

    A request carries one video unless the flags ask for larger batches, so that it is the server that batches.

    Args:
        connections: requests under way at a time in the scenarios Server and Offline.

    Raises:
        UsageError: no server there, or what the artifact cannot do. RunError: a damaged artifact.
    """
    features = manifests.read(request.artifact)["features"]
    batches = request.batches or (1,)
    sweep = Sweep(
        artifact=request.artifact,
        backends=(NAME,),
        device=RemoteBackend.device,
        shapes=detector.make_shapes(features, batches, request.times),
        channels=features["dimension"],
        seconds=request.seconds,
        threads=None,
    )
    loadgen = loadgen_request(replace(request, batches=batches))
    backend = RemoteBackend(url, model)
    opened = [Candidate(NAME, "float32", backend)]
    machine = environment.describe(request.threads)
    oracle = reference.PlainDetector(request.artifact, request.threads, request.post, request.device)
    rows: list[Row] = []
    if SWEEP in request.scenarios:
        rows += detector.run(sweep, opened, oracle, on_device=_unseen, progress=progress)
    if loadgen is not None:
        from rdfa.bench.scenarios import rows as scenario_rows

        loadgen = replace(loadgen, workers=connections)
        rows += scenario_rows.run(loadgen, sweep, opened, oracle, on_device=_unseen, progress=progress)
    machine["benchmark"] = {
        **reference.describe(request.artifact),
        "device": sweep.device,
        "url": url,
        "model": backend.model,
        "connections": connections,
        "seconds_per_row": sweep.seconds,
        "tolerance": parity.TOLERANCE,
    }
    return machine, rows


def _unseen(call: Callable[[], object]) -> bool:
    """Where a server computes cannot be told from here."""
    return True
