"""Which checkpoint a training continues from, which changed settings it refuses, and the random generators."""

import dataclasses
import random

import numpy as np
import pytest
import torch

from rdfa.config import Config, load
from rdfa.errors import RunError, UsageError
from rdfa.run_dir import point, step_folder, write_checkpoint, write_config
from rdfa.training.checkpoint import (
    capture_rng,
    changed_settings,
    check_same_settings,
    checkpoint_to_resume,
    restore_rng,
    seed_everything,
)


def draw() -> list[float]:
    return [
        random.random(),
        float(np.random.rand()),
        float(np.random.randn()),
        *torch.rand(2).tolist(),
        random.gauss(0, 1),
    ]


def test_random_generators_continue_after_a_safe_round_trip(tmp_path):
    seed_everything(1234567891)
    draw()  # randn and gauss keep a second number in store: part of the state
    torch.save(capture_rng(), tmp_path / "rng.pt")
    wanted = draw()
    draw()
    restore_rng(torch.load(tmp_path / "rng.pt", weights_only=True))
    assert draw() == wanted
    seed_everything(5)
    first = draw()
    seed_everything(5)
    assert draw() == first != wanted


def make_run(path, steps=(), latest=None):
    write_config(path, Config())
    for step in steps:
        tensors = {"w": torch.full((3,), float(step))}
        write_checkpoint(path, step, tensors, tensors, {"epoch": step}, {"step": step})
    if latest is not None:
        point(path, "latest", latest)
    return path


def test_fresh_start(tmp_path):
    assert checkpoint_to_resume(tmp_path / "missing", "auto") is None
    assert checkpoint_to_resume(tmp_path / "missing", "none") is None
    run = make_run(tmp_path / "run")
    assert checkpoint_to_resume(run, "auto") is None  # killed before its first checkpoint


def test_a_published_folder_is_not_trained_in(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    for resume in ("auto", "none"):
        with pytest.raises(UsageError, match="holds published weights"):
            checkpoint_to_resume(tmp_path, resume)


def test_auto_takes_the_latest_and_none_refuses(tmp_path):
    run = make_run(tmp_path / "run", steps=(10, 20), latest=20)
    assert checkpoint_to_resume(run, "auto") == step_folder(run, 20)
    with pytest.raises(UsageError, match="already holds checkpoints: continue them with --resume auto"):
        checkpoint_to_resume(run, "none")


def test_path_of_this_run_or_into_an_empty_one(tmp_path):
    run, other = make_run(tmp_path / "run", (10, 20), 20), make_run(tmp_path / "other", (5,), 5)
    assert checkpoint_to_resume(run, str(step_folder(run, 10))) == step_folder(run, 10)
    assert checkpoint_to_resume(tmp_path / "new", str(step_folder(other, 5))) == step_folder(other, 5)
    with pytest.raises(UsageError, match="is not a checkpoint of"):
        checkpoint_to_resume(run, str(step_folder(other, 5)))
    with pytest.raises(UsageError, match="does not exist"):
        checkpoint_to_resume(run, str(step_folder(run, 15)))
    with pytest.raises(UsageError, match=r"--resume \S+nowhere is no checkpoint of a run"):
        checkpoint_to_resume(tmp_path / "new", str(tmp_path / "nowhere"))


@pytest.mark.parametrize("damage", ("truncate", "remove", "unfinished"))
def test_damaged_latest_is_refused_and_the_one_before_named(tmp_path, damage):
    run = make_run(tmp_path / "run", steps=(10, 20, 30), latest=30)
    (step_folder(run, 20) / "ema.safetensors").write_bytes(b"")  # damaged too, so not to be recommended
    state = step_folder(run, 30) / "training_state.pt"
    if damage == "truncate":
        state.write_bytes(state.read_bytes()[:-1])
    elif damage == "remove":
        state.unlink()
    else:
        (step_folder(run, 30) / "COMPLETE").unlink()
    with pytest.raises(RunError) as error:
        checkpoint_to_resume(run, "auto")
    assert "step_00000030" in str(error.value)
    assert f"--resume {step_folder(run, 10)}" in str(error.value)


def test_only_checkpoint_damaged(tmp_path):
    run = make_run(tmp_path / "run", steps=(10,), latest=10)
    (step_folder(run, 10) / "model.safetensors").unlink()
    with pytest.raises(RunError, match=r"model.safetensors is missing.* start again in another --run_dir"):
        checkpoint_to_resume(run, "auto")


@pytest.mark.parametrize(
    "param",
    (
        "Training.print_freq = 1",
        "PointGenerator.max_buffer_len_factor = 9.0",
        "Training.eval_every = 3",
        "Training.keep_checkpoints = 9",
        "Dataset.feature_dir = 'elsewhere'",
        "Loader.num_workers = 1",
        "Wandb.key = 'secret'",
        "Wandb.notes = 'again'",
    ),
)
def test_harmless_changes(param):
    assert changed_settings(Config(), load([], [param])) == []


@pytest.mark.parametrize(
    "param",
    (
        "AdamW.lr = 0.1",
        "Loader.seed = 1",
        "Loader.batch_size = 3",
        "StemModule.recurrent = 3",
        "Training.tiou = [0.5]",
        "Training.ema_decay = 0.9",
        "PostProcessing.nms_sigma = 0.7",
    ),
)
def test_changes_that_make_another_training(param):
    name = param.split(" = ")[0]
    lines = changed_settings(Config(), load([], [param]))
    assert len(lines) == 1 and lines[0].startswith(f"{name}: ")


def test_more_epochs_only_where_the_schedule_does_not_follow_them():
    longer = ["Training.max_epochs = 60"]
    assert changed_settings(Config(), load([], longer)) == ["LinearWarmupCosineAnnealingLR.T_max: 50 -> 60"]
    for fixed in ("LinearWarmupCosineAnnealingLR.T_max = 50", "Scheduler.name = 'MultiStepLR'"):
        assert changed_settings(load([], [fixed]), load([], [fixed, *longer])) == []
    plain = ["Scheduler.name = 'CosineAnnealingLR'"]
    assert changed_settings(load([], plain), load([], plain + longer)) == ["CosineAnnealingLR.max_epochs: 50 -> 60"]
    # what followed and what was given are the same when the numbers are
    assert changed_settings(Config(), load([], ["LinearWarmupCosineAnnealingLR.T_max = 50"])) == []


def test_refusal_names_the_setting_and_the_remedy(tmp_path):
    run = make_run(tmp_path / "run", (10,), 10)
    loader = dataclasses.replace(Config().loader, seed=7)
    with pytest.raises(UsageError, match=r"Loader\.seed: 1234567891 -> 7 .*Restore them to resume"):
        check_same_settings(step_folder(run, 10), dataclasses.replace(Config(), loader=loader))
    check_same_settings(step_folder(run, 10), Config())
