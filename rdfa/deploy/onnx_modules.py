"""The parts of the detector that need another form to become right and fast ONNX graphs.

Each computes what the part it stands for computes, up to rounding, for every batch size and length:

- `GatherGatePool`: the exporter writes the traced length into an adaptive pooling, silently (`rdfa.deploy.gate_pool`).
- `FusedBiS6`: one scan for all widths and both directions of a block, because in ONNX a scan costs per step, not per
  channel.
- `column_gate`: ONNX Runtime (seen in 1.21 to 1.32) fuses a transposed operand into a product with a vector, and
  computes something else; a product with a matrix of one column stays right.

Parts of a detector in float16 stay so, but for A, D and the bias of the scans, which compute in float32.

Shape suffixes: B batch, L sequence length, C channels of the input, D inner channels, K convolution widths, H = D x K,
N states per channel, R rank of delta, E = 2 H, F = 2 D, G length of the channel gate's sequences, 2B both directions of
a batch.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ops.selective_scan import export
from rdfa.deploy.gate_pool import GatherGatePool
from rdfa.deploy.replace import replace_modules
from rdfa.modeling.backbone import DualBiS6Block
from rdfa.modeling.fa_bi_s6 import FeatureAggregatedBiS6
from rdfa.modeling.layers import GatePool


def replace_parts(module: nn.Module) -> None:
    """Put the parts of this file in the place of those they stand for, throughout `module`."""
    replace_modules(module, {GatePool: GatherGatePool, FeatureAggregatedBiS6: FusedBiS6})
    for block in module.modules():
        if isinstance(block, DualBiS6Block):
            block.gate = column_gate(block)


def column_gate(block: DualBiS6Block) -> Callable[[Tensor], Tensor]:
    """`DualBiS6Block.gate`, the mean of out_proj's rows taken once and kept as a column."""
    mean_E1 = block.c_mamba.out_proj.weight.detach().mean(0)[:, None]

    def gate(x_BLC: Tensor) -> Tensor:
        y_BCE = block.c_mamba.scans(block.adaptive_pool(x_BLC))
        return block.sigmoid((y_BCE @ mean_E1).squeeze(2))

    return gate


class FusedBiS6(nn.Module):
    """`FeatureAggregatedBiS6` with its 2 K scans as one: directions along the batch, widths along the channels.

    Inner channel d of width k is channel d K + k of the scan. In that order the convolutions of all widths are one
    grouped convolution (narrow kernels get zeros in front), x_proj and dt_proj act on [D, K L] without reordering, and
    only the columns of out_proj are permuted, once, here.
    """

    def __init__(self, block: FeatureAggregatedBiS6):
        super().__init__()
        state = {name: value.detach() for name, value in block.state_dict().items()}
        kernels = [conv.weight.detach() for conv in block.conv1ds]
        self.d_inner, self.d_state, self.widths = block.d_inner, block.d_state, len(kernels)
        self.width = max(kernel.shape[2] for kernel in kernels)

        def interleaved(per_width: list[Tensor]) -> nn.Parameter:
            return nn.Parameter(torch.stack(per_width, 1).flatten(0, 1))

        self.in_proj = block.in_proj
        self.conv_weight_H1W = interleaved([F.pad(kernel, (self.width - kernel.shape[2], 0)) for kernel in kernels])
        self.conv_bias_H = interleaved([conv.bias.detach() for conv in block.conv1ds])
        dt_RD, bc_ND = state["x_proj.weight"].split([block.dt_rank, 2 * self.d_state])
        self.dt_down_RD, self.bc_ND = nn.Parameter(dt_RD.clone()), nn.Parameter(bc_ND.clone())
        self.dt_up_DR = block.dt_proj.weight
        self.delta_bias_H = interleaved([state["dt_proj.bias"].float()] * self.widths)
        self.A_HN = interleaved([-state["A_log"].float().exp()] * self.widths)
        self.D_H = interleaved([state["D"].float()] * self.widths)
        # Columns (direction, k, d) -> (direction, d, k).
        out_CE = state["out_proj.weight"].unflatten(1, (2, self.widths, self.d_inner)).transpose(2, 3).flatten(1)
        self.out_proj = nn.Linear(out_CE.shape[1], out_CE.shape[0], bias=False)
        self.out_proj.weight = nn.Parameter(out_CE)

    def forward(self, x_BLC: Tensor) -> Tensor:
        return self.out_proj(self.scans(x_BLC))

    def scans(self, x_BLC: Tensor) -> Tensor:
        """The gated scans, x_BLC -> y_BLE, in the order of this block's own `out_proj`."""
        batch = x_BLC.shape[0]
        # Flipped while whole time steps lie together in memory.
        forward_BLF, backward_BLF = self.in_proj(x_BLC).split(2 * self.d_inner, dim=2)
        both_2BLF = torch.cat([forward_BLF, backward_BLF.flip(1)])
        x_2BDL, z_2BDL = both_2BLF.transpose(1, 2).split(self.d_inner, dim=1)
        padded = F.pad(x_2BDL, (self.width - 1, 0))
        u_2BHL = F.silu(F.conv1d(padded, self.conv_weight_H1W, self.conv_bias_H, groups=self.d_inner))
        u_2BDKL = u_2BHL.unflatten(1, (self.d_inner, self.widths))
        delta_2BHL = (self.dt_up_DR @ (self.dt_down_RD @ u_2BDKL.flatten(2))).reshape(u_2BHL.shape)
        B_2BNL, C_2BNL = (self.bc_ND @ u_2BDKL[:, :, 0]).split(self.d_state, dim=1)
        z_2BHL = z_2BDL.unsqueeze(2).expand(-1, -1, self.widths, -1).flatten(1, 2)
        y_2BHL = export.node(
            u_2BHL, delta_2BHL, self.A_HN, B_2BNL, C_2BNL, self.D_H, z_2BHL, self.delta_bias_H, delta_softplus=True
        )
        y_2BLH = y_2BHL.transpose(1, 2)
        # Slices: the exporter writes the traced batch size into `chunk`.
        return torch.cat([y_2BLH[:batch], y_2BLH[batch:].flip(1)], dim=2)
