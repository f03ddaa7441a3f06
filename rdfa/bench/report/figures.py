"""The pictures of a result, each a PNG of its own; a picture without anything to show is left out."""

import io
from collections.abc import Iterable, Sequence
from typing import Any

from rdfa.bench.results import Row

# Wide enough for a screen, letters large enough for a phone.
SIZE, DPI = (6.4, 4.4), 120
LINES = ("-", "--", ":", "-.")
TAIL = ("p50", "p90", "p95", "p97", "p99", "p99.9")


def draw(environment: dict[str, Any], rows: Sequence[Row]) -> dict[str, bytes]:
    """File name without ending -> PNG."""
    swept = [row for row in rows if row.valid and row.scenario == "sweep"]
    loaded = [row for row in rows if row.valid and row.loadgen is not None]
    drawn = {
        "latency": _scaling(swept, "time", "batch"),
        "batch": _scaling(swept, "batch", "time"),
        "throughput": _throughput(swept, loaded),
        "tails": _tails(swept, loaded),
        "roofline": _roofline(environment.get("peaks"), swept),
    }
    return {name: png for name, png in drawn.items() if png is not None}


TITLES = {
    "latency": "Latency over length; bars reach to p99",
    "batch": "Latency over batch; bars reach to p99",
    "throughput": "Throughput and the latency that it costs",
    "tails": "Tails: how late the latest are",
    "roofline": "What is used of what the machine can do",
}


def _scaling(rows: list[Row], over: str, other: str) -> bytes | None:
    """Median latency over `over`, one line per backend and `other`, both axes logarithmic."""
    if len({getattr(row, over) for row in rows}) < 2:
        return None
    figure, axes = _axes(over if over == "batch" else "time (feature vectors)", "latency (ms)")
    others = sorted({getattr(row, other) for row in rows})
    for name, color, of_name in _by_backend(rows):
        for style, value in zip(_cycle(LINES, others), others):
            line = sorted((r for r in of_name if getattr(r, other) == value), key=lambda r: getattr(r, over))
            if line:
                medians = [row.latency_ms["p50"] for row in line]
                to_p99 = [row.latency_ms["p99"] - row.latency_ms["p50"] for row in line]
                axes.errorbar(
                    [getattr(row, over) for row in line], medians, yerr=[[0] * len(line), to_p99], color=color,
                    linestyle=style, marker="o", markersize=4, capsize=2, label=f"{name}, {other} {value}",
                )  # fmt: skip
    ticks = sorted({getattr(row, over) for row in rows})
    axes.set_xticks(ticks, [str(value) for value in ticks])
    return _png(figure, axes)


def _throughput(swept: list[Row], loaded: list[Row]) -> bytes | None:
    """A line per backend through its batch sizes at the longest time; crosses are LoadGen's Server tests (p99)."""
    longest = max((row.time for row in swept), default=0)
    swept = [row for row in swept if row.time == longest]
    served = [row for row in loaded if row.scenario == "Server" and row.latency_ms]
    if not swept + served:
        return None
    figure, axes = _axes("throughput (videos/s)", "latency (ms)")
    for name, color, rows in _by_backend(swept + served):
        line = sorted((r for r in rows if r.scenario == "sweep"), key=lambda r: r.batch)
        axes.plot(
            [r.throughput_videos_per_s for r in line], [r.latency_ms["p50"] for r in line], "o-", color=color,
            markersize=4, label=name,
        )  # fmt: skip
        points = [r for r in rows if r.scenario == "Server"]
        axes.plot([r.throughput_videos_per_s for r in points], [r.latency_ms["p99"] for r in points], "x", color=color)
    axes.set_title(f"time {longest}: median over batch; x: p99 under a Poisson stream", fontsize="medium")
    return _png(figure, axes)


def _tails(swept: list[Row], loaded: list[Row]) -> bytes | None:
    """Latency over the percentile, spaced by how rare the rest is; Server tests where there are any."""
    rows = [row for row in loaded if row.scenario == "Server" and row.latency_ms]
    rows = rows or [row for row in loaded if row.scenario == "SingleStream"]
    if not rows:
        shape = max(((row.time, row.batch) for row in swept), default=None)
        rows = [row for row in swept if (row.time, row.batch) == shape]
    if not rows:
        return None
    figure, axes = _axes("percentile", "latency (ms)")
    rare = [100 / (100 - float(name[1:])) for name in TAIL]
    for name, color, of_name in _by_backend(rows):
        for row in of_name:
            axes.plot(rare, [row.latency_ms[p] for p in TAIL], "o-", color=color, markersize=4, label=name)
    axes.set_xticks(rare, [name[1:] for name in TAIL])
    axes.set_title(rows[0].scenario, fontsize="medium")
    return _png(figure, axes)


def _roofline(peaks: dict[str, Any] | None, rows: list[Row]) -> bytes | None:
    """Operations per second over operations per byte that has to be moved: weights, inputs and outputs, once."""
    rows = [row for row in rows if row.gflops and row.compulsory_mb]
    if not rows or peaks is None:
        return None
    figure, axes = _axes("operations per byte of weights, inputs, outputs", "GFLOP/s")
    intensity = {id(row): 1e3 * row.gflops / (row.compulsory_mb * 1.048576) for row in rows}
    low, high = min(intensity.values()) / 10, max(intensity.values()) * 10
    for style, dtype in zip(LINES, dict.fromkeys(row.dtype for row in rows)):
        peak, copy = peaks["matmul_gflops"][dtype], peaks["copy_gb_per_s"]
        steps = [low * (high / low) ** (i / 100) for i in range(101)]
        axes.plot(steps, [min(peak, x * copy) for x in steps], style, color="gray", label=f"peak, {dtype}")
    for name, color, of_name in _by_backend(rows):
        reached = [1e3 * row.gflops / row.latency_ms["p50"] for row in of_name]
        axes.plot([intensity[id(row)] for row in of_name], reached, "o", color=color, markersize=5, label=name)
    return _png(figure, axes)


def _by_backend(rows: Iterable[Row]) -> list[tuple[str, str, list[Row]]]:
    rows = list(rows)
    dtypes = len({row.dtype for row in rows}) > 1
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(f"{row.backend} {row.dtype}" if dtypes else row.backend, []).append(row)
    return [(name, f"C{i % 10}", group) for i, (name, group) in enumerate(groups.items())]


def _cycle(values: Sequence[str], over: Sequence) -> list[str]:
    return [values[i % len(values)] for i in range(len(over))]


def _axes(x: str, y: str):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator

    figure = Figure(figsize=SIZE, dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xscale="log", yscale="log", xlabel=x, ylabel=y)
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(plain)
    return figure, axes


def _png(figure, axes) -> bytes:
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    handles, labels = axes.get_legend_handles_labels()
    unique = dict(zip(labels, handles))
    figure.legend(unique.values(), unique.keys(), fontsize="small", loc="outside lower center", ncols=2)
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return stream.getvalue()
