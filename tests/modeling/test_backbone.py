"""Stem and Branch: recurrence, gate, residuals and what padding does."""

import pytest
import torch

from rdfa.modeling.backbone import GATE_LENGTH, BranchModule, EmbeddingModule, StemModule
from rdfa.modeling.settings import BranchModuleSettings, EmbeddingModuleSettings, StemModuleSettings
from tests.modeling.cases import random_input, tiny_detector


def stem_and_input(**overrides):
    backbone = tiny_detector(**overrides).backbone
    features, mask = random_input([64, 40], 64)
    with torch.no_grad():
        return backbone.stem_module, backbone.embedding_module(features.transpose(1, 2), mask), mask


@torch.no_grad()
def test_stem_is_its_formula():
    stem, x_0, mask = stem_and_input(recurrent=3)
    block = stem.blocks[0]
    x = x_0
    for _ in range(3):
        pooled = torch.nn.functional.adaptive_avg_pool1d(x.transpose(1, 2), GATE_LENGTH)
        gate = torch.sigmoid(block.c_mamba(pooled).mean(-1))
        x = x_0 + block.drop_path.scale.flatten() * block.t_mamba(block.ln(x)) * mask[..., None] * gate[:, None]
    torch.testing.assert_close(stem(x_0, mask), x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("block_n", [1, 2])
def test_each_stem_block_runs_recurrently(block_n):
    _, x_0, mask = stem_and_input()
    stem = StemModule(StemModuleSettings(block_n=block_n, emb_c=8, recurrent=3)).eval()
    calls = []
    for block in stem.blocks:
        block.t_mamba.register_forward_hook(lambda module, _inputs, _output: calls.append(module))
    with torch.no_grad():
        stem(x_0, mask)
    assert calls == [block.t_mamba for block in stem.blocks for _ in range(3)]


def test_drop_path_is_drawn_anew_in_each_pass():
    stem, x_0, mask = stem_and_input(recurrent=4)
    stem.train()
    drawn = []
    stem.blocks[0].drop_path.register_forward_hook(
        lambda _module, inputs, output: drawn.append(tuple((output != 0).any(-1).any(-1).tolist()))
    )
    torch.manual_seed(0)
    with torch.no_grad():
        for _ in range(8):
            stem(x_0, mask)
    passes = [drawn[i : i + 4] for i in range(0, len(drawn), 4)]
    assert len(passes) == 8 and any(len(set(samples)) > 1 for samples in passes)
    assert any(a != b for samples in passes for a, b in samples)  # and per sample


@torch.no_grad()
def test_embedding_is_not_zero_where_padded():
    embedding = tiny_detector().backbone.embedding_module
    features, mask = random_input([40], 64)
    y = embedding(features.transpose(1, 2), mask)
    assert torch.allclose(y[0, 40:], torch.relu(embedding.ln_2.bias).expand(24, -1))
    assert y[0, 40:].any()


@torch.no_grad()
def test_padding_is_part_of_the_input():
    """The published detector was trained with padded sequences, and its outputs depend on how far they are padded."""
    detector = tiny_detector()
    short, _ = random_input([64], 64)
    long, mask = random_input([64], 96)
    long[..., :64] = short
    outputs = detector(short, mask[:, :64])[0][:, :64], detector(long, mask)[0][:, :64]
    assert (outputs[0] - outputs[1]).abs().max() > 1e-3


@torch.no_grad()
def test_videos_of_a_batch_do_not_mix():
    detector = tiny_detector()
    features, mask = random_input([64, 1, 37], 64)
    together = detector(features, mask)
    for video in range(3):
        alone = detector(features[video : video + 1], mask[video : video + 1])
        for a, b in zip(alone, together):
            torch.testing.assert_close(a, b[video : video + 1], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_branch_levels_halve_and_are_zero_where_padded():
    branch = tiny_detector().backbone.branch_module
    x, mask = random_input([64, 40], 64, input_c=8)
    levels, masks = branch(x.transpose(1, 2), mask)
    assert [level.shape[1] for level in levels] == [64, 32, 16, 8, 4, 2]
    for index, (level, level_mask) in enumerate(zip(levels, masks)):
        assert torch.equal(level_mask, mask[:, :: 2**index])
        if index:
            assert not level[~level_mask].any()
    assert len(BranchModule(BranchModuleSettings(emb_c=8, block_n=0))(x.transpose(1, 2), mask)[0]) == 1


def test_embedding_takes_every_published_option():
    settings = EmbeddingModuleSettings(
        input_c=6, emb_c=8, kernel_size=3, dilation=2, padding=2, groups=2, bias=True, padding_mode="replicate"
    )
    embedding = EmbeddingModule(settings)
    names = list(embedding.state_dict())
    assert names[:4] == ["conv_1.weight", "conv_1.bias", "ln_1.weight", "ln_1.bias"]
    assert not embedding.conv_1.bias.any() and not embedding.conv_2.bias.any()
    features, mask = random_input([12], 12)
    assert embedding(features.transpose(1, 2), mask).shape == (1, 12, 8)
