"""The published computation of an FA-Bi-S6 block on the CUDA kernels of mamba-ssm and causal-conv1d: the reference row.

Those kernels know one branch and one direction of time. So the block calls them branch by branch, for both directions
as one batch, the second on a flipped copy; the results are joined and the second half flipped back. Everything else of
the detector is as it is here.

Only the compiled modules are imported: the packages' top levels need more than this benchmark does.
Shape suffixes as in `rdfa.modeling.fa_bi_s6`; 2B both directions.
"""

import importlib
import importlib.util
from collections.abc import Callable
from types import MethodType
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rdfa.modeling.backbone import DualBiS6Block
from rdfa.modeling.fa_bi_s6 import FeatureAggregatedBiS6

MODULES = {"selective_scan_cuda": "mamba-ssm", "causal_conv1d_cuda": "causal-conv1d"}


class Kernels(NamedTuple):
    """conv(x_BDL, weight_DW, bias_D): with its SiLU. scan(u, delta, A, B, C, D, z, delta_bias): gated y."""

    conv: Callable[..., Tensor]
    scan: Callable[..., Tensor]


def missing() -> list[str]:
    """Packages that are not installed."""
    return [package for module, package in MODULES.items() if importlib.util.find_spec(module) is None]


def cuda_kernels() -> Kernels:
    """Those of the two packages."""
    scan, conv = (importlib.import_module(name) for name in MODULES)

    def convolve(x_BDL: Tensor, weight_DW: Tensor, bias_D: Tensor) -> Tensor:
        output = torch.empty_like(x_BDL)
        conv.causal_conv1d_fwd(x_BDL, weight_DW, bias_D, None, None, output, None, True)
        return output

    def scan_gated(u, delta, A, B_BNL, C_BNL, D, z, delta_bias):
        # One group of channels shares B and C. The last result is the gated output.
        return scan.fwd(u, delta, A, B_BNL[:, None], C_BNL[:, None], D, z, delta_bias, True)[-1]

    return Kernels(convolve, scan_gated)


def with_gradients() -> Kernels:
    """The same, differentiable: the packages' own backward kernels."""
    scan, conv = (importlib.import_module(name) for name in MODULES)
    convolve = cuda_kernels().conv

    class Conv(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x_BDL, weight_DW, bias_D):
            ctx.save_for_backward(x_BDL, weight_DW, bias_D)
            return convolve(x_BDL, weight_DW, bias_D)

        @staticmethod
        def backward(ctx, grad):
            x, weight, bias = ctx.saved_tensors
            dx = torch.empty_like(x)
            dweight, dbias = (torch.zeros_like(t, dtype=torch.float32) for t in (weight, bias))
            conv.causal_conv1d_bwd(x, weight, bias, grad.contiguous(), None, None, None, dx, dweight, dbias, None, True)
            return dx, dweight.to(weight.dtype), dbias.to(bias.dtype)

    class Scan(torch.autograd.Function):
        @staticmethod
        def forward(ctx, u, delta, A, B, C, D, z, delta_bias):
            out, states, gated = scan.fwd(u, delta, A, B, C, D, z, delta_bias, True)
            ctx.save_for_backward(u, delta, A, B, C, D, z, delta_bias, states, out)
            return gated

        @staticmethod
        def backward(ctx, grad):
            *inputs, states, out = ctx.saved_tensors
            du, ddelta, dA, dB, dC, dD, ddelta_bias, dz = scan.bwd(
                *inputs, grad.contiguous(), states, out, None, True, False
            )
            return du, ddelta, dA, dB.to(inputs[3].dtype), dC.to(inputs[4].dtype), dD, dz, ddelta_bias

    def scan_gated(u, delta, A, B_BNL, C_BNL, D, z, delta_bias):
        return Scan.apply(u, delta, A, B_BNL[:, None], C_BNL[:, None], D, z, delta_bias)

    return Kernels(Conv.apply, scan_gated)


def use(detector: nn.Module, kernels: Kernels) -> nn.Module:
    """Make every FA-Bi-S6 block of `detector` compute in this way, and the channel gate take the mean of one."""

    def forward(block: FeatureAggregatedBiS6, x_BLC: Tensor) -> Tensor:
        return block.out_proj(scans(block, kernels, x_BLC))

    def gate(block: DualBiS6Block, x_BTC: Tensor) -> Tensor:
        return block.sigmoid(block.c_mamba(block.adaptive_pool(x_BTC)).mean(dim=-1))

    for module in detector.modules():
        if isinstance(module, FeatureAggregatedBiS6):
            module.forward = MethodType(forward, module)
        elif isinstance(module, DualBiS6Block):
            module.gate = MethodType(gate, module)
    return detector


def scans(block: FeatureAggregatedBiS6, kernels: Kernels, x_BLC: Tensor) -> Tensor:
    """What the output projection of the block takes, [B,L,2KD]. Kernels get sequences with time adjacent in memory."""
    batch, length, _ = x_BLC.shape
    xz = (block.in_proj.weight @ x_BLC.flatten(0, 1).t()).unflatten(1, (batch, length)).transpose(0, 1)
    fwd, bwd = xz.chunk(2, dim=1)
    x_2BDL, z_2BDL = torch.cat([fwd, bwd.flip(-1)]).chunk(2, dim=1)
    A_DN, D_D = -torch.exp(block.A_log.float()), block.D.float()
    shared, outputs = None, []
    for conv in block.conv1ds:
        u = kernels.conv(x_2BDL, conv.weight.squeeze(1), conv.bias)
        projected = F.linear(u.transpose(1, 2).flatten(0, 1), block.x_proj.weight)
        dt, *rows = projected.split([block.dt_rank, block.d_state, block.d_state], dim=-1)
        delta = (block.dt_proj.weight @ dt.t()).unflatten(1, (2 * batch, length)).transpose(0, 1)
        if shared is None:
            shared = [part.unflatten(0, (2 * batch, length)).transpose(1, 2).contiguous() for part in rows]
        outputs.append(kernels.scan(u, delta, A_DN, *shared, D_D, z_2BDL, block.dt_proj.bias.float()))
    fwd, bwd = torch.cat(outputs, 1).chunk(2)
    return torch.cat([fwd, bwd.flip(-1)], 1).transpose(1, 2)
