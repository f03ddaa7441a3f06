"""Find the actions in videos whose features are given, with an exported artifact or a run.

    python -m rdfa.detect --artifact OUT --features features/thumos14 --annotations annotations/thumos14.json \\
        --subset Test --output detections.json
    python -m rdfa.detect --run_dir RUN --features some_video.npy --fps 30 --output detections.json

writes {"version", "results": {video id: [{"label", "score", "segment": [start, end]}]}, "external_data"}, in seconds.
Annotations give the videos, their frame rates and durations; without them every feature file is a video, and --fps
its frame rate.

Finished videos are kept in P.json.partial until all are done: the same command goes on after an interruption, and
writes the file that it would have written without. `--engine ray` spreads the videos over a Ray cluster (RAY_ADDRESS,
else this machine alone); detector and features must lie under the same paths everywhere.
"""

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator
from functools import partial

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress

from rdfa import __version__, cli
from rdfa.config import to_gin
from rdfa.data.annotations import LEAST, MOST
from rdfa.data.dataset import FeatureDataset
from rdfa.data.features import ANY_EXTENSION
from rdfa.errors import UsageError
from rdfa.files import check_place
from rdfa.inference.batches import PlannedBatch, plan_batches
from rdfa.inference.detectors import BACKENDS, Source, open_artifact, open_run
from rdfa.inference.engines import Found, Task, run_on_ray
from rdfa.inference.fusion import AGNOSTIC_NAMES, ClassScores
from rdfa.inference.inputs import open_features
from rdfa.inference.journal import Journal
from rdfa.inference.results import write_rows
from rdfa.runtime import DTYPES
from rdfa.runtime.manifest import sha256


def main(argv: list[str] | None = None) -> None:
    args = _parse(argv)
    check_place(args.output)
    there = os.path.abspath if args.engine == "ray" else str  # other processes have another working directory
    if args.artifact:
        opening = partial(open_artifact, there(args.artifact), args.backend, args.dtype)
    else:
        opening = partial(open_run, there(args.run_dir), args.device)
    source = opening()
    settings, model, post = source.config.dataset, source.config.model, source.config.post
    features = [there(path) for path in args.features]
    dataset = open_features(settings, model.embedding.input_c, features, args.annotations, args.subset, args.fps)
    score_file = args.ext_score_file or post.ext_score_file
    scores, names = None, AGNOSTIC_NAMES if settings.class_agnostic else source.class_names
    if score_file:
        scores = ClassScores(score_file, source.class_names, settings.num_classes)
        scores.require(video.id for video in dataset.videos)
        names = scores.class_names
    task = Task(dataset, names, scores)
    plan = plan_batches(dataset, args.batch_size, source.config.padding_multiple)
    with Journal(f"{args.output}.partial", _made_with(source, names, score_file)) as journal:
        remaining = [batch for batch in plan if not journal.has(batch.key, _ids(dataset, batch))]
        done = len(dataset) - sum(len(batch.indices) for batch in remaining)
        if done:
            print(f"{journal.path}: {done} of {len(dataset)} videos are finished already", file=sys.stderr)
        local = args.engine == "local"
        found = task.run(source, remaining) if local else run_on_ray(task, source, opening, remaining)
        for batch, rows in _progress(found, done, len(dataset)):
            journal.append(batch.key, rows)
        batch_of = {index: batch for batch in plan for index in batch.indices}
        places = [(batch_of[index].key, video.id) for index, video in enumerate(dataset.videos)]
        rows = ((row.video_id, row.text) for row in journal.rows(places))
        write_rows(args.output, rows, scores.description if scores else "")
        total = sum(row.count for row in journal.rows(places))
        journal.remove()
    print(f"{total} detections in {len(places)} videos: {args.output}")


def _made_with(source: Source, names: dict[int, str], score_file: str | None) -> dict[str, str]:
    """All that detections depend on, beside the videos and their batches."""
    settings = to_gin(source.config) + json.dumps(names, sort_keys=True)
    return {
        **source.identity,
        "configuration": hashlib.sha256(settings.encode()).hexdigest(),
        "class scores": sha256(score_file) if score_file else "none",
        "version": __version__,
    }


def _ids(dataset: FeatureDataset, batch: PlannedBatch) -> list[str]:
    return [dataset.videos[index].id for index in batch.indices]


def _progress(found: Iterable[Found], done: int, num_videos: int) -> Iterator[Found]:
    """The batches as they are done, with a bar on a terminal, and with about ten lines elsewhere."""
    console = Console(stderr=True)
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("detect", total=num_videos, completed=done)
        for outcome in found:
            yield outcome
            before, done = done, done + len(outcome[0].indices)
            bar.update(task, completed=done)
            if not console.is_terminal and done * 10 // num_videos > before * 10 // num_videos:
                print(f"detect: {done} of {num_videos} videos", file=sys.stderr, flush=True)


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = cli.Parser(
        prog="python -m rdfa.detect", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    detector = parser.add_mutually_exclusive_group(required=True)
    detector.add_argument("--artifact", metavar="OUT", help="artifact directory, written by export.py")
    detector.add_argument("--run_dir", metavar="RUN", help="run directory, written by train.py or rdfa.convert")
    parser.add_argument(
        "--features",
        required=True,
        nargs="+",
        metavar="DIR|FILE",
        help=f"feature files, {ANY_EXTENSION}; an .h5 file holds many videos; as many folders as were trained on",
    )
    parser.add_argument("--annotations", metavar="A.json", help="the videos, their frame rates and durations")
    parser.add_argument("--subset", metavar="S", help="subset of the annotations, any case (default: the test subset)")
    parser.add_argument("--fps", type=float, help="frame rate of the videos, in place of the annotations'")
    parser.add_argument("--output", required=True, metavar="P.json", help="detections; compressed for .json.gz")
    parser.add_argument("--backend", choices=BACKENDS, help="of --artifact (default: the first that can run)")
    parser.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="of --artifact's file (default: %(default)s)"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="of --run_dir")
    parser.add_argument("--batch_size", type=int, default=1, metavar="n", help="videos of equal padded length per run")
    parser.add_argument("--engine", choices=("local", "ray"), default="local", help="ray: all machines of a cluster")
    parser.add_argument("--ext_score_file", metavar="F", help="video-level class scores to fuse with")
    args = parser.parse_args(argv)
    if args.batch_size < 1:
        raise UsageError(f"--batch_size {args.batch_size}: give at least 1")
    if args.fps is not None and not LEAST <= args.fps <= MOST:
        raise UsageError(f"--fps {args.fps}: give a positive number ({LEAST:g} to {MOST:g})")
    if (args.backend or args.dtype != "float32") and not args.artifact:
        raise UsageError(
            "--backend chooses what runs an --artifact, and --dtype how: a --run_dir is run by PyTorch in float32"
        )
    return args


if __name__ == "__main__":
    sys.exit(cli.run(main))
