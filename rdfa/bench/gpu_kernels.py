"""The operators alone on a GPU: ours against mamba-ssm's and causal-conv1d's, the plain reference, and the floor.

Every result is first compared, in full, with the solution in float64. One of our kernels whose error exceeds, in any
tensor, twice that of a plain computation in float32 rounded to the same dtype shows no speed. The rival has to compute
the same thing, not as precisely: it is allowed ten times.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rdfa.bench import gpu_timing, timing
from rdfa.bench.gpu_cases import FusedCase
from rdfa.bench.gpu_limits import Limits
from rdfa.bench.gpu_providers import Provider, ours, plain, verdict_of
from rdfa.bench.gpu_rivals import rival
from rdfa.bench.gpu_solutions import solve
from rdfa.bench.kernel_rows import MODES, PLAIN, SLACK, KernelRow, judge, put_speedups, relative_l2, worst

OURS, MAMBA, TWIN = "ours", "mamba", "ours, twin"
PROVIDERS: dict[str, Provider] = {OURS: ours, MAMBA: rival, PLAIN: plain}
SLACKS = {MAMBA: 10.0}
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class Setup:
    """What all measurements of a run share.

    Attributes:
        seconds: budget of each row.
        prepare: makes of a provider's stage, and the size of the L2 cache, what is timed.
    """

    seconds: float
    limits: Limits
    device: str = "cuda"
    threads: int = 1
    providers: Mapping[str, Provider] = field(default_factory=lambda: PROVIDERS)
    prepare: Callable[..., gpu_timing.Timed] = gpu_timing.prepare
    clock: timing.Clock = time.perf_counter


def run(
    chosen: Iterable[FusedCase], setup: Setup, progress: Callable[[str], None] = lambda line: None
) -> Iterator[KernelRow]:
    """Rows of every case in both modes and all dtypes, as they are measured."""
    for case in chosen:
        for dtype_name, dtype in DTYPES.items():
            inputs = case.inputs(setup.device, dtype)
            exact = solve(case, inputs, exact=True)
            plain_errors = relative_l2(solve(case, inputs, exact=False), exact)
            for mode in MODES:
                title = f"{case.kernel}, {case.layer}, batch {case.batch}, L {case.length}, {dtype_name}, {mode}"
                progress(title)
                rows = _measure(case, mode, dtype_name, inputs, of_mode(exact, case, mode), plain_errors, setup)
                figures = [f"{r.provider} {r.p50_ms:.4g} ms" if r.p50_ms else f"{r.provider} {r.verdict}" for r in rows]
                progress(f"{title}: {', '.join(figures)}")
                yield from rows


def of_mode(results: Mapping[str, Tensor], case: FusedCase, mode: str) -> dict[str, Tensor]:
    """Of results by name those that one mode gives."""
    return {name: t for name, t in results.items() if (name == case.output) == (mode == "forward")}


def _measure(
    case: FusedCase,
    mode: str,
    dtype: str,
    inputs: dict[str, Tensor],
    exact: Mapping[str, Tensor],
    plain_errors: Mapping[str, float],
    setup: Setup,
) -> list[KernelRow]:
    """One row per provider; those with a right result take turns at being timed."""
    rows, timed = [], {}
    floor_s, floor_by = setup.limits.floor_s(case.exponentials, case.memory_bytes(inputs, mode))
    for name, provider in setup.providers.items():
        row = KernelRow(
            case.kernel, case.layer, mode, name, case.batch, case.channels, case.states or None,
            None if case.states else "+".join(map(str, case.widths)), case.length, dtype, "cuda", setup.threads, "",
            plain_relative_l2=worst({n: plain_errors[n] for n in exact}), branches=len(case.widths), directions=2,
            floor_ms=floor_s * 1e3, floor_by=floor_by,
        )  # fmt: skip
        rows.append(row)
        try:
            stage = provider(case, mode, inputs)
            row.note = stage.note
            errors = relative_l2(stage.named(stage.call(stage.arguments)), exact)
            row.relative_l2 = worst(errors)
            row.verdict = judge(errors, plain_errors, SLACKS.get(name, SLACK))
            if row.valid:
                timed[name] = setup.prepare(stage, setup.limits.l2_bytes)
        except Exception as error:  # one provider that breaks must not cost the others' figures
            row.verdict = verdict_of(error)
    _time(rows, timed, case, setup)
    return rows


def _time(rows: list[KernelRow], timed: dict[str, gpu_timing.Timed], case: FusedCase, setup: Setup) -> None:
    if OURS in timed:
        timed = timed | {TWIN: timed[OURS]}
    if not timed:
        return
    samples = timing.measure({name: t.run for name, t in timed.items()}, setup.seconds, setup.clock)
    for row in rows:
        if row.provider in samples:
            row.put_times(samples[row.provider], case.elements, timed[row.provider].calls)
            row.times_floor = row.p50_ms / row.floor_ms
        if row.provider == OURS and TWIN in samples:
            row.aa_spread = timing.compare(samples[OURS], samples[TWIN]).spread
    put_speedups(rows, PLAIN, "speedup_vs_plain")
    put_speedups(rows, MAMBA, "speedup_vs_mamba")
