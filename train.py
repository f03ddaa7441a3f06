"""Train the RDFA-S6 detector, or measure a trained one.

Train as published, on THUMOS14 (features and annotations are yours to provide):

    python train.py --gin_file gin/thumos14.gin --run_dir runs/thumos14 \\
        --gin_param "Dataset.annotation_file = 'thumos14.json'" --gin_param "Dataset.feature_dir = 'features'"

Train a small detector on a synthetic data set, in about a minute on two CPU cores:

    python -m rdfa.data.synthetic --output demo/data
    python train.py --gin_file gin/demo.gin --run_dir demo/run

Continue after an interruption: the same command again, or just `python train.py --run_dir runs/thumos14`, since a run
knows its configuration. Training goes on from the last checkpoint and ends with the same weights as if nothing had
happened, bit for bit on a CPU. Settings that would make it another training are refused.

Train on the four GPUs of a machine, and start again by itself if a process dies; the batch is divided among them:

    torchrun --standalone --nproc_per_node=4 --max_restarts=3 train.py --gin_file gin/thumos14.gin \\
        --run_dir runs/thumos14 --gin_param "Loader.batch_size = 8" ...

Measure the best checkpoint of a run on the test subset (writes RUN/test.json and RUN/detections.json):

    python train.py --run_dir runs/thumos14 --mode test

What a run directory holds: config.gin (every setting), classes.json, metrics.jsonl (one JSON object per epoch and per
evaluation), tensorboard/, and checkpoints/ with the pointers `latest` and `best` (highest average mAP).

Exit codes: 0 success; 2 a wrong flag, setting or file name; 1 a run that failed on what it found (bad data, a damaged
checkpoint, a loss that is not finite, another process that is gone); 130 interrupted.
"""

import argparse
import sys
from pathlib import Path

from rdfa import cli
from rdfa.config import Config, add_flags, from_args, load
from rdfa.training.session import one_voice


def main(argv: list[str] | None = None) -> None:
    with one_voice():
        _main(argv)


def _main(argv: list[str] | None) -> None:
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser)
    parser.add_argument(
        "--run_dir", required=True, metavar="RUN", type=Path, help="directory of the run, made if missing"
    )
    parser.add_argument("--mode", choices=("train", "test"), default="train", help="default: train")
    parser.add_argument(
        "--resume",
        default="auto",
        metavar="auto|none|PATH",
        help="train: auto (default) continues RUN if it holds a checkpoint; none wants a fresh RUN; PATH continues "
        "from that step folder, of RUN or, into an empty RUN, of another run. test: auto measures the best checkpoint, "
        "PATH that one",
    )
    args = parser.parse_args(argv)
    config = _configuration(args)
    # torch loads only now, so that --help and a wrong setting answer at once
    if args.mode == "test":
        from rdfa.training.evaluate import measure

        measure(config, args.run_dir, args.resume)
    else:
        from rdfa.training.trainer import train

        train(config, args.run_dir, args.resume)


def _configuration(args: argparse.Namespace) -> Config:
    """What the flags say; without --gin_file the run's own configuration, if it has one, changed by --gin_param."""
    own = args.run_dir / "config.gin"
    if not args.gin_file and own.is_file():
        return load([own], args.gin_param)
    return from_args(args)


if __name__ == "__main__":
    sys.exit(cli.run(main))
