"""The page of an evaluation: accuracy, what the errors are, where they fall, curves, time lines, training."""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rdfa import html_page
from rdfa.errors import RunError
from rdfa.evaluation import charts
from rdfa.evaluation.charts import Series
from rdfa.evaluation.diagnosis import KINDS, Curve, Diagnosis, Group, curves, diagnose
from rdfa.evaluation.mean_ap import MeanAP
from rdfa.evaluation.plots import timeline_rows
from rdfa.files import read_json_lines, replacing
from rdfa.inference.videos import find_video

COLORS = ("#2a9d6f", "#8e6bbf", "#f2a33a", "#d9534f", "#e58fb0", "#9aa3ad")  # of KINDS
CURVE_POINTS = 60  # of a curve; more could not be seen
TIMELINES = 6
UNITS = {"length": " s", "coverage": " %", "instances": ""}
CHARACTERISTICS = {
    "length": "Length of the action",
    "coverage": "Share of the video that the action takes",
    "instances": "Actions of the class in the video",
}

STYLE = """
body { background: var(--page); }
section { background: var(--card); border-radius: .6rem; padding: 1rem 1.1rem 1.2rem; margin: 1rem 0; }
h1 { margin: .3rem 0 .7rem; font-size: 1.7rem; line-height: 1.2; } h2 { margin: 0 0 .3rem; font-size: 1.2rem; }
h3 { margin: 1rem 0 .5rem; font-size: 1rem; }
h4 { margin: .4rem 0 .3rem; font-size: .85rem; font-weight: 400; color: var(--quiet); }
p { margin: .3rem 0 .8rem; max-width: 46rem; color: var(--quiet); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); gap: .7rem; }
.tiles div { background: var(--card); border-radius: .6rem; padding: .7rem .9rem; }
.tiles strong { display: block; font-size: 1.6rem; line-height: 1.25; font-variant-numeric: tabular-nums; }
.tiles span { font-size: .85rem; color: var(--quiet); }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(19rem, 100%), 1fr)); gap: 0 2rem; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(6.5rem, 1fr)); gap: 1rem .9rem; }
figure { margin: 0; min-width: 0; } figcaption { font-size: .82rem; overflow-wrap: anywhere; line-height: 1.3; }
figcaption b { display: block; font-weight: 600; } figcaption span { color: var(--quiet); }
"""


def write(
    folder: Path,
    result: MeanAP,
    videos: Sequence[Any],
    predictions: Mapping[str, Any],
    class_names: Mapping[int, str],
    keep_duplicates: bool,
    log: Path | None,
) -> Path:
    """Write ``report.html`` into `folder`; returns its path.

    Args:
        result: of `mean_average_precision` for the same videos, predictions and `keep_duplicates`.
        log: metrics.jsonl of the training, to be drawn too.

    Raises:
        UsageError: the file cannot be written, or the log cannot be read. RunError: the log is damaged.
    """
    tiou = float(result.tiou_K[np.argmin(np.abs(result.tiou_K - 0.5))])
    diagnosis = diagnose(videos, predictions, tiou, keep_duplicates)
    drawn = curves(videos, predictions, result.tiou_K, keep_duplicates)
    sections = [
        _tiles(result, len(videos)),
        _section("Accuracy", "", _accuracy(result)),
        _errors(diagnosis),
        _sensitivity(diagnosis),
        _precision_recall(result, drawn),
        _timelines(videos, predictions, class_names),
    ]
    if log is not None:
        sections.append(_training(log))
    path = folder / "report.html"
    with replacing(path) as temporary:
        page = html_page.document("Evaluation of detections", "".join(sections), charts.STYLE + STYLE)
        temporary.write_text(page, encoding="utf-8")
    return path


def _section(title: str, text: str, *parts: str) -> str:
    text = f"<p>{text}</p>\n" if text else ""
    return f"<section>\n<h2>{html.escape(title)}</h2>\n{text}{''.join(parts)}</section>\n"


def _tiles(result: MeanAP, num_videos: int) -> str:
    figures = {
        "average mAP": f"{result.average:.2%}",
        f"mAP at tIoU {result.tiou_K[0]:g}": f"{result.mAP[0]:.2%}",
        "videos": f"{num_videos:,}",
        "classes": f"{len(result.labels_C):,}",
        "actions": f"{result.num_ground_truth:,}",
        "predictions": f"{result.num_predictions:,}",
    }
    tiles = "".join(f"<div><strong>{value}</strong><span>{name}</span></div>" for name, value in figures.items())
    return f'<div class="tiles">{tiles}</div>\n'


def _accuracy(result: MeanAP) -> str:
    parts = ["<div><h3>mAP over temporal IoU</h3>\n"]
    rows = [(f"{t:.2f}", v, f"{v:.2%}") for t, v in zip(result.tiou_K, result.mAP)]
    parts += [charts.bars(rows), "</div>"]
    for multiple, values in result.recall.items():
        parts.append(f"<div><h3>Recall of the best {multiple}x as many predictions as actions</h3>\n")
        rows = [(f"{t:.2f}", v, f"{v:.2%}") for t, v in zip(result.tiou_K, values)]
        parts += [charts.bars(rows), "</div>"]
    return f'<div class="pair">{"".join(parts)}</div>\n'


def _errors(diagnosis: Diagnosis) -> str:
    text = (
        f"The best k&middot;G predictions of each class, where G is the number of its actions, at tIoU "
        f"{diagnosis.tiou:g}. The figure behind a bar is the share of true positives."
    )
    profile = charts.stacks([(f"{k + 1}G", s) for k, s in enumerate(diagnosis.shares.tolist())], KINDS, COLORS)
    most = max(*diagnosis.gains.values(), 1e-9)
    gains = sorted(diagnosis.gains.items(), key=lambda item: -item[1])
    impact = charts.bars([(kind, max(gain, 0) / most, f"+{100 * gain:.2f}") for kind, gain in gains])
    return _section(
        "What the errors are",
        text,
        f'<div class="pair"><div><h3>Kinds of predictions</h3>\n{profile}</div>'
        f"<div><h3>mAP to be gained without one kind, in points</h3>\n{impact}</div></div>\n",
    )


def _sensitivity(diagnosis: Diagnosis) -> str:
    text = (
        f"Actions in groups of about equal size, at tIoU {diagnosis.tiou:g}. Normalized AP weighs all groups as if "
        f"they had equally many actions; it is {diagnosis.normalized_ap:.2%} over all of them. Missed are the actions "
        "that no prediction found."
    )
    parts = []
    for name, groups in diagnosis.sensitivity.items():
        labels = [_range(group, UNITS[name], 100 if name == "coverage" else 1) for group in groups]
        ap = charts.bars([(label, g.normalized_ap, f"{g.normalized_ap:.1%}") for label, g in zip(labels, groups)])
        missed = charts.bars([(label, g.missed, f"{g.missed:.1%}") for label, g in zip(labels, groups)], bad=True)
        parts.append(
            f'<h3>{CHARACTERISTICS[name]}</h3>\n<div class="pair"><div><h4>normalized AP</h4>{ap}</div>'
            f"<div><h4>missed</h4>{missed}</div></div>\n"
        )
    return _section("Where they fall", text, *parts)


def _range(group: Group, unit: str, factor: float) -> str:
    values = (group.low * factor, group.high * factor)
    low, high = (f"{value:.0f}" if value >= 10 else f"{value:.2g}" for value in values)
    return (low if low == high else f"{low}–{high}") + unit


def _precision_recall(result: MeanAP, drawn: list[list[Curve]]) -> str:
    strengths = np.linspace(1.0, 0.3, len(result.tiou_K)).tolist()
    names = [f"tIoU {tiou:g}" for tiou in result.tiou_K]
    grid = np.linspace(0, 1, CURVE_POINTS + 1)
    means = [np.mean([_precision_at(curve, grid) for curve in of_class], axis=0) for of_class in drawn]
    whole = [Series(*item) for item in zip(names, [grid] * len(means), means, strengths)]
    legend = charts.keys(
        (n, f"color-mix(in srgb, var(--line) {100 * s:.0f}%, transparent)") for n, s in zip(names, strengths)
    )
    panels = []
    for c in np.argsort(-result.ap_KC.mean(axis=0), kind="stable"):
        series = [
            Series(f"{name}: AP {ap:.1%}", *_thinned(of_class[c]), strength)
            for name, ap, of_class, strength in zip(names, result.ap_KC[:, c], drawn, strengths)
        ]
        name, average = result.class_names[c], result.ap_KC[:, c].mean()
        values = " ".join(f"{100 * ap:.0f}" for ap in result.ap_KC[:, c])
        panels.append(
            f"<figure>{charts.small_curves(series, name)}<figcaption><b>{html.escape(name)}</b> {average:.1%}"
            f"<br><span>{values}</span></figcaption></figure>\n"
        )
    return _section(
        "Precision over recall",
        "Precision is the best one from each recall on. Fainter lines are of higher thresholds.",
        f"<h3>Mean over classes</h3>{charts.lines(whole, 'recall', 'precision', True)}{legend}",
        "<h3>Each class, by falling AP (below: AP per threshold in percent)</h3>\n"
        f'<div class="grid">\n{"".join(panels)}</div>\n',
    )


def _precision_at(curve: Curve, recall: np.ndarray) -> np.ndarray:
    """Best precision from each recall on; 0 where it is never reached."""
    at = np.searchsorted(curve.recall, recall - 1e-9)
    return np.append(curve.precision, 0.0)[at]


def _thinned(curve: Curve) -> tuple[list[float], list[float]]:
    """A line from recall 0 to where it falls to precision 0."""
    if not len(curve.recall):
        return [0.0, 0.0], [0.0, 0.0]
    chosen = np.unique(np.linspace(0, len(curve.recall) - 1, CURVE_POINTS).astype(int))
    recall, precision = curve.recall[chosen].tolist(), curve.precision[chosen].tolist()
    return [0.0, *recall, recall[-1]], [precision[0], *precision, 0.0]


def _timelines(videos: Sequence[Any], predictions: Mapping[str, Any], class_names: Mapping[int, str]) -> str:
    both = [v for v in videos if len(v.labels_N) and find_video(v.id, predictions) is not None]
    # Spread over the videos by how many actions they show, the middle of each part.
    both.sort(key=lambda video: len(video.labels_N))
    number = min(TIMELINES, len(both))
    parts = []
    for i in range(number):
        video = both[(2 * i + 1) * len(both) // (2 * number)]
        rows, end, best = timeline_rows(video, predictions[find_video(video.id, predictions)])
        parts.append(f"<h3>{html.escape(video.id)}</h3>\n{charts.timeline(rows, end, best, class_names)}")
    colors = charts.keys((("ground truth", "var(--truth)"), ("detections, from half of the best score on", "#e4572e")))
    text = "Videos of few to many actions. A detection is as strong as its score, which stands behind it."
    return _section("Time lines", text if parts else "No video has both actions and detections.", colors, *parts)


def _training(log: Path) -> str:
    try:
        rows = read_json_lines(log)
        train, evaluated = ([row for row in rows if row["kind"] == kind] for kind in ("train", "eval"))
        parts = []
        for title, kind, wanted in (
            ("Loss", train, [key for key in (train or [{}])[0] if "loss" in key]),
            ("mAP of the averaged weights", evaluated, ["mAP"]),
            ("Learning rate", train, ["lr"]),
        ):
            if not kind:
                continue
            colors = ("var(--line)", *COLORS[2:])
            lines = [
                Series(key, [row["epoch"] for row in kind], [row[key] for row in kind], color=color)
                for key, color in zip(wanted, colors)
            ]
            legend = charts.keys(zip(wanted, colors)) if len(lines) > 1 else ""
            parts.append(f"<div><h3>{title}</h3>{charts.lines(lines, 'epoch', title, True)}{legend}</div>\n")
    except (AttributeError, KeyError, TypeError) as error:
        raise RunError(f"{log} is not a record of training ({error}): give another --run_dir") from error
    return _section("Training", "", f'<div class="pair">{"".join(parts)}</div>\n')
