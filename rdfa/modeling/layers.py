"""Small parts shared by backbone, neck and heads.

Shape suffixes: B batch, L positions in time, C channels, G length of the channel gate's sequences. Activations are
channels-last in memory: [B, L, C].
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Conv1d(nn.Conv1d):
    """`nn.Conv1d` over channels-last activations: x_BLC -> y_BLC.

    A two-dimensional convolution of height 1 does it, because only that one leaves channels-last activations in place.
    """

    def forward(self, x_BLC: Tensor) -> Tensor:
        x_BCL, padding = x_BLC.transpose(1, 2), self.padding[0]
        if self.padding_mode != "zeros":
            x_BCL, padding = F.pad(x_BCL, (padding, padding), mode=self.padding_mode), 0
        y_BC1L = F.conv2d(
            x_BCL.unsqueeze(2),
            self.weight.unsqueeze(2),
            self.bias,
            padding=(0, padding),
            dilation=(1, self.dilation[0]),
            groups=self.groups,
        )
        return y_BC1L.squeeze(2).transpose(1, 2)


class MaskedConv1D(nn.Module):
    """Convolution that keeps the length and sets masked positions to zero: y = mask conv(x).

    Its input is not masked, so what masked positions hold does reach their valid neighbours, as published. A bias
    starts at 0.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, groups: int = 1, bias: bool = False):
        super().__init__()
        padding = kernel_size // 2
        self.conv = Conv1d(in_channels, out_channels, kernel_size, padding=padding, groups=groups, bias=bias)
        if bias:
            nn.init.zeros_(self.conv.bias)

    def forward(self, x_BLC: Tensor, mask_BL: Tensor) -> Tensor:
        return masked(self.conv(x_BLC), mask_BL)


class ChannelLayerNorm(nn.Module):
    """Layer normalisation over the channels of x_BLC (biased variance, eps 1e-5), with parameters shaped [1, C, 1]."""

    def __init__(self, num_channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, num_channels, 1))
        self.bias = nn.Parameter(torch.zeros(1, num_channels, 1))

    def forward(self, x_BLC: Tensor) -> Tensor:
        weight_C, bias_C = self.weight.flatten(), self.bias.flatten()
        return F.layer_norm(x_BLC, weight_C.shape, weight_C, bias_C, eps=1e-5)


class Scale(nn.Module):
    """A learnt scalar factor, 1 at first."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class AffineDropPath(nn.Module):
    """Layer scale and stochastic depth: y = scale x keep / (1 - rate), where keep is 0 with probability `rate`, else 1.

    `keep` is drawn per sample and anew in each call; in eval mode y = scale x. The scale (one per channel, shaped
    [1, C, 1]) starts at 1e-4, so that each block starts as nearly the identity. Within `rows_of_batch` the samples are
    rows of a larger batch.
    """

    def __init__(self, num_channels: int, rate: float):
        super().__init__()
        self.scale = nn.Parameter(torch.full((1, num_channels, 1), 1e-4))
        self.rate = rate
        self.rows: tuple[int, int] | None = None  # (first, total) within `rows_of_batch`

    def forward(self, x_BLC: Tensor) -> Tensor:
        y_BLC = x_BLC * self.scale.flatten()
        if not self.training or self.rate == 0.0:
            return y_BLC
        first, total = self.rows or (0, x_BLC.shape[0])
        drawn_B11 = torch.rand(total, 1, 1, device=x_BLC.device)[first : first + x_BLC.shape[0]]
        keep_B11 = drawn_B11 >= self.rate
        return y_BLC * (keep_B11.to(y_BLC.dtype) / (1.0 - self.rate))


@contextlib.contextmanager
def rows_of_batch(model: nn.Module, first: int, total: int) -> Iterator[None]:
    """Within it, what `model` is given are the rows from `first` on of a batch of `total`: each `AffineDropPath` draws
    for the whole batch and keeps those rows, so that a batch is treated alike however it is divided."""
    paths = [module for module in model.modules() if isinstance(module, AffineDropPath)]
    for path in paths:
        path.rows = (first, total)
    try:
        yield
    finally:
        for path in paths:
            path.rows = None


class MaskedMaxPool(nn.Module):
    """Halves the length: maximum of three neighbours at every second position, then the mask of every second position.

    A two-dimensional pooling of height 1 does it, because exporters freeze the length of `max_pool1d`. The maximum sees
    masked positions.
    """

    def forward(self, x_BLC: Tensor, mask_BL: Tensor) -> tuple[Tensor, Tensor]:
        x_BC1L = x_BLC.transpose(1, 2).unsqueeze(2)
        y_BC1L = F.max_pool2d(x_BC1L, kernel_size=(1, 3), stride=(1, 2), padding=(0, 1))
        mask_BL = mask_BL[:, ::2]
        return masked(y_BC1L.squeeze(2).transpose(1, 2), mask_BL), mask_BL


class GatePool(nn.Module):
    """Average over time in G bins, masked positions included: x_BLC -> y_BCG.

    Bin g covers positions floor(g L / G) to ceil((g + 1) L / G), so bins are uneven, and overlap, where G does not
    divide L; a sequence shorter than G repeats positions. Exporters that freeze the length of an adaptive pooling
    replace this module.
    """

    def __init__(self, length: int):
        super().__init__()
        self.length = length

    def forward(self, x_BLC: Tensor) -> Tensor:
        return F.adaptive_avg_pool1d(x_BLC.transpose(1, 2), self.length)


def masked(x_BLC: Tensor, mask_BL: Tensor) -> Tensor:
    """x with masked positions set to zero."""
    return x_BLC * mask_BL.unsqueeze(-1).to(x_BLC.dtype)
