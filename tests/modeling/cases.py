"""Detectors for tests: those of the golden cases, and a tiny one with weights at which each part matters."""

import numpy as np
import torch

from rdfa.modeling.detector import Detector, build_detector
from rdfa.modeling.settings import (
    BranchModuleSettings,
    DetectorSettings,
    EmbeddingModuleSettings,
    FPN1DSettings,
    FPNIdentitySettings,
    ModelSettings,
    PointGeneratorSettings,
    PtTransformerClsHeadSettings,
    PtTransformerRegHeadSettings,
    StemModuleSettings,
)
from tests.golden import rebuild

RANGES = ((0, 4), (4, 8), (8, 16), (16, 32), (32, 64), (64, 10000))


def settings(
    input_c=24, emb_c=32, num_classes=5, neck="FPNIdentity", block_n=5, start_level=0, **stem
) -> ModelSettings:
    levels = block_n + 1 - start_level
    return ModelSettings(
        detector=DetectorSettings(neck=neck),
        embedding=EmbeddingModuleSettings(input_c=input_c, emb_c=emb_c),
        stem=StemModuleSettings(emb_c=emb_c, **stem),
        branch=BranchModuleSettings(emb_c=emb_c, block_n=block_n),
        fpn_identity=FPNIdentitySettings(in_channels=emb_c, out_channel=emb_c, start_level=start_level),
        fpn_1d=FPN1DSettings(in_channels=emb_c, out_channel=emb_c, start_level=start_level),
        generator=PointGeneratorSettings(regression_range=RANGES[:levels]),
        cls_head=PtTransformerClsHeadSettings(input_dim=emb_c, feat_dim=emb_c, num_classes=num_classes),
        reg_head=PtTransformerRegHeadSettings(input_dim=emb_c, feat_dim=emb_c),
    )


def golden_settings(meta: dict) -> ModelSettings:
    return settings(meta["input_c"], meta["emb_c"], meta["num_classes"], meta["neck"])


def golden_state(case: str) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(value) for name, value in rebuild.case_state_dict(case).items()}


def golden_detector(case: str, dtype=torch.float32) -> Detector:
    detector = build_detector(golden_settings(rebuild.case_meta(case)))
    detector.load_state_dict(golden_state(case))
    return detector.eval().to(dtype)


def golden_input(case: str, dtype=torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    features, mask = rebuild.case_input(rebuild.case_meta(case))
    return torch.from_numpy(features).to(dtype), torch.from_numpy(mask)


def tiny_detector(dtype=torch.float32, **overrides) -> Detector:
    """Weights from a fixed seed, of a size at which each block matters (fresh layer scales of 1e-4 would hide most)."""
    detector = build_detector(settings(**{"input_c": 6, "emb_c": 8, "num_classes": 3, "recurrent": 2, **overrides}))
    state = detector.state_dict()
    fixed = {name: torch.from_numpy(rebuild.parameter(name, tensor.shape, 7)) for name, tensor in state.items()}
    detector.load_state_dict(fixed)
    return detector.eval().to(dtype)


def random_input(valid: list[int], frames: int, input_c=6, dtype=torch.float32, seed=0):
    """Features, zero where padded, and their mask, for one video of each valid length."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(frames) < torch.tensor(valid)[:, None]
    return torch.randn(len(valid), input_c, frames, generator=generator).to(dtype) * mask[:, None], mask


def relative_l2(actual: torch.Tensor, expected: np.ndarray | torch.Tensor) -> float:
    actual, expected = actual.detach().double(), torch.as_tensor(expected).double()
    assert actual.shape == expected.shape
    return float((actual - expected).norm() / expected.norm().clamp_min(1e-30))
