"""Interrupted trainings continue bit for bit: after SIGKILL at random moments, in an epoch, from any step."""

import dataclasses
import random
import shutil
import time

import pytest
import torch

from rdfa.config import load
from rdfa.data.synthetic import write_dataset
from rdfa.errors import RunError, UsageError
from rdfa.run_dir import (
    RunDirectory,
    list_checkpoints,
    load_meta,
    load_training_state,
    load_weights,
    point,
    step_folder,
    write_checkpoint,
    write_config,
)
from rdfa.training.trainer import Trainer, train
from tests.training.tiny import CHANNELS, CLASSES, flags, make_dataset, metrics, start_process

EPOCHS, ITERATIONS = 5, 5


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("data"))


def tiny(dataset, run_dir, *params):
    return flags(
        dataset,
        run_dir,
        f"Training.max_epochs = {EPOCHS}",
        "Training.eval_start_epoch = 2",
        "Training.eval_every = 2",
        *params,
    )


@pytest.fixture(scope="module")
def uninterrupted(dataset, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    process = start_process(tiny(dataset, run_dir), run_dir.with_suffix(".log"))
    process.join()
    assert process.exitcode == 0, run_dir.with_suffix(".log").read_text()
    return run_dir


def assert_same_training(run_dir, wanted):
    ours, theirs = (RunDirectory(path).checkpoint("latest") for path in (run_dir, wanted))
    assert ours.name == theirs.name == f"step_{EPOCHS * ITERATIONS:08d}"
    for weights in ("model", "ema"):
        a, b = load_weights(ours, weights), load_weights(theirs, weights)
        assert a.keys() == b.keys()
        assert [name for name in a if not torch.equal(a[name], b[name])] == [], weights
    a, b = load_training_state(ours), load_training_state(theirs)
    for index, moments in b["optimizer"]["state"].items():
        for name, value in moments.items():
            assert torch.equal(a["optimizer"]["state"][index][name], value), (index, name)
    assert torch.equal(a["rng"]["torch"], b["rng"]["torch"]) and a["rng"]["python"] == b["rng"]["python"]
    assert {k: a[k] for k in ("epoch", "batch", "step", "best_mAP")} == {
        k: b[k] for k in ("epoch", "batch", "step", "best_mAP")
    }
    assert metrics(run_dir) == metrics(wanted)
    assert [(run / "checkpoints" / "best").read_text() for run in (run_dir, wanted)] == [
        f"{RunDirectory(wanted).checkpoint('best').name}\n"
    ] * 2


def latest(run_dir) -> str:
    pointer = run_dir / "checkpoints" / "latest"
    return pointer.read_text() if pointer.is_file() else ""


def test_killed_five_times(dataset, uninterrupted, tmp_path):
    """Each kill comes at a random moment after the process wrote its first checkpoint, so that all make progress."""
    run_dir, log, moments = tmp_path / "run", tmp_path / "log", random.Random(time.time_ns())
    argv, kills = tiny(dataset, run_dir, "Training.checkpoint_every = 1"), 0
    for _ in range(5):
        before, process = latest(run_dir), start_process(argv, log)
        while process.is_alive() and latest(run_dir) == before:
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.15))
        process.kill()
        process.join()
        assert process.exitcode in (-9, 0), log.read_text()
        kills += process.exitcode == -9
    assert kills == 5, "the training was over too soon to be killed"
    process = start_process(argv, log)
    process.join()
    assert process.exitcode == 0, log.read_text()
    assert_same_training(run_dir, uninterrupted)


class Interrupted(Trainer):
    """Stops before iteration `stop`, as if by Ctrl-C."""

    stop = 0

    def _iteration(self, *args):
        if self.step + 1 == self.stop:
            raise KeyboardInterrupt
        return super()._iteration(*args)


@pytest.fixture(scope="module")
def two_epochs(dataset, tmp_path_factory):
    """Uninterrupted: (configuration, run directory)."""
    params = ("Training.max_epochs = 2", "Training.checkpoint_every = 3", "Training.keep_checkpoints = 9")
    argv = flags(dataset, "", *params)
    config, run_dir = load([argv[1]], argv[5::2]), tmp_path_factory.mktemp("two")
    train(config, run_dir)
    return config, run_dir


def same_weights(run_dir, wanted):
    a, b = (load_weights(RunDirectory(path).checkpoint("latest"), "model") for path in (run_dir, wanted))
    assert all(torch.equal(a[name], b[name]) for name in b)


def test_resume_in_the_middle_of_an_epoch(two_epochs, tmp_path):
    config, wanted = two_epochs
    interrupted = Interrupted(config, tmp_path)
    interrupted.stop = 9
    with pytest.raises(KeyboardInterrupt):
        interrupted.run()
    folder = RunDirectory(tmp_path).checkpoint("latest")
    assert folder.name == "step_00000006"  # one iteration into the second epoch; iterations 7 and 8 are lost
    assert load_meta(folder) == {"epoch": 1, "batch": 1, "mAP": None, "step": 6}
    train(config, tmp_path)
    same_weights(tmp_path, wanted)
    assert metrics(tmp_path) == metrics(wanted)  # so the average of the second epoch includes its first iteration


def test_resume_from_an_older_step_and_into_another_run(two_epochs, tmp_path):
    config, wanted = two_epochs
    before, lines = load_weights(RunDirectory(wanted).checkpoint("latest"), "model"), metrics(wanted)
    assert [folder.name[-2:] for folder in list_checkpoints(wanted)] == ["03", "05", "06", "09", "10"]
    train(config, tmp_path / "other", str(step_folder(wanted, 6)))
    same_weights(tmp_path / "other", wanted)
    assert metrics(tmp_path / "other") == lines[2:]
    train(config, wanted, str(step_folder(wanted, 5)))
    after = load_weights(RunDirectory(wanted).checkpoint("latest"), "model")
    assert all(torch.equal(after[name], before[name]) for name in before) and metrics(wanted) == lines


def test_damaged_content_names_the_checkpoint_before(two_epochs, tmp_path):
    config, wanted = two_epochs
    run_dir = tmp_path / "copy"
    shutil.copytree(wanted, run_dir)
    folder = RunDirectory(run_dir).checkpoint("latest")
    for name in ("model.safetensors", "training_state.pt"):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(bytes(len(whole)))  # of the right size, so only reading it tells
        with pytest.raises(RunError, match=rf"{folder.name}.*the one before it is whole: --resume .*step_00000009"):
            train(config, run_dir)
        (folder / name).write_bytes(whole)


def test_other_data_in_the_same_place_is_refused(two_epochs, tmp_path):
    config, wanted = two_epochs
    folder = tmp_path / "data"
    path = write_dataset(
        folder, num_train=4, num_test=1, num_classes=CLASSES, feature_dim=CHANNELS, min_len=40, max_len=50
    )
    dataset = dataclasses.replace(config.dataset, annotation_file=str(path), feature_dir=str(folder / "features"))
    with pytest.raises(UsageError, match="was trained on 5 batches per epoch, the data now gives 2"):
        train(dataclasses.replace(config, dataset=dataset), wanted)


def test_weights_without_training_state(two_epochs, tmp_path):
    config, wanted = two_epochs
    weights = load_weights(RunDirectory(wanted).checkpoint("latest"), "ema")
    write_config(tmp_path, config)
    write_checkpoint(tmp_path, 7, weights, weights, {"epoch": 1})  # what a converted published run looks like
    point(tmp_path, "latest", 7)
    with pytest.raises(RunError, match="holds weights only: training cannot be resumed"):
        train(config, tmp_path)
