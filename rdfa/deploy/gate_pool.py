"""The channel gate's pooling in a form whose length stays dynamic.

The exporters of ONNX and AOTInductor write the traced length into an adaptive pooling, silently.

Shape suffixes: B batch, L sequence length, C channels, G bins, W positions of the widest bin.
"""

import torch
from torch import Tensor, nn

from rdfa.modeling.layers import GatePool


class GatherGatePool(nn.Module):
    """`GatePool`: bin g is the mean from floor(g L / G) to ceil((g + 1) L / G).

    Gathers all bins as wide as the widest, and divides their masked sum by the true width. (Differences of a cumulative
    sum would be cheaper and lose digits.)
    """

    def __init__(self, pool: GatePool):
        super().__init__()
        self.length = pool.length

    def forward(self, x_BLC: Tensor) -> Tensor:
        length, bins = x_BLC.shape[1], self.length
        bin_G = torch.arange(bins, device=x_BLC.device)
        start_G = bin_G * length // bins
        width_G = ((bin_G + 1) * length + bins - 1) // bins - start_G
        step_W = torch.arange((length + bins - 1) // bins + 1, device=x_BLC.device)
        index_GW = (start_G[:, None] + step_W).clamp(max=length - 1)
        inside_GW1 = (step_W < width_G[:, None]).to(x_BLC.dtype)[:, :, None]
        x_BGWC = x_BLC.index_select(1, index_GW.flatten()).unflatten(1, (bins, -1))
        return ((x_BGWC * inside_GW1).sum(2) / width_G[:, None]).transpose(1, 2)
