"""The rows of `rdfa.bench.kernels` as CSV, JSON, plot and table."""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from rdfa.bench import environment as environments
from rdfa.bench.kernels import MODES, NATIVE, PLAIN, KernelRow
from rdfa.bench.results import replacing, write_json

COLUMNS = (
    "kernel", "layer", "batch", "D", "N/W", "L", "dtype", "mode", "native ms", "ns/element", "plain ms", "speed-up",
    "error",
)  # fmt: skip


def stamp(rows: Iterable[KernelRow], environment: dict[str, Any]) -> None:
    """Put machine, commit and time in every row: a row says where it comes from wherever it is copied to."""
    for row in rows:
        row.machine = environments.summary(environment)
        row.git_commit, row.time = environment["git_commit"], environment["time"]


def write(output: Path, environment: dict[str, Any], rows: Sequence[KernelRow]) -> None:
    """Write kernels.csv, kernels.json and kernels.png into `output`."""
    output.mkdir(parents=True, exist_ok=True)
    stream = io.StringIO()
    writer = csv.DictWriter(stream, [field.name for field in fields(KernelRow)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    with replacing(output / "kernels.csv") as temporary:
        temporary.write_text(stream.getvalue(), encoding="utf-8")
    write_json(output / "kernels.json", {"environment": environment, "rows": [asdict(row) for row in rows]})
    with replacing(output / "kernels.png") as temporary:
        temporary.write_bytes(_png(rows))


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


def _figure(value: float | None, form: str, unit: str = "") -> str:
    return "" if value is None else f"{value:{form}}{unit}"


def _png(rows: Sequence[KernelRow]) -> bytes:
    """Time of the scans over length, both axes logarithmic; one panel per mode, one line per provider and dtype."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, mode in zip(figure.subplots(1, len(MODES)), MODES):
        axes.set(title=f"selective scan, {mode}", xlabel="length", ylabel="ms", xscale="log", yscale="log")
        axes.grid(alpha=0.3)
        lines: dict[str, dict[int, float]] = {}
        for row in rows:
            if row.p50_ms and row.mode == mode and row.states and row.layer != "stem gate":
                key = f"{row.provider}, {row.dtype}, batch {row.batch}"
                lines.setdefault(key, {})[row.length] = row.p50_ms
        for label, points in lines.items():
            axes.plot(*zip(*sorted(points.items())), marker="o", markersize=3, label=label)
        if lines:
            lengths = sorted({length for points in lines.values() for length in points})
            axes.set_xticks(lengths, [str(value) for value in lengths])
            axes.minorticks_off()
            axes.legend(fontsize="x-small")
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return stream.getvalue()
