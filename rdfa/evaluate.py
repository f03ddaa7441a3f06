"""Mean average precision of a file of detections.

    python -m rdfa.evaluate --ground_truth annotations/thumos14.json --predictions detections.json --subset Test \\
        --tiou 0.3:0.7:5 --output mAP.json

prints a table and writes {"tiou", "mAP", "average_mAP", "per_class": {name: [AP per tIoU]}, "recall": {"1x": [per
tIoU], "5x"}, "num_ground_truth", "num_predictions"}; recall is that of the best 1 or 5 predictions per annotated action
of a video and class. Predictions may be in the ActivityNet format or the THUMOS14 text format, plain or
gzip-compressed. `--timeline OUT.png` draws one video's detections against its ground truth; `--report DIR` writes
report.html, one file to look at anywhere: precision over recall of each class, what the errors are and where they fall,
time lines, and with --run_dir the training.
"""

import argparse
import sys
from collections.abc import Collection
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from rdfa import cli
from rdfa.data.annotations import Video, load_annotations
from rdfa.errors import UsageError
from rdfa.evaluation.mean_ap import MeanAP, mean_average_precision
from rdfa.inference.results import read_results, write_json
from rdfa.inference.videos import find_video, select_subset
from rdfa.settings import nearest

RECALL_AT = (1, 5)  # predictions per annotated action


def main(argv: list[str] | None = None) -> None:
    args = _parse(argv)
    tiou = parse_tiou(args.tiou)
    annotations = load_annotations(args.ground_truth)
    videos = select_subset(annotations, args.subset)
    predictions, class_names = read_results(args.predictions, annotations.class_names)
    result = mean_average_precision(videos, predictions, tiou, class_names, args.keep_duplicates, RECALL_AT)
    _warn(result, class_names)
    _print_table(result, len(videos))
    if args.output:
        write_json(args.output, result.summary(), indent=1)
    if args.timeline:
        # Matplotlib is slow to import; only a picture needs it.
        from rdfa.evaluation.plots import draw_timeline

        video = _choose_video(args.video, videos, predictions)
        found = find_video(video.id, predictions)
        draw_timeline(args.timeline, video, None if found is None else predictions[found], class_names)
        print(f"timeline of {video.id}: {args.timeline}")
    if args.report:
        from rdfa.evaluation import report

        log = Path(args.run_dir, "metrics.jsonl") if args.run_dir else None
        duplicates = args.keep_duplicates
        path = report.write(Path(args.report), result, videos, predictions, class_names, duplicates, log)
        print(f"report: {path}")


def parse_tiou(text: str) -> np.ndarray:
    """Thresholds from 'first:last:number' or a comma-separated list.

    Raises:
        UsageError: anything else.
    """
    try:
        if ":" in text:
            first, last, number = text.split(":")
            return np.linspace(float(first), float(last), int(number))
        return np.array([float(part) for part in text.split(",")])
    except ValueError as error:
        raise UsageError(f"--tiou {text!r}: give first:last:number, such as 0.3:0.7:5, or a list, 0.5,0.75") from error


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = cli.Parser(
        prog="python -m rdfa.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ground_truth", required=True, metavar="A.json", help="annotations, .json or .json.gz")
    parser.add_argument("--predictions", required=True, metavar="P.json", help="detections, .json, .txt, or either .gz")
    parser.add_argument(
        "--subset", metavar="S", help="subset of the annotations, any case; needed if there are several"
    )
    parser.add_argument("--tiou", default="0.3:0.7:5", metavar="A:B:N", help="thresholds (default %(default)s)")
    parser.add_argument(
        "--keep_duplicates",
        action="store_true",
        help="keep repeated and zero-length ground truth, as the official ActivityNet evaluation does",
    )
    parser.add_argument("--output", metavar="M.json", help="write the figures here")
    parser.add_argument("--timeline", metavar="OUT.png", help="draw the detections of one video on a time line")
    parser.add_argument("--video", metavar="ID", help="video of --timeline (default: the first with both)")
    parser.add_argument("--report", metavar="DIR", help="write report.html there: figures, errors, curves, time lines")
    parser.add_argument("--run_dir", metavar="RUN", help="run whose training curves --report shows too")
    args = parser.parse_args(argv)
    if args.run_dir and not args.report:
        raise UsageError("--run_dir gives training curves to --report: give both")
    if args.video and not args.timeline:
        raise UsageError("--video chooses the video of --timeline: give both")
    return args


def _warn(result: MeanAP, class_names: dict[int, str]) -> None:
    parts = []
    if result.unknown_labels:
        names = [class_names.get(label, str(label)) for label in result.unknown_labels]
        number = sum(result.unknown_labels.values())
        parts.append(f"{number} predictions of {_some(names)} without ground truth left out")
    if result.unknown_videos:
        number = sum(result.unknown_videos.values())
        parts.append(
            f"{number} predictions in videos without ground truth ({_some(result.unknown_videos)}) count as false"
        )
    if parts:
        print("warning: " + "; ".join(parts), file=sys.stderr)


def _some(names: Collection[str]) -> str:
    shown = ", ".join(map(repr, list(names)[:3]))
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def _print_table(result: MeanAP, num_videos: int) -> None:
    table = Table(title=f"{len(result.labels_C)} classes, {num_videos} videos")
    table.add_column("tIoU", justify="right")
    table.add_column("mAP", justify="right")
    for k in result.recall:
        table.add_column(f"recall {k}x", justify="right")
    for threshold, *values in zip(result.tiou_K, result.mAP, *result.recall.values()):
        table.add_row(f"{threshold:.2f}", *(f"{value:.8f}" for value in values))
    table.add_section()
    averages = (result.average, *(values.mean() for values in result.recall.values()))
    table.add_row("average", *(f"{value:.8f}" for value in averages))
    Console().print(table)
    print(f"{result.num_ground_truth} ground-truth segments, {result.num_predictions} predictions")


def _choose_video(video_id: str | None, videos: list[Video], predictions: dict) -> Video:
    by_id = {video.id: video for video in videos}
    if video_id is not None:
        found = find_video(video_id, by_id)
        if found is None:
            raise UsageError(f"--video {video_id!r} is not in the subset: {nearest(video_id, by_id)}")
        return by_id[found]
    both = (v for v in videos if len(v.labels_N) and find_video(v.id, predictions) is not None)
    return next(both, videos[0])


if __name__ == "__main__":
    sys.exit(cli.run(main))
