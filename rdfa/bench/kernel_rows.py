"""One measurement of one operator, on a CPU or on a GPU, and when its result is right enough to show a speed."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from rdfa.bench import timing

MODES = ("forward", "backward")
PLAIN = "plain"
# A kernel may be off by this many times the error of the plain computation in the same dtype.
SLACK = 2.0


@dataclass
class KernelRow:
    """One measurement. The order of the fields is the order of the columns in kernels.csv."""

    kernel: str
    layer: str
    mode: str
    provider: str
    batch: int
    channels: int
    states: int | None
    width: int | str | None  # "2+3+4": one call for several widths
    length: int
    dtype: str
    device: str
    threads: int
    verdict: str
    p20_ms: float | None = None
    p50_ms: float | None = None
    p80_ms: float | None = None
    samples: int = 0
    ns_per_element: float | None = None  # element: one (b, d, n, l) of the scan, one (b, d, l) of the convolution
    speedup_vs_plain: float | None = None
    relative_l2: float | None = None  # against float64; backward: of the worst gradient
    plain_relative_l2: float | None = None  # of what the error is measured by
    branches: int = 1  # that one call serves
    directions: int = 1
    speedup_vs_mamba: float | None = None
    floor_ms: float | None = None
    floor_by: str | None = None  # what the floor counts: "exponentials" or "memory"
    times_floor: float | None = None
    aa_spread: float | None = None  # the relative difference that two runs of the same provider showed
    note: str | None = None
    machine: str = ""
    git_commit: str | None = None
    time: str = ""

    @property
    def valid(self) -> bool:
        return self.verdict == "valid"

    def put_times(self, samples: timing.Samples, elements: int, calls: int = 1) -> None:
        """Percentiles of the time of one call, where each sample took `calls` of them."""
        times = [1e3 * s / calls for s in samples.all]
        self.p20_ms, self.p50_ms, self.p80_ms = (timing.percentile(times, p) for p in (20, 50, 80))
        self.samples = len(times)
        self.ns_per_element = self.p50_ms * 1e6 / elements


def put_speedups(rows: Iterable[KernelRow], provider: str, field: str) -> None:
    """Fill `field` of every timed row of one measurement: how many times as fast as `provider` it is."""
    timed = {row.provider: row for row in rows if row.p50_ms is not None}
    for row in timed.values():
        if provider in timed:
            setattr(row, field, timed[provider].p50_ms / row.p50_ms)


def relative_l2(result: Mapping[str, Tensor], exact: Mapping[str, Tensor]) -> dict[str, float]:
    """Relative L2 difference of each tensor; NaN where a result holds one, which no comparison accepts."""
    return {name: ((result[name].double() - e).norm() / e.norm().clamp_min(1e-30)).item() for name, e in exact.items()}


def worst(errors: Mapping[str, float]) -> float | None:
    """The largest error; None where one is no number, which a result file cannot hold."""
    return max(errors.values()) if all(map(math.isfinite, errors.values())) else None


def judge(
    errors: Mapping[str, float],
    plain: Mapping[str, float],
    slack: float = SLACK,
    measure: str = "the plain reference",
) -> str:
    """'valid', or 'invalid: ...' naming the tensor that is furthest from what is allowed.

    Args:
        plain: error of each tensor in `measure`, a computation that is known to be right.
        slack: how many times as large an error may be.
    """

    def excess(name: str) -> float:
        ratio = errors[name] / (slack * plain[name] + 1e-6)
        return math.inf if math.isnan(ratio) else ratio

    name = max(errors, key=excess)
    if excess(name) <= 1.0:
        return "valid"
    return f"invalid: relative error {errors[name]:.2g}, {measure} has {plain[name]:.2g} ({name})"
