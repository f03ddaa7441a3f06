"""The gradient of a batch in parts, recomputed, and in half precision; all in one process."""

import dataclasses

import pytest
import torch

from rdfa.config import load
from rdfa.errors import RunError, UsageError
from rdfa.modeling.layers import AffineDropPath
from rdfa.run_dir import RunDirectory, load_training_state, load_weights
from rdfa.training import recording
from rdfa.training.gradient import BatchGradient, divide
from rdfa.training.processes import ALONE
from rdfa.training.recording import RecordedGradients
from rdfa.training.trainer import Trainer, train
from tests.runtime import replay
from tests.training.tiny import flags, make_dataset, metrics


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("data"))


def configuration(dataset, *params):
    argv = flags(dataset, "", "Training.device = 'cpu'", *params)
    return load([argv[1]], argv[5::2])


def make_trainer(config, run_dir):
    trainer = Trainer(config, run_dir)
    for module in trainer.model.modules():
        if isinstance(module, AffineDropPath):
            module.scale.data.fill_(1.0)  # at their start, 1e-4, they would hide the blocks
    return trainer


def step(trainer):
    """Losses and gradients of the next step of the first epoch."""
    batch = trainer.gradient.prepare(next(trainer.loader.epoch(1, start=trainer.batch)))
    return trainer._iteration(batch), {name: p.grad for name, p in trainer.model.named_parameters()}


def first_step(config, run_dir):
    """Losses and gradients of the first step, and the trainer after it."""
    trainer = make_trainer(config, run_dir)
    return *step(trainer), trainer


def test_recomputed_stem_has_the_same_gradients(dataset, tmp_path, monkeypatch):
    params = ("StemModule.recurrent = 3", "StemModule.block_n = 2")
    wanted, gradients, kept = first_step(configuration(dataset, *params), tmp_path)
    generator = torch.get_rng_state()
    passes = []
    block = type(kept.model.backbone.stem_module.blocks[0])
    original = block._pass
    monkeypatch.setattr(block, "_pass", lambda self, *args: passes.append(self) or original(self, *args))
    config = configuration(dataset, *params, "Training.recompute_stem = True")
    values, again, _ = first_step(config, tmp_path)
    assert len(passes) == 2 * 2 * 3  # each once more in the backward
    assert values == wanted
    assert all(torch.equal(gradient, again[name]) for name, gradient in gradients.items())
    assert torch.equal(torch.get_rng_state(), generator)  # what the backward draws again leaves no trace


@pytest.mark.parametrize("accumulate", (1, 2))
@pytest.mark.parametrize("precision", ("float32", "float16"))
def test_recorded_steps_are_those_of_one_launch_after_the_other(dataset, tmp_path, monkeypatch, precision, accumulate):
    """On a CPU, where a replay is a call: what remains is which tensors a recording may touch, and random numbers."""
    monkeypatch.setattr(recording, "record", replay.record)

    params = ("Loader.batch_size = 4", f"Training.accumulate = {accumulate}", f"Training.precision = '{precision}'")
    plain, recorded = (make_trainer(configuration(dataset, *params), tmp_path) for _ in range(2))
    recorded.gradient.recorder = RecordedGradients(recorded.model.parameters(), recorded.device)
    for _ in range(3):  # the last batch has two videos: another size
        before = torch.get_rng_state()
        (values, gradients), after = step(plain), torch.get_rng_state()
        torch.set_rng_state(before)
        again, recorded_gradients = step(recorded)
        assert again == values and torch.equal(torch.get_rng_state(), after)
        assert all(torch.equal(gradient, recorded_gradients[name]) for name, gradient in gradients.items())
        for name, parameter in plain.model.state_dict().items():
            assert torch.equal(parameter, recorded.model.state_dict()[name]), name


@pytest.mark.parametrize("precision, tolerance", (("bfloat16", 0.05), ("float16", 0.01)))
def test_half_precision_is_near(dataset, tmp_path, precision, tolerance):
    wanted, gradients, _ = first_step(configuration(dataset, "Training.clip_grad_l2norm = 0.0"), tmp_path)
    config = configuration(dataset, "Training.clip_grad_l2norm = 0.0", f"Training.precision = '{precision}'")
    values, half, trainer = first_step(config, tmp_path)
    assert values["loss"] != wanted["loss"] and values["loss"] == pytest.approx(wanted["loss"], rel=tolerance)
    assert values["grad_norm"] == pytest.approx(wanted["grad_norm"], rel=tolerance)  # so the scale is taken out
    a, b = (torch.cat([g.flatten() for g in every.values()]) for every in (half, gradients))
    assert not torch.equal(a, b) and a @ b > 0.97 * a.norm() * b.norm()  # a ReLU that flips moves it by percents
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters())
    assert trainer.scaler.is_enabled() == (precision == "float16") == ("overflow" in values)


def test_overflow_skips_the_step_and_halves_the_scale(dataset, tmp_path):
    trainer = Trainer(configuration(dataset, "Training.precision = 'float16'"), tmp_path)
    trainer.scaler.load_state_dict({**trainer.scaler.state_dict(), "scale": 2.0**40})
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    batches = trainer.loader.epoch(1)
    values = trainer._iteration(trainer.gradient.prepare(next(batches)))
    assert values["overflow"] == 1 and values["grad_norm"] == 0 and values["loss"] > 0
    assert trainer.scaler.get_scale() == 2.0**39 and trainer.step == 1
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())
    trainer.scaler.load_state_dict({**trainer.scaler.state_dict(), "scale": 2.0**10})
    assert trainer._iteration(trainer.gradient.prepare(next(batches)))["overflow"] == 0
    assert any(not torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())


def test_overflow_at_any_scale_is_an_error(dataset, tmp_path):
    trainer = Trainer(configuration(dataset, "Training.precision = 'float16'"), tmp_path)
    trainer.scaler.load_state_dict({**trainer.scaler.state_dict(), "scale": 1.0})
    next(trainer.model.parameters()).register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(RunError, match=r"grad_norm is (nan|inf).*use Training.precision = 'bfloat16'"):
        trainer._iteration(trainer.gradient.prepare(next(trainer.loader.epoch(1))))


def test_float16_resumes_with_its_scale(dataset, tmp_path):
    params = ("Training.precision = 'float16'", "LinearWarmupCosineAnnealingLR.T_max = 2", "Training.accumulate = 2")
    params += ("Loader.batch_size = 5",)
    whole = configuration(dataset, *params, "Training.max_epochs = 2")
    train(whole, tmp_path / "whole")
    assert {line["overflow"] for line in metrics(tmp_path / "whole", "train")} == {0}
    train(configuration(dataset, *params, "Training.max_epochs = 1"), tmp_path / "run")
    train(whole, tmp_path / "run")
    ours, wanted = (RunDirectory(tmp_path / name).checkpoint("latest") for name in ("run", "whole"))
    a, b = load_weights(ours, "model"), load_weights(wanted, "model")
    assert all(torch.equal(a[name], b[name]) for name in b)
    assert load_training_state(ours)["scaler"] == load_training_state(wanted)["scaler"]
    assert load_training_state(ours)["scaler"]["_growth_tracker"] == 4


def test_divide_keeps_every_row_once(dataset, tmp_path):
    trainer = Trainer(configuration(dataset, "Loader.batch_size = 7"), tmp_path)
    batch = next(trainer.loader.epoch(1))
    for parts in (1, 2, 3, 7):
        pieces = divide(batch, parts)
        assert len(pieces) == parts and max(len(p.features) for p in pieces) - min(len(p.features) for p in pieces) <= 1
        assert torch.equal(torch.cat([piece.features for piece in pieces]), batch.features)
        assert [video_id for piece in pieces for video_id in piece.video_ids] == batch.video_ids


def test_what_cannot_be_divided_is_refused(dataset, tmp_path):
    trainer = Trainer(configuration(dataset), tmp_path)
    for accumulate, weight, message in ((3, 1.0, "it must be at least 3"), (2, -1.0, "give a weight >= 0")):
        config = configuration(dataset, f"Training.accumulate = {accumulate}", f"Criterion.loss_weight = {weight}")
        with pytest.raises(UsageError, match=message):
            BatchGradient(config, trainer.model, trainer.device, dataclasses.replace(ALONE))


def test_tf32_is_a_matter_of_the_gradient_alone(dataset, tmp_path, monkeypatch):
    wanted, gradients, _ = first_step(configuration(dataset), tmp_path)
    seen = []
    block = type(make_trainer(configuration(dataset), tmp_path).model.backbone.stem_module.blocks[0])
    original = block._pass
    allowed = lambda: torch.backends.cuda.matmul.allow_tf32  # noqa: E731
    monkeypatch.setattr(block, "_pass", lambda self, *args: seen.append(allowed()) or original(self, *args))
    values, again, _ = first_step(configuration(dataset, "Training.precision = 'tf32'"), tmp_path)
    assert seen and all(seen) and not allowed()
    assert values == wanted  # a CPU has no TF32
    assert all(torch.equal(gradient, again[name]) for name, gradient in gradients.items())
