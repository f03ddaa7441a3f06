"""What a user sees of a result: the table on the terminal, the plot, and a page that needs no network."""

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from rdfa.bench import environment as environments
from rdfa.bench import results
from rdfa.bench.results import Row, write_json
from rdfa.files import replacing
from rdfa.html_page import document

COLUMNS = (
    "backend", "batch", "time", "p50 ms", "p90 ms", "p99 ms", "videos/s", "speed-up", "memory MB", "load s", "first ms",
    "max |d|", "detections",
)  # fmt: skip


# Load per core before the measurement above which the table says that it was disturbed.
BUSY = 0.5


def write(output: Path, environment: dict[str, Any], rows: Sequence[Row]) -> None:
    """Write results.json, latency.png and report.html into `output`, each under its name only when complete."""
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / "results.json", results.document(environment, list(rows)))
    picture = latency_png(rows)
    with replacing(output / "latency.png") as temporary:
        temporary.write_bytes(picture)
    with replacing(output / "report.html") as temporary:
        temporary.write_text(page(environment, rows, picture), encoding="utf-8")


def print_table(environment: dict[str, Any], rows: Sequence[Row], console: Console) -> None:
    """The table of measured rows, then the rows without a speed with their reasons."""
    table = Table(box=box.SIMPLE_HEAD, caption=environments.summary(environment), caption_justify="left")
    for index, name in enumerate(COLUMNS):
        table.add_column(name, justify="left" if index == 0 else "right", no_wrap=True)
    measured = [row for row in rows if row.valid]
    for i, row in enumerate(measured):
        last_of_shape = i + 1 == len(measured) or _shape(measured[i + 1]) != _shape(row)
        table.add_row(*_cells(row), style="bold" if row.equal_to_fastest else None, end_section=last_of_shape)
    console.print(table)
    for line in notes(environment, rows):
        console.print(line, highlight=False, markup=False)


def notes(environment: dict[str, Any], rows: Sequence[Row]) -> list[str]:
    """What the table does not say by itself: how to read it, how far to trust it, and why rows are missing."""
    lines = []
    load, cores = environment["load_average"], environment["cpu"]["available"]
    if load is not None and load > BUSY * cores:
        lines.append(f"Other programs were running (load {load:g} on {cores} cores): the figures are disturbed.")
    spreads = [row.aa_spread for row in rows if row.aa_spread is not None]
    if spreads:
        lines.append(
            f"= marks the fastest of a batch and time and what cannot be told apart from it; two runs of the same "
            f"backend differed by up to {max(spreads):.1%}."
        )
    references = sorted({row.reference for row in rows if row.reference})
    if references:
        lines.append(f"Speed-up is against {' or '.join(references)}; max |d| is against the float64 model.")
    few = min((row.samples for row in rows if row.valid), default=100)
    if few < 100:
        lines.append(f"Rows have as few as {few} timed calls (see results.json); below 100, p99 is the slowest.")
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if not row.valid:
            reasons.setdefault((row.backend, row.verdict), []).append(f"{row.batch}x{row.time}")
    return lines + [f"{name} ({', '.join(shapes)}): {verdict}" for (name, verdict), shapes in reasons.items()]


def _shape(row: Row) -> tuple[int, int]:
    return row.batch, row.time


def _cells(row: Row) -> list[str]:
    latency = row.latency_ms
    found = row.detections
    return [
        row.backend + (" =" if row.equal_to_fastest else ""),
        str(row.batch),
        str(row.time),
        *(_number(latency[name]) for name in ("p50", "p90", "p99")),
        _number(row.throughput_videos_per_s),
        "" if row.speedup_vs_reference is None else f"{_number(row.speedup_vs_reference)}x",
        _number(row.peak_memory_mb),
        _number(row.load_s),
        _number(row.first_inference_ms),
        f"{row.parity['max_abs']:.1e}",
        f"{found['matched']}/{found['reference_count']}",
    ]


def _number(value: float | None) -> str:
    """Three significant digits, no exponent; empty for None."""
    if value is None:
        return ""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:#.3g}" if value >= 1e-3 else f"{value:.4f}"


def latency_png(rows: Sequence[Row]) -> bytes:
    """Median latency over time, one line per backend and batch, both axes logarithmic; bars reach to p99."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator

    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xscale="log", yscale="log", xlabel="time (feature vectors)", ylabel="latency (ms)")
    measured = [row for row in rows if row.valid]
    names = list(dict.fromkeys(row.backend for row in measured))
    batches = sorted({row.batch for row in measured})
    for i, name in enumerate(names):
        for j, batch in enumerate(batches):
            line = sorted((r for r in measured if (r.backend, r.batch) == (name, batch)), key=lambda r: r.time)
            if not line:
                continue
            medians = [row.latency_ms["p50"] for row in line]
            to_p99 = [row.latency_ms["p99"] - row.latency_ms["p50"] for row in line]
            axes.errorbar(
                [row.time for row in line],
                medians,
                yerr=[[0] * len(line), to_p99],
                color=f"C{i}",
                linestyle=("-", "--", ":", "-.")[j % 4],
                marker="o",
                markersize=4,
                capsize=2,
                label=f"{name}, batch {batch}",
            )
    if measured:
        times = sorted({row.time for row in measured})
        axes.set_xticks(times, [str(value) for value in times])
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.minorticks_off()
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        figure.legend(fontsize="small", loc="outside right upper")
    axes.grid(alpha=0.3)
    axes.set_title("median latency; bars reach to p99")
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return stream.getvalue()


_STYLE = """
tr.fastest { font-weight: 600; }
img { max-width: 100%; height: auto; background: #fff; }
dt { font-weight: 600; } dd { margin: 0 0 .4rem 0; overflow-wrap: anywhere; }
"""


def page(environment: dict[str, Any], rows: Sequence[Row], picture: bytes) -> str:
    """report.html: everything inline, nothing fetched."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in COLUMNS)
    body = "".join(
        f"<tr{' class=fastest' if row.equal_to_fastest else ''}>"
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in _cells(row))
        + "</tr>\n"
        for row in rows
        if row.valid
    )
    remarks = "".join(f"<li>{html.escape(line)}</li>\n" for line in notes(environment, rows))
    facts = "".join(
        f"<dt>{html.escape(name)}</dt><dd>{html.escape(_plain_text(value))}</dd>\n"
        for name, value in environment.items()
    )
    image = base64.b64encode(picture).decode()
    body = f"""<p>{html.escape(environments.summary(environment))}</p>
<div class="wide"><table>
<thead><tr>{head}</tr></thead>
<tbody>
{body}</tbody>
</table></div>
<ul>
{remarks}</ul>
<img alt="Latency over time per backend" src="data:image/png;base64,{image}">
<h2>Environment</h2>
<dl>
{facts}</dl>
"""
    return document(f"Serving benchmark: {environment['benchmark']['artifact']}", body, _STYLE)


def _plain_text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k}: {_plain_text(v)}" for k, v in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(_plain_text, value))
    return "none" if value is None else str(value)
