"""The backbone of RDFA-S6: Embedding, Stem and Branch (arXiv 2407.13078).

Shape suffixes: B batch, T frames of the input, L positions of a pyramid level, C channels, 1 broadcast. Activations are
channels-last in memory.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from rdfa.modeling.fa_bi_s6 import AGGREGATED, SINGLE, FeatureAggregatedBiS6
from rdfa.modeling.layers import AffineDropPath, Conv1d, GatePool, MaskedMaxPool, masked
from rdfa.modeling.settings import BranchModuleSettings, EmbeddingModuleSettings, ModelSettings, StemModuleSettings

# Length to which the channel gate pools time. The published code fixes it, whatever the training length, and with it
# the shapes of the gate's weights.
GATE_LENGTH = 576


class EmbeddingModule(nn.Module):
    """From clip features to the embedding: twice (convolution, mask, layer norm, ReLU).

    The mask comes before the norm, so padded positions hold relu(norm bias) afterwards, not 0: padding is part of the
    input.
    """

    def __init__(self, settings: EmbeddingModuleSettings):
        super().__init__()

        def conv(in_channels: int) -> Conv1d:
            layer = Conv1d(
                in_channels,
                settings.emb_c,
                settings.kernel_size,
                padding=settings.padding,
                dilation=settings.dilation,
                groups=settings.groups,
                bias=settings.bias,
                padding_mode=settings.padding_mode,
            )
            if settings.bias:
                nn.init.zeros_(layer.bias)
            return layer

        self.conv_1 = conv(settings.input_c)
        self.ln_1 = nn.LayerNorm(settings.emb_c)
        self.conv_2 = conv(settings.emb_c)
        self.ln_2 = nn.LayerNorm(settings.emb_c)

    def forward(self, features_BTC: Tensor, mask_BT: Tensor) -> Tensor:
        x_BTC = F.relu(self.ln_1(masked(self.conv_1(features_BTC), mask_BT)))
        return F.relu(self.ln_2(masked(self.conv_2(x_BTC), mask_BT)))


class DualBiS6Block(nn.Module):
    """Dual Bi-S6: one FA-Bi-S6 over time, gated by one over channels (TFA-Bi-S6 and CFA-Bi-S6), applied recurrently:

        x_k+1 = x_0 + drop_path(mask FA-Bi-S6_time(norm(x_k)) gate(x_k))          `recurrent` times, the same weights
        gate(x) = sigmoid(mean_t(FA-Bi-S6_channel(pool(x)^T)))                    [B, C]

    The residual is the block's input x_0 in every pass. The gate pools x as it is, neither normalised nor masked, to
    `GATE_LENGTH` positions; each channel is then one element of a sequence of C vectors of that length.

    With `recompute` the backward computes each pass again instead of keeping what it went through: the same gradients
    for the memory of one pass, at the price of one more forward.
    """

    def __init__(self, settings: StemModuleSettings):
        super().__init__()
        self.recurrent = settings.recurrent
        self.ln = nn.LayerNorm(settings.emb_c)
        self.t_mamba = FeatureAggregatedBiS6(settings.emb_c, AGGREGATED)
        self.adaptive_pool = GatePool(GATE_LENGTH)
        self.c_mamba = FeatureAggregatedBiS6(GATE_LENGTH, AGGREGATED)
        self.sigmoid = nn.Sigmoid()
        self.drop_path = AffineDropPath(settings.emb_c, settings.drop_path_rate)
        self.recompute = False

    def forward(self, x_BTC: Tensor, mask_BT: Tensor) -> Tensor:
        residual_BTC = x_BTC
        for _ in range(self.recurrent):
            if self.recompute and torch.is_grad_enabled():
                x_BTC = checkpoint(self._pass, x_BTC, residual_BTC, mask_BT, use_reentrant=False)
            else:
                x_BTC = self._pass(x_BTC, residual_BTC, mask_BT)
        return x_BTC

    def _pass(self, x_BTC: Tensor, residual_BTC: Tensor, mask_BT: Tensor) -> Tensor:
        y_BTC = masked(self.t_mamba(self.ln(x_BTC)), mask_BT)
        return residual_BTC + self.drop_path(y_BTC * self.gate(x_BTC).unsqueeze(1))

    def gate(self, x_BTC: Tensor) -> Tensor:
        """The factor of each channel, in (0, 1): x_BTC -> gate_BC.

        The mean over the outputs of out_proj is one product with the mean of its rows.
        """
        y_BCE = self.c_mamba.scans(self.adaptive_pool(x_BTC))
        return self.sigmoid(y_BCE @ self.c_mamba.out_proj.weight.mean(dim=0))


class StemModule(nn.Module):
    """The recurrent stem, at full temporal resolution."""

    def __init__(self, settings: StemModuleSettings):
        super().__init__()
        self.blocks = nn.ModuleList(DualBiS6Block(settings) for _ in range(settings.block_n))

    def recompute(self, on: bool) -> None:
        """Whether the backward computes the passes of the blocks again (see `DualBiS6Block`)."""
        for block in self.blocks:
            block.recompute = on

    def forward(self, x_BTC: Tensor, mask_BT: Tensor) -> Tensor:
        for block in self.blocks:
            x_BTC = block(x_BTC, mask_BT)
        return x_BTC


class BranchBlock(nn.Module):
    """x -> max_pool(x + drop_path(mask FA-Bi-S6(norm(x)))), with a single convolution width; halves the length."""

    def __init__(self, settings: BranchModuleSettings):
        super().__init__()
        self.mamba = FeatureAggregatedBiS6(settings.emb_c, SINGLE)
        self.ln = nn.LayerNorm(settings.emb_c)
        self.drop_path = AffineDropPath(settings.emb_c, settings.drop_path_rate)
        self.ds_maxpool = MaskedMaxPool()

    def forward(self, x_BLC: Tensor, mask_BL: Tensor) -> tuple[Tensor, Tensor]:
        y_BLC = masked(self.mamba(self.ln(x_BLC)), mask_BL)
        return self.ds_maxpool(x_BLC + self.drop_path(y_BLC), mask_BL)


class BranchModule(nn.Module):
    """The feature pyramid: its input, then the output of each block."""

    def __init__(self, settings: BranchModuleSettings):
        super().__init__()
        self.blocks = nn.ModuleList(BranchBlock(settings) for _ in range(settings.block_n))

    def forward(self, x_BLC: Tensor, mask_BL: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        levels, masks = [x_BLC], [mask_BL]
        for block in self.blocks:
            x_BLC, mask_BL = block(x_BLC, mask_BL)
            levels.append(x_BLC)
            masks.append(mask_BL)
        return levels, masks


class ResidualSharedBiMambaBackbone(nn.Module):
    """Embedding, Stem, Branch: features_BTC, mask_BT -> levels [B, T / 2^l, C] and their masks, finest first."""

    def __init__(self, settings: ModelSettings):
        super().__init__()
        self.embedding_module = EmbeddingModule(settings.embedding)
        self.stem_module = StemModule(settings.stem)
        self.branch_module = BranchModule(settings.branch)

    def forward(self, features_BTC: Tensor, mask_BT: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        x_BTC = self.embedding_module(features_BTC, mask_BT)
        return self.branch_module(self.stem_module(x_BTC, mask_BT), mask_BT)
