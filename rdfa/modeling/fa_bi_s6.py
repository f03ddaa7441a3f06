"""The Feature Aggregated Bi-S6 (FA-Bi-S6) block of RDFA-S6 (arXiv 2407.13078).

S6 is Mamba's selective scan. *Bi*: the scan runs over the sequence in both directions, with the same weights. *Feature
aggregated*: several causal depthwise convolutions of different widths read the sequence, each result is scanned, and
one projection joins all scans of both directions.

Shape suffixes: B batch, L sequence length, C channels of the block's input (d_model), D inner channels (expand x
d_model), N states per channel, R rank of delta, E = 2 x number of widths x D (K D of one
direction), 2 directions.

On a CPU activations are channels-last in memory, and operators take them as [B, D, L] views. On a GPU time is adjacent
inside the block, as its kernels want it; there one launch does all convolutions and one all scans.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ops import bidirectional_conv1d, bidirectional_scan, causal_conv1d, selective_scan

# Widths of the convolutions where features are aggregated (the stem), and of the only one elsewhere (the branch).
AGGREGATED = (2, 3, 4)
SINGLE = (4,)


class FeatureAggregatedBiS6(nn.Module):
    """FA-Bi-S6: x_BLC -> y_BLC, for each direction d (forward, backward) and width w

        x_d, z_d   = in_proj(x)                                   (rows x_fwd, z_fwd, x_bwd, z_bwd)
        u_dw       = silu(conv_w(x_d))                            causal along d
        delta_dw   = softplus(dt_proj(x_proj(u_dw)[dt rows]))
        B_d, C_d   = x_proj(u_d,first)[B, C rows]                 of the first width only, shared by the others
        h_t        = exp(delta_t A) h_t-1 + delta_t B_t u_t,  A = -exp(A_log)
        y_dw,t     = (C_t h_t + D u_t) silu(z_d,t)
        y          = out_proj(cat(y_fwd,first .. y_fwd,last, y_bwd,first .. y_bwd,last))

    The backward direction reads time from the end; nothing is flipped. A, D and the bias of delta stay in float32
    (float64 in a float64 block), the scan's state likewise.

    Source: the paper; sharing B and C is what the published code computes.
    """

    def __init__(self, d_model: int, widths: tuple[int, ...] = AGGREGATED, d_state: int = 16, expand: int = 1):
        super().__init__()
        self.d_inner = expand * d_model
        self.d_state = d_state
        self.dt_rank = math.ceil(d_model / 16)
        self.A_log = nn.Parameter(torch.log(torch.arange(1.0, d_state + 1)).repeat(self.d_inner, 1))
        self.D = nn.Parameter(torch.ones(self.d_inner))
        self.in_proj = nn.Linear(d_model, 4 * self.d_inner, bias=False)
        self.conv1ds = nn.ModuleList(nn.Conv1d(self.d_inner, self.d_inner, w, groups=self.d_inner) for w in widths)
        self.x_proj = nn.Linear(self.d_inner, self.dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, self.d_inner)
        self.out_proj = nn.Linear(2 * len(widths) * self.d_inner, d_model, bias=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Mamba's start: softplus(dt_proj.bias) log-uniform in [0.001, 0.1]; biases of the convolutions 0."""
        for conv in self.conv1ds:
            nn.init.zeros_(conv.bias)
        nn.init.uniform_(self.dt_proj.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
        dt_D = torch.exp(torch.empty(self.d_inner).uniform_(math.log(0.001), math.log(0.1)))
        self.dt_proj.bias.copy_(dt_D + torch.log(-torch.expm1(-dt_D)))  # inverse of softplus

    def forward(self, x_BLC: Tensor) -> Tensor:
        return self._fused_forward(x_BLC) if x_BLC.is_cuda else self.out_proj(self.scans(x_BLC))

    def scans(self, x_BLC: Tensor) -> Tensor:
        """The gated scans of both directions and all widths, which `out_proj` joins: x_BLC -> y_BLE."""
        if x_BLC.is_cuda:
            return self._fused_scans(x_BLC)
        x_fwd, z_fwd, x_bwd, z_bwd = self.in_proj(x_BLC).split(self.d_inner, dim=-1)
        return torch.cat([*self._direction(x_fwd, z_fwd, False), *self._direction(x_bwd, z_bwd, True)], dim=-1)

    def _direction(self, x_BLD: Tensor, z_BLD: Tensor, reverse: bool) -> list[Tensor]:
        A_DN = -torch.exp(_at_least_float32(self.A_log))
        D_D, delta_bias_D = _at_least_float32(self.D), _at_least_float32(self.dt_proj.bias)
        outputs = []
        for conv in self.conv1ds:
            u_BDL = causal_conv1d(
                x_BLD.transpose(1, 2), conv.weight.squeeze(1), conv.bias, activation="silu", reverse=reverse
            )
            u_BLD = u_BDL.transpose(1, 2)
            if not outputs:
                rows = [self.dt_rank, self.d_state, self.d_state]
                dt_BLR, B_BLN, C_BLN = self.x_proj(u_BLD).split(rows, dim=-1)
            else:
                dt_BLR = F.linear(u_BLD, self.x_proj.weight[: self.dt_rank])
            y_BDL = selective_scan(
                u_BDL,
                F.linear(dt_BLR, self.dt_proj.weight).transpose(1, 2),
                A_DN,
                B_BLN.transpose(1, 2),
                C_BLN.transpose(1, 2),
                D_D,
                z=z_BLD.transpose(1, 2),
                delta_bias=delta_bias_D,
                delta_softplus=True,
                reverse=reverse,
            )
            outputs.append(y_BDL.transpose(1, 2))
        return outputs

    def _fused_forward(self, x_BLC: Tensor) -> Tensor:
        y_BLE = self._fused_scans(x_BLC)
        return torch.bmm(y_BLE, self.out_proj.weight.t().expand(y_BLE.shape[0], -1, -1))

    def _fused_scans(self, x_BLC: Tensor) -> Tensor:
        batch, length, _ = x_BLC.shape
        xz_B4DL = _product(self.in_proj.weight, x_BLC.transpose(1, 2))
        x_2BDL, z_2BDL = xz_B4DL.unflatten(1, (2, 2, self.d_inner)).permute(2, 1, 0, 3, 4)
        weights, biases = zip(*((conv.weight.squeeze(1), conv.bias) for conv in self.conv1ds))
        u_2BEL = bidirectional_conv1d(x_2BDL, weights, biases)
        dt_rows, BC_rows = self.x_proj.weight.split([self.dt_rank, 2 * self.d_state])
        dt = _product(dt_rows, u_2BEL.reshape(-1, self.d_inner, length))
        delta_2BEL = _product(self.dt_proj.weight, dt).reshape(2, batch, -1, length)
        BC = _product(BC_rows, u_2BEL[:, :, : self.d_inner].flatten(0, 1)).unflatten(0, (2, batch))
        B_2BNL, C_2BNL = BC.split(self.d_state, dim=2)
        A_DN = -torch.exp(_at_least_float32(self.A_log))
        D_D, delta_bias_D = _at_least_float32(self.D), _at_least_float32(self.dt_proj.bias)
        y_BEL = bidirectional_scan(u_2BEL, delta_2BEL, A_DN, B_2BNL, C_2BNL, D_D, z_2BDL, delta_bias_D)
        return y_BEL.transpose(1, 2)


def _product(weight: Tensor, x_BDL: Tensor) -> Tensor:
    """weight @ x for each x of the batch, with time adjacent in memory."""
    # `len` of a tensor is a constant where a graph is exported.
    return torch.bmm(weight.expand(x_BDL.shape[0], -1, -1), x_BDL)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
