"""Time of the operators over length, both axes logarithmic."""

import io
from collections.abc import Sequence

from rdfa.bench.gpu_cases import ALIGNED
from rdfa.bench.kernel_rows import MODES, KernelRow

COLOURS = {"ours": "C0", "native": "C0", "mamba": "C3", "plain": "C7"}
# Lengths that are powers of two, where mamba-ssm has a faster path, and those of the detector.
FAMILIES = {True: ("--", "s"), False: ("-", "o")}


def png(rows: Sequence[KernelRow]) -> bytes:
    """The picture of a CPU's or of a GPU's rows."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    draw = _gpu if any(row.device == "cuda" for row in rows) else _cpu
    draw(figure, rows)
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return stream.getvalue()


def _cpu(figure, rows: Sequence[KernelRow]) -> None:
    """The scans: one panel per mode, one line per provider, dtype and batch."""
    figure.set_size_inches(9, 4)
    for axes, mode in zip(figure.subplots(1, len(MODES)), MODES):
        lines: dict[str, dict[int, float]] = {}
        for row in rows:
            if row.p50_ms and row.mode == mode and row.states and row.layer != "stem gate":
                lines.setdefault(f"{row.provider}, {row.dtype}, batch {row.batch}", {})[row.length] = row.p50_ms
        for label, points in lines.items():
            axes.plot(*zip(*sorted(points.items())), marker="o", markersize=3, label=label)
        _label(axes, f"selective scan, {mode}")


def _gpu(figure, rows: Sequence[KernelRow]) -> None:
    """One branch at batch 1, by length: a row of panels per operator and dtype, a column per mode.

    The detector's own lengths are joined by a solid line, the powers of two by a dashed one.
    """
    rows = [row for row in rows if row.branches == 1 and row.batch == 1]
    panels = list(dict.fromkeys((row.kernel, row.dtype) for row in rows)) or [("", "")]
    figure.set_size_inches(11, 4 * len(panels))
    for line, (kernel, dtype) in zip(figure.subplots(len(panels), len(MODES), squeeze=False), panels):
        for axes, mode in zip(line, MODES):
            chosen = [row for row in rows if (row.kernel, row.dtype, row.mode) == (kernel, dtype, mode)]
            for aligned, (style, marker) in FAMILIES.items():
                family = sorted((r for r in chosen if (r.layer == ALIGNED) == aligned), key=lambda row: row.length)
                name = "powers of two" if aligned else "the detector's lengths"
                for provider in dict.fromkeys(row.provider for row in family):
                    timed = [row for row in family if row.provider == provider and row.p50_ms]
                    if timed:
                        axes.plot(
                            [row.length for row in timed], [row.p50_ms for row in timed], linestyle=style,
                            marker=marker, markersize=4, color=COLOURS.get(provider), label=f"{provider}, {name}",
                        )  # fmt: skip
            floors = sorted({(row.length, row.floor_ms) for row in chosen if row.floor_ms})
            if floors:
                axes.plot(*zip(*floors), color="black", linestyle=":", label="floor")
            _label(axes, f"{kernel}, {dtype}, {mode}")


def _label(axes, title: str) -> None:
    axes.set(title=title, xlabel="length", ylabel="ms", xscale="log", yscale="log")
    axes.grid(alpha=0.3)
    lengths = sorted({int(x) for line in axes.get_lines() for x in line.get_xdata()})
    if lengths:
        # 1024 and 1152 are close neighbours on this axis.
        turned = {"rotation": 90, "fontsize": "x-small"} if len(lengths) > 6 else {}
        axes.set_xticks(lengths, [str(value) for value in lengths], **turned)
        axes.minorticks_off()
        axes.legend(fontsize="x-small")
