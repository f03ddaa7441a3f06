"""metrics.jsonl and TensorBoard, wandb only with a key, progress on a terminal and elsewhere."""

import io
import json
import sys
import types

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rdfa.config import Config, load
from rdfa.training.logging import MetricsLog, ProgressReport, start_wandb

SECRET = "0123456789abcdef-secret"


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)


def lines(run_dir) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_lines_survive_and_what_follows_the_checkpoint_is_cut_off(tmp_path):
    log = MetricsLog(tmp_path, Config())
    log.write("train", 1, 5, {"loss": 1.5})
    position = log.flush()
    log.write("train", 2, 10, {"loss": 1.25})
    log.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"kind": "tr')  # killed while writing
    log = MetricsLog(tmp_path, Config(), position, step=5)
    log.write("train", 2, 10, {"loss": 1.0})
    log.write("eval", 2, 10, {"mAP": 0.5})
    log.close()
    assert lines(tmp_path) == [
        {"kind": "train", "epoch": 1, "step": 5, "loss": 1.5},
        {"kind": "train", "epoch": 2, "step": 10, "loss": 1.0},
        {"kind": "eval", "epoch": 2, "step": 10, "mAP": 0.5},
    ]
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(5, 1.5), (10, 1.0)]
    assert [(e.step, e.value) for e in events.Scalars("eval/mAP")] == [(10, 0.5)]


def test_a_shortened_file_is_not_filled_up(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    log = MetricsLog(tmp_path, Config(), position=1000, step=5)
    log.write("train", 2, 10, {"loss": 1.0})
    log.close()
    assert len(lines(tmp_path)) == 2


class FakeRun:
    def __init__(self):
        self.logged, self.finished = [], False

    def log(self, values, step):
        self.logged.append((step, values))

    def finish(self):
        self.finished = True


def fake_wandb(monkeypatch, fail=None):
    calls, run = {}, FakeRun()

    def init(**kwargs):
        calls.update(kwargs)
        if fail is not None:
            raise fail
        return run

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    return calls, run


def keyed(*params) -> Config:
    return load([], [f"Wandb.key = '{SECRET}'", *params])


def test_wandb_is_not_imported_without_a_key(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it raises ImportError
    assert start_wandb(Config(), tmp_path) is None
    assert start_wandb(keyed("Wandb.mode = 'disabled'"), tmp_path) is None


def test_missing_wandb_is_reported_and_training_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert start_wandb(keyed(), tmp_path) is None
    printed = capsys.readouterr().out
    assert "pip install 'rdfa-s6[wandb]'" in printed and SECRET not in printed


@pytest.mark.parametrize("source", ("setting", "environment"))
def test_wandb_gets_numbers_and_settings_but_no_key(tmp_path, monkeypatch, source):
    calls, run = fake_wandb(monkeypatch)
    monkeypatch.setenv("WANDB_API_KEY", SECRET if source == "environment" else "")
    config = keyed("Wandb.entity = 'lab'") if source == "setting" else load([], ["Wandb.entity = 'lab'"])
    log = MetricsLog(tmp_path, config)
    log.write("train", 1, 5, {"loss": 1.5})
    log.close()
    assert run.logged == [(5, {"epoch": 1, "train/loss": 1.5})] and run.finished
    assert calls["entity"] == "lab" and calls["name"] == calls["id"] == tmp_path.name and calls["resume"] == "auto"
    assert calls["config"]["AdamW.lr"] == "0.0001"
    assert SECRET not in str(calls)
    assert all(SECRET.encode() not in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_failing_wandb_is_reported_without_the_key(tmp_path, monkeypatch, capsys):
    fake_wandb(monkeypatch, fail=ConnectionError(f"401 for key {SECRET}"))
    assert start_wandb(keyed(), tmp_path) is None
    printed = capsys.readouterr().out
    assert "ConnectionError: 401 for key ***" in printed and SECRET not in printed


def test_plain_progress_prints_every_nth_and_the_last_step(capsys):
    with ProgressReport("epoch 1/2", total=7, every=3, done=1, console=Console(file=io.StringIO())) as progress:
        for i in range(2, 8):
            progress.step(f"loss {i}")
    assert capsys.readouterr().out.splitlines() == [
        "epoch 1/2 [3/7] loss 3",
        "epoch 1/2 [6/7] loss 6",
        "epoch 1/2 [7/7] loss 7",
    ]


def test_bar_on_a_terminal(capsys):
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with ProgressReport("epoch 1/2", total=2, every=1, console=console) as progress:
        progress.step("loss 5")
        progress.step("loss 4")
    assert "2/2" in console.file.getvalue() and "loss 4" in console.file.getvalue()
    assert capsys.readouterr().out == ""
