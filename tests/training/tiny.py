"""A data set and settings so small that an iteration takes a moment, and a training in a process of its own."""

import contextlib
import json
import multiprocessing
import os
from pathlib import Path

import train
from rdfa import cli
from rdfa.data.synthetic import write_dataset

CLASSES, CHANNELS = 3, 8


def make_dataset(folder: Path) -> Path:
    """Ten training and two test videos, shorter and longer than a training sequence of 64 clips."""
    write_dataset(folder, num_train=10, num_test=2, num_classes=CLASSES, feature_dim=CHANNELS, min_len=40, max_len=90)
    return folder


def flags(dataset: Path, run_dir: Path, *params: str) -> list[str]:
    """Command line of a tiny training: batches of 2, so 5 iterations per epoch."""
    settings = (
        f"Dataset.annotation_file = '{dataset / 'annotations.json'}'",
        f"Dataset.feature_dir = '{dataset / 'features'}'",
        f"NUM_CLASSES = {CLASSES + 1}",  # one that the annotations have no name for
        "AdamW.lr = 1e-3",
        *params,
    )
    repeated = [part for text in settings for part in ("--gin_param", text)]
    gin_file = Path(__file__).parents[2] / "gin" / "tiny.gin"
    return ["--gin_file", str(gin_file), "--run_dir", str(run_dir), *repeated]


def exit_code(argv: list[str]) -> int:
    return cli.run(train.main, argv)


def metrics(run_dir: Path, kind: str | None = None, without: tuple[str, ...] = ("seconds",)) -> list[dict]:
    """Lines of metrics.jsonl, without what depends on the clock."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in without} for line in lines if kind in (None, line["kind"])]


def _child(argv: list[str], log: Path) -> None:
    import torch

    torch.set_num_threads(1)
    with open(log, "a") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        code = cli.run(train.main, argv)
    os._exit(code)


def forkserver() -> multiprocessing.context.ForkServerContext:
    """Starts processes from a server that has imported everything already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["rdfa.training.trainer", "torch.utils.tensorboard", "tests.training.tiny"])
    return context


def start_process(argv: list[str], log: Path) -> multiprocessing.Process:
    """A training in a process of its own."""
    process = forkserver().Process(target=_child, args=(argv, log))
    process.start()
    return process
