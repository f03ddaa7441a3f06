"""Outputs of the whole detector against those of the published code."""

import numpy as np
import pytest
import torch

from tests.golden import rebuild
from tests.modeling.cases import golden_detector, golden_input, relative_l2

SMALL = ["small_a", "small_b", "small_c", "small_d"]
# Five to thirty times the published code's own float32 error.
ABSOLUTE, RELATIVE, RELATIVE_L2 = 1e-4, 1e-4, 3e-5


def outputs_per_level(detector, features, mask):
    with torch.inference_mode():
        cls_logits, offsets, point_mask = detector(features, mask)
    sizes = detector.level_lengths(features.shape[2])
    return list(zip(cls_logits.split(sizes, 1), offsets.split(sizes, 1), point_mask.split(sizes, 1)))


def check_outputs(levels, golden, suffix=""):
    for level, (cls_logits, offsets, point_mask) in enumerate(levels):
        assert np.array_equal(point_mask.numpy(), golden[f"mask_{level}"])
        for name, actual in (("cls_logits", cls_logits), ("offsets", offsets)):
            key = f"{name}{suffix}_{level}"
            if key in golden:
                np.testing.assert_allclose(actual, golden[key], rtol=RELATIVE, atol=ABSOLUTE, err_msg=key)
                assert relative_l2(actual, golden[key]) <= RELATIVE_L2, key
            assert not actual[~point_mask].any(), f"{key} is not zero where padded"


def record_activations(detector) -> dict[str, list[torch.Tensor]]:
    """Outputs of the modules that the golden files name, channels first, one entry per call."""
    block = detector.backbone.stem_module.blocks[0]
    modules = {
        "embedding": detector.backbone.embedding_module,
        "stem": detector.backbone.stem_module,
        "stem_gates": block.sigmoid,
        "stem_t_mamba_first": block.t_mamba,
    }
    modules |= {f"branch_{i + 1}": branch for i, branch in enumerate(detector.backbone.branch_module.blocks)}
    modules |= {f"neck_{i}": norm for i, norm in enumerate(detector.neck.fpn_norms)}
    found = {name: [] for name in modules}
    for name, module in modules.items():
        module.register_forward_hook(
            lambda _module, _inputs, output, name=name: found[name].append(
                output[0] if isinstance(output, tuple) else output
            )
        )
    return found


@pytest.mark.parametrize("case", SMALL)
def test_small_detector_equals_the_published_one(case):
    detector, golden = golden_detector(case), rebuild.load_npz(f"model_{case}")
    features, mask = golden_input(case)
    assert np.array_equal(mask.numpy(), golden["input_mask"][:, 0])
    activations = record_activations(detector)

    levels = outputs_per_level(detector, features, mask)

    check_outputs(levels, golden)
    check_outputs(levels, golden, suffix="64")
    points = torch.cat([torch.from_numpy(golden[f"points_{level}"]) for level in range(len(levels))])
    assert torch.equal(detector.points(features.shape[2]), points)
    checked = 0
    for key in (key for key in golden if key.startswith("act_")):
        recorded = activations[key.removeprefix("act_")]
        if key == "act_stem_gates":
            actual = torch.stack(recorded)
        elif key == "act_stem_t_mamba_first":
            actual = recorded[0]
        else:
            actual = recorded[-1].transpose(1, 2)
        assert relative_l2(actual, golden[key]) <= RELATIVE_L2, key
        checked += 1
    assert checked >= 7


@pytest.mark.slow
def test_float64_detector_equals_the_published_one_in_float64():
    detector, golden = golden_detector("small_d", torch.float64), rebuild.load_npz("model_small_d")
    for level, (cls_logits, offsets, _) in enumerate(
        outputs_per_level(detector, *golden_input("small_d", torch.float64))
    ):
        assert cls_logits.dtype == offsets.dtype == torch.float64
        # The golden values are rounded to float32, nothing else.
        assert relative_l2(cls_logits, golden[f"cls_logits64_{level}"]) < 1e-7
        assert relative_l2(offsets, golden[f"offsets64_{level}"]) < 1e-7


def test_bfloat16_detector_is_near_the_float64_one():
    detector, golden = golden_detector("small_d", torch.bfloat16), rebuild.load_npz("model_small_d")
    for level, (cls_logits, offsets, _) in enumerate(
        outputs_per_level(detector, *golden_input("small_d", torch.bfloat16))
    ):
        assert cls_logits.dtype == offsets.dtype == torch.bfloat16
        # 8 bits of mantissa: one rounding is 2e-3, and there are dozens in a row.
        assert relative_l2(cls_logits, golden[f"cls_logits64_{level}"]) < 0.1
        assert relative_l2(offsets, golden[f"offsets64_{level}"]) < 0.1


@pytest.mark.slow
def test_full_detector_equals_the_published_one():
    golden = rebuild.load_npz("model_full")
    detector = golden_detector("full")
    activations = record_activations(detector)
    features, mask = golden_input("full")

    levels = outputs_per_level(detector, features, mask)

    check_outputs(levels, golden)
    check_outputs(levels, golden, suffix="64")
    for name in ("embedding", "stem", *(f"branch_{i}" for i in range(1, 6))):
        actual = activations[name][-1].transpose(1, 2)[:, ::32, ::16]
        assert relative_l2(actual, golden[f"act_{name}_sub"]) <= RELATIVE_L2, name
    assert relative_l2(torch.stack(activations["stem_gates"]), golden["act_stem_gates"]) <= RELATIVE_L2
    points = detector.points(features.shape[2]).split(detector.level_lengths(features.shape[2]))
    for level, level_points in enumerate(points):
        assert np.array_equal(level_points[:4].numpy(), golden[f"points_head_{level}"])
