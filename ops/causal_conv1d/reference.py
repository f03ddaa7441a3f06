"""The causal convolution in plain PyTorch: what the kernels must agree with."""

import torch
from torch.nn import functional as F


def causal_conv1d_reference(x_BDL, weight_DW, bias_D=None, activation=None, reverse=False) -> torch.Tensor:
    """y_t = act(bias + sum_k weight_k x_{t - (W-1-k)}), or x_{t + (W-1-k)} with `reverse`; x is zero outside its range.

    Any floating dtype on any device, differentiable by autograd. float16 and bfloat16 are computed in float32 and
    rounded once. Returns y [B,D,L] in x's dtype.
    """
    compute = torch.promote_types(x_BDL.dtype, torch.float32)
    x, weight = x_BDL.to(compute), weight_DW.to(compute)
    width, length = weight.shape[1], x.shape[2]
    padded = F.pad(x, (0, width - 1) if reverse else (width - 1, 0))
    y = torch.zeros_like(x) if bias_D is None else torch.zeros_like(x) + bias_D.to(compute)[:, None]
    for k in range(width):
        start = width - 1 - k if reverse else k
        y = y + weight[:, k, None] * padded[:, :, start : start + length]
    return (y if activation is None else F.silu(y)).to(x_BDL.dtype)
