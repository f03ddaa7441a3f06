"""The training loop: what it writes, averages, evaluates, keeps and refuses."""

import subprocess
import sys

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rdfa.config import Config, load
from rdfa.errors import RunError, UsageError
from rdfa.modeling.detector import build_detector
from rdfa.run_dir import RunDirectory, list_checkpoints, load_detector, load_meta, load_weights
from rdfa.training.processes import resolve_device
from rdfa.training.settings import SCHEDULERS
from rdfa.training.trainer import Trainer, train
from tests.training.tiny import exit_code, flags, make_dataset, metrics


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("data"))


def configuration(dataset, *params) -> Config:
    argv = flags(dataset, "", *params)
    return load([argv[1]], argv[5::2])


class Recorder(Trainer):
    """Remembers the values of each iteration and, given `figures`, evaluates to the figure of the epoch."""

    def __init__(self, config, run_dir, figures=None):
        super().__init__(config, run_dir)
        self.figures, self.recorded = figures, []

    def _iteration(self, *args):
        epoch, values = self.epoch, super()._iteration(*args)
        self.recorded.append((epoch, values))
        return values

    def _evaluate(self):
        return super()._evaluate() if self.figures is None else self.figures[self.epoch]


@pytest.fixture(scope="module")
def trained(dataset, tmp_path_factory):
    """Two epochs, evaluated after each: (trainer, run directory)."""
    run_dir = tmp_path_factory.mktemp("trained") / "run"
    trainer = Recorder(configuration(dataset, "Training.max_epochs = 2"), run_dir)
    trainer.run()
    return trainer, run_dir


def test_run_directory_is_complete(trained, dataset):
    trainer, run_dir = trained
    run = RunDirectory(run_dir)
    assert run.config() == configuration(dataset, "Training.max_epochs = 2")
    assert run.class_names() == trainer.annotations.class_names
    assert {path.name for path in run_dir.iterdir()} == {
        *("config.gin", "classes.json", "metrics.jsonl", "tensorboard", "checkpoints", ".lock")
    }
    assert run.checkpoint("latest").name == "step_00000010"
    assert load_meta(run.checkpoint("latest"))["epoch"] == 2
    detector, _ = load_detector(run_dir, run.checkpoint("latest"))
    for name, value in trainer.ema.module.state_dict().items():
        assert torch.equal(detector.state_dict()[name], value), name
    weights = load_weights(run.checkpoint("latest"), "model")
    assert all(torch.equal(weights[name], value) for name, value in trainer.model.state_dict().items())


def test_all_epochs_are_trained_and_averages_logged(trained):
    trainer, run_dir = trained
    lines = metrics(run_dir)
    assert [(line["kind"], line["epoch"], line["step"]) for line in lines] == [
        ("train", 1, 5),
        ("eval", 1, 5),
        ("train", 2, 10),
        ("eval", 2, 10),
    ]
    assert len(trainer.recorded) == 10
    for line in metrics(run_dir, "train"):
        values = [v for epoch, v in trainer.recorded if epoch == line["epoch"]]
        for name in ("loss", "cls_loss", "reg_loss", "grad_norm"):
            assert line[name] == pytest.approx(sum(v[name] for v in values) / 5, rel=1e-12), name
            assert len({v[name] for v in values}) > 1  # so that an average differs from the last value
        assert line["lr"] == values[-1]["lr"]
    evaluation = metrics(run_dir, "eval")[-1]
    assert evaluation["mAP"] == pytest.approx(sum(evaluation[f"mAP@{t}"] for t in (0.3, 0.4, 0.5, 0.6, 0.7)) / 5)


def test_tensorboard_holds_the_same_numbers(trained):
    _, run_dir = trained
    events = EventAccumulator(str(run_dir / "tensorboard"))
    events.Reload()
    for kind, name in (("train", "loss"), ("train", "lr"), ("eval", "mAP")):
        wanted = [(line["step"], pytest.approx(line[name], rel=1e-6)) for line in metrics(run_dir, kind)]
        assert [(e.step, e.value) for e in events.Scalars(f"{kind}/{name}")] == wanted


def test_weights_move_and_the_average_follows(trained, dataset):
    trainer, _ = trained
    torch.manual_seed(trainer.config.loader.seed)
    start = build_detector(trainer.config.model).state_dict()
    now, averaged = trainer.model.state_dict(), trainer.ema.module.state_dict()
    assert all(p.grad is not None for p in trainer.model.parameters())
    for part in ("embedding_module.conv_1", "t_mamba.conv1ds.0", "blocks.4.mamba.in_proj", "cls_head.cls_head.conv"):
        name = next(name for name in start if f"{part}.weight" in name)
        moved = (now[name] - start[name]).norm()
        assert moved > 0, name
        assert 0 < (averaged[name] - start[name]).norm() < 0.02 * moved, name  # decay 0.999, ten steps


def test_actions_that_miss_the_features_are_told(dataset, tmp_path, capsys):
    """The stride of other features: by it every action would begin after the last clip of its video."""
    train(configuration(dataset, "Dataset.feat_stride = 1", "Dataset.default_fps = 10000.0"), tmp_path / "a")
    assert "warning: no action of this epoch lay where the features are" in capsys.readouterr().err
    train(configuration(dataset), tmp_path / "b")
    assert "warning" not in capsys.readouterr().err


def test_finished_training_has_nothing_to_do(trained, dataset, capsys):
    _, run_dir = trained
    before = (run_dir / "metrics.jsonl").read_bytes()
    train(configuration(dataset, "Training.max_epochs = 2"), run_dir)
    assert "training is complete: 10 iterations" in capsys.readouterr().out
    assert (run_dir / "metrics.jsonl").read_bytes() == before


def test_mode_test_measures_the_best_checkpoint(trained, capsys):
    _, run_dir = trained
    best = RunDirectory(run_dir).checkpoint("best")
    assert exit_code(["--run_dir", str(run_dir), "--mode", "test"]) == 0
    assert f"{best}: average mAP {load_meta(best)['mAP']:.4f}" in capsys.readouterr().out
    assert (run_dir / "detections.json").is_file() and (run_dir / "test.json").is_file()
    path = RunDirectory(run_dir).checkpoint("latest")
    threshold = ("--gin_param", "Training.tiou = [0.1]")
    assert exit_code(["--run_dir", str(run_dir), "--mode", "test", "--resume", str(path), *threshold]) == 0
    printed = capsys.readouterr().out
    assert f"{path.name}: average mAP" in printed and "mAP@0.1" in printed and "mAP@0.3" not in printed


def test_mode_test_without_a_checkpoint(dataset, trained, tmp_path, capsys):
    assert exit_code([*flags(dataset, tmp_path / "missing"), "--mode", "test"]) == 2
    assert exit_code(["--run_dir", str(trained[1]), "--mode", "test", "--resume", "none"]) == 2
    assert exit_code(["--run_dir", str(trained[1]), "--mode", "test", "--resume", str(tmp_path)]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert "no config.gin" in errors[0] and "needs a checkpoint" in errors[1] and "incomplete" in errors[2]


def test_one_training_at_a_time_writes_to_a_run(trained, dataset, capsys):
    _, run_dir = trained
    before = (run_dir / "config.gin").read_bytes()
    claim = f"from rdfa.run_dir import claimed\nwith claimed({str(run_dir)!r}): print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", claim], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        assert exit_code(flags(dataset, run_dir, "Training.max_epochs = 2")) == 2
        other.kill()
    assert f"another training writes to {run_dir}" in capsys.readouterr().err
    assert (run_dir / "config.gin").read_bytes() == before
    assert exit_code(flags(dataset, run_dir, "Training.max_epochs = 2")) == 0  # what was killed holds nothing


def test_changed_settings_and_none_are_refused(trained, dataset, capsys):
    _, run_dir = trained
    assert exit_code(flags(dataset, run_dir, "Training.max_epochs = 2", "AdamW.weight_decay = 0.1")) == 2
    assert "AdamW.weight_decay: 0.05 -> 0.1" in capsys.readouterr().err
    assert exit_code([*flags(dataset, run_dir, "Training.max_epochs = 2"), "--resume", "none"]) == 2
    assert "--resume auto" in capsys.readouterr().err


def test_evaluations_best_and_kept_checkpoints(dataset, tmp_path):
    params = (
        "Training.max_epochs = 6",
        "Training.eval_start_epoch = 2",
        "Training.eval_every = 2",
        "Training.keep_checkpoints = 1",
    )
    trainer = Recorder(configuration(dataset, *params, "Loader.batch_size = 10"), tmp_path, {2: 0.25, 4: 0.75, 6: 0.5})
    trainer.run()
    run = RunDirectory(tmp_path)
    assert run.checkpoint("best").name == "step_00000004" and run.checkpoint("latest").name == "step_00000006"
    assert load_meta(run.checkpoint("best")) == {"epoch": 4, "batch": 0, "mAP": 0.75, "step": 4}
    assert [folder.name for folder in list_checkpoints(tmp_path)] == ["step_00000004", "step_00000006"]
    assert trainer.best_mAP == 0.75


@pytest.mark.parametrize(
    ("start", "every", "epochs", "wanted"),
    ((25, 1, 27, [25, 26, 27]), (1, 3, 9, [1, 4, 7, 9]), (0, 4, 9, [4, 8, 9]), (25, 1, 10, [10])),
)
def test_evaluation_schedule(dataset, tmp_path, start, every, epochs, wanted):
    names = ("eval_start_epoch", "eval_every", "max_epochs")
    trainer = Trainer(
        configuration(dataset, *(f"Training.{n} = {v}" for n, v in zip(names, (start, every, epochs)))), tmp_path
    )
    due = []
    for trainer.epoch in range(1, epochs + 1):
        if trainer.evaluation_is_due():
            due.append(trainer.epoch)
    assert due == wanted


@pytest.mark.parametrize("optimizer", ("SGD", "AdamW"))
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_schedule_and_optimizer_trains(dataset, tmp_path, scheduler, optimizer):
    params = (f"Scheduler.name = '{scheduler}'", f"Optimizer.name = '{optimizer}'", "Loader.batch_size = 10")
    warmup = ("LinearWarmupMultiStepLR.T_warmup = 0", "SGD.lr = 1e-3")
    trainer = Recorder(configuration(dataset, *params, *warmup), tmp_path, {1: 0.0})
    trainer.run()
    assert [values["lr"] for _, values in trainer.recorded] == [1e-3]
    assert type(trainer.optimizer).__name__ == optimizer


def test_loss_that_is_not_finite_stops_the_run(dataset, tmp_path):
    config = configuration(dataset, "Training.max_epochs = 3", "AdamW.lr = 1e30", "Training.clip_grad_l2norm = 0.0")
    trainer = Recorder(config, tmp_path)
    with pytest.raises(
        RunError, match=r"is (nan|inf) in iteration [23] \(epoch 1\) on videos \w+.*lower the learning rate"
    ):
        trainer.run()
    assert list_checkpoints(tmp_path) == [] and (tmp_path / "metrics.jsonl").read_bytes() == b""
    assert torch.isfinite(torch.tensor([v["loss"] for _, v in trainer.recorded])).all()


def test_device():
    assert resolve_device("cpu") == torch.device("cpu")
    if torch.cuda.is_available():
        assert resolve_device("auto").type == resolve_device("cuda").type == "cuda"
    else:
        assert resolve_device("auto").type == "cpu"
        with pytest.raises(UsageError, match="torch finds no GPU"):
            resolve_device("cuda")


def test_help_is_a_manual(capsys):
    with pytest.raises(SystemExit) as stop:
        exit_code(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for word in (
        "--gin_file",
        "--gin_param",
        "--run_dir",
        "--mode",
        "--resume",
        "python train.py --gin_file gin/thumos14.gin",
    ):
        assert word in text
    assert exit_code(["--mode", "test"]) == 2
    assert "--run_dir" in capsys.readouterr().err
