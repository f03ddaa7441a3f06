"""How far our scan and mamba-ssm's are from float64, tensor by tensor, over dtypes and lengths.

The scan is the stem's: three branches, two directions, one video. Two things are asked of ours: at most `RATIO` times
mamba-ssm's error in the same dtype, and at the longest length at most `GROWTH` times its own error at the shortest.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from rdfa.bench.gpu_cases import FusedCase
from rdfa.bench.gpu_kernels import MAMBA, OURS, PROVIDERS, of_mode
from rdfa.bench.gpu_providers import Provider, verdict_of
from rdfa.bench.gpu_solutions import solve
from rdfa.bench.kernel_cases import STATES
from rdfa.bench.kernel_rows import MODES, PLAIN, relative_l2
from rdfa.modeling.fa_bi_s6 import AGGREGATED

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
LENGTHS = (64, 512, 2304, 4608)
RATIO, GROWTH = 2.0, 4.0


@dataclass
class AccuracyRow:
    """Relative L2 errors of one tensor. The order of the fields is the order of the columns in accuracy.csv."""

    tensor: str
    dtype: str
    length: int
    verdict: str
    ours: float | None = None
    mamba: float | None = None
    plain: float | None = None  # of a plain computation in float32, rounded to the dtype
    ratio: float | None = None  # ours to mamba's
    growth: float | None = None  # ours to ours at the shortest length
    machine: str = ""
    git_commit: str | None = None
    time: str = ""


def cases(channels: int, lengths: Sequence[int] = LENGTHS) -> list[FusedCase]:
    """The stem's scan of one video."""
    return [FusedCase("stem time", 1, channels, length, AGGREGATED, STATES) for length in lengths]


def run(
    chosen: Sequence[FusedCase],
    *,
    device: str = "cuda",
    providers: Mapping[str, Provider] = PROVIDERS,
    progress: Callable[[str], None] = lambda line: None,
) -> list[AccuracyRow]:
    """Rows by dtype, tensor and length."""
    rows = []
    for dtype in DTYPES:
        found = {}
        for case in chosen:
            progress(f"accuracy of the selective scan: {dtype}, L {case.length}")
            found[case.length] = _errors(case, dtype, device, providers)
        rows += _compare(dtype, found)
    return rows


Errors = dict[str, float] | str  # by tensor, or the reason why there are none


def _errors(case: FusedCase, dtype: str, device: str, providers: Mapping[str, Provider]) -> dict[str, Errors]:
    inputs = case.inputs(device, DTYPES[dtype])
    exact = solve(case, inputs, exact=True)
    found: dict[str, Errors] = {PLAIN: relative_l2(solve(case, inputs, exact=False), exact)}
    for name in (OURS, MAMBA):
        errors: dict[str, float] = {}
        try:
            for mode in MODES:
                stage = providers[name](case, mode, inputs)
                errors |= relative_l2(stage.named(stage.call(stage.arguments)), of_mode(exact, case, mode))
            found[name] = errors
        except Exception as error:  # one provider that breaks must not cost the others' figures
            found[name] = verdict_of(error)
    return found


def _compare(dtype: str, found: dict[int, dict[str, Errors]]) -> Iterator[AccuracyRow]:
    """Rows of one dtype, of what `_errors` found at each length."""
    shortest, longest = min(found), max(found)
    for tensor in found[shortest][PLAIN]:
        for length, errors in found.items():
            values = {name: _value(e, tensor) for name, e in errors.items()}
            row = AccuracyRow(tensor, dtype, length, "", **values)
            if isinstance(errors[OURS], str):
                row.verdict = errors[OURS]
            elif row.ours is None:
                row.verdict = "invalid: no finite error"
            else:
                row.ratio = row.ours / row.mamba if row.mamba else None
                base = _value(found[shortest][OURS], tensor)
                row.growth = row.ours / base if base else None
                row.verdict = _verdict(row, length == longest)
            yield row


def _value(errors: Errors, tensor: str) -> float | None:
    value = None if isinstance(errors, str) else errors[tensor]
    return value if value is not None and math.isfinite(value) else None


def _verdict(row: AccuracyRow, longest: bool) -> str:
    if row.ratio is not None and row.ratio > RATIO:
        return f"exceeds: {row.ratio:.2g} times the error of mamba-ssm, {RATIO:g} are allowed"
    if longest and row.growth is not None and row.growth > GROWTH:
        return f"exceeds: {row.growth:.2g} times the error at the shortest length, {GROWTH:g} are allowed"
    return "valid"
