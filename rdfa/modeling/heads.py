"""The two heads. Each runs the same weights over every pyramid level.

Shape suffixes: B batch, L positions of a level, C channels, K classes. Activations are channels-last in memory; levels
are lists, finest first.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rdfa.modeling.layers import ChannelLayerNorm, MaskedConv1D, Scale
from rdfa.modeling.settings import PtTransformerClsHeadSettings, PtTransformerRegHeadSettings

HeadSettings = PtTransformerClsHeadSettings | PtTransformerRegHeadSettings
# Prior probability of a class that is never trained; its bias becomes -13.8.
EMPTY_CLASS_PRIOR = 1e-6


class _Tower(nn.Module):
    """num_layers - 1 times (masked convolution, norm, ReLU), shared by all levels.

    The norm comes after the mask, so masked positions hold relu(norm bias) and reach their valid neighbours, as
    published.
    """

    def __init__(self, settings: HeadSettings):
        super().__init__()
        self.head = nn.ModuleList()
        self.norm = nn.ModuleList()
        channels = settings.input_dim
        for _ in range(settings.num_layers - 1):
            bias = not settings.with_ln
            self.head.append(MaskedConv1D(channels, settings.feat_dim, settings.kernel_size, bias=bias))
            self.norm.append(ChannelLayerNorm(settings.feat_dim) if settings.with_ln else nn.Identity())
            channels = settings.feat_dim
        self.out_channels = channels

    def tower(self, x_BLC: Tensor, mask_BL: Tensor) -> Tensor:
        for conv, norm in zip(self.head, self.norm):
            x_BLC = F.relu(norm(conv(x_BLC, mask_BL)))
        return x_BLC


class PtTransformerClsHead(_Tower):
    """Class logits [B, L, K] of each level; 0 at masked positions."""

    def __init__(self, settings: PtTransformerClsHeadSettings):
        super().__init__(settings)
        self.cls_head = MaskedConv1D(self.out_channels, settings.num_classes, settings.kernel_size, bias=True)
        with torch.no_grad():
            if settings.prior_prob > 0:
                self.cls_head.conv.bias.fill_(_logit(settings.prior_prob))
            self.cls_head.conv.bias[list(settings.empty_cls)] = _logit(EMPTY_CLASS_PRIOR)

    def forward(self, levels: list[Tensor], masks: list[Tensor]) -> list[Tensor]:
        return [self.cls_head(self.tower(x_BLC, mask_BL), mask_BL) for x_BLC, mask_BL in zip(levels, masks)]


class PtTransformerRegHead(_Tower):
    """Offsets [B, L, 2] to the start and the end, >= 0, in strides of the level; 0 at masked positions."""

    def __init__(self, settings: PtTransformerRegHeadSettings, num_levels: int):
        super().__init__(settings)
        self.scale = nn.ModuleList(Scale() for _ in range(num_levels))
        self.offset_head = MaskedConv1D(self.out_channels, 2, settings.kernel_size, bias=True)

    def forward(self, levels: list[Tensor], masks: list[Tensor]) -> list[Tensor]:
        return [
            F.relu(scale(self.offset_head(self.tower(x_BLC, mask_BL), mask_BL)))
            for scale, x_BLC, mask_BL in zip(self.scale, levels, masks)
        ]


def _logit(probability: float) -> float:
    return -math.log((1 - probability) / probability)
