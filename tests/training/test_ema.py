"""The moving average against the golden trace, and its independence from the model."""

import numpy as np
import torch
from torch import nn

from rdfa.training.ema import ModelEMA
from tests.golden.rebuild import load_npz

DATA = load_npz("schedule_traces")


def golden_state(step: int, which: str) -> dict[str, torch.Tensor]:
    prefix = f"ema/{step}/{which}/"
    return {key.removeprefix(prefix): torch.from_numpy(v) for key, v in DATA.items() if key.startswith(prefix)}


def test_golden():
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4))
    model.load_state_dict(golden_state(0, "model"))
    assert list(model.state_dict()) == DATA["ema_init_names"].tolist()
    ema = ModelEMA(model, decay=0.999)
    for step in (1, 2, 3):
        model.load_state_dict(golden_state(step, "model"))
        ema.update(model)
        recorded = golden_state(step, "ema")
        assert recorded.keys() == ema.module.state_dict().keys()
        for name, value in ema.module.state_dict().items():
            np.testing.assert_allclose(value.numpy(), recorded[name].numpy(), atol=1e-6, rtol=1e-6, err_msg=name)


def test_follows_the_formula_and_leaves_the_model_alone():
    model = nn.Linear(3, 2)
    ema = ModelEMA(model, decay=0.75)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
    current = {name: p.detach().clone() for name, p in model.named_parameters()}
    ema.update(model)
    for name, p in ema.module.named_parameters():
        torch.testing.assert_close(p, 0.75 * before[name] + 0.25 * current[name])
        assert not p.requires_grad
    for name, p in model.named_parameters():
        assert torch.equal(p, current[name]) and p.requires_grad
    assert model.training and not ema.module.training


def test_decay_zero_is_the_model_itself():
    model = nn.Linear(3, 2)
    ema = ModelEMA(model, decay=0.0)
    with torch.no_grad():
        model.weight.normal_()
    ema.update(model)
    assert torch.equal(ema.module.weight, model.weight)
