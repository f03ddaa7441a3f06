"""Load time, first inference and peak memory of one backend, each in a process of its own.

In one process the backends would share imports, thread pools and freed memory, so a difference of resident memory would
say what came second and not what is large. Here a fresh process imports what its backend needs, loads the artifact
(`load_s` includes that import: it is what a server waits for), then runs every shape from the smallest to the largest.
`peak_memory_mb` is the high-water mark of the whole process after that shape, hence what a server needs that handles
sizes up to it; `first_inference_ms` is the first call with that shape. `device_memory_mb` is what the GPU's driver
counts more than before the start, the context included: allocators keep what they once took, so it is a mark too.

    python -m rdfa.bench.cold_start ARTIFACT BACKEND DEVICE THREADS|default DTYPE 1x576 2x576 ...     prints JSON
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from rdfa.bench.nvml import Nvml
from rdfa.errors import RunError

TIMEOUT_S = 1800


class Shape(NamedTuple):
    """Videos in a batch, and feature vectors per video."""

    batch: int
    time: int


class Start(NamedTuple):
    """Of one shape: see the head of this file."""

    load_s: float
    first_inference_ms: float
    peak_memory_mb: float
    device_memory_mb: float | None = None


def measure(
    artifact: Path, backend: str, device: str, threads: int | None, shapes: Iterable[Shape], dtype: str = "float32"
) -> dict[Shape, Start]:
    """Start `backend` in a new process and run each shape once.

    Raises:
        RunError: the process failed; the message ends with the last line that it wrote.
    """
    texts = [f"{shape.batch}x{shape.time}" for shape in shapes]
    command = [sys.executable, "-m", "rdfa.bench.cold_start", artifact, backend, device, threads or "default"]
    command += [dtype, *texts]
    # The package may be used from a checkout that is not installed.
    package_root = Path(__file__).resolve().parents[2]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(package_root), os.environ.get("PYTHONPATH")]))
    }
    try:
        done = subprocess.run(
            [str(part) for part in command], env=environment, capture_output=True, text=True, timeout=TIMEOUT_S
        )
    except subprocess.TimeoutExpired as error:
        raise RunError(f"{backend} did not finish {', '.join(texts)} within {TIMEOUT_S} s in a new process") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise RunError(f"{backend} does not run in a new process: {last}")
    report = json.loads(done.stdout.splitlines()[-1])
    return {Shape(*entry["shape"]): Start(report["load_s"], *entry["figures"]) for entry in report["shapes"]}


def peak_memory_mb() -> float:
    """High-water mark of this process's resident memory.

    On Linux from VmHWM: `ru_maxrss` keeps the mark of the parent that forked this process.
    """
    try:
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def _main(argv: list[str]) -> None:
    artifact, backend, device, threads, dtype, *texts = argv
    # What this process imports counts: nothing more than the measured backend needs.
    gpu = Nvml.open() if device == "cuda" else None
    before = gpu.used_mb() if gpu else 0.0
    start = time.perf_counter()
    import numpy as np

    from rdfa.runtime import manifest

    session = _load(artifact, backend, device, None if threads == "default" else int(threads), dtype)
    report = {"load_s": round(time.perf_counter() - start, 4), "shapes": []}
    channels = manifest.read(artifact)["features"]["dimension"]
    for shape in sorted((Shape(*map(int, text.split("x"))) for text in texts), key=lambda s: (s.batch * s.time, s)):
        features = np.ones((shape.batch, channels, shape.time), np.float32)
        mask = np.ones((shape.batch, shape.time), np.bool_)
        start = time.perf_counter()
        session.run(features, mask)
        first_ms = 1e3 * (time.perf_counter() - start)
        figures = [round(first_ms, 4), round(peak_memory_mb(), 1), round(gpu.used_mb() - before, 1) if gpu else None]
        report["shapes"].append({"shape": shape, "figures": figures})
    print(json.dumps(report))


def _load(artifact: str, backend: str, device: str, threads: int | None, dtype: str):
    from rdfa.bench import exported

    if backend in exported.availability(artifact) and dtype == "float32":
        return exported.load(artifact, backend, device, threads)
    from rdfa.bench import backends  # which imports torch

    return backends.load(artifact, backend, device=device, dtype=dtype, threads=threads)


if __name__ == "__main__":
    _main(sys.argv[1:])
