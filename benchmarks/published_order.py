"""The detector in the published order of operations, with our scan: what a fast scan alone brings.

Channels first throughout; both directions as one batch, which is flipped, joined and flipped back; every product and
every row that the published code computes, the unused ones too; norm, mask and scale each in a pass of its own; heads
level by level. For inference with the default settings, written from the description of that code.

Shape suffixes: B batch, C channels, L positions, D inner channels, W width.
"""

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from ops import selective_scan
from rdfa.bench.backends import published
from rdfa.modeling.detector import Detector
from rdfa.modeling.fa_bi_s6 import FeatureAggregatedBiS6
from rdfa.modeling.layers import ChannelLayerNorm, MaskedConv1D


class PublishedOrder:
    """Called as the detector it is made from, and gives the same numbers."""

    def __init__(self, detector: Detector):
        self.detector = detector

    def __call__(self, features_BCL: Tensor, mask_BL: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        detector, mask = self.detector, mask_BL.unsqueeze(1)
        embedding = detector.backbone.embedding_module
        x = features_BCL
        for conv, norm in ((embedding.conv_1, embedding.ln_1), (embedding.conv_2, embedding.ln_2)):
            x = F.conv1d(x, conv.weight, padding=conv.padding[0]) * mask.to(x.dtype)
            x = F.relu(norm(x.transpose(1, 2)).transpose(1, 2))
        for block in detector.backbone.stem_module.blocks:
            x = _stem(block, x, mask)
        levels, masks = [x], [mask]
        for block in detector.backbone.branch_module.blocks:
            y = _block(block.mamba, block.ln(x.transpose(1, 2))).transpose(1, 2) * mask.to(x.dtype)
            x = F.max_pool1d(x + block.drop_path.scale * y, 3, stride=2, padding=1)
            mask = F.interpolate(mask.to(x.dtype), size=x.shape[-1], mode="nearest").bool()
            x = x * mask.to(x.dtype)
            levels.append(x)
            masks.append(mask)
        levels = [_norm(norm, x) for norm, x in zip(detector.neck.fpn_norms, levels)]
        cls_logits, offsets = [], []
        for x, mask, scale in zip(levels, masks, detector.reg_head.scale):
            cls_logits.append(_head(detector.cls_head, detector.cls_head.cls_head, x, mask))
            offsets.append(F.relu(_head(detector.reg_head, detector.reg_head.offset_head, x, mask) * scale.scale))
        outputs = [torch.cat([y.transpose(1, 2) for y in part], 1) for part in (cls_logits, offsets)]
        return outputs[0], outputs[1], torch.cat([mask.squeeze(1) for mask in masks], 1)


def _stem(block, x_BCL: Tensor, mask: Tensor) -> Tensor:
    residual = x_BCL
    for _ in range(block.recurrent):
        y = _block(block.t_mamba, block.ln(x_BCL.transpose(1, 2))).transpose(1, 2) * mask.to(x_BCL.dtype)
        pooled = F.adaptive_avg_pool1d(x_BCL, block.adaptive_pool.length)
        gate = torch.sigmoid(F.adaptive_avg_pool1d(_block(block.c_mamba, pooled), 1))
        gate = F.interpolate(gate, size=x_BCL.shape[-1]) * mask.to(x_BCL.dtype)
        x_BCL = block.drop_path.scale * (y * gate) + residual
    return x_BCL


def _block(block: FeatureAggregatedBiS6, x_BLC: Tensor) -> Tensor:
    return F.linear(published.scans(block, _KERNELS, x_BLC), block.out_proj.weight)


def _conv_silu(x_BDL: Tensor, weight_DW: Tensor, bias_D: Tensor) -> Tensor:
    u = F.conv1d(x_BDL, weight_DW.unsqueeze(1), bias_D, padding=weight_DW.shape[1] - 1, groups=len(weight_DW))
    return F.silu(u[..., : x_BDL.shape[-1]])


_KERNELS = published.Kernels(_conv_silu, partial(selective_scan, delta_softplus=True))


def _norm(norm: ChannelLayerNorm, x_BCL: Tensor) -> Tensor:
    centred = x_BCL - x_BCL.mean(1, keepdim=True)
    return centred / torch.sqrt((centred**2).mean(1, keepdim=True) + 1e-5) * norm.weight + norm.bias


def _head(head, last: MaskedConv1D, x_BCL: Tensor, mask: Tensor) -> Tensor:
    for conv, norm in zip(head.head, head.norm):
        x_BCL = F.relu(_norm(norm, _conv(conv, x_BCL, mask)))
    return _conv(last, x_BCL, mask)


def _conv(layer: MaskedConv1D, x_BCL: Tensor, mask: Tensor) -> Tensor:
    conv = layer.conv
    return F.conv1d(x_BCL, conv.weight, conv.bias, padding=conv.padding[0]) * mask.to(x_BCL.dtype)
