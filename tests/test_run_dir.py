"""Run directories: what is written is read back, and half of it never is."""

import json
import shutil

import pytest
import torch

from rdfa import run_dir as module
from rdfa.config import Config
from rdfa.data.settings import DatasetSettings
from rdfa.errors import RunError, UsageError
from rdfa.run_dir import (
    RunDirectory,
    list_checkpoints,
    load_detector,
    load_meta,
    load_training_state,
    load_weights,
    point,
    prune_checkpoints,
    step_folder,
    write_checkpoint,
    write_config,
)
from tests.modeling.cases import random_input, settings, tiny_detector

CONFIG = Config(model=settings(6, 8, 3, recurrent=2), dataset=DatasetSettings(num_classes=3))
STATE = {"weight": torch.arange(6.0).reshape(2, 3), "scale": torch.tensor(2.0), "half": torch.ones(3).bfloat16()}


def write_step(run, step, **arguments):
    return write_checkpoint(run, step, STATE, {k: v + 1 for k, v in STATE.items()}, {"mAP": 0.5}, **arguments)


@pytest.fixture
def run(tmp_path):
    write_config(tmp_path / "run", CONFIG, {2: "long jump", 0: "Weitsprung \u00fc"})
    return tmp_path / "run"


def test_a_checkpoint_is_read_back_as_written(run):
    training_state = {"optimizer": {"state": {0: {"step": torch.tensor(3.0)}}}, "rng": (1, [2, None], "x")}
    folder = write_step(run, 1234, training_state=training_state)
    assert folder == run / "checkpoints" / "step_00001234" == step_folder(run, 1234)
    assert {path.name for path in folder.iterdir()} == {
        "model.safetensors", "ema.safetensors", "training_state.pt", "meta.json", "COMPLETE",
    }  # fmt: skip
    for weights, offset in (("model", 0), ("ema", 1)):
        state = load_weights(folder, weights)
        assert state.keys() == STATE.keys()
        for name, tensor in state.items():
            assert tensor.dtype == STATE[name].dtype and torch.equal(tensor, STATE[name] + offset)
    assert load_training_state(folder) == training_state
    assert load_meta(folder) == {"mAP": 0.5, "step": 1234}
    assert list((run / "checkpoints").iterdir()) == [folder]  # nothing temporary is left


def test_views_and_parameters_can_be_written(run):
    base = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))
    folder = write_checkpoint(run, 1, {"t": base.T, "row": base[0]}, {"t": base.T}, {})
    assert torch.equal(load_weights(folder, "model")["t"], base.T.detach())


def test_configuration_and_class_names_are_read_back(run):
    assert RunDirectory(run).config() == CONFIG
    assert RunDirectory(run).class_names() == {0: "Weitsprung \u00fc", 2: "long jump"}
    assert json.loads((run / "classes.json").read_text()) == {"0": "Weitsprung \u00fc", "2": "long jump"}
    (run / "classes.json").unlink()
    assert RunDirectory(run).class_names() == {}
    (run / "config.gin").write_bytes(b"\xff")
    with pytest.raises(UsageError, match=r"cannot read gin file .*config\.gin: not text"):
        RunDirectory(run).config()
    (run / "classes.json").write_text("[1]")
    with pytest.raises(RunError, match=r"classes\.json: not a file of class names"):
        RunDirectory(run).class_names()


def test_pointers(run):
    for step in (1, 2, 3):
        write_step(run, step)
    with pytest.raises(UsageError, match="has no 'latest' checkpoint yet"):
        RunDirectory(run).checkpoint()
    point(run, "latest", 3)
    assert RunDirectory(run).checkpoint() == step_folder(run, 3)
    point(run, "best", 2)
    found = RunDirectory(run)
    assert found.checkpoint() == found.checkpoint("best") == step_folder(run, 2)
    assert found.checkpoint("latest") == step_folder(run, 3)
    assert found.checkpoint(step_folder(run, 1)) == found.checkpoint(str(step_folder(run, 1))) == step_folder(run, 1)
    assert (run / "checkpoints" / "best").read_text() == "step_00000002\n"
    with pytest.raises(RunError, match="step_00000009 does not exist"):
        point(run, "latest", 9)


def test_a_step_is_replaced_as_a_whole(run):
    write_step(run, 5, training_state={"a": 1})
    folder = write_checkpoint(run, 5, {"other": torch.ones(1)}, {"other": torch.ones(1)}, {})
    assert load_weights(folder, "model").keys() == {"other"}
    assert not (folder / "training_state.pt").exists()
    with pytest.raises(RunError, match="weights only: training cannot be resumed"):
        load_training_state(folder)
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step_00000005"]


@pytest.mark.parametrize("killed_at", ["write_weights", "_write_text", "_flush", "os.replace"])
@pytest.mark.parametrize("call", [0, 1, 2])
def test_a_writer_killed_at_any_moment_leaves_no_half_checkpoint(run, monkeypatch, killed_at, call):
    write_step(run, 1)
    point(run, "latest", 1)

    class Killed(BaseException):
        pass

    owner, name = (module.os, "replace") if killed_at == "os.replace" else (module, killed_at)
    original, calls = getattr(owner, name), []

    def dying(*args, **kwargs):
        calls.append(1)
        if len(calls) > call:
            raise Killed
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, dying)
        try:
            write_step(run, 2, training_state={"a": 1})
            point(run, "latest", 2)
        except Killed:
            pass
    latest = RunDirectory(run).checkpoint("latest")
    assert load_meta(latest)["step"] in (1, 2)
    assert load_weights(latest, "ema").keys() == STATE.keys()
    for folder in list_checkpoints(run):
        assert RunDirectory(run).checkpoint(folder) == folder
    # The next writer is not disturbed, and the rest of the dead one goes.
    write_step(run, 2)
    point(run, "latest", 2)
    prune_checkpoints(run, keep=1)
    assert sorted(path.name for path in (run / "checkpoints").glob("*step*")) == ["step_00000002"]


def test_a_writer_killed_while_replacing_a_step_leaves_the_old_one(run, monkeypatch):
    write_step(run, 2)
    point(run, "latest", 2)
    original = module.os.replace

    def dying(source, target):
        if str(target).endswith("step_00000002") and "replaced" not in str(target):
            raise KeyboardInterrupt
        original(source, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module.os, "replace", dying)
        write_checkpoint(run, 2, {"new": torch.ones(1)}, {"new": torch.ones(1)}, {})
    assert not step_folder(run, 2).exists()
    assert load_weights(RunDirectory(run).checkpoint("latest"), "model").keys() == STATE.keys()
    write_checkpoint(run, 2, {"new": torch.ones(1)}, {"new": torch.ones(1)}, {})
    assert load_weights(RunDirectory(run).checkpoint("latest"), "model").keys() == {"new"}


def test_pruning_keeps_the_recent_the_best_and_the_latest(run):
    for step in (1, 2, 3, 4, 5, 100_000_000):
        write_step(run, step)
    point(run, "best", 2)
    point(run, "latest", 3)
    prune_checkpoints(run, keep=2)
    assert [folder.name for folder in list_checkpoints(run)] == [
        "step_00000002", "step_00000003", "step_00000005", "step_100000000",
    ]  # fmt: skip


def truncate(path):
    path.write_bytes(path.read_bytes()[:-9])


@pytest.mark.parametrize("damage, message", [
    (lambda folder: truncate(folder / "ema.safetensors"), r"is damaged: ema\.safetensors has \d+ bytes instead of \d+"),
    (lambda folder: (folder / "model.safetensors").unlink(), r"is damaged: model\.safetensors is missing"),
    (lambda folder: (folder / "COMPLETE").unlink(), "is incomplete"),
    (lambda folder: (folder / "COMPLETE").write_text(""), "is incomplete"),
    (shutil.rmtree, "does not exist"),
], ids=["truncated", "missing file", "no sentinel", "empty sentinel", "gone"])  # fmt: skip
def test_damaged_checkpoints_are_refused(run, damage, message):
    folder = write_step(run, 1)
    point(run, "latest", 1)
    damage(folder)
    with pytest.raises(RunError, match=message):
        RunDirectory(run).checkpoint("latest")
    with pytest.raises(UsageError, match=message):  # given on the command line
        RunDirectory(run).checkpoint(folder)


def test_bytes_that_changed_in_place_are_noticed(run):
    folder = write_step(run, 1, training_state={"a": 1})
    for name in ("model.safetensors", "training_state.pt"):
        path = folder / name
        path.write_bytes(b"\xff" * path.stat().st_size)
    with pytest.raises(RunError, match=r"cannot read .*model\.safetensors.*use another checkpoint"):
        load_weights(folder, "model")
    with pytest.raises(RunError, match=r"cannot read .*training_state\.pt.*use another checkpoint"):
        load_training_state(folder)


def test_a_file_in_the_way_of_a_run_directory(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UsageError, match=r"cannot make run directory .*file\S*: .*; give a folder of yours"):
            write_config(path, Config())


def test_a_directory_without_configuration_is_no_run(tmp_path):
    with pytest.raises(UsageError, match=r"is not a run directory: it holds no config\.gin"):
        load_detector(tmp_path)


@torch.no_grad()
def test_load_detector_takes_the_averaged_weights_of_the_best_checkpoint(run):
    detector, other = tiny_detector(), tiny_detector()
    other.cls_head.cls_head.conv.bias += 1
    write_checkpoint(run, 1, other.state_dict(), detector.state_dict(), {})
    write_checkpoint(run, 2, other.state_dict(), other.state_dict(), {})
    point(run, "latest", 2)
    point(run, "best", 1)
    inputs = random_input([64], 64)
    for arguments, expected in (
        ({}, detector),
        ({"weights": "model"}, other),
        ({"checkpoint": "latest"}, other),
        ({"checkpoint": step_folder(run, 1)}, detector),
    ):
        loaded, config = load_detector(run, **arguments)
        assert not loaded.training and config == CONFIG
        assert torch.equal(loaded(*inputs)[0], expected(*inputs)[0])


def test_weights_of_another_model_are_refused_in_one_line(run):
    state = tiny_detector(emb_c=16).state_dict()
    write_checkpoint(run, 1, state, state, {})
    point(run, "latest", 1)
    with pytest.raises(RunError, match=r"the weights do not fit .*config\.gin"):
        load_detector(run)
