"""Each small part against its formula, at odd sizes first."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from rdfa.modeling.layers import (
    AffineDropPath,
    ChannelLayerNorm,
    Conv1d,
    GatePool,
    MaskedConv1D,
    MaskedMaxPool,
    Scale,
)


@pytest.mark.parametrize("options", [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 1},
    {"kernel_size": 5, "padding": 4, "dilation": 2, "groups": 2, "bias": False},
    {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    {"kernel_size": 3, "padding": 1, "padding_mode": "replicate"},
    {"kernel_size": 3, "padding": 1, "padding_mode": "circular"},
], ids=str)  # fmt: skip
def test_conv1d_is_torchs_on_channels_last_activations(options):
    ours, theirs = Conv1d(6, 4, **options), nn.Conv1d(6, 4, **options)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 11, 6)
    y = ours(x)
    torch.testing.assert_close(y, theirs(x.transpose(1, 2)).transpose(1, 2))
    assert isinstance(ours, nn.Conv1d)  # the optimiser's groups ask for it


def test_conv1d_leaves_channels_last():
    assert Conv1d(6, 5, 3, padding=1)(torch.randn(2, 11, 6)).is_contiguous()


def test_masked_conv_masks_its_output_and_not_its_input():
    conv = MaskedConv1D(3, 4, 3, bias=True)
    x = torch.randn(2, 9, 3)
    mask = torch.arange(9) < torch.tensor([[9], [5]])
    y = conv(x, mask)
    assert y.shape == (2, 9, 4) and not y[1, 5:].any() and y[1, :5].all()
    x[1, 5] += 1  # masked, and beside a valid position
    changed = (conv(x, mask) != y).any(-1)
    assert changed.nonzero().tolist() == [[1, 4]]
    assert not MaskedConv1D(3, 4, 3, bias=True).conv.bias.any()
    assert MaskedConv1D(3, 4, 3).conv.bias is None


@settings(max_examples=20, deadline=None)
@given(length=st.integers(1, 9), channels=st.integers(1, 17), seed=st.integers(0, 99))
def test_channel_layer_norm_follows_its_formula(length, channels, seed):
    torch.manual_seed(seed)
    norm = ChannelLayerNorm(channels).double()
    assert norm.weight.shape == norm.bias.shape == (1, channels, 1)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(2, length, channels, dtype=torch.float64)
    centred = x - x.mean(-1, keepdim=True)
    expected = centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-5)
    torch.testing.assert_close(norm(x), expected * norm.weight.flatten() + norm.bias.flatten())


@settings(max_examples=40, deadline=None)
@given(length=st.integers(1, 40), bins=st.integers(1, 13), channels=st.integers(1, 3))
def test_gate_pool_averages_uneven_bins(length, bins, channels):
    x = torch.randn(2, length, channels, dtype=torch.float64)
    pooled = GatePool(bins)(x)
    assert pooled.shape == (2, channels, bins)
    for g in range(bins):
        start, end = g * length // bins, math.ceil((g + 1) * length / bins)
        torch.testing.assert_close(pooled[:, :, g], x[:, start:end].mean(1))


@settings(max_examples=40, deadline=None)
@given(half=st.integers(1, 12), channels=st.integers(1, 5), valid=st.integers(0, 24))
def test_masked_max_pool_halves(half, channels, valid):
    x = torch.randn(2, 2 * half, channels)
    mask = torch.arange(2 * half) < torch.tensor([[2 * half], [valid]])
    y, half_mask = MaskedMaxPool()(x, mask)
    assert torch.equal(half_mask, mask[:, ::2])
    padded = F.pad(x, (0, 0, 1, 0), value=-torch.inf)
    windows = torch.stack([padded[:, k : k + 2 * half : 2] for k in range(3) if k < 2] + [x[:, 1::2]])
    assert torch.equal(y, windows.amax(0) * half_mask[..., None])


def test_scale_starts_at_one_and_is_a_scalar():
    scale = Scale()
    assert scale.scale.shape == () and scale(torch.tensor(3.0)) == 3


def test_drop_path_scales_only_in_eval():
    drop_path = AffineDropPath(4, 0.3).eval()
    assert drop_path.scale.shape == (1, 4, 1) and (drop_path.scale == 1e-4).all()
    x = torch.randn(2, 5, 4)
    assert torch.equal(drop_path(x), x * 1e-4)
    assert torch.equal(AffineDropPath(4, 0.0).train()(x), x * 1e-4)


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    rate, samples = 0.3, 20_000
    drop_path = AffineDropPath(2, rate).train()
    with torch.no_grad():
        drop_path.scale.fill_(2.0)
    y = drop_path(torch.ones(samples, 3, 2))
    factor = y[:, 0, 0]
    assert torch.equal(y, factor[:, None, None].expand_as(y))
    assert set(factor.unique().tolist()) == {0.0, factor.max().item()}
    assert factor.max().item() == pytest.approx(2 / (1 - rate))
    # Five standard deviations of a binomial share.
    assert (factor == 0).float().mean().item() == pytest.approx(rate, abs=5 * math.sqrt(rate * (1 - rate) / samples))


def test_drop_path_gives_dropped_samples_no_gradient():
    torch.manual_seed(0)
    drop_path = AffineDropPath(2, 0.5).train()
    x = torch.ones(16, 3, 2, requires_grad=True)
    y = drop_path(x)
    y.sum().backward()
    dropped = (y == 0).all(-1).all(-1)
    assert 0 < dropped.sum() < 16
    assert not x.grad[dropped].any() and torch.allclose(x.grad[~dropped], torch.tensor(2e-4))
