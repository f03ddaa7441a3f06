"""Find the actions in videos whose features are given, with an exported artifact or a run.

    python -m rdfa.detect --artifact OUT --features features/thumos14 --annotations annotations/thumos14.json \\
        --subset Test --output detections.json
    python -m rdfa.detect --run_dir RUN --features some_video.npy --fps 30 --output detections.json

writes {"version", "results": {video id: [{"label", "score", "segment": [start, end]}]}, "external_data"}, in seconds.
Annotations give the videos, their frame rates and durations; without them every feature file is a video, and --fps
its frame rate.
"""

import argparse
import math
import sys
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from rich.console import Console
from rich.progress import track

from rdfa import cli, config, runtime
from rdfa.config import Config
from rdfa.data.dataset import Batch
from rdfa.data.features import ANY_EXTENSION
from rdfa.errors import UsageError
from rdfa.files import check_place
from rdfa.inference.fusion import AGNOSTIC_NAMES, ClassScores
from rdfa.inference.inputs import open_features
from rdfa.inference.pipeline import Runner, batches_of_equal_length, detect_videos, run_module, run_session
from rdfa.inference.results import write_results
from rdfa.run_dir import RunDirectory, load_detector

BACKENDS = ("torchscript", "onnxruntime", "eager")  # of an artifact; the first that can run is the default


class Source(NamedTuple):
    """A detector, the configuration it was made with, and the names of the classes, as far as they are known."""

    runner: Runner
    config: Config
    class_names: dict[int, str]


def main(argv: list[str] | None = None) -> None:
    args = _parse(argv)
    check_place(args.output)
    source = open_artifact(args.artifact, args.backend) if args.artifact else open_run(args.run_dir, args.device)
    settings, model, post = source.config.dataset, source.config.model, source.config.post
    dataset = open_features(settings, model.embedding.input_c, args.features, args.annotations, args.subset, args.fps)
    score_file = args.ext_score_file or post.ext_score_file
    scores, names = None, AGNOSTIC_NAMES if settings.class_agnostic else source.class_names
    if score_file:
        scores = ClassScores(score_file, source.class_names, settings.num_classes)
        scores.require(video.id for video in dataset.videos)
        names = scores.class_names
    multiple = math.lcm(source.config.loader.max_div_factor, model.coarsest_stride)
    batches = batches_of_equal_length(dataset, args.batch_size, source.config.loader.padding_value, multiple)
    found = {}
    for video_id, detections in detect_videos(
        source.runner, _progress(batches, len(dataset)), dataset.settings, post, scores
    ):
        found[video_id] = detections
    ordered = {video.id: found[video.id] for video in dataset.videos}
    write_results(args.output, ordered, names, scores.description if scores else "")
    total = sum(len(detections.labels_N) for detections in ordered.values())
    print(f"{total} detections in {len(ordered)} videos: {args.output}")


def open_artifact(path: str, backend: str | None) -> Source:
    """An artifact directory, run by `backend`, or by the first of `BACKENDS` that can.

    Raises:
        UsageError: no artifact, or no backend that can run it here; says why of each.
    """
    if backend is None:
        reasons = runtime.availability(path)
        backend = next((name for name in BACKENDS if reasons.get(name, "unknown") is None), None)
        if backend is None:
            why = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
            raise UsageError(f"no backend can run {path} here: {why}")
    session = runtime.load(path, backend)
    settings = config.from_text(session.manifest["config"])
    names = {} if settings.dataset.class_agnostic else dict(enumerate(session.manifest["classes"]))
    return Source(run_session(session, settings.model), settings, names)


def open_run(path: str, device: str) -> Source:
    """The averaged weights of a run's best checkpoint, or of its latest where none is the best yet."""
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda, but torch finds no GPU here: use cpu, or auto")
    detector, settings = load_detector(path)
    on_gpu = device != "cpu" and torch.cuda.is_available()
    names = {i: str(i) for i in range(settings.dataset.num_classes)} | RunDirectory(path).class_names()
    return Source(run_module(detector.to("cuda" if on_gpu else "cpu")), settings, names)


def _progress(batches: Iterable[Batch], num_videos: int) -> Iterator[Batch]:
    """The batches, with a bar on a terminal, and with about ten lines elsewhere."""
    console = Console(stderr=True)
    if console.is_terminal:
        # A bar counts videos, of which a batch may hold several.
        singles = ((batch, i) for batch in batches for i in range(len(batch.videos)))
        for batch, i in track(singles, description="detect", total=num_videos, console=console):
            if i == 0:
                yield batch
        return
    done = 0
    for batch in batches:
        yield batch
        before, done = done, done + len(batch.videos)
        if done * 10 // num_videos > before * 10 // num_videos:
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
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="of --run_dir")
    parser.add_argument("--batch_size", type=int, default=1, metavar="n", help="videos of equal padded length per run")
    parser.add_argument("--ext_score_file", metavar="F", help="video-level class scores to fuse with")
    args = parser.parse_args(argv)
    if args.batch_size < 1:
        raise UsageError(f"--batch_size {args.batch_size}: give at least 1")
    if args.fps is not None and not 0 < args.fps < math.inf:
        raise UsageError(f"--fps {args.fps}: give a positive number")
    if args.backend and not args.artifact:
        raise UsageError("--backend chooses what runs an --artifact: a --run_dir is run by PyTorch")
    return args


if __name__ == "__main__":
    sys.exit(cli.run(main))
