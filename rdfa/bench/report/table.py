"""The tables of a result, and what has to be said beside them."""

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from rdfa.bench import environment as environments
from rdfa.bench.results import Row

SWEEP = (
    "backend", "batch", "time", "p50 ms", "p90 ms", "p99 ms", "videos/s", "speed-up", "% peak", "memory MB", "load s",
    "first ms", "max |d|", "detections",
)  # fmt: skip
LOADGEN = (
    "scenario", "backend", "batch", "LoadGen", "videos/s", "p50 ms", "p90 ms", "p99 ms", "target/s", "bound ms",
    "max |d|", "detections",
)  # fmt: skip
# Columns that appear when any row has something in them.
OPTIONAL = {
    "dtype": lambda row: row.dtype,
    "device MB": lambda row: _number(row.device_memory_mb),
    "J/video": lambda row: _number(row.energy_j_per_video),
    "mAP": lambda row: "" if row.average_map is None else f"{row.average_map:.4f}",
}
# Load per core before the measurement, and cores that others took during it, above which the table says so.
BUSY, TAKEN = 0.5, 0.2


def tables(rows: Sequence[Row]) -> list[tuple[tuple[str, ...], list[Row], list[list[str]]]]:
    """(column names, rows, their cells) of the sweep and of the LoadGen scenarios, measured rows alone."""
    found = []
    for names, cells, chosen in (
        (SWEEP, _sweep_cells, [row for row in rows if row.loadgen is None]),
        (LOADGEN, _loadgen_cells, [row for row in rows if row.loadgen is not None]),
    ):
        measured = [row for row in chosen if row.valid]
        extra = {name: cell for name, cell in OPTIONAL.items() if _wanted(name, cell, measured)}
        if measured:
            lines = [cells(row) + [cell(row) for cell in extra.values()] for row in measured]
            found.append((names + tuple(extra), measured, lines))
    return found


def _wanted(name: str, cell, rows: Sequence[Row]) -> bool:
    shown = {cell(row) for row in rows}
    return shown != {"float32"} if name == "dtype" else bool(shown - {""})


def print_table(environment: dict[str, Any], rows: Sequence[Row], console: Console) -> None:
    """The tables of measured rows, then the rows without a speed with their reasons."""
    for names, measured, lines in tables(rows):
        table = Table(box=box.SIMPLE_HEAD)
        for index, name in enumerate(names):
            table.add_column(name, justify="left" if index == 0 or name == "backend" else "right", no_wrap=True)
        for i, (row, cells) in enumerate(zip(measured, lines)):
            last = i + 1 == len(measured) or _group(measured[i + 1]) != _group(row)
            table.add_row(*cells, style="bold" if row.equal_to_fastest else None, end_section=last)
        console.print(table)
    console.print(environments.summary(environment), highlight=False, markup=False)
    for line in notes(environment, rows):
        console.print(line, highlight=False, markup=False)


def notes(environment: dict[str, Any], rows: Sequence[Row]) -> list[str]:
    """What the tables do not say by themselves: how to read them, how far to trust them, and why rows are missing."""
    lines = []
    load, cores = environment["load_average"], environment["cpu"]["available"]
    if load is not None and load > BUSY * cores:
        lines.append(f"Other programs were running (load {load:g} on {cores} cores): the figures are disturbed.")
    taken = max((row.other_load for row in rows if row.other_load is not None), default=0.0)
    if taken > TAKEN:
        lines.append(f"Other programs took up to {taken:.2g} cores during a row: its times are longer for it.")
    spreads = [row.aa_spread for row in rows if row.aa_spread is not None]
    if spreads:
        clock = " in CPU time" if any(row.compared_by == "cpu" for row in rows) else ""
        lines.append(
            f"= marks the fastest of a batch and time and what cannot be told apart from it; two runs of the same "
            f"backend differed by up to {max(spreads):.1%}{clock}."
        )
    references = sorted({row.reference for row in rows if row.reference})
    if references:
        lines.append(f"Speed-up is against {' or '.join(references)}; max |d| is against the float64 model.")
    gates = environment["benchmark"].get("map_gates", {}).items() if any(row.dtype == "int8" for row in rows) else ()
    for name, gate in gates:
        lines.append(
            f"{name}, when exported: average mAP {gate['average_map']:.4f} on {gate['videos']} videos of "
            f"{gate['annotations']}, float32 {gate['float32_average_map']:.4f}."
        )
    copies = {row.copies for row in rows if row.valid} & {"counted", "not counted"}
    if copies:
        lines.append(f"Copies between host and device are {' or '.join(sorted(copies))}.")
    few = min((row.samples for row in rows if row.valid and row.loadgen is None), default=100)
    if few < 100:
        lines.append(f"Rows have as few as {few} timed calls (see results.json); below 100, p99 is the slowest.")
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        where = f"{row.batch}x{row.time}" if row.loadgen is None and row.scenario == "sweep" else row.scenario
        if not row.valid:
            reasons.setdefault((row.backend, row.verdict), []).append(where)
        elif row.loadgen is not None and row.loadgen["reasons"]:
            why = f"LoadGen {row.loadgen['result']}: {'; '.join(row.loadgen['reasons'])}"
            reasons.setdefault((row.backend, why), []).append(where)
    return lines + [
        f"{name} ({', '.join(dict.fromkeys(places))}): {verdict}" for (name, verdict), places in reasons.items()
    ]


def _group(row: Row) -> tuple:
    return (row.batch, row.time, row.dtype) if row.loadgen is None else (row.scenario,)


def _sweep_cells(row: Row) -> list[str]:
    return [
        row.backend + (" =" if row.equal_to_fastest else ""),
        str(row.batch),
        str(row.time),
        *(_number(row.latency_ms[name]) for name in ("p50", "p90", "p99")),
        _number(row.throughput_videos_per_s),
        "" if row.speedup_vs_reference is None else f"{_number(row.speedup_vs_reference)}x",
        _number(row.percent_of_peak),
        _number(row.peak_memory_mb),
        _number(row.load_s),
        _number(row.first_inference_ms),
        *_accuracy(row),
    ]


def _loadgen_cells(row: Row) -> list[str]:
    latency = row.latency_ms or {}
    return [
        row.scenario,
        row.backend,
        str(row.batch),
        row.loadgen["result"],
        _number(row.throughput_videos_per_s),
        *(_number(latency.get(name)) for name in ("p50", "p90", "p99")),
        _number(row.loadgen["target_qps"]),
        _number(row.loadgen["p99_bound_ms"]),
        *_accuracy(row),
    ]


def _accuracy(row: Row) -> list[str]:
    found = row.detections
    return [f"{row.parity['max_abs']:.1e}", f"{found['matched']}/{found['reference_count']}"]


def _number(value: float | None) -> str:
    """Three significant digits, no exponent; "0" for nothing at all, empty for None."""
    if value is None:
        return ""
    if value >= 100 or value == 0:
        return f"{value:.0f}"
    return f"{value:#.3g}" if value >= 1e-3 else f"{value:.4f}"
