"""The RDFA-S6 detector: backbone, neck and heads, with the weights' names and shapes of the published code.

Shape suffixes: B batch, C channels of the clip features, T frames of the feature grid, P points of all pyramid levels
(finest first), K classes.
"""

import torch
from torch import Tensor, nn

from rdfa.errors import RunError
from rdfa.modeling.backbone import ResidualSharedBiMambaBackbone
from rdfa.modeling.heads import PtTransformerClsHead, PtTransformerRegHead
from rdfa.modeling.neck import NECKS
from rdfa.modeling.points import PointGenerator
from rdfa.modeling.settings import ModelSettings


class Detector(nn.Module):
    """Raw detections of a batch of feature sequences.

        detector = build_detector(ModelSettings()).eval()
        cls_logits_BPK, offsets_BP2, point_mask_BP = detector(features_BCT, mask_BT)

    T is a multiple of `settings.coarsest_stride`. Padding is part of the input, not neutral: a video shorter than the
    training length (2304) is padded to exactly that, a longer one to the next multiple of the coarsest stride, always
    with zeros.

    The forward has no branch on values or sizes, so one trace or export serves every batch and length; the checks of
    the input run only in eager mode.
    """

    def __init__(self, settings: ModelSettings):
        super().__init__()
        self.settings = settings
        self.start_level = settings.neck.start_level
        levels = settings.fpn_levels
        self.backbone = ResidualSharedBiMambaBackbone(settings)
        self.neck = NECKS[settings.detector.neck](settings.neck, levels)
        self.generator = build_generator(settings)
        self.cls_head = PtTransformerClsHead(settings.cls_head)
        self.reg_head = PtTransformerRegHead(settings.reg_head, levels)

    def forward(self, features_BCT: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Outputs of all points.

        Args:
            features_BCT: clip features, zero where the mask is False.
            mask_BT: bool, True for the frames of the video.

        Returns:
            cls_logits_BPK, offsets_BP2 (>= 0, in strides of the point's level) and point_mask_BP (bool). Logits and
            offsets are 0 where the point mask is False.

        Raises:
            RunError: a wrong shape or dtype.
        """
        if not (torch.jit.is_tracing() or torch.compiler.is_compiling()):
            check_input(features_BCT, mask_BT, self.settings, next(self.parameters()).dtype)
            self.level_lengths(features_BCT.shape[2])
        pyramid, masks = self.backbone(features_BCT.transpose(1, 2), mask_BT)
        masks = masks[self.start_level :]
        levels = self.neck(pyramid[self.start_level :], masks)
        cls_logits_BPK = torch.cat(self.cls_head(levels, masks), dim=1)
        offsets_BP2 = torch.cat(self.reg_head(levels, masks), dim=1)
        return cls_logits_BPK, offsets_BP2, torch.cat(masks, dim=1)

    def points(self, num_frames: int) -> Tensor:
        """float32 [P, 4] of (t, range low, range high, stride) in frames, on the detector's device."""
        return self.generator.points(num_frames, device=next(self.parameters()).device)

    def level_lengths(self, num_frames: int) -> list[int]:
        """Points per pyramid level, finest first; their sum is P."""
        return self.generator.level_lengths(num_frames)


def check_input(features_BCT: Tensor, mask_BT: Tensor, settings: ModelSettings, dtype: torch.dtype) -> None:
    """Raise RunError for features or a mask of a wrong shape or dtype."""
    channels = settings.embedding.input_c
    shape = list(features_BCT.shape)
    if len(shape) != 3 or shape[1] != channels:
        raise RunError(f"features have shape {shape}, expected [batch, {channels}, frames] (EmbeddingModule.input_c)")
    if features_BCT.dtype != dtype:
        raise RunError(f"features are {features_BCT.dtype}, expected {dtype} as the weights: convert them")
    if mask_BT.dtype != torch.bool or list(mask_BT.shape) != [shape[0], shape[2]]:
        raise RunError(
            f"the mask is {mask_BT.dtype} of shape {list(mask_BT.shape)}, expected torch.bool of shape "
            f"{[shape[0], shape[2]]}"
        )


def build_generator(settings: ModelSettings) -> PointGenerator:
    """The points of a detector with these settings."""
    return PointGenerator(
        max_frames=int(settings.generator.max_seq_len * settings.generator.max_buffer_len_factor),
        strides=[2 ** (settings.neck.start_level + level) for level in range(settings.fpn_levels)],
        regression_ranges=settings.generator.regression_range,
    )


def build_detector(settings: ModelSettings) -> Detector:
    """A detector with freshly initialised weights, in training mode."""
    return Detector(settings)
