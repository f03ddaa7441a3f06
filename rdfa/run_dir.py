"""Layout of a run directory, and the only code that reads and writes its checkpoints.

    config.gin  classes.json  metrics.jsonl  tensorboard/  .lock
    checkpoints/step_00001234/  model.safetensors  ema.safetensors  training_state.pt (optional)  meta.json  COMPLETE
    checkpoints/latest  checkpoints/best       text files that hold the name of a step folder

A published folder (rdfa.convert --to safetensors) has the averaged weights as model.safetensors beside config.gin, and
no checkpoints; it is read like a run.

A step folder is written under a temporary name, flushed to the disk and renamed; COMPLETE is written last and lists the
size of every other file, so a folder that a kill, a full disk or a broken copy cut short is never mistaken for a
checkpoint.
"""

import contextlib
import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from rdfa.config import Config, load, to_gin
from rdfa.errors import RunError, UsageError
from rdfa.modeling.detector import Detector, build_detector

Pointer = Literal["latest", "best"]
SENTINEL = "COMPLETE"
PUBLISHED = "model.safetensors"
_TEMPORARY = ".writing_"


class RunDirectory:
    """The directory of one training run, or of a converted published run.

    Raises:
        UsageError: `path` is not a run directory.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        if not (self.path / "config.gin").is_file():
            raise UsageError(
                f"{self.path} is not a run directory: it holds no config.gin (written by train.py --run_dir)"
            )

    def config(self) -> Config:
        """The operative configuration of the run."""
        return load([self.path / "config.gin"])

    def class_names(self) -> dict[int, str]:
        """Label id -> class name; empty when the run did not know the names."""
        path = self.path / "classes.json"
        if not path.is_file():
            return {}
        try:
            return {int(label): name for label, name in json.loads(path.read_text(encoding="utf-8")).items()}
        except (ValueError, AttributeError) as error:
            raise RunError(f"{path}: not a file of class names ({error}); expected {{'0': 'name', ...}}") from error

    def checkpoint(self, which: str | os.PathLike | None = None) -> Path:
        """The complete step folder that `which` names: 'best', 'latest', a path, or None for the best, else the latest.

        Raises:
            UsageError: a given path, or a name without a checkpoint, leads to no complete checkpoint.
            RunError: 'best' or 'latest' names a folder that is missing or damaged.
        """
        if (self.path / PUBLISHED).is_file() and (which is None or Path(which) == self.path):
            return self.path
        if which is None:
            which = "best" if (self.path / "checkpoints" / "best").is_file() else "latest"
        if which not in ("best", "latest"):
            return _check_complete(Path(which), UsageError)
        pointer = self.path / "checkpoints" / which
        if not pointer.is_file():
            raise UsageError(
                f"{self.path} has no '{which}' checkpoint yet: train first, or give the path of a step folder"
            )
        return _check_complete(pointer.parent / pointer.read_text(encoding="utf-8").strip(), RunError)


def load_detector(
    run_dir: str | os.PathLike,
    checkpoint: str | os.PathLike | None = None,
    weights: Literal["ema", "model"] = "ema",
) -> tuple[Detector, Config]:
    """The detector of a run, in eval mode on the CPU, and the run's configuration.

    Args:
        checkpoint: see `RunDirectory.checkpoint`.
        weights: 'ema', the averaged weights that evaluation uses, or 'model', those that training continues from.
    """
    run = RunDirectory(run_dir)
    config = run.config()
    folder = run.checkpoint(checkpoint)
    detector = build_detector(config.model)
    try:
        detector.load_state_dict(load_weights(folder, weights))
    except RuntimeError as error:
        raise RunError(f"{folder}: the weights do not fit {run.path / 'config.gin'}: {error}") from error
    return detector.eval(), config


def load_weights(folder: str | os.PathLike, weights: Literal["ema", "model"]) -> dict[str, Tensor]:
    """The state dict in one file of a step folder."""
    path = Path(folder) / f"{weights}.safetensors"
    if (Path(folder) / "config.gin").is_file():  # a published folder
        path = Path(folder) / PUBLISHED
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise RunError(f"cannot read {path}: {error}; use another checkpoint") from error


def load_training_state(folder: str | os.PathLike) -> dict[str, Any]:
    """Everything beside the weights that training continues from, as given to `write_checkpoint`."""
    path = Path(folder) / "training_state.pt"
    if not path.is_file():
        raise RunError(f"{folder} holds weights only: training cannot be resumed from it")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever the damaged bytes lead to
        raise RunError(f"cannot read {path}: {str(error).splitlines()[0]}; use another checkpoint") from error


def load_meta(folder: str | os.PathLike) -> dict[str, Any]:
    """`meta` of `write_checkpoint`, and the step; nothing for a published folder."""
    path = Path(folder) / "meta.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def make_folder(run_dir: str | os.PathLike) -> Path:
    """The folder of a run, made if there is none; raises UsageError where there can be none."""
    path = Path(run_dir)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make run directory {path}: {error.strerror}; give a folder of yours") from error
    return path


@contextlib.contextmanager
def claimed(run_dir: str | os.PathLike) -> Iterator[None]:
    """Runs the block as the only one that writes to `run_dir`, which is made; a process that dies gives it back.

    Raises:
        UsageError: another process writes there, or there can be no such directory.
    """
    # Unlike flock's, this lock does not pass to the loader's processes, which outlive a kill by seconds.
    with open(make_folder(run_dir) / ".lock", "w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise UsageError(f"another training writes to {run_dir}: wait, or give another folder") from error
            # A file system without locks can't tell.
        yield


def write_config(run_dir: str | os.PathLike, config: Config, class_names: Mapping[int, str] | None = None) -> None:
    """Make `run_dir` a run directory: the operative configuration and, where known, the class names.

    Raises:
        UsageError: there can be no such directory.
    """
    path = make_folder(run_dir)
    _write_text(path / "config.gin", to_gin(config))
    if class_names is not None:
        names = {str(label): name for label, name in sorted(class_names.items())}
        _write_text(path / "classes.json", json.dumps(names, indent=1, ensure_ascii=False) + "\n")


def write_weights(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors, readable by whom the umask allows (`save_file` would keep all others out)."""
    tensors = {key: value.detach().contiguous() for key, value in state.items()}
    path.write_bytes(save(tensors, metadata={"format": "pt"}))


def write_checkpoint(
    run_dir: str | os.PathLike,
    step: int,
    model_state: Mapping[str, Tensor],
    ema_state: Mapping[str, Tensor],
    meta: Mapping[str, Any],
    training_state: Mapping[str, Any] | None = None,
) -> Path:
    """Write one step folder, all or nothing; returns its path. A folder of the same step is replaced.

    Args:
        meta: JSON values about the checkpoint (epoch, mAP, ...); the step is added.
        training_state: what `torch.load(weights_only=True)` reads back: tensors, numbers, strings and containers
            of them.
    """
    final = step_folder(run_dir, step)
    folder = final.parent / f"{_TEMPORARY}{final.name}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, state in (("model", model_state), ("ema", ema_state)):
        write_weights(folder / f"{name}.safetensors", state)
    if training_state is not None:
        torch.save(dict(training_state), folder / "training_state.pt")
    _write_text(folder / "meta.json", json.dumps({**meta, "step": step}, indent=1) + "\n")
    for path in folder.iterdir():
        _flush(path)
    sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    _write_text(folder / SENTINEL, json.dumps(sizes) + "\n")
    _flush(folder)
    replaced = _replaced(final)
    shutil.rmtree(replaced, ignore_errors=True)
    if final.exists():
        os.replace(final, replaced)
    os.replace(folder, final)
    _flush(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)
    return final


def step_folder(run_dir: str | os.PathLike, step: int) -> Path:
    """Where the checkpoint of `step` (optimiser steps done) lies."""
    return Path(run_dir) / "checkpoints" / f"step_{step:08d}"


def point(run_dir: str | os.PathLike, name: Pointer, step: int) -> None:
    """Let `name` stand for the checkpoint of `step`, which must be complete."""
    folder = _check_complete(step_folder(run_dir, step), RunError)
    _write_text(folder.parent / name, folder.name + "\n")
    _flush(folder.parent)


def list_checkpoints(run_dir: str | os.PathLike) -> list[Path]:
    """The complete step folders, oldest first."""
    folders = sorted((Path(run_dir) / "checkpoints").glob("step_*"), key=lambda folder: (len(folder.name), folder.name))
    return [folder for folder in folders if (folder / SENTINEL).is_file()]


def prune_checkpoints(run_dir: str | os.PathLike, keep: int) -> None:
    """Delete all but the `keep` most recent checkpoints and those that 'best' and 'latest' name.

    What an interrupted writer left behind goes too, so only the writer of the run may call this.
    """
    checkpoints = Path(run_dir) / "checkpoints"
    kept = {folder.name for folder in list_checkpoints(run_dir)[-keep:]}
    kept |= {(checkpoints / name).read_text().strip() for name in ("best", "latest") if (checkpoints / name).is_file()}
    for folder in (*checkpoints.glob("step_*"), *checkpoints.glob(f"{_TEMPORARY}*")):
        if folder.name not in kept:
            # The sentinel goes first: a deletion cut short must not leave half a checkpoint that looks whole.
            (folder / SENTINEL).unlink(missing_ok=True)
            shutil.rmtree(folder)


def _replaced(folder: Path) -> Path:
    """Where the step folder of an earlier writing lies while a new one takes its place."""
    return folder.parent / f"{_TEMPORARY}replaced_{folder.name}"


def _check_complete(folder: Path, error_type: type[Exception]) -> Path:
    if not folder.exists() and _replaced(folder).is_dir():
        os.replace(_replaced(folder), folder)  # the writer was killed between its two renames
    if not folder.is_dir():
        raise error_type(f"checkpoint {folder} does not exist: give a step folder such as checkpoints/step_00001000")
    try:
        sizes = json.loads((folder / SENTINEL).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise error_type(f"checkpoint {folder} is incomplete (no valid {SENTINEL}): use another one") from error
    for name, size in sizes.items():
        found = (folder / name).stat().st_size if (folder / name).is_file() else None
        if found != size:
            state = "is missing" if found is None else f"has {found} bytes instead of {size}"
            raise error_type(f"checkpoint {folder} is damaged: {name} {state}; use another one")
    return folder


def _write_text(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    _flush(temporary)
    os.replace(temporary, path)


def _flush(path: Path) -> None:
    """Bring a file, or the entries of a directory, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
