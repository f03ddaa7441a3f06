"""What a training reports: metrics.jsonl and TensorBoard always, wandb when a key is given, progress on the screen."""

import json
import os
import sys
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from rdfa.config import Config, to_gin
from rdfa.training.settings import WandbSettings


class MetricsLog:
    """Appends one JSON object per line to metrics.jsonl and the same numbers to TensorBoard and wandb.

        {"kind": "train", "epoch": 3, "step": 300, "loss": 0.41, ...}

    Args:
        run_dir: the run directory.
        config: the operative configuration; wandb records it without secrets.
        position: bytes of metrics.jsonl that belong to the state training starts from. Whatever a killed run wrote
            after its last checkpoint is cut off, since it will be written again.
        step: iterations done in that state; TensorBoard hides what an earlier run recorded after it.
    """

    def __init__(self, run_dir: Path, config: Config, position: int = 0, step: int = 0):
        # Imported here: TensorBoard takes a second to load, and evaluation alone does not need it.
        from torch.utils.tensorboard import SummaryWriter

        self._file = open(run_dir / "metrics.jsonl", "ab")  # noqa: SIM115 (closed by close)
        if self._file.tell() > position:
            self._file.truncate(position)
        self._tensorboard = SummaryWriter(str(run_dir / "tensorboard"), purge_step=step + 1 if step else None)
        self._wandb = start_wandb(config, run_dir)

    def write(self, kind: str, epoch: int, step: int, values: dict[str, float]) -> None:
        """Record `values` of `kind` ("train" or "eval") at the end of `epoch`, after `step` iterations."""
        line = json.dumps({"kind": kind, "epoch": epoch, "step": step, **values})
        self._file.write(line.encode() + b"\n")
        for name, value in values.items():
            self._tensorboard.add_scalar(f"{kind}/{name}", value, step)
        if self._wandb is not None:
            self._wandb.log({"epoch": epoch} | {f"{kind}/{name}": v for name, v in values.items()}, step=step)

    def flush(self) -> int:
        """Bring everything to disk; returns the length of metrics.jsonl, which a checkpoint remembers."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._tensorboard.flush()
        return self._file.tell()

    def close(self) -> None:
        self._file.close()
        self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()


def start_wandb(config: Config, run_dir: Path) -> Any | None:
    """A wandb run when a key is given (Wandb.key or the environment variable WANDB_API_KEY) and wandb works, else None.

    Without a key wandb is not even imported. That it is missing or fails is reported and never stops the training; the
    key appears in no message and no file.
    """
    settings: WandbSettings = config.engine.wandb
    key = settings.key or os.environ.get("WANDB_API_KEY", "")
    if not key or settings.mode == "disabled":
        return None
    try:
        import wandb
    except ImportError:
        say("a wandb key is given, but wandb is missing: pip install 'rdfa-s6[wandb]'. Training goes on without it")
        return None
    name = settings.name or run_dir.resolve().name
    os.environ["WANDB_API_KEY"] = key  # wandb.login would write it to ~/.netrc
    try:
        return wandb.init(
            entity=settings.entity or None,
            project=settings.project,
            name=name,
            id=settings.id or name,
            job_type=settings.job_type,
            group=settings.group,
            tags=settings.tags,
            notes=settings.notes,
            resume=settings.resume,
            save_code=settings.save_code,
            mode=settings.mode,
            dir=str(run_dir),
            config=dict(line.split(" = ", 1) for line in to_gin(config).splitlines() if " = " in line),
        )
    except Exception as error:  # whatever a remote service does, the training is worth more than its record
        reason = f"{type(error).__name__}: {error}".replace(key, "***")
        say(f"wandb could not start ({reason}). Training goes on with TensorBoard alone")
        return None


def say(text: str, stream: TextIO | None = None) -> None:
    """One plain line, visible at once also when the output goes to a file."""
    print(text, file=stream or sys.stdout, flush=True)


class ProgressReport:
    """A progress bar on a terminal, a plain line every `every` steps elsewhere.

    with ProgressReport("epoch 1/50", total=100, every=5) as progress:
        progress.step("loss 0.41")
    """

    def __init__(self, title: str, total: int, every: int, done: int = 0, console: Console | None = None):
        self._title, self._total, self._every, self._done = title, total, every, done
        console = console or Console()
        self._bar = None
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[text]}"),
                console=console,
            )
            self._task = self._bar.add_task(title, total=total, completed=done, text="")

    def __enter__(self) -> "ProgressReport":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_) -> None:
        if self._bar is not None:
            self._bar.stop()

    def step(self, text: str) -> None:
        """One more step is done; `text` says how it went."""
        self._done += 1
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, text=text)
        elif self._done % self._every == 0 or self._done == self._total:
            say(f"{self._title} [{self._done}/{self._total}] {text}")
