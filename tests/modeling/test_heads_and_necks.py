"""Heads, necks and points: start values, options, formulas."""

import math

import numpy as np
import pytest
import torch

from rdfa.errors import RunError, UsageError
from rdfa.modeling.heads import PtTransformerClsHead, PtTransformerRegHead
from rdfa.modeling.neck import FPN1D, FPNIdentity
from rdfa.modeling.points import PointGenerator
from rdfa.modeling.settings import (
    FPN1DSettings,
    FPNIdentitySettings,
    PtTransformerClsHeadSettings,
    PtTransformerRegHeadSettings,
)
from tests.modeling.cases import RANGES, random_input, settings, tiny_detector


def head_settings(cls=PtTransformerClsHeadSettings, **options):
    return cls(input_dim=6, feat_dim=8, **options)


def pyramid(channels=6, valid=(16, 9)):
    """Three levels with what masked positions hold after a norm: not zero."""
    x, mask = random_input(list(valid), 16, input_c=channels)
    levels, masks = [], []
    for level in range(3):
        levels.append(x.transpose(1, 2)[:, :: 2**level] + 0.5)
        masks.append(mask[:, :: 2**level])
    return levels, masks


def test_class_bias_starts_at_the_prior():
    head = PtTransformerClsHead(head_settings(num_classes=5, prior_prob=0.01, empty_cls=[1, 4]))
    bias = head.cls_head.conv.bias.detach()
    assert torch.allclose(torch.sigmoid(bias[[0, 2, 3]]), torch.tensor(0.01))
    assert bias[[1, 4]].tolist() == pytest.approx([-13.8155, -13.8155], abs=1e-3)
    assert not PtTransformerClsHead(head_settings(prior_prob=0.0)).cls_head.conv.bias.any()


@pytest.mark.parametrize("with_ln", [True, False])
@pytest.mark.parametrize("num_layers", [1, 3])
def test_heads_mask_their_outputs_and_share_weights_over_levels(with_ln, num_layers):
    torch.manual_seed(0)
    options = {"with_ln": with_ln, "num_layers": num_layers}
    cls_head = PtTransformerClsHead(head_settings(num_classes=5, **options))
    reg_head = PtTransformerRegHead(head_settings(PtTransformerRegHeadSettings, **options), num_levels=3)
    assert len(cls_head.head) == num_layers - 1
    names = list(cls_head.state_dict())
    assert any(name.startswith("norm") for name in names) == (with_ln and num_layers > 1)
    assert ("head.0.conv.bias" in names) == (not with_ln and num_layers > 1)
    levels, masks = pyramid()
    for head, width in ((cls_head, 5), (reg_head, 2)):
        for output, mask in zip(head(levels, masks), masks):
            assert output.shape == (*mask.shape, width) and not output[~mask].any()
        alone = head([levels[1]], [masks[1]])[0]
        torch.testing.assert_close(alone, head(levels, masks)[1])


def test_offsets_are_scaled_per_level_then_clipped_at_zero():
    torch.manual_seed(0)
    head = PtTransformerRegHead(head_settings(PtTransformerRegHeadSettings), num_levels=3)
    levels, masks = pyramid()
    before = [head.offset_head(head.tower(x, mask), mask) for x, mask in zip(levels, masks)]
    with torch.no_grad():
        for factor, scale in zip((2.0, -1.0, 0.5), head.scale):
            scale.scale.fill_(factor)
    for factor, raw, offsets in zip((2.0, -1.0, 0.5), before, head(levels, masks)):
        torch.testing.assert_close(offsets, (factor * raw).clamp_min(0))


def test_norm_bias_at_masked_positions_reaches_valid_ones():
    """As published: the tower's norm follows the mask, so its bias enters the next convolution at the border."""
    torch.manual_seed(0)
    head = PtTransformerClsHead(head_settings(num_classes=5))
    levels, masks = pyramid()
    before = head(levels, masks)[0]
    with torch.no_grad():
        head.norm[0].bias += 1.0
        plain = head.norm[0]
        masked_norm = torch.nn.Sequential(plain)
        masked_norm.register_forward_hook(lambda _m, _i, output: output * masks[0][..., None])
        after = head(levels, masks)[0]
        head.norm[0] = masked_norm
        border_masked = head(levels[:1], masks[:1])[0]
    assert not torch.equal(before, after)
    differs = (after != border_masked).any(-1)
    assert differs[1, 8] and not differs[0].any() and not differs[1, :6].any()


def test_fpn1d_sums_from_coarse_to_fine():
    torch.manual_seed(0)
    neck = FPN1D(FPN1DSettings(in_channels=6, out_channel=8, with_ln=False), 3).double()
    with torch.no_grad():
        for conv in neck.lateral_convs:
            conv.conv.bias.normal_()
    levels, masks = pyramid()
    levels = [x.double() for x in levels]
    summed = None
    expected = []
    for conv, out, x, mask in reversed(list(zip(neck.lateral_convs, neck.fpn_convs, levels, masks))):
        lateral = (x @ conv.conv.weight[:, :, 0].T + conv.conv.bias) * mask[..., None]
        if summed is not None:
            lateral = lateral + torch.nn.functional.interpolate(summed.transpose(1, 2), scale_factor=2).transpose(1, 2)
        summed = lateral
        expected.insert(0, out(summed, mask))
    for actual, wanted in zip(neck(levels, masks), expected):
        torch.testing.assert_close(actual, wanted)


def test_fpn_identity_normalises_each_level():
    levels, masks = pyramid()
    for x, y in zip(levels, FPNIdentity(FPNIdentitySettings(in_channels=6, out_channel=6), 3)(levels, masks)):
        torch.testing.assert_close(y, torch.nn.functional.layer_norm(x, (6,)))
    without = FPNIdentity(FPNIdentitySettings(in_channels=6, out_channel=6, with_ln=False), 3)
    assert all(x is y for x, y in zip(levels, without(levels, masks))) and not without.state_dict()


@pytest.mark.parametrize("neck", ["FPNIdentity", "FPN1D"])
@torch.no_grad()
def test_start_level_leaves_out_the_finest_levels(neck):
    detector = tiny_detector(neck=neck, start_level=2)
    assert detector.level_lengths(64) == [16, 8, 4, 2]
    assert detector.points(64)[:, 3].unique().tolist() == [4, 8, 16, 32]
    features, mask = random_input([64, 40], 64)
    cls_logits, offsets, point_mask = detector(features, mask)
    assert cls_logits.shape == (2, 30, 3) and offsets.shape == (2, 30, 2)
    assert torch.equal(point_mask[:, :16], mask[:, ::4])
    if neck == "FPNIdentity":  # levels do not influence each other: the same as the end of the whole pyramid
        whole = tiny_detector(neck=neck)
        state = whole.state_dict()
        for level in range(4):
            for name in ("weight", "bias"):
                state[f"neck.fpn_norms.{level + 2}.{name}"] = detector.neck.fpn_norms[level].state_dict()[name]
            state[f"reg_head.scale.{level + 2}.scale"] = detector.reg_head.scale[level].scale
        whole.load_state_dict(state)
        for a, b in zip((cls_logits, offsets), whole(features, mask)):
            torch.testing.assert_close(a, b[:, -30:])


def test_start_level_beyond_the_pyramid_is_refused():
    with pytest.raises(UsageError, match=r"FPNIdentity\.start_level = 6 leaves no level"):
        settings(start_level=6)


def test_points_are_times_ranges_and_strides():
    generator = PointGenerator(96, [1, 2, 4], RANGES[:3])
    points = generator.points(12).numpy()
    expected = [
        (index * stride, low, high, stride)
        for stride, (low, high) in zip((1, 2, 4), RANGES)
        for index in range(12 // stride)
    ]
    assert points.dtype == np.float32 and np.array_equal(points, np.array(expected, np.float32))
    assert generator.level_lengths(96) == [96, 48, 24]


@pytest.mark.parametrize("frames, message", [
    (100, "100 frames, expected 1 to 96"),
    (0, "0 frames, expected 1 to 96"),
    (10, "10 frames are not a multiple of 4"),
])  # fmt: skip
def test_lengths_that_have_no_points_are_refused(frames, message):
    with pytest.raises(RunError, match=message):
        PointGenerator(96, [1, 2, 4], RANGES[:3]).points(frames)


def test_logit_of_the_default_prior():
    assert PtTransformerClsHead(head_settings()).cls_head.conv.bias[0].item() == pytest.approx(-math.log(99))
