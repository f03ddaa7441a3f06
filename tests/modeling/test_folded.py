"""The folded detector against the detector it is made from and the published outputs."""

import copy
import dataclasses

import pytest
import torch

from ops import library
from rdfa.errors import RunError
from rdfa.modeling.detector import build_detector
from rdfa.modeling.folded import fold
from rdfa.modeling.settings import EmbeddingModuleSettings
from tests.golden import rebuild
from tests.modeling.cases import (
    golden_detector,
    golden_input,
    random_input,
    relative_l2,
    settings,
    tiny_detector,
)
from tests.modeling.test_golden import SMALL, check_outputs, outputs_per_level


def fresh(seed=1, dtype=torch.float32, **changes):
    """A detector with random weights throughout, whose settings of any part may be changed."""
    torch.manual_seed(seed)
    wanted = dataclasses.replace(settings(6, 8, 3, recurrent=2), **changes)
    detector = build_detector(wanted).eval().to(dtype)
    with torch.no_grad():
        for parameter in detector.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return detector


def variants():
    embedding = EmbeddingModuleSettings(input_c=6, emb_c=8)
    heads = settings(6, 8, 3)
    cls = dataclasses.replace(heads.cls_head, num_layers=1, kernel_size=5, with_ln=False)
    reg = dataclasses.replace(heads.reg_head, num_layers=2, kernel_size=7, with_ln=False)
    return {
        "published": {},
        "bias": {"embedding": dataclasses.replace(embedding, bias=True)},
        "width 5": {"embedding": EmbeddingModuleSettings(input_c=6, emb_c=8, kernel_size=5)},
        "groups": {"embedding": EmbeddingModuleSettings(input_c=6, emb_c=8, groups=2)},
        "reflect": {"embedding": EmbeddingModuleSettings(input_c=6, emb_c=8, padding_mode="reflect")},
        "heads without norms": {"cls_head": cls, "reg_head": reg},
        "two stem blocks": {"stem": dataclasses.replace(heads.stem, block_n=2)},
    }


@torch.inference_mode()
def assert_same(detector, folded, features, mask, tolerance, folded_features=None):
    expected = detector(features, mask)
    outputs = folded(features if folded_features is None else folded_features, mask)
    assert torch.equal(outputs[2], expected[2])
    for actual, wanted in zip(outputs[:2], expected[:2]):
        assert relative_l2(actual, wanted) <= tolerance
        assert not actual[~expected[2]].any()


@pytest.mark.parametrize("case, packed", [*((case, True) for case in SMALL), ("small_c", False)])
def test_golden(case, packed):
    golden = rebuild.load_npz(f"model_{case}")
    levels = outputs_per_level(fold(golden_detector(case), packed=packed), *golden_input(case))
    check_outputs(levels, golden)
    check_outputs(levels, golden, suffix="64")


@pytest.mark.slow
def test_golden_at_full_size():
    golden, case = rebuild.load_npz("model_full"), "full"
    check_outputs(outputs_per_level(fold(golden_detector(case)), *golden_input(case)), golden)


@pytest.mark.parametrize("name", variants())
def test_every_setting_is_exact_in_float64(name):
    detector = fresh(dtype=torch.float64, **variants()[name])
    features, mask = random_input([64, 20], 64, dtype=torch.float64)
    assert_same(detector, fold(detector), features, mask, 1e-12)


@pytest.mark.parametrize("name", variants())
def test_every_setting_on_the_kernels(name):
    detector = fresh(**variants()[name])
    exact = copy.deepcopy(detector).double()
    features, mask = random_input([64, 33, 1], 64)
    assert_same(exact, fold(detector), features.double(), mask, 1e-5, features)


@pytest.mark.parametrize("overrides", [{"neck": "FPN1D"}, {"start_level": 2}, {"block_n": 0}])
def test_necks_and_levels(overrides):
    detector = tiny_detector(torch.float64, **overrides)
    features, mask = random_input([64, 20], 64, dtype=torch.float64)
    assert_same(detector, fold(detector), features, mask, 1e-12)


@pytest.mark.parametrize("frames", [32, 96, 416])
def test_any_video_in_any_padding(frames):
    """Lengths around each multiple of the strides, alone and beside others in a batch."""
    detector = tiny_detector()
    exact, folded = tiny_detector(torch.float64), fold(detector)
    lengths = [n for n in (0, 1, 2, 15, 16, 17, 29, 31, 32, 33, 64, 90, 95, 96, 200, 412, 415, 416) if n <= frames]
    features, mask = random_input(lengths, frames)
    with torch.inference_mode():
        expected, outputs = exact(features.double(), mask), folded(features, mask)
        alone = folded(features[3:4], mask[3:4])
    for actual, wanted, one in zip(outputs, expected, alone):
        torch.testing.assert_close(actual.double(), wanted.double(), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(actual[3:4], one)


def test_a_mask_with_holes():
    features, mask = random_input([90], 128)
    mask[:, 40:55] = False
    detector = tiny_detector(torch.float64)
    assert_same(
        detector, fold(tiny_detector()), features.double() * mask[:, None], mask, 1e-5, features * mask[:, None]
    )


def test_what_the_features_hold_where_padded_does_not_matter():
    """As in the detector, whose first convolution sees one padded frame: beyond it anything may stand."""
    folded, (features, mask) = fold(tiny_detector()), random_input([40], 64)
    other = features.clone()
    other[:, :, 42:] = 7.0
    with torch.inference_mode():
        for actual, wanted in zip(folded(other, mask), folded(features, mask)):
            torch.testing.assert_close(actual, wanted)


@pytest.mark.parametrize("packed", [True, False])
def test_bfloat16_is_no_less_exact_than_the_detector_in_bfloat16(packed):
    features, mask = random_input([64, 40], 64)
    detector = tiny_detector()
    with torch.inference_mode():
        expected, plain = detector(features, mask), tiny_detector(torch.bfloat16)(features.bfloat16(), mask)
        outputs = fold(detector, torch.bfloat16, packed)(features, mask)
    assert torch.equal(outputs[2], expected[2])
    for actual, other, wanted in zip(outputs[:2], plain, expected):
        assert actual.dtype == torch.float32
        assert relative_l2(actual, wanted) <= 1.1 * relative_l2(other, wanted)


@pytest.mark.parametrize("name", variants())
def test_int8_on_the_kernels_and_in_pytorch_are_as_exact(name):
    """Not equal: a last bit that differs before a rounding moves a value by a step."""
    detector = fresh(**variants()[name])
    features, mask = random_input([64, 33, 1], 64)
    with torch.inference_mode():
        expected = detector(features, mask)
        errors = []
        for packed in (True, False):
            outputs = fold(detector, torch.int8, packed)(features, mask)
            assert torch.equal(outputs[2], expected[2]) and not outputs[0][~expected[2]].any()
            assert {output.dtype for output in outputs[:2]} == {torch.float32}
            errors.append([relative_l2(a, b) for a, b in zip(outputs, expected[:2])])
    for kernel, plain in zip(*errors):
        assert 1e-4 < kernel < 1.5 * plain < 0.9


def test_int8_takes_a_byte_for_each_weight_of_the_large_products():
    def size(dtype):
        products = [m for m in fold(tiny_detector(), dtype).modules() if hasattr(m, "taps") and hasattr(m, "outputs")]
        return {m.weight.dtype: m.weight.nbytes for m in products}, sum(m.weight.nbytes for m in products)

    kinds, total = size(torch.int8)
    assert set(kinds) == {torch.uint8, torch.float32}
    assert 0.25 < total / size(torch.float32)[1] < 0.6


def test_int8_does_not_depend_on_the_rest_of_a_batch():
    folded, (features, mask) = fold(tiny_detector(), torch.int8), random_input([64, 40, 7], 64)
    with torch.inference_mode():
        together, alone = folded(features, mask), folded(features[1:2], mask[1:2])
    for actual, wanted in zip(together, alone):
        torch.testing.assert_close(actual[1:2], wanted, rtol=1e-5, atol=1e-5)


def test_a_detector_in_bfloat16_keeps_its_type_outside():
    features, mask = random_input([64, 40], 64)
    detector = tiny_detector(torch.bfloat16)
    with torch.inference_mode():
        outputs, plain = fold(detector)(features.bfloat16(), mask), detector(features.bfloat16(), mask)
        expected = detector.double()(features.bfloat16().double(), mask)
    for actual, other, wanted in zip(outputs[:2], plain, expected):
        assert actual.dtype == torch.bfloat16
        assert relative_l2(actual, wanted) <= 1.1 * relative_l2(other, wanted)


def test_the_detector_stays_as_it_is():
    detector = tiny_detector().train()
    before = copy.deepcopy(detector.state_dict())
    folded = fold(detector)
    with torch.no_grad():
        for parameter in detector.parameters():
            parameter.add_(1.0)
    features, mask = random_input([32], 32)
    assert_same(tiny_detector(), folded, features, mask, 1e-5)
    assert detector.training and not folded.training
    assert list(before) == list(detector.state_dict())
    assert not any(parameter.requires_grad for parameter in folded.parameters())


def test_points_and_levels_are_the_detectors():
    detector = tiny_detector()
    folded = fold(detector)
    assert folded.level_lengths(64) == detector.level_lengths(64)
    assert torch.equal(folded.points(64), detector.points(64))


def test_without_the_library_pytorch_multiplies(monkeypatch):
    monkeypatch.setattr(library, "available", lambda: False)
    monkeypatch.setattr(library, "loaded", lambda: False)
    detector = tiny_detector()
    features, mask = random_input([32, 7], 32)
    assert_same(detector, fold(detector), features, mask, 1e-5)


@pytest.mark.parametrize(
    "features, mask, message",
    [
        (torch.zeros(1, 5, 32), torch.ones(1, 32, dtype=torch.bool), r"expected \[batch, 6, frames\]"),
        (torch.zeros(1, 6, 32).double(), torch.ones(1, 32, dtype=torch.bool), "features are torch.float64"),
        (torch.zeros(1, 6, 32), torch.ones(1, 31, dtype=torch.bool), "the mask is"),
        (torch.zeros(1, 6, 33), torch.ones(1, 33, dtype=torch.bool), "33 frames are not a multiple of 32"),
    ],
)
def test_wrong_input_is_refused(features, mask, message):
    with pytest.raises(RunError, match=message):
        fold(tiny_detector())(features, mask)
