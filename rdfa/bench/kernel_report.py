"""The rows of the operators' benchmark, of a CPU or of a GPU, as CSV, JSON, plot and tables."""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from rdfa.bench import environment as environments
from rdfa.bench import kernel_plot
from rdfa.bench.gpu_accuracy import AccuracyRow
from rdfa.bench.gpu_kernels import MAMBA, OURS
from rdfa.bench.kernel_cases import NATIVE
from rdfa.bench.kernel_rows import PLAIN, KernelRow
from rdfa.bench.results import write_json
from rdfa.files import replacing

COLUMNS = (
    "kernel", "layer", "batch", "D", "N/W", "L", "dtype", "mode", "native ms", "ns/element", "plain ms", "speed-up",
    "error",
)  # fmt: skip
GPU_COLUMNS = (
    "layer", "batch", "K x D", "L", "dtype", "mode", "ours ms", "mamba ms", "plain ms", "speed-up", "floor ms",
    "x floor", "A/A", "error", "mamba's",
)  # fmt: skip
ACCURACY_COLUMNS = ("tensor", "dtype", "L", "ours", "mamba's", "plain", "ratio", "growth", "verdict")


def stamp(rows: Iterable[KernelRow | AccuracyRow], environment: dict[str, Any]) -> None:
    """Put machine, commit and time in every row: a row says where it comes from wherever it is copied to."""
    for row in rows:
        row.machine = environments.summary(environment)
        row.git_commit, row.time = environment["git_commit"], environment["time"]


def write(
    output: Path, environment: dict[str, Any], rows: Sequence[KernelRow], accuracy: Sequence[AccuracyRow] = ()
) -> None:
    """Write kernels.csv, kernels.json and kernels.png into `output`; accuracy.csv too where there is such a table."""
    output.mkdir(parents=True, exist_ok=True)
    document = {"environment": environment, "rows": [asdict(row) for row in rows]}
    _write_csv(output / "kernels.csv", KernelRow, rows)
    if accuracy:
        document["accuracy"] = [asdict(row) for row in accuracy]
        _write_csv(output / "accuracy.csv", AccuracyRow, accuracy)
    write_json(output / "kernels.json", document)
    with replacing(output / "kernels.png") as temporary:
        temporary.write_bytes(kernel_plot.png(rows))


def _write_csv(path: Path, kind: type, rows: Sequence[Any]) -> None:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, [field.name for field in fields(kind)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    with replacing(path) as temporary:
        temporary.write_text(stream.getvalue(), encoding="utf-8")


def cells(rows: Sequence[KernelRow]) -> Iterator[tuple[str, ...]]:
    """One line per operator, size, dtype and mode, under `COLUMNS`; a reason in the place of a time that is missing."""
    by_provider = [[row for row in rows if row.provider == provider] for provider in (NATIVE, PLAIN)]
    for native, plain in zip(*by_provider):
        size = (native.batch, native.channels, native.states or native.width, native.length)
        yield (
            native.kernel, native.layer, *map(str, size), native.dtype, native.mode,
            _figure(native.p50_ms, ".4g") or native.verdict, _figure(native.ns_per_element, ".3g"),
            _figure(plain.p50_ms, ".4g") or plain.verdict, _figure(native.speedup_vs_plain, ".1f", "x"),
            _figure(native.relative_l2, ".1e"),
        )  # fmt: skip


def gpu_cells(rows: Sequence[KernelRow]) -> Iterator[tuple[str, ...]]:
    """One line per size, dtype and mode of one operator, under `GPU_COLUMNS`; `gpu_notes` has the reasons of gaps."""
    measurements: dict[tuple, dict[str, KernelRow]] = {}
    for row in rows:
        key = (row.layer, row.batch, row.length, row.dtype, row.mode)
        measurements.setdefault(key, {})[row.provider] = row
    for found in measurements.values():
        ours, mamba, plain = found[OURS], found[MAMBA], found[PLAIN]
        yield (
            ours.layer, str(ours.batch), f"{ours.branches} x {ours.channels}", str(ours.length), ours.dtype, ours.mode,
            *(_figure(row.p50_ms, ".4g") or row.verdict.split(":")[0] for row in (ours, mamba, plain)),
            _figure(ours.speedup_vs_mamba, ".2f", "x"), _figure(ours.floor_ms, ".4g"),
            _figure(ours.times_floor, ".2f"), _figure(ours.aa_spread, ".1%"), _figure(ours.relative_l2, ".1e"),
            _figure(mamba.relative_l2, ".1e"),
        )  # fmt: skip


def gpu_notes(rows: Sequence[KernelRow]) -> list[str]:
    """How the rows were measured, and why times are missing."""
    notes = list(dict.fromkeys(f"{row.provider}: {row.note}" for row in rows if row.note))
    reasons: dict[str, int] = {}
    for row in rows:
        if not row.valid:
            reason = f"{row.provider}: {row.verdict}"
            reasons[reason] = reasons.get(reason, 0) + 1
    return notes + [f"{reason} ({count} rows)" for reason, count in reasons.items()]


def accuracy_cells(rows: Sequence[AccuracyRow]) -> Iterator[tuple[str, ...]]:
    for row in rows:
        yield (
            row.tensor, row.dtype, str(row.length), _figure(row.ours, ".2e"), _figure(row.mamba, ".2e"),
            _figure(row.plain, ".2e"), _figure(row.ratio, ".2f"), _figure(row.growth, ".2f"), row.verdict,
        )  # fmt: skip


def _figure(value: float | None, form: str, unit: str = "") -> str:
    return "" if value is None else f"{value:{form}}{unit}"
