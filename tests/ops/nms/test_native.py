"""The native call against the plain loops, bit for bit: the order of equal scores, every setting, broken numbers."""

import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ops import decode_nms, library, nms
from ops.nms.reference import METHODS, decode_reference, nms_reference

# Few values, so that scores tie, segments coincide or touch, and overlaps hit thresholds exactly.
GRID = st.sampled_from([0.0, 1.0, 1.5, 2.0, 3.0, 4.0, 7.0])
SCORE = st.sampled_from([0.0, 0.001, 0.1, 0.25, 0.5, 0.75, 1.0])
LOGIT = st.one_of(st.sampled_from([-8.0, -2.0, 0.0, 0.5, 3.0, 17.0, 18.0, 40.0]), st.floats(-12, 25, width=32))
BROKEN = st.sampled_from([float("nan"), float("inf"), float("-inf"), 3e38, -3e38])
NMS_SETTINGS = st.fixed_dictionaries(
    {
        "multiclass": st.booleans(),
        "iou_threshold": st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0]),
        "min_score": st.sampled_from([0.0, 0.001, 0.1, 0.3, 0.9]),
        "max_seg_num": st.sampled_from([1, 2, 5, 200]),
        "sigma": st.sampled_from([0.05, 0.5, 0.9, 10.0]),
        "voting_thresh": st.sampled_from([0.0, 0.25, 0.7, 1.0]),
    }
)
METHOD = st.sampled_from(METHODS)


@st.composite
def candidates(draw, broken=False):
    number = st.one_of(GRID, BROKEN) if broken else GRID
    row = st.tuples(
        number, number, st.one_of(SCORE, BROKEN) if broken else SCORE, st.sampled_from([0, 1, 3, -5, 2**40])
    )
    rows = draw(st.lists(row, max_size=24))
    left, right, score, label = zip(*rows) if rows else ((), (), (), ())
    segments = torch.tensor([left, right], dtype=torch.float32).reshape(2, -1).t()
    return segments, torch.tensor(score, dtype=torch.float32), torch.tensor(label, dtype=torch.int64)


@st.composite
def outputs(draw, broken=False):
    """Two or three pyramid levels of a few points, 1 to 3 classes."""
    classes, finest = draw(st.integers(1, 3)), draw(st.sampled_from([1, 3, 8]))
    strides = torch.cat(
        [torch.full((max(finest >> level, 1),), 2.0**level) for level in range(draw(st.integers(1, 3)))]
    )
    t = torch.cat([torch.arange(int((strides == s).sum())) * s for s in strides.unique()])
    points = torch.stack([t, torch.zeros_like(t), torch.full_like(t, 1e4), strides], dim=1)
    P = len(points)
    logit = st.one_of(LOGIT, BROKEN) if broken else LOGIT
    offset = st.one_of(GRID, BROKEN) if broken else GRID
    logits = torch.tensor(draw(st.lists(logit, min_size=P * classes, max_size=P * classes))).reshape(P, classes)
    offsets = torch.tensor(draw(st.lists(offset, min_size=2 * P, max_size=2 * P))).reshape(P, 2)
    mask = torch.tensor(draw(st.lists(st.booleans(), min_size=P, max_size=P)))
    return logits.float(), offsets.float(), mask, points


DECODING = st.fixed_dictionaries(
    {
        "pre_nms_thresh": st.sampled_from([0.0, 0.001, 0.5, 0.95, 0.999999]),
        "pre_nms_topk": st.sampled_from([1, 2, 3, 7, 2000]),
        "duration_thresh": st.sampled_from([0.0, 0.05, 2.0]),
    }
)


def assert_identical(result, expected):
    for name, value, wanted in zip(("segments", "scores", "labels"), result, expected):
        assert value.dtype == wanted.dtype and torch.equal(value, wanted), f"{name}: {value} instead of {wanted}"


@settings(max_examples=300, deadline=None)
@given(candidates(), METHOD, NMS_SETTINGS)
def test_nms_is_the_plain_loop(candidates, method, nms_settings):
    library.require()
    assert_identical(
        nms(*candidates, method=method, **nms_settings), nms_reference(*candidates, method, **nms_settings)
    )


@settings(max_examples=200, deadline=None)
@given(candidates(broken=True), METHOD, NMS_SETTINGS)
def test_broken_candidates_are_left_out(candidates, method, nms_settings):
    result = nms(*candidates, method=method, **nms_settings)
    assert_identical(result, nms_reference(*candidates, method, **nms_settings))
    assert all(t.isfinite().all() for t in result)


@settings(max_examples=300, deadline=None)
@given(outputs(), DECODING, METHOD, NMS_SETTINGS)
def test_decode_nms_is_the_plain_loop(outputs, decoding, method, nms_settings):
    expected = nms_reference(*decode_reference(*outputs, **decoding), method, **nms_settings)
    assert_identical(decode_nms(*outputs, **decoding, method=method, **nms_settings), expected)


@settings(max_examples=200, deadline=None)
@given(outputs(broken=True), DECODING, METHOD, NMS_SETTINGS)
def test_broken_outputs_yield_no_candidate(outputs, decoding, method, nms_settings):
    result = decode_nms(*outputs, **decoding, method=method, **nms_settings)
    assert_identical(result, nms_reference(*decode_reference(*outputs, **decoding), method, **nms_settings))
    assert all(t.isfinite().all() for t in result)


def detector_outputs(classes, finest=2304, levels=6, seed=0):
    g = torch.Generator().manual_seed(seed)
    strides = torch.cat([torch.full((finest >> level,), 2.0**level) for level in range(levels)])
    t = torch.cat([torch.arange(finest >> level) * 2.0**level for level in range(levels)])
    points = torch.stack([t, torch.zeros_like(t), torch.full_like(t, 1e4), strides], dim=1)
    P = len(points)
    logits = torch.randn(P, classes, generator=g) * 2 - 9
    return logits, torch.rand(P, 2, generator=g) * 6, torch.rand(P, generator=g) > 0.1, points


@pytest.mark.parametrize("method, multiclass", [("soft", True), ("soft", False), ("hard", True), ("none", True)])
@pytest.mark.parametrize("classes", [1, 20])
def test_at_the_size_of_a_detector(classes, method, multiclass):
    outputs = detector_outputs(classes)
    decoding = {"pre_nms_thresh": 0.001, "pre_nms_topk": 700, "duration_thresh": 0.5}
    nms_settings = dict(
        multiclass=multiclass, iou_threshold=0.4, min_score=0.002, max_seg_num=100, sigma=0.5, voting_thresh=0.7
    )
    expected = nms_reference(*decode_reference(*outputs, **decoding), method, **nms_settings)
    assert len(expected[1]) > 50
    assert_identical(decode_nms(*outputs, **decoding, method=method, **nms_settings), expected)


def test_candidates_are_kept_per_run_of_equal_stride():
    logits, offsets = torch.tensor([[3.0], [2.0], [1.0], [0.0]]), torch.ones(4, 2)
    points = torch.tensor([[0.0, 0, 9, 1], [10, 0, 9, 1], [20, 0, 9, 2], [30, 0, 9, 1]])
    segments, _, _ = decode_nms(logits, offsets, torch.ones(4, dtype=torch.bool), points, pre_nms_topk=1)
    assert segments.tolist() == [[-1, 1], [18, 22], [29, 31]]


def test_strided_and_half_precision_inputs():
    logits, offsets, mask, points = detector_outputs(3, finest=64)
    expected = decode_nms(logits.bfloat16().float(), offsets, mask, points)
    wide = torch.zeros(len(points), 6).bfloat16()
    wide[:, ::2] = logits.bfloat16()
    assert_identical(decode_nms(wide[:, ::2], offsets.t().contiguous().t(), mask, points.double()), expected)


def test_much_faster_than_the_plain_loop():
    outputs = detector_outputs(20)
    decoding = (0.001, 2000, 0.05)
    candidates = decode_reference(*outputs, *decoding)
    assert len(candidates[1]) > 4000

    def seconds(function):
        start = time.process_time()
        function()
        return time.process_time() - start

    native = min(seconds(lambda: decode_nms(*outputs)) for _ in range(5))
    loop = seconds(
        lambda: nms_reference(*decode_reference(*outputs, *decoding), "soft", True, 0.1, 0.001, 200, 0.5, 0.7)
    )
    assert loop > 20 * native, f"{loop * 1e3:.1f} ms and {native * 1e3:.2f} ms"


def test_eleven_thousand_candidates_of_200_classes_take_a_millisecond_and_a_half():
    logits, offsets, _, points = detector_outputs(200)
    outputs = (logits - 0.85, offsets, torch.ones(len(points), dtype=torch.bool), points)
    candidates = decode_reference(*outputs, 0.001, 2000, 0.05)
    assert len(candidates[1]) >= 11_000
    assert_identical(decode_nms(*outputs), nms_reference(*candidates, "soft", True, 0.1, 0.001, 200, 0.5, 0.7))

    def seconds():
        start = time.process_time()
        decode_nms(*outputs)
        return time.process_time() - start

    # The least counts: neighbours on the same core make the processor's time longer.
    assert any(seconds() <= 1.5e-3 for _ in range(2000))
