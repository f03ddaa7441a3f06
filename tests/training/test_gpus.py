"""Training and evaluation on a GPU, and on two that nccl joins."""

import itertools
from pathlib import Path

import pytest
import torch

from rdfa.config import load
from rdfa.data.synthetic import write_dataset
from rdfa.training.feed import Feed
from rdfa.training.optim import clip_gradients
from rdfa.training.trainer import Trainer
from tests.training.group import exit_code, run_group
from tests.training.test_distributed import one_step
from tests.training.tiny import flags, make_dataset, metrics

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
PATIENCE = 600  # where kernels are compiled first, each takes up to a minute
WORLDS = (1, pytest.param(2, marks=pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("data"))


def tiny(dataset, run_dir, *params):
    return flags(dataset, run_dir, "Training.device = 'cuda'", "Loader.batch_size = 5", *params)


@pytest.mark.parametrize("world", WORLDS)
def test_gradients_of_parts_add_up(dataset, tmp_path, world):
    def config(accumulate):
        argv = tiny(dataset, "", "Training.clip_grad_l2norm = 0.0", f"Training.accumulate = {accumulate}")
        return load([argv[1]], argv[5::2])

    (whole,) = run_group(1, tmp_path / "whole", one_step, config(1), tmp_path, 0, patience=PATIENCE)
    for result in run_group(world, tmp_path / "parts", one_step, config(2), tmp_path, 0, patience=PATIENCE):
        for name, gradient in result["gradients"].items():
            torch.testing.assert_close(gradient, whole["gradients"][name], rtol=0, atol=1e-6, msg=name)
        assert result["values"] == pytest.approx(whole["values"], rel=1e-5)


@pytest.mark.parametrize("accumulate", (1, 2))
@pytest.mark.parametrize("precision", ("float32", "float16"))
def test_recorded_steps_are_those_of_one_launch_after_the_other(dataset, tmp_path, precision, accumulate):
    params = ("Loader.batch_size = 4", f"Training.accumulate = {accumulate}", f"Training.precision = '{precision}'")
    curves = {False: [], True: []}
    for recorded, curve in curves.items():
        argv = tiny(dataset, tmp_path, *params, f"Training.cuda_graph = {recorded}")
        trainer = Trainer(load([argv[1]], argv[5::2]), tmp_path)
        assert (trainer.gradient.recorder is not None) == recorded
        for epoch in (1, 2):  # the last batch of each has two videos: another size
            trainer.batch = 0
            feed = Feed(trainer.loader.epoch(epoch), trainer.gradient.prepare, trainer.device)
            curve += [trainer._iteration(batch, feed.look_ahead) for batch in feed]
        assert trainer.memory_per_video() > 0
    assert len(curves[False]) == 6 and curves[False][0]["loss"] != curves[False][3]["loss"]
    for a, b in zip(*curves.values()):
        assert b == pytest.approx(a, rel=1e-3 if precision == "float32" else 1e-2)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("precision", ("bfloat16", "float16"))
def test_half_precision_trains_resumes_and_is_evaluated(dataset, tmp_path, precision, world):
    params = (f"Training.precision = '{precision}'", "Training.recompute_stem = True", "Training.accumulate = 2")
    argv = tiny(dataset, tmp_path / "run", "LinearWarmupCosineAnnealingLR.T_max = 2", *params)
    for epochs in (1, 2):
        more = ["--gin_param", f"Training.max_epochs = {epochs}"]
        codes = run_group(world, tmp_path / f"epoch{epochs}", exit_code, [*argv, *more], patience=PATIENCE)
        assert codes == [0] * world, (tmp_path / f"epoch{epochs}" / "0.log").read_text()
    assert [line["step"] for line in metrics(tmp_path / "run", "train")] == [2, 4]
    measure, found = ["--run_dir", str(tmp_path / "run"), "--mode", "test"], []
    for processes in {1, world}:
        assert (
            run_group(processes, tmp_path / f"on{processes}", exit_code, measure, patience=PATIENCE) == [0] * processes
        )
        found.append((tmp_path / "run" / "test.json").read_text())
    assert found[0] == found[-1]


def demo_trainer(folder, device, change=0.0):
    """Of the demo, without drop path, whose random numbers depend on the device.

    `change`: how much the first weights are off, relatively.
    """
    torch.backends.cudnn.allow_tf32 = False
    settings = (
        f"Dataset.annotation_file = '{folder / 'data' / 'annotations.json'}'",
        f"Dataset.feature_dir = '{folder / 'data' / 'features'}'",
        "StemModule.drop_path_rate = 0.0",
        "BranchModule.drop_path_rate = 0.0",
        f"Training.device = '{device}'",
    )
    run_dir = folder / f"{device}_{change}"
    trainer = Trainer(load([str(Path(__file__).parents[2] / "gin" / "demo.gin")], settings), run_dir)
    random = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            noise = torch.randn(parameter.shape, generator=random).to(parameter.device)
            parameter.mul_(1 + change * noise)
    return trainer


def batches_of(trainer):
    for epoch in itertools.count(1):
        trainer.batch = 0
        yield from trainer.loader.epoch(epoch)


def loss_curve(*args, steps=100, **options):
    trainer = demo_trainer(*args, **options)
    batches = itertools.islice(batches_of(trainer), steps)
    losses = [trainer._iteration(trainer.gradient.prepare(batch))["loss"] for batch in batches]
    return torch.tensor(losses, dtype=torch.float64)


def test_each_step_of_a_cpus_training(tmp_path):
    """From the weights that a CPU has reached, the loss of its next 100 batches, and their gradients, are the same."""
    write_dataset(tmp_path / "data")
    cpu, gpu = (demo_trainer(tmp_path, device) for device in ("cpu", "cuda"))
    for batch in itertools.islice(batches_of(cpu), 100):
        gpu.model.load_state_dict(cpu.model.state_dict())
        gpu.optimizer.zero_grad(set_to_none=False)  # a recorded step writes to the same tensors every time
        losses = gpu.gradient(gpu.gradient.prepare(batch), *cpu.loader.rows(cpu.batch))
        clip_gradients(gpu.model, gpu.config.engine.training.clip_grad_l2norm)
        values = cpu._iteration(cpu.gradient.prepare(batch))
        assert losses["loss"].item() == pytest.approx(values["loss"], rel=1e-4)
        found, wanted = (
            torch.cat([p.grad.double().flatten().cpu() for p in trainer.model.parameters()]) for trainer in (gpu, cpu)
        )
        assert (found - wanted).norm() <= 1e-3 * wanted.norm()


def test_the_loss_follows_that_of_a_cpu(tmp_path):
    """The kernels of the two devices have nothing in common but what they compute.

    Training makes much of little: after some thirty steps a CPU's own curve shows a change of the first weights in
    their last digit, by percents at the end. Until then the curves are compared; both learn the same in the end.
    """
    write_dataset(tmp_path / "data")
    on_gpu, on_cpu = (loss_curve(tmp_path, device) for device in ("cuda", "cpu"))
    of_a_digit = (loss_curve(tmp_path, "cpu", change=1e-7) / on_cpu - 1).abs().cummax(0).values
    alike = of_a_digit < 1e-5
    assert alike.sum() >= 20
    assert (on_gpu / on_cpu - 1).abs()[alike].max() < 1e-3
    assert on_cpu[-10:].mean() < 0.5 * on_cpu[:10].mean() and on_gpu[-10:].mean() < 0.5 * on_gpu[:10].mean()
