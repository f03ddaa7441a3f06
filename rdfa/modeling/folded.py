"""The detector for inference: the numbers of `Detector`, up to rounding, for less work.

`fold` makes it from a detector; there is no other way to it, and nothing to train. What differs from the modules it is
made from, which stay the place to read about the ideas:

- One layout: rows of channels [S, L, C] from the second product to the last. A product does what stands next to it
  (norm, mask, ReLU, gate, residual) while its rows are in the cache.
- The layer scale is part of the output projections; the three convolutions of a block are one table of taps.
- In the channel gate the mean over the outputs of out_proj is taken once, over its rows: a vector.
- Rows of x_proj that give B and C serve the first branch only, and are computed for it only.
- The heads run once, over all pyramid levels in one sequence with zeros between them.
- In int8 are the large products only. Those of the step sizes, of B and C and the heads' last ones, 5 % of the
  operations, and everything between products are float32 then.
- Padding costs little. Rows that a mask sets to zero are not multiplied; before that all padded rows of a video are
  alike, so scans take a few of them and reckon the others in closed form. Only the channel gate's own block, whose
  sequence is the channels, costs the same for every video.

Shape suffixes: S sequences (the batch), T frames, L positions, P positions of all levels with the gaps between them, C
channels, D inner channels, N states, K branches.
"""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ops import library
from ops.rows.block import TAPS, average_rows, conv_rows, scan_rows
from ops.rows.linear import linear, pack, pack_int8, round_rows, round_weights
from rdfa.modeling.backbone import BranchBlock, DualBiS6Block, EmbeddingModule
from rdfa.modeling.detector import Detector, check_input
from rdfa.modeling.fa_bi_s6 import FeatureAggregatedBiS6
from rdfa.modeling.heads import PtTransformerClsHead, PtTransformerRegHead
from rdfa.modeling.layers import ChannelLayerNorm


def fold(detector: Detector, dtype: torch.dtype | None = None, packed: bool | None = None) -> "FoldedDetector":
    """The inference form of `detector`, with weights of its own, in eval mode.

    Args:
        dtype: of weights and activations, the detector's by default. Norms, factors and the scan's state stay float32
            (float64 in a float64 detector). Inputs and outputs have the detector's dtype whatever this is. torch.int8
            is of the large products alone; PyTorch multiplies what it rounds to the same integers, in float32.
        packed: whether products run on the C++ kernels, with weights in their layout; by default where they are fast,
            which is for float32 and bfloat16 on a CPU with AVX2 or AVX-512. Otherwise PyTorch multiplies.
    """
    weight = next(detector.parameters())
    dtype = dtype or weight.dtype
    if packed is None:
        fast = weight.device.type == "cpu" and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
        packed = fast and _floating(dtype) in library.DTYPES and library.available()
    with torch.no_grad():
        return FoldedDetector(detector, dtype, packed).eval().requires_grad_(False)


class FoldedDetector(nn.Module):
    """What `fold` makes. Same call and same outputs as `Detector`."""

    def __init__(self, detector: Detector, dtype: torch.dtype, packed: bool):
        super().__init__()
        self.settings, self.generator, self.start_level = detector.settings, detector.generator, detector.start_level
        self.dtype, self.outer_dtype = _floating(dtype), detector.reg_head.scale[0].scale.dtype
        backbone = detector.backbone
        self.embedding = _Embedding(backbone.embedding_module, dtype, packed)
        self.stem = nn.ModuleList(_Stem(block, dtype, packed) for block in backbone.stem_module.blocks)
        self.branch = nn.ModuleList(_Branch(block, dtype, packed) for block in backbone.branch_module.blocks)
        self.neck = copy.deepcopy(detector.neck).to(self.dtype)
        self.cls_head = _Head(detector.cls_head, detector.cls_head.cls_head, dtype, packed)
        self.reg_head = _Head(detector.reg_head, detector.reg_head.offset_head, dtype, packed)
        self.halo = max(self.cls_head.halo, self.reg_head.halo)
        self.register_buffer("level_scale", _wide(torch.stack([level.scale for level in detector.reg_head.scale])))

    def forward(self, features_SCT: Tensor, mask_ST: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if not (torch.jit.is_tracing() or torch.compiler.is_compiling()):
            check_input(features_SCT, mask_ST, self.settings, self.outer_dtype)
            self.level_lengths(features_SCT.shape[2])
        x_STC = self.embedding(features_SCT.to(self.dtype).transpose(1, 2), self._factor(mask_ST))
        for block in self.stem:
            x_STC = block(x_STC, self._factor(mask_ST), _lengths(mask_ST))
        levels, masks = [x_STC], [mask_ST]
        for block in self.branch:
            x_SLC, mask_SL = block(levels[-1], masks[-1], self._factor(masks[-1]), _lengths(masks[-1]))
            levels.append(x_SLC)
            masks.append(mask_SL)
        masks = masks[self.start_level :]
        return *self._heads(self.neck(levels[self.start_level :], masks), masks), torch.cat(masks, 1)

    def _heads(self, levels: list[Tensor], masks: list[Tensor]) -> tuple[Tensor, Tensor]:
        halo = self.halo
        factors = [self._factor(mask) for mask in masks]
        x_SPC = torch.cat([part for x in levels for part in (x, x.new_zeros(x.shape[0], halo, x.shape[2]))], 1)
        gap_Sh = factors[0].new_zeros(factors[0].shape[0], halo)
        keep_P = torch.cat([part for f in factors for part in (torch.ones_like(f[0]), gap_Sh[0])])
        mask_SP = torch.cat([part for f in factors for part in (f, gap_Sh)], 1)
        scale_SP = torch.cat([part for f, s in zip(factors, self.level_scale) for part in (f * s, gap_Sh)], 1)
        cls_SPK = self.cls_head(x_SPC, mask_SP, mask_SP, keep_P)
        offsets_SP2 = self.reg_head(x_SPC, mask_SP, scale_SP, keep_P)
        outputs = []
        for y in (cls_SPK, offsets_SP2):
            sizes = [size for f in factors for size in (f.shape[1], halo)]
            outputs.append(torch.cat(y.split(sizes, 1)[::2], 1).to(self.outer_dtype))
        return outputs[0], outputs[1]

    def _factor(self, mask: Tensor) -> Tensor:
        return mask.to(self.level_scale.dtype)

    def points(self, num_frames: int) -> Tensor:
        """As `Detector.points`."""
        return self.generator.points(num_frames, device=self.level_scale.device)

    def level_lengths(self, num_frames: int) -> list[int]:
        """As `Detector.level_lengths`."""
        return self.generator.level_lengths(num_frames)


class _Product(nn.Module):
    """`ops.rows.linear` with its weights; what `forward` takes is what differs from call to call."""

    def __init__(self, weight_NWK: Tensor, dtype: torch.dtype, packed: bool, bias=None, in_norm=None, out_norm=None,
                 relu=False):  # fmt: skip
        super().__init__()
        self.outputs, self.taps, _ = weight_NWK.shape
        self.rounds = dtype == torch.int8 and not packed
        if dtype == torch.int8:
            weight = (pack_int8 if packed else round_weights)(weight_NWK.detach())
        else:
            weight = weight_NWK.detach().to(dtype, copy=True)
            weight = pack(weight) if packed else weight
        self.register_buffer("weight", weight)
        self.register_buffer("bias", None if bias is None else _wide(bias.detach()))
        self.register_buffer("in_norm", _norm(in_norm))
        self.register_buffer("out_norm", _norm(out_norm))
        self.relu = relu

    def forward(
        self, x_SLK: Tensor, scale_SL=None, gate_SN=None, residual_SLN=None, keep_L=None, lengths_S=None
    ) -> Tensor:
        in_norm = self.in_norm
        if self.rounds:
            x_SLK, in_norm = round_rows(x_SLK, in_norm), None
        return linear(
            x_SLK, self.weight, self.outputs, self.taps, in_norm=in_norm, bias=self.bias, scale=scale_SL,
            out_norm=self.out_norm, relu=self.relu, gate=gate_SN, residual=residual_SLN, keep=keep_L,
            lengths=lengths_S,
        )  # fmt: skip


class _Embedding(nn.Module):
    """`EmbeddingModule`."""

    def __init__(self, module: EmbeddingModule, dtype: torch.dtype, packed: bool):
        super().__init__()
        conv = module.conv_1
        self.plain = conv.groups == conv.dilation[0] == 1 and conv.padding_mode == "zeros"
        if self.plain:
            pairs = ((module.conv_1, module.ln_1), (module.conv_2, module.ln_2))
            self.products = nn.ModuleList(_conv(conv, dtype, packed, norm) for conv, norm in pairs)
        else:  # no product over neighbouring rows
            self.module = copy.deepcopy(module).to(_floating(dtype))

    def forward(self, x_STC: Tensor, mask_ST: Tensor) -> Tensor:
        if not self.plain:
            return self.module(x_STC, mask_ST)
        for product in self.products:
            x_STC = product(x_STC, mask_ST)
        return x_STC


class _Scans(nn.Module):
    """`FeatureAggregatedBiS6.scans`, with the layer norm before it if there is one."""

    def __init__(self, block: FeatureAggregatedBiS6, norm: nn.LayerNorm | None, dtype: torch.dtype, packed: bool):
        super().__init__()
        rank, narrow = block.dt_rank, _floating(dtype)
        self.in_proj = _Product(block.in_proj.weight[:, None], dtype, packed, in_norm=norm)
        taps = [F.pad(conv.weight[:, 0].t(), (0, 0, TAPS - conv.kernel_size[0], 0)) for conv in block.conv1ds]
        taps_K5D = torch.stack([torch.cat([t, conv.bias[None]]) for t, conv in zip(taps, block.conv1ds)])
        self.register_buffer("taps", _wide(taps_K5D))
        self.branches = len(taps)
        self.dt_rows = _Product(block.x_proj.weight[:rank, None], narrow, packed)
        self.BC_rows = _Product(block.x_proj.weight[rank:, None], narrow, packed)
        self.dt_proj = _Product(block.dt_proj.weight[:, None], narrow, packed)
        self.register_buffer("A", -torch.exp(_wide(block.A_log)))
        self.register_buffer("D", _wide(block.D))
        self.register_buffer("delta_bias", _wide(block.dt_proj.bias))

    def forward(self, x_SLC: Tensor, lengths_S: Tensor | None = None) -> Tensor:
        lengths_2S = lengths_R = None
        if lengths_S is not None:
            lengths_2S = lengths_S.repeat_interleave(2)
            lengths_R = lengths_S.repeat_interleave(2 * self.branches)
        xz_SL4D = self.in_proj(x_SLC, lengths_S=lengths_S)
        u_RLD = conv_rows(xz_SL4D, self.taps, lengths_S)
        BC = self.BC_rows(u_RLD[:: self.branches], lengths_S=lengths_2S)
        delta_RLD = self.dt_proj(self.dt_rows(u_RLD, lengths_S=lengths_R), lengths_S=lengths_R)
        return scan_rows(u_RLD, delta_RLD, self.A, BC, self.D, self.delta_bias, xz_SL4D, lengths_S)


class _Stem(nn.Module):
    """`DualBiS6Block`."""

    def __init__(self, block: DualBiS6Block, dtype: torch.dtype, packed: bool):
        super().__init__()
        self.recurrent, self.bins = block.recurrent, block.adaptive_pool.length
        self.time = _Scans(block.t_mamba, block.ln, dtype, packed)
        self.channels = _Scans(block.c_mamba, None, dtype, packed)
        self.register_buffer("mean_row", block.c_mamba.out_proj.weight.mean(0).to(_floating(dtype)))
        self.out_proj = _scaled_projection(block.t_mamba, block.drop_path, dtype, packed)

    def forward(self, x_STC: Tensor, factor_ST: Tensor, lengths_S: Tensor) -> Tensor:
        residual_STC = x_STC
        for _ in range(self.recurrent):
            y_SCE = self.channels(average_rows(x_STC, self.bins).transpose(1, 2))
            gate_SC = torch.sigmoid((y_SCE @ self.mean_row).to(factor_ST.dtype))
            x_STC = self.out_proj(self.time(x_STC, lengths_S), factor_ST, gate_SC, residual_STC)
        return x_STC


class _Branch(nn.Module):
    """`BranchBlock`."""

    def __init__(self, block: BranchBlock, dtype: torch.dtype, packed: bool):
        super().__init__()
        self.scans = _Scans(block.mamba, block.ln, dtype, packed)
        self.out_proj = _scaled_projection(block.mamba, block.drop_path, dtype, packed)
        self.pool = block.ds_maxpool

    def forward(self, x_SLC: Tensor, mask_SL: Tensor, factor_SL: Tensor, lengths_S: Tensor) -> tuple[Tensor, Tensor]:
        return self.pool(self.out_proj(self.scans(x_SLC, lengths_S), factor_SL, residual_SLN=x_SLC), mask_SL)


class _Head(nn.Module):
    """`PtTransformerClsHead` or `PtTransformerRegHead`, over all levels at once."""

    def __init__(self, head: PtTransformerClsHead | PtTransformerRegHead, last: nn.Module, dtype, packed):
        super().__init__()
        pairs = zip(head.head, head.norm)
        self.tower = nn.ModuleList(_conv(conv.conv, dtype, packed, norm) for conv, norm in pairs)
        self.last = _conv(last.conv, _floating(dtype), packed, relu=isinstance(head, PtTransformerRegHead))
        self.halo = last.conv.padding[0]

    def forward(self, x_SPC: Tensor, mask_SP: Tensor, scale_SP: Tensor, keep_P: Tensor) -> Tensor:
        for product in self.tower:
            x_SPC = product(x_SPC, mask_SP, keep_L=keep_P)
        return self.last(x_SPC, scale_SP)


def _lengths(mask_SL: Tensor) -> Tensor:
    """How many rows the scans take: up to the end of the video, and as many padded ones as convolutions have taps."""
    number_L = torch.arange(1, mask_SL.shape[1] + 1, device=mask_SL.device)
    return (mask_SL * number_L).amax(1) + TAPS


def _conv(conv: nn.Conv1d, dtype: torch.dtype, packed: bool, norm: nn.Module | None = None, relu=True) -> _Product:
    return _Product(conv.weight.transpose(1, 2), dtype, packed, conv.bias, out_norm=norm, relu=relu)


def _scaled_projection(block: FeatureAggregatedBiS6, drop_path: nn.Module, dtype, packed: bool) -> _Product:
    return _Product(drop_path.scale.view(-1, 1, 1) * block.out_proj.weight[:, None], dtype, packed)


def _floating(dtype: torch.dtype) -> torch.dtype:
    """Of activations, and of what isn't multiplied in int8."""
    return torch.float32 if dtype == torch.int8 else dtype


def _norm(module: nn.Module | None) -> Tensor | None:
    if isinstance(module, (nn.LayerNorm, ChannelLayerNorm)):
        return _wide(torch.stack([module.weight.detach().flatten(), module.bias.detach().flatten()]))
    return None


def _wide(x: Tensor) -> Tensor:
    """A copy in float32, or wider where x is."""
    return x.to(torch.promote_types(x.dtype, torch.float32), copy=True)
