"""Where a training continues from: which checkpoint, with which settings, and the state of the random generators."""

import dataclasses
import os
import random
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from rdfa.config import Config, differences
from rdfa.errors import RunError, UsageError
from rdfa.run_dir import PUBLISHED, RunDirectory, list_checkpoints

# Settings that may differ when a training is resumed: they change neither what it learns nor what its figures mean.
FREE_TO_CHANGE = {
    "Training.max_epochs",  # unless the schedule follows it, see `changed_settings`
    "Training.print_freq",
    "Training.eval_start_epoch",
    "Training.eval_every",
    "Training.checkpoint_every",
    "Training.keep_checkpoints",
    "Training.device",
    "Training.accumulate",  # like the number of processes, these change how a gradient is computed, not which
    "Training.recompute_stem",
    "Training.cuda_graph",
    "PointGenerator.max_buffer_len_factor",  # only how long a video may be
    "Dataset.annotation_file",  # the same data in another place
    "Dataset.feature_dir",
    "Loader.pin_memory",
    "Loader.num_workers",
}


def capture_rng() -> dict[str, Any]:
    """State of all random generators of the process (of its own GPU, where it uses one), as tensors and numbers."""
    algorithm, keys, position, has_gauss, gauss = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (algorithm, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_available() else [],
    }


def restore_rng(state: dict[str, Any]) -> None:
    """Undo of `capture_rng`, in a process with any GPU; one without a captured GPU state keeps its own."""
    random.setstate(state["python"])
    algorithm, keys, *rest = state["numpy"]
    np.random.set_state((algorithm, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and state["cuda"]:
        torch.cuda.set_rng_state(state["cuda"][0])


def seed_everything(seed: int) -> None:
    """Seed the generators of Python, numpy and torch (all devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def checkpoint_to_resume(run_dir: Path, resume: str | Literal["auto", "none"]) -> Path | None:
    """The step folder that training in `run_dir` continues from, or None for a fresh start.

    "auto" takes the latest checkpoint of `run_dir` if there is one; "none" insists on a fresh start; anything else is
    the path of a step folder, of this run or (while this one has no checkpoints) of another.

    Raises:
        UsageError: "none" where there are checkpoints, a path that leads nowhere, or a published folder.
        RunError: the latest checkpoint is damaged; the message names the last one before it that is not.
    """
    latest = run_dir / "checkpoints" / "latest"
    if (run_dir / PUBLISHED).is_file():
        raise UsageError(f"{run_dir} holds published weights, which are not trained on: give another --run_dir")
    if resume == "none":
        if latest.is_file():
            raise UsageError(
                f"{run_dir} already holds checkpoints: continue them with --resume auto, or start in another --run_dir"
            )
        return None
    if resume != "auto":
        folder = Path(resume)
        if not (folder.resolve().parent.parent / "config.gin").is_file():
            raise UsageError(
                f"--resume {resume} is no checkpoint of a run: give auto, none, or RUN/checkpoints/step_..."
            )
        if latest.is_file() and not _belongs_to(folder, run_dir):
            raise UsageError(
                f"--resume {folder} is not a checkpoint of {run_dir}, which has its own: start in another --run_dir"
            )
        return _run_of(folder).checkpoint(folder)
    if not latest.is_file():
        return None
    run = RunDirectory(run_dir)
    try:
        return run.checkpoint("latest")
    except RunError as error:
        raise RunError(f"{error}{previous_checkpoint(run_dir, latest.read_text().strip())}") from error


def previous_checkpoint(run_dir: Path, name: str) -> str:
    """How to go on when the step folder `name` is unreadable: the end of an error message."""
    for folder in reversed(list_checkpoints(run_dir)):
        if (len(folder.name), folder.name) < (len(name), name):
            try:
                RunDirectory(run_dir).checkpoint(folder)
            except UsageError:
                continue
            return f"; the one before it is whole: --resume {folder}"
    return "; no earlier one is left, so start again in another --run_dir"


def check_same_settings(checkpoint: Path, config: Config) -> None:
    """Refuse (UsageError) to continue `checkpoint` with settings that would make it another training."""
    run = _run_of(checkpoint)
    changed = changed_settings(run.config(), config)
    if changed:
        raise UsageError(
            f"{run.path} was trained with other settings: {'; '.join(changed)} (trained -> given). "
            "Restore them to resume, or train with the new ones in another --run_dir"
        )


def changed_settings(old: Config, new: Config) -> list[str]:
    """'Group.name: old -> new' for every setting whose change makes it another training.

    Training.max_epochs is free only where the length of the schedule is given: if T_max follows it, its change is
    reported as the change of T_max.
    """
    lines = differences(_explicit_schedule(old), _explicit_schedule(new))
    free = lambda name: name in FREE_TO_CHANGE or name.startswith("Wandb.")  # noqa: E731
    return [line for line in lines if not free(line.split(":")[0])]


def _explicit_schedule(config: Config) -> Config:
    engine, epochs = config.engine, config.engine.training.max_epochs
    if engine.scheduler.name == "LinearWarmupCosineAnnealingLR" and engine.warmup_cosine.T_max is None:
        engine = dataclasses.replace(engine, warmup_cosine=dataclasses.replace(engine.warmup_cosine, T_max=epochs))
    elif engine.scheduler.name == "CosineAnnealingLR" and engine.cosine.max_epochs is None:
        engine = dataclasses.replace(engine, cosine=dataclasses.replace(engine.cosine, max_epochs=epochs))
    return dataclasses.replace(config, engine=engine)


def _run_of(folder: Path) -> RunDirectory:
    return RunDirectory(folder.resolve().parent.parent)


def _belongs_to(folder: Path, run_dir: Path) -> bool:
    return folder.resolve().parent == Path(os.path.realpath(run_dir)) / "checkpoints"
