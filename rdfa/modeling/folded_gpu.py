"""The detector for inference on a GPU: the numbers of `Detector`, up to rounding, in far fewer launches.

`fold_for_gpu` makes it from a detector, and it is not for training. What differs from the modules it is made from,
which stay the place to read about the ideas:

- A convolution is one matrix product with all its taps, which takes features as they come, time adjacent; the sum over
  the taps is taken in the next step.
- What follows a product (bias, mask, norm, ReLU, gate, residual, the next block's norm) is one kernel.
- The layer scale is part of the output projections; the mean over the outputs of the channel gate's out_proj is taken
  once, over its rows.
- The channel gate runs beside the block over time, one head beside the other, and the heads of the finest level beside
  the branch; those of the others run once, over all levels in one sequence with zeros between them.

Shape suffixes: S sequences (the batch), T frames, L positions, P positions of all levels with the gaps between them, C
channels, D inner channels, N states, K branches, E = 2 K D.
"""

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ops import bidirectional_conv1d
from ops.rows.gpu import average, finish, halve
from ops.selective_scan import bidirectional, launch
from rdfa.errors import RunError
from rdfa.modeling.backbone import DualBiS6Block
from rdfa.modeling.detector import Detector, check_input
from rdfa.modeling.fa_bi_s6 import FeatureAggregatedBiS6
from rdfa.modeling.heads import PtTransformerClsHead, PtTransformerRegHead
from rdfa.modeling.neck import FPNIdentity

ALIGNMENT = 8  # elements; rows of a product's operands that are no multiple of it are padded


def fold_for_gpu(detector: Detector) -> "GpuDetector":
    """The inference form of a detector that lies on a GPU, in its dtype, with weights of its own."""
    with torch.no_grad():
        return GpuDetector(detector).eval().requires_grad_(False)


def why_not_folded(detector: Detector) -> str | None:
    """None, or what this module has no form for, in one line."""
    conv = detector.backbone.embedding_module.conv_1
    if conv.groups != 1 or conv.dilation != (1,) or conv.padding_mode != "zeros":
        return "EmbeddingModule: for a GPU only convolutions without groups, dilation and other padding are folded"
    if not isinstance(detector.neck, FPNIdentity):
        return f"Detector.neck = {detector.settings.detector.neck!r}: for a GPU only FPNIdentity is folded"
    return None


class GpuDetector(nn.Module):
    """What `fold_for_gpu` makes. Same call and same outputs as `Detector`; float32, float16 or bfloat16.

    Raises:
        RunError: an embedding or a neck of a kind that it does not know.
    """

    def __init__(self, detector: Detector):
        super().__init__()
        self.settings, self.generator, self.start_level = detector.settings, detector.generator, detector.start_level
        reason = why_not_folded(detector)
        if reason is not None:
            raise RunError(reason)
        backbone, neck = detector.backbone, detector.neck
        embedding = backbone.embedding_module
        self.embedding = nn.ModuleList([_Conv(embedding.conv_1), _Conv(embedding.conv_2)])
        self.stem = nn.ModuleList(_Stem(block) for block in backbone.stem_module.blocks)
        self.branch = nn.ModuleList(_Branch(block) for block in backbone.branch_module.blocks)
        self.heads = nn.ModuleList(
            [
                _Head(detector.cls_head, detector.cls_head.cls_head),
                _Head(detector.reg_head, detector.reg_head.offset_head),
            ]
        )
        norms = [embedding.ln_1, embedding.ln_2, *(block.ln for block in backbone.stem_module.blocks)]
        self.norms = _Norms([*norms, *(block.ln for block in backbone.branch_module.blocks)])
        self.neck_norms = _Norms(neck.fpn_norms)
        self.register_buffer("level_scale", torch.stack([level.scale for level in detector.reg_head.scale]))
        self._factors: dict[Any, tuple[Tensor, Tensor]] = {}

    @torch.inference_mode()
    def forward(self, features_SCT: Tensor, mask_ST: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        check_input(features_SCT, mask_ST, self.settings, self.level_scale.dtype)
        self.level_lengths(features_SCT.shape[2])
        first, second, *following = self.norms.all()
        following.append(None)
        x_STC = self.embedding[0](features_SCT.transpose(1, 2), mask=mask_ST, norm=first, relu=True)
        x, normed = self.embedding[1](x_STC, mask=mask_ST, norm=second, relu=True, next_norm=following[0])
        for block, norms in zip(self.stem, pairwise(following)):
            x, normed = block(x, normed, mask_ST, *norms)
        finest, start = [(x, mask_ST)], self.start_level
        early, others = _side_by_side(
            x,
            lambda x: self._detect(finest[start:], 0),
            lambda x: self._pyramid(x, normed, mask_ST, following[len(self.stem) + 1 :]),
        )
        levels = [*finest, *others][start:]
        outputs = [*early, *self._detect(levels[len(early) :], len(early))]
        cls_SPK, offsets_SP2 = (torch.cat(parts, 1) for parts in zip(*outputs))
        return cls_SPK, offsets_SP2, torch.cat([mask for _, mask in levels], 1)

    def _pyramid(self, x: Tensor, normed: Tensor, mask: Tensor, next_norms: list[Tensor | None]) -> list:
        """The levels that the branch makes, with their masks."""
        levels = []
        for block, next_norm in zip(self.branch, next_norms):
            x, normed, mask = block(x, normed, mask, next_norm)
            levels.append((x, mask))
        return levels

    def _detect(self, levels: list[tuple[Tensor, Tensor]], first: int) -> list[tuple[Tensor, Tensor]]:
        """Logits and offsets of each level, given with its mask, from the `first` on.

        The neck writes the levels into one sequence, with as many zeros between them as a head reaches over.
        """
        if not levels:
            return []
        lengths, gap, (x, _) = [x.shape[1] for x, _ in levels], max(head.reach for head in self.heads), levels[0]
        keep_P, scale_P = self._level_factors(first, lengths, gap)
        x_SPC = x.new_zeros(len(x), len(keep_P), x.shape[2])
        mask_SP = torch.cat([part for _, mask in levels for part in (mask, mask.new_zeros(len(mask), gap))], 1)
        sizes = [size for length in lengths for size in (length, gap)]
        for (x, _), norm, place in zip(levels, self.neck_norms.all()[first:], x_SPC.split(sizes, 1)[::2]):
            finish(x, norm=norm, out=place)
        outputs = _side_by_side(
            x_SPC,
            lambda x: self.heads[0](x, mask_SP, keep_P, None),
            lambda x: self.heads[1](x, mask_SP, keep_P, scale_P),
        )
        return list(zip(*(y.split(sizes, 1)[::2] for y in outputs)))

    def _level_factors(self, first: int, lengths: list[int], gap: int) -> tuple[Tensor, Tensor]:
        """1 on the levels, and the scale of the offsets there; 0 between them. Constants of a length: kept."""
        key = first, *lengths
        if key not in self._factors:
            zeros = self.level_scale.new_zeros(gap)
            parts = [(scale.expand(length), zeros) for scale, length in zip(self.level_scale[first:], lengths)]
            scale_P = torch.cat([part for pair in parts for part in pair])
            ones = [torch.cat([torch.ones_like(scale), zeros]) for scale, _ in parts]
            self._factors[key] = torch.cat(ones), scale_P
        return self._factors[key]

    def points(self, num_frames: int) -> Tensor:
        """As `Detector.points`."""
        return self.generator.points(num_frames, device=self.level_scale.device)

    def level_lengths(self, num_frames: int) -> list[int]:
        """As `Detector.level_lengths`."""
        return self.generator.level_lengths(num_frames)


class _Conv(nn.Module):
    """A convolution over time and what follows it: x_SLK, in any memory order -> y_SLN."""

    def __init__(self, conv: nn.Conv1d):
        super().__init__()
        weight_WNK = conv.weight.detach().permute(2, 0, 1)
        self.taps, self.outputs, _ = weight_WNK.shape
        weight_WNK = F.pad(weight_WNK, (0, 0, 0, -self.outputs % ALIGNMENT))
        self.register_buffer("weight", weight_WNK.flatten(0, 1).t())  # [K, W N]
        self.register_buffer("bias", None if conv.bias is None else conv.bias.detach().clone())

    def forward(self, x_SLK: Tensor, **then: Any) -> Any:
        y_SLX = torch.bmm(x_SLK, self.weight.expand(len(x_SLK), -1, -1))
        y_SLWN = y_SLX.unflatten(2, (self.taps, -1))[..., : self.outputs]
        return finish(y_SLWN, taps=self.taps, bias=self.bias, **then)


class _Scans(nn.Module):
    """`FeatureAggregatedBiS6.scans`: x_SCL, in any memory order -> y_SEL, time adjacent from the first product on.

    The rows of x_proj that nobody needs, B and C of the later branches, cost less than a second product would.
    """

    def __init__(self, block: FeatureAggregatedBiS6):
        super().__init__()
        self.rank = -(-block.dt_rank // ALIGNMENT) * ALIGNMENT
        more = self.rank - block.dt_rank
        dt_rows, BC_rows = block.x_proj.weight.detach().split([block.dt_rank, 2 * block.d_state])
        self.register_buffer("in_proj", block.in_proj.weight.detach().clone())
        self.register_buffer("x_proj", torch.cat([F.pad(dt_rows, (0, 0, 0, more)), BC_rows]))
        self.register_buffer("dt_proj", F.pad(block.dt_proj.weight.detach(), (0, more)))
        self.filters = nn.ParameterList(conv.weight.detach().squeeze(1).clone() for conv in block.conv1ds)
        self.biases = nn.ParameterList(conv.bias.detach().clone() for conv in block.conv1ds)
        self.register_buffer("A", launch.scale_A(-torch.exp(block.A_log.detach().float())))
        self.register_buffer("D", block.D.detach().float().clone())
        self.register_buffer("delta_bias", block.dt_proj.bias.detach().float().clone())

    def forward(self, x_SCL: Tensor) -> Tensor:
        xz_S4DL = _product(self.in_proj, x_SCL)
        x_2SDL, z_2SDL = xz_S4DL.unflatten(1, (2, 2, -1)).permute(2, 1, 0, 3, 4)
        u_2SEL = bidirectional_conv1d(x_2SDL, list(self.filters), list(self.biases))
        rows = _product(self.x_proj, u_2SEL.reshape(-1, *x_2SDL.shape[2:]))
        delta_2SEL = _product(self.dt_proj, rows[:, : self.rank]).view(u_2SEL.shape)
        B_2SNL, C_2SNL = rows[:: len(self.filters), self.rank :].unflatten(0, u_2SEL.shape[:2]).chunk(2, dim=2)
        return bidirectional.forward(
            u_2SEL, delta_2SEL, self.A, B_2SNL, C_2SNL, self.D, z_2SDL, self.delta_bias, scaled=True
        )


class _Stem(nn.Module):
    """`DualBiS6Block`."""

    def __init__(self, block: DualBiS6Block):
        super().__init__()
        self.recurrent, self.bins = block.recurrent, block.adaptive_pool.length
        self.time, self.channels = _Scans(block.t_mamba), _Scans(block.c_mamba)
        self.register_buffer("mean_row", block.c_mamba.out_proj.weight.detach().mean(0))
        self.register_buffer("out_proj", _scaled_projection(block.t_mamba, block.drop_path))

    def forward(
        self, x_STC: Tensor, normed_STC: Tensor, mask_ST: Tensor, norm: Tensor, next_norm: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        residual_STC = x_STC
        for again in reversed(range(self.recurrent)):
            gate_SC, y_SET = _side_by_side(
                x_STC,
                lambda x: torch.matmul(self.mean_row, self.channels(average(x, self.bins))),
                lambda _, normed=normed_STC: self.time(normed.transpose(1, 2)),
            )
            x_STC, normed_STC = _pair(
                finish(
                    _rows(y_SET, self.out_proj), mask=mask_ST, gate=gate_SC, residual=residual_STC,
                    next_norm=norm if again else next_norm,
                )
            )  # fmt: skip
        return x_STC, normed_STC


class _Branch(nn.Module):
    """`BranchBlock`."""

    def __init__(self, block: nn.Module):
        super().__init__()
        self.scans = _Scans(block.mamba)
        self.register_buffer("out_proj", _scaled_projection(block.mamba, block.drop_path))

    def forward(
        self, x_SLC: Tensor, normed_SLC: Tensor, mask_SL: Tensor, next_norm: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        y_SLC = finish(_rows(self.scans(normed_SLC.transpose(1, 2)), self.out_proj), mask=mask_SL, residual=x_SLC)
        return *_pair(halve(y_SLC, mask_SL, next_norm)), mask_SL[:, ::2]


class _Head(nn.Module):
    """`PtTransformerClsHead` or `PtTransformerRegHead`, over all levels at once."""

    def __init__(self, head: PtTransformerClsHead | PtTransformerRegHead, last: nn.Module):
        super().__init__()
        self.tower = nn.ModuleList(_Conv(conv.conv) for conv in head.head)
        self.norms = _Norms(head.norm)
        self.last, self.reach = _Conv(last.conv), last.conv.padding[0]

    def forward(self, x_SPC: Tensor, mask_SP: Tensor, keep_P: Tensor, scale_P: Tensor | None) -> Tensor:
        for conv, norm in zip(self.tower, self.norms.all()):
            x_SPC = conv(x_SPC, mask=mask_SP, norm=norm, factor=keep_P, relu=True)
        return self.last(x_SPC, mask=mask_SP, factor=scale_P, relu=scale_P is not None)


class _Norms(nn.Module):
    """Weight and bias [2,C] of layer norms, None where there is no norm."""

    def __init__(self, norms: list[nn.Module]):
        super().__init__()
        self.number = len(norms)
        for i, norm in enumerate(norms):
            identity = isinstance(norm, nn.Identity)
            pair = None if identity else torch.stack([norm.weight.detach().flatten(), norm.bias.detach().flatten()])
            self.register_buffer(f"norm_{i}", pair)

    def all(self) -> list[Tensor | None]:
        return [getattr(self, f"norm_{i}") for i in range(self.number)]


def _scaled_projection(block: FeatureAggregatedBiS6, drop_path: nn.Module) -> Tensor:
    """out_proj [E,C] with the layer scale."""
    return (drop_path.scale.detach().view(-1, 1) * block.out_proj.weight.detach()).t()


def _product(weight: Tensor, x_SDL: Tensor) -> Tensor:
    """weight @ x for each x of the batch, with time adjacent in memory."""
    return torch.bmm(weight.expand(len(x_SDL), -1, -1), x_SDL)


def _rows(y_SEL: Tensor, weight_EC: Tensor) -> Tensor:
    """The product with rows [S,L,E], whose result has channels adjacent."""
    return torch.bmm(y_SEL.transpose(1, 2), weight_EC.expand(len(y_SEL), -1, -1))


def _pair(result: Any) -> tuple[Tensor, Tensor | None]:
    return result if isinstance(result, tuple) else (result, None)


def _side_by_side(x: Tensor, first: Callable[[Tensor], Tensor], second: Callable[[Tensor], Tensor]) -> tuple:
    """first(x) and second(x), at the same time on a stream each."""
    if not x.is_cuda:
        return first(x), second(x)
    here, there = torch.cuda.current_stream(x.device), _other_stream(x.device)
    there.wait_stream(here)
    with torch.cuda.stream(there):
        y = first(x)
    z = second(x)
    here.wait_stream(there)
    return y, z


@cache
def _other_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
