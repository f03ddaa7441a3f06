"""The detector as a whole: names of its weights, start values, gradients, checks, tracing and export."""

import warnings

import pytest
import torch

from rdfa.errors import RunError
from rdfa.modeling.detector import build_detector
from rdfa.modeling.settings import ModelSettings
from tests.golden import rebuild
from tests.modeling.cases import golden_settings, random_input, settings, tiny_detector


def published_parameters():
    import json

    return json.loads((rebuild.FOLDER / "model_full_parameters.json").read_text())


@pytest.fixture(scope="module")
def full_state():
    torch.manual_seed(0)
    return build_detector(ModelSettings()).state_dict()


def test_full_detector_has_the_published_names_shapes_and_order(full_state):
    published = published_parameters()
    assert [(name, list(tensor.shape)) for name, tensor in full_state.items()] == [
        (p["name"], p["shape"]) for p in published["parameters"]
    ]
    assert len(full_state) == published["in_state_dict"] == 129
    assert sum(tensor.numel() for tensor in full_state.values()) == published["total_parameters"] == 23_152_540
    assert {tensor.dtype for tensor in full_state.values()} == {torch.float32}


@pytest.mark.parametrize("case", ["small_a", "small_c"])
def test_small_detectors_have_the_published_names_shapes_and_order(case):
    meta = rebuild.case_meta(case)
    state = build_detector(golden_settings(meta)).state_dict()
    assert [[name, list(tensor.shape)] for name, tensor in state.items()] == meta["state_dict"]


def test_weights_start_as_published(full_state):
    for p in published_parameters()["parameters"]:
        tensor = full_state[p["name"]]
        if p["constant"]:
            assert (tensor == tensor.flatten()[0]).all(), p["name"]
            assert tensor.flatten()[0].item() == pytest.approx(p["mean"], rel=1e-6), p["name"]
        else:
            # Statistics of two samples: within five standard errors of the uniform and near-uniform distributions used.
            tolerance = 5 / tensor.numel() ** 0.5
            assert tensor.std().item() == pytest.approx(p["std"], rel=max(tolerance, 1e-3)), p["name"]
            assert tensor.mean().item() == pytest.approx(p["mean"], abs=2 * tolerance * p["std"]), p["name"]
            spread = 20 / tensor.numel() + 1e-3
            assert tensor.min().item() == pytest.approx(p["min"], abs=spread * (p["max"] - p["min"])), p["name"]
            assert tensor.max().item() == pytest.approx(p["max"], abs=spread * (p["max"] - p["min"])), p["name"]


@pytest.mark.parametrize("neck", ["FPNIdentity", "FPN1D"])
def test_gradient_is_the_slope_of_the_loss(neck):
    """Directional derivative in float64, along the gradient of each part in turn."""
    detector = tiny_detector(torch.float64, neck=neck)
    features, mask = random_input([32, 20], 32, dtype=torch.float64)

    def loss():
        cls_logits, offsets, _ = detector(features, mask)
        return (cls_logits.sin().sum() + (offsets**2).sum()) / 100

    loss().backward()
    for part in (detector.backbone.embedding_module, detector.backbone.stem_module, detector.backbone.branch_module,
                 detector.neck, detector.cls_head, detector.reg_head):  # fmt: skip
        parameters = list(part.parameters())
        gradients = [p.grad.clone() for p in parameters]
        assert all(g.isfinite().all() and g.any() for g in gradients)
        square = sum((g**2).sum() for g in gradients)
        step = 1e-6 / square.sqrt()
        with torch.no_grad():
            slopes = []
            for sign in (1, -2):
                torch._foreach_add_(parameters, gradients, alpha=(sign * step).item())
                slopes.append(loss())
            torch._foreach_add_(parameters, gradients, alpha=step.item())
        slope = (slopes[0] - slopes[1]) / (2 * step)
        # A ReLU or maximum that switches within the step would show as more than this.
        assert slope.item() == pytest.approx(square.item(), rel=1e-5)


def test_training_mode_moves_every_parameter():
    torch.manual_seed(0)
    detector = build_detector(settings(6, 8, 3)).train()
    features, mask = random_input([64, 40, 64, 64], 64)
    with torch.no_grad():
        for module in detector.modules():
            if hasattr(module, "rate"):
                module.rate = 0.1
    cls_logits, offsets, _ = detector(features, mask)
    (cls_logits.sum() + offsets.sum()).backward()
    without = [name for name, p in detector.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not without
    again = detector(features, mask)[0]
    assert not torch.equal(again, cls_logits)  # drop path


def test_outputs_are_zero_where_padded():
    detector = tiny_detector()
    cls_logits, offsets, point_mask = detector(*random_input([64, 1, 33], 64))
    assert point_mask.dtype == torch.bool and point_mask.sum(1).tolist() == [126, 6, 33 + 17 + 9 + 5 + 3 + 2]
    for output in (cls_logits, offsets):
        assert not output[~point_mask].any() and output[point_mask].any()
    assert (offsets >= 0).all()


BAD_INPUTS = [
    (lambda x, m: (x[:, :5], m), r"features have shape \[1, 5, 64\], expected \[batch, 6, frames\]"),
    (lambda x, m: (x[0], m), r"features have shape \[6, 64\]"),
    (lambda x, m: (x.double(), m), r"features are torch.float64, expected torch.float32"),
    (lambda x, m: (x, m.float()), r"the mask is torch.float32 of shape \[1, 64\], expected torch.bool"),
    (lambda x, m: (x, m[:, None]), r"of shape \[1, 1, 64\], expected torch.bool of shape \[1, 64\]"),
    (lambda x, m: (x, m[:, :32]), r"of shape \[1, 32\], expected torch.bool of shape \[1, 64\]"),
    (lambda x, m: (x[..., :48], m[:, :48]), "48 frames are not a multiple of 32"),
    (lambda x, m: (x[..., :0], m[:, :0]), "0 frames, expected 1 to 13824"),
    (lambda x, m: (x.new_zeros(1, 6, 13856), m.new_ones(1, 13856)), "13856 frames, expected 1 to 13824"),
]


@pytest.mark.parametrize("damage, message", BAD_INPUTS, ids=[message for _, message in BAD_INPUTS])
def test_bad_inputs_are_refused_in_one_line(damage, message):
    with pytest.raises(RunError, match=message) as caught:
        tiny_detector()(*damage(*random_input([64], 64)))
    assert "\n" not in str(caught.value)


# Sizes that are not traced: other batches, one frame at the coarsest level, uneven bins of the gate, its length itself.
OTHER_SIZES = [([32], 32), ([64, 40, 1], 64), ([600, 3], 608), ([576], 576)]


def check_same(exported, detector, sizes):
    for valid, frames in sizes:
        inputs = random_input(valid, frames)
        for actual, expected in zip(exported(*inputs), detector(*inputs)):
            torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("neck", ["FPNIdentity", "FPN1D"])
@torch.no_grad()
def test_one_trace_serves_every_size(neck):
    detector = tiny_detector(neck=neck)
    with warnings.catch_warnings():
        warnings.simplefilter("error", torch.jit.TracerWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        traced = torch.jit.trace(detector, random_input([96, 60], 96), check_trace=False)
    check_same(traced, detector, OTHER_SIZES)


@pytest.mark.slow
@torch.no_grad()
def test_one_export_serves_every_size():
    detector = tiny_detector(neck="FPN1D", recurrent=1, block_n=2)
    batch, steps = torch.export.Dim("batch", max=64), torch.export.Dim("steps", min=2, max=3456)
    shapes = ({0: batch, 2: 4 * steps}, {0: batch, 1: 4 * steps})
    exported = torch.export.export(detector, random_input([96, 60], 96), dynamic_shapes=shapes).module()
    check_same(exported, detector, [*OTHER_SIZES, ([12, 7], 12)])
