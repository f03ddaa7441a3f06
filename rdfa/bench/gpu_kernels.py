"""The operators alone on a GPU: ours against mamba-ssm's and causal-conv1d's, the plain reference, and the floor.

Every result is first compared, in full, with the solution in float64. One of our kernels whose error exceeds, in any
tensor, twice what plain computations leave in the same dtype shows no speed. These are the solution in float32, rounded
once, and the plain reference, which sums in another order; where that is too slow, mamba-ssm's kernel. Of the others it
is only asked that they compute the same thing: they are allowed thirty times the error of the solution in float32.
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
from rdfa.bench.kernel_rows import MODES, PLAIN, KernelRow, judge, put_speedups, relative_l2, worst

OURS, MAMBA, TWIN = "ours", "mamba", "ours, twin"
PROVIDERS: dict[str, Provider] = {OURS: ours, MAMBA: rival, PLAIN: plain}
OTHERS_SLACK = 30.0
ROUNDING = "rounding"
MEASURES = {PLAIN: "the plain reference", MAMBA: "mamba-ssm", ROUNDING: "the solution in float32"}
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
            rounding = relative_l2(solve(case, inputs, exact=False), exact)
            for mode in MODES:
                title = f"{case.kernel}, {case.layer}, batch {case.batch}, L {case.length}, {dtype_name}, {mode}"
                progress(title)
                rows = _measure(case, mode, dtype_name, inputs, of_mode(exact, case, mode), rounding, setup)
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
    rounding: Mapping[str, float],
    setup: Setup,
) -> list[KernelRow]:
    """One row per provider; those with a right result take turns at being timed."""
    floor_s, floor_by = setup.limits.floor_s(case.exponentials, case.memory_bytes(inputs, mode))
    rows, stages, errors = {}, {}, {}
    for name, provider in setup.providers.items():
        row = rows[name] = KernelRow(
            case.kernel, case.layer, mode, name, case.batch, case.channels, case.states or None,
            None if case.states else "+".join(map(str, case.widths)), case.length, dtype, "cuda", setup.threads, "",
            branches=len(case.widths), directions=2, floor_ms=floor_s * 1e3, floor_by=floor_by,
        )  # fmt: skip
        try:
            stage = stages[name] = provider(case, mode, inputs)
            row.note = stage.note
            errors[name] = relative_l2(stage.named(stage.call(stage.arguments)), exact)
            row.relative_l2 = worst(errors[name])
        except Exception as error:  # one provider that breaks must not cost the others' figures
            row.verdict = verdict_of(error)
    timed = {}
    measure, plain_errors = _measure_of_ours(errors, {name: rounding[name] for name in exact})
    for name, found in errors.items():
        row = rows[name]
        row.plain_relative_l2 = worst(plain_errors)
        if name == OURS:
            row.verdict = judge(found, plain_errors, measure=measure)
        else:
            row.verdict = judge(found, rounding, OTHERS_SLACK, MEASURES[ROUNDING])
        if row.valid:
            try:
                timed[name] = setup.prepare(stages[name], setup.limits.l2_bytes)
            except Exception as error:
                row.verdict = verdict_of(error)
    _time(rows.values(), timed, case, setup)
    return list(rows.values())


def _measure_of_ours(
    errors: Mapping[str, Mapping[str, float]], rounding: Mapping[str, float]
) -> tuple[str, dict[str, float]]:
    """What the errors of our kernels are measured by, and its own error of each tensor; see the module."""
    for name in (PLAIN, MAMBA):
        if name in errors and judge(errors[name], rounding, OTHERS_SLACK) == "valid":
            return MEASURES[name], {tensor: max(rounding[tensor], errors[name][tensor]) for tensor in rounding}
    return MEASURES[ROUNDING], dict(rounding)


def _time(rows: Iterable[KernelRow], timed: dict[str, gpu_timing.Timed], case: FusedCase, setup: Setup) -> None:
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
