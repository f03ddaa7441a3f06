"""Losses against the golden data, their gradients against finite differences, and the rules of the criterion."""

import json
import math

import numpy as np
import pytest
import torch

from rdfa.training.losses import criterion, ctr_diou_loss_1d, ctr_giou_loss_1d, sigmoid_focal_loss
from rdfa.training.settings import CriterionSettings
from tests.golden.rebuild import FOLDER, load_npz

CASES = json.loads((FOLDER / "losses_label.json").read_text())
ELEMENTWISE = load_npz("losses_elementwise")
LEVELS = range(6)


def close(value, reference):
    np.testing.assert_allclose(value.detach().numpy(), reference, rtol=3e-5, atol=2e-6)


@pytest.mark.parametrize("alpha", (0.25, -1.0, 0.6))
@pytest.mark.parametrize("gamma", (2.0, 0.0, 1.5))
def test_focal_loss_golden(alpha, gamma):
    logits = torch.tensor(ELEMENTWISE["focal_inputs"], requires_grad=True)
    targets, key = torch.tensor(ELEMENTWISE["focal_targets"]), f"a{alpha}_g{gamma}"
    close(sigmoid_focal_loss(logits, targets, alpha, gamma), ELEMENTWISE[f"focal_{key}_none"])
    for reduction in ("mean", "sum"):
        close(sigmoid_focal_loss(logits, targets, alpha, gamma, reduction), ELEMENTWISE[f"focal_{key}_{reduction}"])
    sigmoid_focal_loss(logits, targets, alpha, gamma, "sum").backward()
    close(logits.grad, ELEMENTWISE[f"focal_grad_{key}"])


@pytest.mark.parametrize("loss", (ctr_diou_loss_1d, ctr_giou_loss_1d), ids=lambda f: f.__name__)
def test_iou_loss_golden(loss):
    offsets = torch.tensor(ELEMENTWISE["iou_input_offsets"], requires_grad=True)
    targets, name = torch.tensor(ELEMENTWISE["iou_target_offsets"]), loss.__name__
    for reduction in ("none", "mean", "sum"):
        close(loss(offsets, targets, reduction), ELEMENTWISE[f"{name}_{reduction}"])
        close(loss(offsets[:0], targets[:0], reduction), ELEMENTWISE[f"{name}_empty_{reduction}"])
    loss(offsets, targets, "sum").backward()
    unequal = (offsets != targets).all(dim=1).numpy()  # where equal, the subgradient of min and max is a convention
    assert unequal.sum() >= len(offsets) - 20
    np.testing.assert_allclose(
        offsets.grad.numpy()[unequal], ELEMENTWISE[f"{name}_grad"][unequal], rtol=3e-5, atol=2e-6
    )


def test_gradients_by_finite_differences():
    generator = torch.Generator().manual_seed(0)
    logits, targets = (torch.rand(7, dtype=torch.float64, generator=generator) for _ in range(2))
    for alpha, gamma in ((0.25, 2.0), (-1.0, 1.5)):
        focal = lambda x, a=alpha, g=gamma: sigmoid_focal_loss(4 * x - 2, targets, a, g)  # noqa: E731
        assert torch.autograd.gradcheck(focal, (logits.requires_grad_(),))
    offsets, wanted = (torch.rand(7, 2, dtype=torch.float64, generator=generator) * 5 for _ in range(2))
    for loss in (ctr_diou_loss_1d, ctr_giou_loss_1d):
        assert torch.autograd.gradcheck(lambda x, f=loss: f(x, wanted), (offsets.requires_grad_(),))


def test_iou_losses_by_hand():
    one = torch.tensor([[1.0, 3.0]])
    assert ctr_diou_loss_1d(one, one).item() == ctr_giou_loss_1d(one, one).item() == 0
    # (-1, 3) and (-3, 1): intersection 2, union 6, enclosing 6, midpoints 1 and -1
    other = torch.tensor([[3.0, 1.0]])
    assert ctr_diou_loss_1d(one, other).item() == pytest.approx(1 - 2 / 6 + (2 / 6) ** 2)
    assert ctr_giou_loss_1d(one, other).item() == pytest.approx(1 - 2 / 6)
    nothing = torch.zeros(1, 2, requires_grad=True)
    ctr_diou_loss_1d(nothing, torch.zeros(1, 2)).sum().backward()
    assert torch.isfinite(nothing.grad).all()


def test_focal_loss_of_certain_points_is_precise():
    logits = torch.tensor([30.0, -30.0, 100.0, -100.0])
    right, wrong = torch.tensor([1.0, 0.0, 1.0, 0.0]), torch.tensor([0.0, 1.0, 0.0, 1.0])
    assert (sigmoid_focal_loss(logits, right) < 1e-30).all()
    weights = torch.tensor([0.75, 0.25, 0.75, 0.25])
    torch.testing.assert_close(sigmoid_focal_loss(logits, wrong), weights * logits.abs())


def test_unknown_reduction_is_named():
    with pytest.raises(ValueError, match="'average'"):
        sigmoid_focal_loss(torch.zeros(2), torch.zeros(2), reduction="average")


def golden_inputs(case):
    data = load_npz(f"losses_label_{case['case']}")
    logits = [torch.tensor(data[f"cls_logits_{level}"], requires_grad=True) for level in LEVELS]
    offsets = [torch.tensor(data[f"offsets_{level}"], requires_grad=True) for level in LEVELS]
    mask = torch.cat([torch.tensor(data[f"mask_{level}"]) for level in LEVELS], dim=1)
    return data, logits, offsets, mask


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"case{c['case']}")
def test_criterion_golden(case):
    data, logits, offsets, mask = golden_inputs(case)
    losses = criterion(
        torch.cat(logits, dim=1),
        torch.cat(offsets, dim=1),
        mask,
        torch.tensor(data["cls_targets"]),
        torch.tensor(data["reg_targets"]),
        CriterionSettings(**case["engine"]),
    )
    for ours, theirs in (("cls_loss", "cls_loss"), ("reg_loss", "reg_loss"), ("loss", "final_loss")):
        np.testing.assert_allclose(losses[ours].item(), data[theirs], rtol=1e-5, err_msg=ours)
    losses["loss"].backward()
    for level in LEVELS:
        for name, tensors in (("cls_logits", logits), ("offsets", offsets)):
            wanted = data[f"grad_{name}_{level}"]
            np.testing.assert_allclose(
                tensors[level].grad.numpy(), wanted, rtol=1e-4, atol=1e-6, err_msg=f"{name} {level}"
            )


def small_batch(positives: int):
    generator = torch.Generator().manual_seed(1)
    logits, offsets = torch.randn(2, 6, 3, generator=generator), torch.rand(2, 6, 2, generator=generator)
    cls_targets, targets = torch.zeros(2, 6, 3), torch.rand(2, 6, 2, generator=generator)
    cls_targets.view(12, 3)[:positives, 1] = 1
    return logits, offsets, torch.ones(2, 6, dtype=torch.bool), cls_targets, targets


def test_normaliser_is_constant_between_batches():
    settings = CriterionSettings(init_loss_norm=10.0, init_loss_norm_momentum=0.5)
    first = criterion(*small_batch(4), settings)
    criterion(*small_batch(9), settings)
    again = criterion(*small_batch(4), settings)
    assert first["loss"].item() == again["loss"].item()
    logits, offsets, _, cls_targets, targets = small_batch(4)
    norm = 0.5 * 10 + 0.5 * 4
    torch.testing.assert_close(first["cls_loss"], sigmoid_focal_loss(logits, cls_targets).sum() / norm)
    torch.testing.assert_close(first["reg_loss"], ctr_diou_loss_1d(offsets, targets).view(-1)[:4].sum() / norm)


def test_losses_of_pieces_add_up():
    settings = CriterionSettings(init_loss_norm=10.0, init_loss_norm_momentum=0.5, loss_weight=0.7)
    whole = criterion(*small_batch(7), settings)
    count = torch.tensor(7)
    pieces = [criterion(*(x[row : row + 1] for x in small_batch(7)), settings, count) for row in range(2)]
    for name, value in whole.items():
        torch.testing.assert_close(pieces[0][name] + pieces[1][name], value, msg=name)
    assert pieces[0]["loss"] != criterion(*(x[:1] for x in small_batch(7)), settings)["loss"]


def test_padding_and_background_have_no_influence():
    logits, offsets, mask, cls_targets, targets = small_batch(4)
    mask[1, 2:] = False
    wanted = criterion(logits, offsets, mask, cls_targets, targets, CriterionSettings())
    logits[1, 2:], offsets[1, 2:], cls_targets[1, 2:] = 50.0, 7.0, 1.0
    offsets[0, 4:] = 3.0  # valid, but no positive
    changed = criterion(logits, offsets, mask, cls_targets, targets, CriterionSettings())
    assert all(wanted[key].item() == changed[key].item() for key in wanted)


def test_no_positive_point_gives_zero_regression_loss_and_finite_gradients():
    logits, offsets, mask, cls_targets, targets = small_batch(0)
    offsets = torch.zeros_like(offsets).requires_grad_()
    losses = criterion(
        logits, offsets, mask, cls_targets, torch.zeros_like(targets), CriterionSettings(loss_weight=-1.0)
    )
    losses["loss"].backward()
    assert losses["reg_loss"].item() == 0 and offsets.grad.abs().sum() == 0


def test_reduced_precision_outputs_are_widened():
    logits, offsets, mask, cls_targets, targets = small_batch(5)
    half = criterion(logits.bfloat16(), offsets.bfloat16(), mask, cls_targets, targets, CriterionSettings())
    wide = criterion(
        logits.bfloat16().float(), offsets.bfloat16().float(), mask, cls_targets, targets, CriterionSettings()
    )
    assert half["loss"].dtype == torch.float32 and half["loss"].item() == wide["loss"].item()
    assert math.isfinite(half["loss"].item())
