"""Small charts as HTML and inline SVG: text stays text, and colours follow the reader's light or dark page."""

import html
import math
from collections.abc import Sequence
from typing import NamedTuple

from rdfa.evaluation.plots import TimelineRow

WIDTH, HEIGHT = 360, 230  # of a line chart, about a phone's width: text is read at its own size
LEFT, RIGHT, TOP, BOTTOM = 42, 8, 8, 34
SCORE_SHARE = 0.09  # of a time line's width that a written score takes on a phone

STYLE = """
:root { --line: #2367b0; --truth: #1b3a5c; --soft: #8882; --card: #fff; --page: #f4f6f8; --quiet: #5b6672; }
@media (prefers-color-scheme: dark) {
  :root { --line: #6fb1ff; --truth: #9db9d6; --soft: #8883; --card: #1d2229; --page: #12161b; --quiet: #a3adb8; }
}
.bars { display: grid; grid-template-columns: max-content 1fr max-content; gap: .35rem .6rem; align-items: center; }
.bars .track { height: .95rem; border-radius: .2rem; background: var(--soft); display: flex; overflow: hidden; }
.bars .track i { display: block; height: 100%; background: var(--line); }
.bars.bad .track i { background: #d9534f; }
.bars b { font-weight: 400; } .bars span, .bars b, .keys { font-size: .85rem; font-variant-numeric: tabular-nums; }
.keys { display: flex; flex-wrap: wrap; gap: .2rem .9rem; margin: .6rem 0 0; color: var(--quiet); }
.keys i { display: inline-block; width: .8rem; height: .8rem; border-radius: .15rem; margin-right: .35rem;
  vertical-align: -.08rem; }
svg { width: 100%; height: auto; display: block; max-width: 32rem; }
svg text { font: 11px system-ui, sans-serif; fill: var(--quiet); }
svg path { fill: none; stroke: var(--line); stroke-width: 1.8; stroke-linejoin: round; }
svg line { stroke: var(--soft); }
.small path { vector-effect: non-scaling-stroke; }
.lane { position: relative; height: 1.05rem; margin: .12rem 0; background: var(--soft); border-radius: .15rem; }
.lane i { position: absolute; top: 0; bottom: 0; min-width: 2px; border-radius: .15rem; background: var(--truth); }
.lane i.found { background: #e4572e; }
.lane em { position: absolute; font: 600 .68rem/1.05rem system-ui, sans-serif; padding-left: .15rem; }
.axis { display: flex; justify-content: space-between; font-size: .75rem; color: var(--quiet); }
"""


class Series(NamedTuple):
    """A line of a chart; `strength` in (0, 1] is the opacity of its colour."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    strength: float = 1.0
    color: str = "var(--line)"


def bars(rows: Sequence[tuple[str, float, str]], bad: bool = False) -> str:
    """Horizontal bars: (label, share of the width in [0, 1], text behind); of another colour where long is `bad`."""
    cells = (
        f'<b>{html.escape(label)}</b><div class="track"><i style="width:{100 * share:.2f}%"></i></div>'
        f"<span>{html.escape(text)}</span>\n"
        for label, share, text in rows
    )
    return f'<div class="bars{" bad" if bad else ""}">\n{"".join(cells)}</div>\n'


def stacks(rows: Sequence[tuple[str, Sequence[float]]], names: Sequence[str], colors: Sequence[str]) -> str:
    """Horizontal bars of shares that sum to 1, of which the first is written behind; with a legend."""
    cells = []
    for label, shares in rows:
        parts = "".join(
            f'<i style="width:{100 * share:.2f}%;background:{color}" title="{html.escape(name)}: {share:.1%}"></i>'
            for share, name, color in zip(shares, names, colors)
        )
        cells.append(f'<b>{html.escape(label)}</b><div class="track">{parts}</div><span>{shares[0]:.0%}</span>\n')
    return f'<div class="bars">\n{"".join(cells)}</div>\n{keys(zip(names, colors))}'


def keys(entries) -> str:
    """A legend of (name, CSS colour)."""
    items = (f'<span><i style="background:{color}"></i>{html.escape(name)}</span>' for name, color in entries)
    return f'<div class="keys">{"".join(items)}</div>\n'


def lines(series: Sequence[Series], x_label: str, y_label: str, y_from_zero: bool = False) -> str:
    """A line chart; a series of one point is a dot."""
    xs, ys = [x for s in series for x in s.x], [y for s in series for y in s.y]
    x_ticks, y_ticks = _ticks(min(xs), max(xs)), _ticks(0.0 if y_from_zero else min(ys), max(ys))
    x_range, y_range = (min(*xs, x_ticks[0]), max(*xs, x_ticks[-1])), (min(*ys, y_ticks[0]), max(*ys, y_ticks[-1]))

    def place_x(x: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (x - x_range[0]) / ((x_range[1] - x_range[0]) or 1)

    def place_y(y: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (y - y_range[0]) / ((y_range[1] - y_range[0]) or 1)

    parts = []
    for tick in y_ticks:
        at = place_y(tick)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{LEFT - 5}" y="{at + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in x_ticks:
        parts.append(f'<text x="{place_x(tick):.1f}" y="{HEIGHT - BOTTOM + 14}" text-anchor="middle">{tick:g}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 4}" text-anchor="middle">{html.escape(x_label)}</text>')
    for s in series:
        points = [f"{place_x(x):.1f},{place_y(y):.1f}" for x, y in zip(s.x, s.y)]
        style = f'style="stroke:{s.color};stroke-opacity:{s.strength:.2f}"'
        dot = ' stroke-linecap="round" stroke-width="6"' if len(points) == 1 else ""
        path = "L".join(points if len(points) > 1 else points * 2)
        parts.append(f'<path d="M{path}" {style}{dot}><title>{html.escape(s.name)}</title></path>')
    label = html.escape(f"{y_label} over {x_label}")
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>\n'


def small_curves(series: Sequence[Series], name: str) -> str:
    """Curves in the unit square, without numbers, to be seen beside many others."""
    paths = []
    for s in series:
        points = "L".join(f"{100 * x:.1f},{100 - 100 * y:.1f}" for x, y in zip(s.x, s.y))
        paths.append(
            f'<path d="M{points}" style="stroke-opacity:{s.strength:.2f}"><title>{html.escape(s.name)}</title></path>'
        )
    grid = "".join(
        f'<line x1="{at}" x2="{at}" y1="0" y2="100"/><line y1="{at}" y2="{at}" x1="0" x2="100"/>' for at in (0, 50, 100)
    )
    return (
        f'<svg class="small" viewBox="-1 -1 102 102" role="img" aria-label="{html.escape(name)}">'
        f"{grid}{''.join(paths)}</svg>\n"
    )


def timeline(rows: Sequence[TimelineRow], end: float, best: float, class_names) -> str:
    """One video: for each class a lane of ground truth, and lanes of detections with their scores."""
    parts = []
    for row in rows:
        lanes = [[] for _ in range(row.lanes)]
        for start, stop in row.truth:
            lanes[0].append(f'<i style="{_span(start, stop, end)}" title="{start:.1f}–{stop:.1f} s"></i>')
        ordered = sorted(row.found, key=lambda bar: (bar.lane, bar.start))
        for bar, after in zip(ordered, [*ordered[1:], None]):
            shade = 0.3 + 0.7 * bar.score / max(best, 1e-9)
            title = f"{bar.start:.1f}–{bar.end:.1f} s, score {bar.score:.3f}"
            style = _span(bar.start, bar.end, end)
            lanes[bar.lane].append(f'<i class="found" style="{style};opacity:{shade:.2f}" title="{title}"></i>')
            free = after.start if after is not None and after.lane == bar.lane else end
            if free - bar.end > SCORE_SHARE * end:
                lanes[bar.lane].append(f'<em style="left:{100 * bar.end / end:.2f}%">{bar.score:.2f}</em>')
        name = html.escape(class_names.get(row.label, str(row.label)))
        parts.append(f"<b>{name}</b>" + "".join(f'<div class="lane">{"".join(lane)}</div>' for lane in lanes))
    ticks = "".join(f"<span>{end * i / 4:.0f}</span>" for i in range(4))
    return f'{"".join(parts)}<div class="axis">{ticks}<span>{end:.0f} s</span></div>\n'


def _span(start: float, stop: float, end: float) -> str:
    return f"left:{100 * start / end:.2f}%;width:{100 * (min(stop, end) - start) / end:.2f}%"


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers that enclose [low, high]."""
    span = (high - low) or abs(high) or 1.0
    step = 10 ** math.floor(math.log10(span / 4))
    step *= next(m for m in (1, 2, 5, 10) if span / (m * step) <= 5)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, max(last, first + 1) + 1)]
