"""A training step on a GPU: ours against the published computation on mamba-ssm's kernels, with the gradients' errors.

    python -m benchmarks.training_gpu --output benchmarks/results/h100_training

The model and the settings are those of gin/thumos14.gin (batches of 2, T = 2304), the videos synthetic. A step begins
with features in pinned memory and ends with the averaged weights: copies, targets, forward, loss, backward, clipping,
optimiser, average, and the wait for the losses. Variants take turns in one run:

    published   branch by branch with flips and copies (`rdfa.bench.backends.published`), differentiated by torch with
                the packages' backward kernels; copies and targets before the step, AdamW of a launch per operation
    eager       ours; the next batch's copies and targets during the step, fused AdamW
    recorded    the same with Training.cuda_graph

float32 is as torch has it by default, and the published training too: convolutions rounded to TF32, products not.
Errors are relative L2 errors of the first step's whole gradient, without drop path, against a CPU's in float32.
"""

import argparse
import csv
import itertools
import statistics
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from rdfa import cli, config
from rdfa.bench import environment, timing
from rdfa.bench.backends import published
from rdfa.data.dataset import Batch
from rdfa.data.synthetic import write_dataset
from rdfa.errors import RunError
from rdfa.files import replacing
from rdfa.modeling.layers import AffineDropPath
from rdfa.training.feed import Feed
from rdfa.training.trainer import Trainer

GIN_FILE = Path(__file__).resolve().parents[1] / "gin" / "thumos14.gin"
VARIANTS = ("published", "eager", "recorded")
VIDEOS = 4
# A fresh detector's layer scales of 1e-4 would hide nearly all of its gradient.
LAYER_SCALE = 0.1
NO_DROP_PATH = ["StemModule.drop_path_rate = 0.0", "BranchModule.drop_path_rate = 0.0"]


def configuration(data: Path, gin_params: list[str]) -> config.Config:
    files = [f"Dataset.annotation_file = '{data / 'annotations.json'}'", f"Dataset.feature_dir = '{data / 'features'}'"]
    return config.load([GIN_FILE], [*files, "Loader.num_workers = 0", *gin_params])


def make_trainer(data: Path, gin_params: list[str], variant: str = "eager") -> Trainer:
    recorded = f"Training.cuda_graph = {variant == 'recorded'}"
    trainer = Trainer(configuration(data, [*gin_params, recorded]), data / "run")
    for module in trainer.model.modules():
        if isinstance(module, AffineDropPath):
            module.scale.data.fill_(LAYER_SCALE)
    if variant == "published":
        published.use(trainer.model, published.with_gradients())
        for group in trainer.optimizer.param_groups:
            group["fused"] = False
    return trainer


def flat_gradient(trainer: Trainer, batch: Batch) -> Tensor:
    trainer.gradient(trainer.gradient.prepare(batch), *trainer.loader.rows(0))
    gradient = torch.cat([p.grad.double().flatten().cpu() for p in trainer.model.parameters()])
    return gradient / trainer.scaler.get_scale()


class Steps:
    """Steps of a trainer over the same batches again and again, at the learning rate of the first one, 0."""

    def __init__(self, trainer: Trainer, batches: list[Batch], look_ahead: bool):
        self._trainer, self._look_ahead = trainer, look_ahead
        self._feed = Feed(itertools.cycle(batches), trainer.gradient.prepare, trainer.device)
        self._ready = iter(self._feed)

    def __call__(self, index: int = 0) -> None:
        self._trainer.step = self._trainer.batch = 0
        self._trainer._iteration(next(self._ready), self._feed.look_ahead if self._look_ahead else lambda: None)

    def memory_mb_per_video(self, others: int) -> float | None:
        """Of a GPU, over the first steps, beside `others` bytes."""
        on_gpu = self._trainer.device.type == "cuda"
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        for _ in range(3):
            self()
        videos = self._trainer.config.loader.batch_size
        return (self._trainer.memory_per_video() - others / videos) / 2**20 if on_gpu else None


def measure(args: argparse.Namespace, data: Path, dtype: str, variants: list[str], wanted: Tensor) -> list[dict]:
    params = [*args.gin_param, f"Training.device = '{args.device}'", f"Training.precision = '{dtype}'"]
    steps, rows = {}, []
    for name in variants:
        trainer = make_trainer(data, [*params, *NO_DROP_PATH], name)
        batches = [pinned(batch, args.device) for batch in trainer.loader.epoch(1)]
        error = (flat_gradient(trainer, batches[0]) - wanted).norm() / wanted.norm()
        del trainer  # with its memory
        others = torch.cuda.memory_allocated() if args.device == "cuda" else 0
        steps[name] = Steps(make_trainer(data, params, name), batches, look_ahead=name != "published")
        memory = steps[name].memory_mb_per_video(others)
        rows.append({"variant": name, "dtype": dtype, "gradient_error": error.item(), "memory_mb_per_video": memory})
    samples = timing.measure(steps, args.seconds)
    for row in rows:
        row["step_ms"] = 1e3 * statistics.median(samples[row["variant"]].all)
        row[f"times_as_fast_as_{variants[0]}"] = ratio(samples, variants[0], row["variant"])
    return rows


def ratio(samples: dict[str, timing.Samples], reference: str, name: str) -> float:
    """Of the times of neighbouring blocks, the median."""
    pairs = zip(samples[reference].rounds(False), samples[name].rounds(False))
    return statistics.median(theirs / ours for theirs, ours in pairs)


def pinned(batch: Batch, device: str) -> Batch:
    if device != "cuda":
        return batch
    return batch._replace(features=batch.features.pin_memory(), mask=batch.mask.pin_memory())


def main(argv: list[str] | None = None) -> None:
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--dtype", default="float32,tf32,bfloat16", metavar="A,B")
    parser.add_argument("--variants", default=",".join(VARIANTS), metavar="A,B")
    parser.add_argument("--seconds", type=float, default=4.0, metavar="S", help="time budget per variant")
    parser.add_argument("--gin_param", action="append", default=[], metavar="X.Y=V", help="change model or data")
    args = parser.parse_args(argv)
    variants = [name for name in args.variants.split(",") if name != "published" or not published.missing()]
    if not variants:
        raise RunError(f"{', '.join(published.missing())} is not installed: pip install 'rdfa-s6[reference]'")
    machine = environment.summary(environment.describe())
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        settings = configuration(data, args.gin_param)
        length, channels = settings.dataset.max_seq_len, settings.model.embedding.input_c
        write_dataset(data, VIDEOS, 1, settings.dataset.num_classes, channels, length, length)
        trainer = make_trainer(data, [*args.gin_param, *NO_DROP_PATH, "Training.device = 'cpu'"])
        wanted = flat_gradient(trainer, next(trainer.loader.epoch(1)))
        rows = []
        for dtype in args.dtype.split(","):
            rows += measure(args, data, dtype, variants, wanted)
            write(args.output, machine, rows)
    print(machine)
    for row in rows:
        print("  ".join(f"{k} {v:.4g}" if isinstance(v, float) else str(v) for k, v in row.items()))


def write(folder: Path, machine: str, rows: list[dict]) -> None:
    with replacing(folder / "training.csv") as path, open(path, "w") as file:
        writer = csv.DictWriter(file, [*rows[0], "machine"], lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, "machine": machine} for row in rows)


if __name__ == "__main__":
    sys.exit(cli.run(main))
