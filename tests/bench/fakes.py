"""A clock that only moves when told to, and a runtime whose backends take exactly the time they are given."""

import random
from collections.abc import Callable

import numpy as np

from rdfa.bench.cold_start import Shape, Start
from rdfa.errors import UsageError
from rdfa.inference.decode import Detections
from rdfa.runtime.session import Outputs

CHANNELS, CLASSES = 4, 3
FEATURES = {"dimension": CHANNELS, "max_seq_len": 256, "multiple": 32, "max_time": 512}
MACHINE = {
    "time": "2026-01-01T00:00:00+00:00",
    "cpu": {"model": "<Imaginary> CPU", "architecture": "x86_64", "isa": ["avx2"], "logical": 4, "available": 2},
    "gpu": None,
    "gpu_details": None,
    "memory_gb": 8.0,
    "os": "Linux",
    "python": "3.12",
    "packages": {"torch": "2.13.0"},
    "git_commit": None,
    "threads": 2,
    "allocator": {"MALLOC_ARENA_MAX": "1"},
    "load_average": 0.5,
    "benchmark": {"artifact": "tiny", "seconds_per_row": 1.0, "tolerance": {"absolute": 1e-4}},
}


class FakeClock:
    """Seconds since it was made; `sleep` is what passes the time."""

    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def noisy_call(clock: FakeClock, seconds: float, noise: float, seed: int) -> Callable[[int], None]:
    """A call that takes `seconds`, more or less `noise` of it."""
    rng = random.Random(seed)
    return lambda i: clock.sleep(seconds * (1 + noise * rng.uniform(-1, 1)))


def outputs_of(features: np.ndarray, mask: np.ndarray) -> Outputs:
    """What a right backend gives: one point per step, some function of the features."""
    logits = np.stack([features.sum(1), features[:, 0], -features[:, 1]], -1)
    offsets = np.abs(features[:, :2].transpose(0, 2, 1))
    return Outputs(logits, offsets, mask)


class FakeSession:
    def __init__(self, runtime: "FakeRuntime", name: str, device: str):
        self.device = runtime.devices.get(name, device)
        self._runtime, self._name = runtime, name

    def run(self, features: np.ndarray, mask: np.ndarray):
        self._runtime.clock.sleep(self._runtime.seconds[self._name])
        change = self._runtime.change.get(self._name, lambda *outputs: outputs)
        return Outputs(*change(*outputs_of(features, mask)))


class FakeRuntime:
    """Backends by name: seconds per call, and optionally a missing extra, another device or a changed result."""

    def __init__(self, clock: FakeClock, seconds: dict[str, float], missing=None, devices=None, change=None):
        self.clock, self.seconds = clock, seconds
        self.missing, self.devices, self.change = missing or {}, devices or {}, change or {}

    def availability(self, artifact, device, dtype) -> dict[str, str | None]:
        return {name: None for name in self.seconds} | self.missing

    def load(self, artifact, backend: str, device: str, dtype: str, threads: int | None) -> FakeSession:
        if device == "cuda" and self.devices.get(backend) == "refuses":
            raise UsageError(f"backend {backend} has no device 'cuda': this artifact runs on 'cpu'")
        return FakeSession(self, backend, device)


class FakeOracle:
    """The right outputs, in the given seconds."""

    def __init__(self, clock: FakeClock, seconds: float = 1.0):
        self.clock, self.seconds = clock, seconds

    def exact(self, features, mask):
        self.clock.sleep(self.seconds)
        logits, offsets, point_mask = outputs_of(features, mask)
        return Outputs(logits.astype(np.float64), offsets.astype(np.float64), point_mask)

    def rounded(self, features, mask, dtype):
        """Off by what a half may be off by."""
        logits, offsets, point_mask = self.exact(features, mask)
        return Outputs(logits + 1e-2, offsets, point_mask)

    def detections(self, outputs, mask):
        """The best step of every video."""
        found = []
        for logits in outputs[0]:
            step = logits[:, 0].argmax()
            segment = np.array([[step, step + 1.0]])
            found.append(Detections(segment, logits[step, :1], np.array([0])))
        return found

    def level_lengths(self, time):
        return [time]


def cold(artifact, backend, device, threads, shapes, dtype) -> dict[Shape, Start]:
    return {shape: Start(0.5, 12.0, 100.0 + shape.batch) for shape in shapes}
