"""Several processes are one: gradients, random numbers, data, evaluation and errors. All on CPUs, joined by gloo."""

import json
import os
import signal

import pytest
import torch

from rdfa.config import load
from rdfa.modeling.layers import AffineDropPath
from rdfa.run_dir import RunDirectory
from rdfa.training.processes import joined, resolve_device
from rdfa.training.trainer import Trainer, train
from tests.training.group import exit_code, run_group
from tests.training.tiny import flags, make_dataset, metrics


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("data"))


def tiny(dataset, run_dir, *params):
    return flags(dataset, run_dir, "Training.device = 'cpu'", *params)


def one_step(config, run_dir, batch):
    """Losses, gradients, weights and generator after the step on batch number `batch` of the first epoch."""
    torch.backends.cudnn.allow_tf32 = False
    with joined(resolve_device(config.engine.training.device)) as processes:
        trainer = Trainer(config, run_dir, processes)
        for module in trainer.model.modules():
            if isinstance(module, AffineDropPath):
                module.scale.data.fill_(1.0)  # at their start, 1e-4, they would hide the blocks
        trainer.batch = batch
        values = trainer._iteration(trainer.gradient.prepare(next(trainer.loader.epoch(1, start=batch))))
        gradients = {name: p.grad.cpu() for name, p in trainer.model.named_parameters()}
        weights = {name: p.detach().cpu() for name, p in trainer.model.named_parameters()}
        return {"values": values, "gradients": gradients, "weights": weights, "rng": torch.get_rng_state()}


CASES = (  # videos per batch, processes, parts, number of the batch (of ten videos)
    (2, 2, 1, 0),
    (5, 2, 2, 0),  # not divisible: 2 and 3 videos, in parts of 1, 1 and 1, 2
    (4, 3, 1, 2),  # the last batch has two videos for three processes
    (7, 1, 3, 0),
)


@pytest.mark.parametrize("batch_size, world, accumulate, batch", CASES)
def test_gradients_are_those_of_one_process(dataset, tmp_path, batch_size, world, accumulate, batch):
    def config(accumulate):
        params = (f"Loader.batch_size = {batch_size}", f"Training.accumulate = {accumulate}")
        argv = tiny(dataset, "", *params, "Training.clip_grad_l2norm = 0.0")
        return load([argv[1]], argv[5::2])

    whole = one_step(config(1), tmp_path, batch)
    assert max(g.abs().max() for g in whole["gradients"].values()) > 0.01
    assert whole["values"]["reg_loss"] > 0
    results = run_group(world, tmp_path / "group", one_step, config(accumulate), tmp_path, batch)
    for result in results:
        for name, gradient in result["gradients"].items():
            torch.testing.assert_close(gradient, whole["gradients"][name], rtol=0, atol=1e-6, msg=name)
            size = whole["gradients"][name].norm()
            assert (gradient - whole["gradients"][name]).norm() <= 1e-5 * size, name
        assert result["values"] == pytest.approx(whole["values"], rel=1e-5)
        assert torch.equal(result["rng"], whole["rng"])
        assert all(torch.equal(w, results[0]["weights"][name]) for name, w in result["weights"].items())


def test_evaluation_by_any_number_of_processes(dataset, tmp_path):
    argv = tiny(dataset, tmp_path / "run")
    train(load([argv[1]], argv[5::2]), tmp_path / "run")
    measure, files = ["--run_dir", str(tmp_path / "run"), "--mode", "test"], []
    for world in (1, 2, 3):  # two test videos, so the third process has none
        for name in ("test.json", "detections.json"):
            (tmp_path / "run" / name).unlink(missing_ok=True)
        codes = run_group(world, tmp_path / str(world), exit_code, measure)
        assert codes == [0] * world, (tmp_path / str(world) / "0.log").read_text()
        files.append([(tmp_path / "run" / name).read_bytes() for name in ("test.json", "detections.json")])
    assert files[0] == files[1] == files[2]
    assert json.loads(files[0][0])["num_predictions"] > 0
    assert ["test [2/2]" in said(tmp_path / str(world), world)[0] for world in (1, 2, 3)] == [True, False, False]
    assert said(tmp_path / "3", 3)[1:] == ["", ""]  # the main process alone speaks


def test_trained_by_two_evaluated_and_continued_by_one(dataset, tmp_path):
    argv = tiny(dataset, tmp_path / "run", "Training.max_epochs = 2", "LinearWarmupCosineAnnealingLR.T_max = 3")
    assert run_group(2, tmp_path / "group", exit_code, argv) == [0, 0], (tmp_path / "group" / "0.log").read_text()
    assert [(line["kind"], line["step"]) for line in metrics(tmp_path / "run")] == [
        *(("train", 5), ("eval", 5), ("train", 10), ("eval", 10))
    ]
    assert exit_code([*argv, "--gin_param", "Training.max_epochs = 3"]) == 0
    assert RunDirectory(tmp_path / "run").checkpoint("latest").name == "step_00000015"


def said(folder, world):
    return [(folder / f"{rank}.log").read_text() for rank in range(world)]


def errors(folder, world):
    return [line for log in said(folder, world) for line in log.splitlines() if "rror" in line or "Traceback" in line]


@pytest.mark.parametrize(
    "param, code, message",
    (
        ("Training.accumulat = 2", 2, "did you mean 'accumulate'?"),
        ("Dataset.train_subset = 'Nowhere'", 2, "Nowhere"),
        ("Training.accumulate = 2", 2, "must be at least 4"),
        ("Criterion.loss_weight = -1.0", 2, "give a weight >= 0"),
        ("AdamW.lr = 1e30", 1, "lower the learning rate"),
    ),
)
def test_one_error_of_all(dataset, tmp_path, param, code, message):
    argv = tiny(dataset, tmp_path / "run", param, "Training.clip_grad_l2norm = 0.0")
    assert run_group(2, tmp_path / "group", exit_code, argv) == [code] * 2
    (line,) = errors(tmp_path / "group", 2)
    assert line.startswith("error: ") and message in line


def test_error_of_one_ends_all(dataset, tmp_path):
    """Bad features of one video: one process reads them, the other waits for its gradient."""
    broken = make_dataset(tmp_path / "data")
    path = sorted((broken / "features").iterdir())[3]
    path.write_bytes(path.read_bytes()[:200])
    codes = run_group(2, tmp_path / "group", exit_code, tiny(broken, tmp_path / "run"))
    assert codes == [1, 1]
    (line,) = errors(tmp_path / "group", 2)
    assert line.startswith("error: ") and path.name in line


def killed_at(iteration, argv, victim):
    """The training of `argv`, in which process `victim` is killed before that iteration."""
    original = Trainer._iteration

    def step(self, *args):
        if self.processes.rank == victim and self.step + 1 == iteration:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, *args)

    Trainer._iteration = step
    return exit_code(argv)


def test_survivors_say_what_to_do(dataset, tmp_path):
    argv = tiny(dataset, tmp_path / "run", "Training.checkpoint_every = 1", "Loader.batch_size = 3")
    assert run_group(3, tmp_path / "group", killed_at, 3, argv, 1) == [1, None, 1]
    (line,) = errors(tmp_path / "group", 3)
    assert line.startswith("error: another process of this training is gone; start again to continue")
    assert RunDirectory(tmp_path / "run").checkpoint("latest").name == "step_00000002"
