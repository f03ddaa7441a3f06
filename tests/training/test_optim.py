"""Parameter groups of the published run, one step of either optimiser, clipping."""

import copy
import json

import pytest
import torch
from torch import nn

from rdfa.modeling.detector import build_detector
from rdfa.modeling.settings import DetectorSettings, ModelSettings
from rdfa.training.optim import build_optimizer, clip_gradients, parameter_groups, restore_optimizer
from rdfa.training.settings import AdamWSettings, EngineSettings, OptimizerSettings, SGDSettings
from tests.golden.rebuild import FOLDER

GOLDEN = json.loads((FOLDER / "schedule_param_groups.json").read_text())


@pytest.fixture(scope="module")
def detector():
    with torch.device("meta"):
        return build_detector(ModelSettings())


def test_golden_groups(detector):
    decay, no_decay = parameter_groups(detector)
    assert decay == GOLDEN["decay"]
    assert no_decay == GOLDEN["no_decay"]


def test_feature_pyramid_adds_only_decayed_weights():
    with torch.device("meta"):
        decay, no_decay = parameter_groups(build_detector(ModelSettings(detector=DetectorSettings(neck="FPN1D"))))
    assert (len(decay), len(no_decay)) == (73, 68)


def engine(name: str, **groups) -> EngineSettings:
    return EngineSettings(optimizer=OptimizerSettings(name), **groups)


@pytest.mark.parametrize("name", ("AdamW", "SGD"))
def test_groups_hold_each_parameter_once_with_its_decay(detector, name):
    optimizer = build_optimizer(detector, engine(name))
    assert type(optimizer).__name__ == name
    assert [group["weight_decay"] for group in optimizer.param_groups] == GOLDEN["weight_decay"]
    parameters = dict(detector.named_parameters())
    ordered = [p for group in optimizer.param_groups for p in group["params"]]
    assert [id(parameters[n]) for n in GOLDEN["decay"] + GOLDEN["no_decay"]] == [id(p) for p in ordered]
    assert {group["lr"] for group in optimizer.param_groups} == {1e-4}


def test_steps_by_hand():
    for name in ("SGD", "AdamW"):
        model = nn.Linear(1, 1)
        nn.init.constant_(model.weight, 2.0)
        nn.init.constant_(model.bias, 3.0)
        groups = {
            "sgd": SGDSettings(lr=0.1, momentum=0.5, weight_decay=0.2),
            "adamw": AdamWSettings(lr=0.1, weight_decay=0.2),
        }
        optimizer = build_optimizer(model, engine(name, **groups))
        model.weight.grad, model.bias.grad = torch.full((1, 1), 0.5), torch.full((1,), 0.5)
        optimizer.step()
        if name == "SGD":  # w - lr (g + decay w); the bias does not decay
            assert model.weight.item() == pytest.approx(2 - 0.1 * (0.5 + 0.2 * 2))
            assert model.bias.item() == pytest.approx(3 - 0.1 * 0.5)
            optimizer.step()
            assert model.bias.item() == pytest.approx(3 - 0.05 - 0.1 * (0.5 * 0.5 + 0.5))
        else:  # w (1 - lr decay) - lr sign(g) in the first step
            assert model.weight.item() == pytest.approx(2 * (1 - 0.02) - 0.1, rel=1e-5)
            assert model.bias.item() == pytest.approx(3 - 0.1, rel=1e-5)


def test_clipping():
    model = nn.Linear(2, 1, bias=False)
    model.weight.grad = torch.tensor([[3.0, 4.0]])
    assert clip_gradients(model, 0.0).item() == 5 and model.weight.grad.tolist() == [[3, 4]]
    assert clip_gradients(model, 10.0).item() == 5 and model.weight.grad.tolist() == [[3, 4]]
    assert clip_gradients(model, 1.0).item() == 5
    torch.testing.assert_close(model.weight.grad, torch.tensor([[0.6, 0.8]]))


@pytest.mark.parametrize("name", ("AdamW", "SGD"))
@pytest.mark.parametrize("saved_by_fused", (False, True))
def test_a_state_is_restored_whatever_computed_it(name, saved_by_fused):
    """Fused on a GPU, not so on a CPU; a checkpoint goes either way."""

    def make(fused):
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        optimizer = build_optimizer(model, engine(name))
        for group in optimizer.param_groups:
            group["fused"] = fused
        return model, optimizer

    def step(model, optimizer, seed):
        torch.manual_seed(seed)
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()

    saved, continued = make(saved_by_fused or None), make(None if saved_by_fused else True)
    step(*saved, seed=1)
    continued[0].load_state_dict(saved[0].state_dict())
    restore_optimizer(continued[1], copy.deepcopy(saved[1].state_dict()))
    assert all(
        group["fused"] != other["fused"] for group, other in zip(saved[1].param_groups, continued[1].param_groups)
    )
    for optimizer in (saved, continued):
        step(*optimizer, seed=2)
    for parameter, other in zip(saved[0].parameters(), continued[0].parameters()):
        torch.testing.assert_close(parameter, other, rtol=1e-6, atol=1e-7)
