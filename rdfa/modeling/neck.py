"""Necks: from the backbone's pyramid to the levels that the heads read.

Shape suffixes: B batch, L positions of a level, C channels. Activations are channels-last in memory; levels are lists,
finest first.
"""

from torch import Tensor, nn

from rdfa.modeling.layers import ChannelLayerNorm, MaskedConv1D
from rdfa.modeling.settings import FPN1DSettings, FPNIdentitySettings


class FPNIdentity(nn.Module):
    """Normalises each level."""

    def __init__(self, settings: FPNIdentitySettings, num_levels: int):
        super().__init__()
        self.fpn_norms = nn.ModuleList(_norm(settings) for _ in range(num_levels))

    def forward(self, levels: list[Tensor], masks: list[Tensor]) -> list[Tensor]:
        return [norm(x_BLC) for norm, x_BLC in zip(self.fpn_norms, levels)]


class FPN1D(nn.Module):
    """Feature pyramid: a lateral 1x1 convolution per level, sums from coarse to fine, a depthwise convolution, a norm.

    lateral_l = mask_l conv1x1_l(x_l) + nearest_upsample(lateral_l+1)        y_l = norm_l(mask_l conv3_l(lateral_l))
    """

    def __init__(self, settings: FPN1DSettings, num_levels: int):
        super().__init__()
        out, bias = settings.out_channel, not settings.with_ln
        self.lateral_convs = nn.ModuleList(
            MaskedConv1D(settings.in_channels, out, 1, bias=bias) for _ in range(num_levels)
        )
        self.fpn_convs = nn.ModuleList(MaskedConv1D(out, out, 3, groups=out, bias=bias) for _ in range(num_levels))
        self.fpn_norms = nn.ModuleList(_norm(settings) for _ in range(num_levels))

    def forward(self, levels: list[Tensor], masks: list[Tensor]) -> list[Tensor]:
        laterals = [conv(x_BLC, mask_BL) for conv, x_BLC, mask_BL in zip(self.lateral_convs, levels, masks)]
        for i in range(len(laterals) - 2, -1, -1):
            laterals[i] = laterals[i] + laterals[i + 1].repeat_interleave(2, dim=1)
        joined = [conv(x_BLC, mask_BL) for conv, x_BLC, mask_BL in zip(self.fpn_convs, laterals, masks)]
        return [norm(x_BLC) for norm, x_BLC in zip(self.fpn_norms, joined)]


NECKS = {"FPNIdentity": FPNIdentity, "FPN1D": FPN1D}


def _norm(settings: FPNIdentitySettings) -> nn.Module:
    return ChannelLayerNorm(settings.out_channel) if settings.with_ln else nn.Identity()
