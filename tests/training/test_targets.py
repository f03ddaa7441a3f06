"""Label assignment: the golden cases, and random ones against a plain loop."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rdfa.training.targets import assign_targets
from tests.golden.rebuild import FOLDER, load_npz

CASES = json.loads((FOLDER / "losses_label.json").read_text())
RANGES = ((0, 4), (4, 8), (8, 10000))


def pyramid(num_frames: int, ranges=RANGES) -> torch.Tensor:
    levels = []
    for level, (low, high) in enumerate(ranges):
        t = torch.arange(num_frames // 2**level) * 2.0**level
        levels.append(torch.stack([t, *(torch.full_like(t, v) for v in (low, high, 2.0**level))], dim=1))
    return torch.cat(levels)


def by_loop(points, segments, labels, num_classes, center_sample, radius):
    """One video, point by point and action by action, in float32 like the tensors."""
    one = np.float32
    cls_targets, offsets = np.zeros((len(points), num_classes), one), np.zeros((len(points), 2), one)
    for p, (t, low, high, stride) in enumerate(points.numpy()):
        candidates = []
        for (start, end), label in zip(segments.numpy(), labels.tolist()):
            left, right = t - start, end - t
            if center_sample == "radius":
                middle, reach = one(0.5) * (start + end), stride * one(radius)
                inside = t - max(middle - reach, start) > 0 and min(middle + reach, end) - t > 0
            else:
                inside = left > 0 and right > 0
            if inside and low <= max(left, right) <= high:
                candidates.append((end - start, left / stride, right / stride, label))
        if candidates:
            shortest = min(candidates, key=lambda c: c[0])  # min keeps the first of equals
            offsets[p] = shortest[1:3]
            for length, _, _, label in candidates:
                if length <= shortest[0] + one(1e-3):
                    cls_targets[p, label] = 1
    return torch.from_numpy(cls_targets), torch.from_numpy(offsets)


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"case{c['case']}")
def test_golden(case):
    data = load_npz(f"losses_label_{case['case']}")
    points = torch.from_numpy(np.concatenate([data[f"points_{level}"] for level in range(6)]))
    segments = [torch.from_numpy(data[f"gt_segments_{b}"]) for b in range(2)]
    labels = [torch.from_numpy(data[f"gt_labels_{b}"]) for b in range(2)]
    engine = case["engine"]
    cls_targets, offsets = assign_targets(
        points, segments, labels, case["num_classes"], engine["center_sample"], engine["center_sample_radius"]
    )
    np.testing.assert_array_equal(cls_targets.numpy(), data["cls_targets"])
    settled = data["positive"] & ~data["reg_ambiguous"]
    np.testing.assert_allclose(offsets.numpy()[settled], data["reg_targets"][settled], rtol=1e-6)
    np.testing.assert_array_equal((cls_targets.sum(-1) > 0).numpy(), data["positive"])
    mask = np.concatenate([data[f"mask_{level}"] for level in range(6)], axis=1)
    assert (data["positive"] & mask).sum() == case["num_pos"]


# Quarters make ties, exact range ends and points on window borders frequent; tenths make rounding matter.
TIMES = st.one_of(st.integers(-8, 80).map(lambda q: q / 4), st.floats(-3, 20, width=32).map(lambda x: round(x, 1)))
ACTION = st.tuples(TIMES, TIMES.map(abs), st.integers(0, 3))
VIDEO = st.lists(ACTION, max_size=6)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(VIDEO, min_size=1, max_size=3),
    st.sampled_from(["radius", "none"]),
    st.sampled_from([0.5, 1.5, 2.5]),
)
def test_equals_plain_loop(videos, center_sample, radius):
    points = pyramid(16)
    segments = [torch.tensor([[s, s + d] for s, d, _ in v], dtype=torch.float32).reshape(-1, 2) for v in videos]
    labels = [torch.tensor([c for *_, c in v], dtype=torch.int64) for v in videos]
    cls_targets, offsets = assign_targets(points, segments, labels, 4, center_sample, radius)
    for b in range(len(videos)):
        wanted_cls, wanted_offsets = by_loop(points, segments[b], labels[b], 4, center_sample, radius)
        torch.testing.assert_close(cls_targets[b], wanted_cls, rtol=0, atol=0)
        torch.testing.assert_close(offsets[b], wanted_offsets, rtol=0, atol=0)


def one_video(segments, labels, **kwargs):
    cls_targets, offsets = assign_targets(
        pyramid(16), [torch.tensor(segments)], [torch.tensor(labels)], 3, **{"center_sample": "none", **kwargs}
    )
    return cls_targets[0], offsets[0]


def test_shortest_action_wins_and_equals_share_their_classes():
    cls_targets, offsets = one_video([[0.0, 6.0], [2.0, 5.0], [1.0, 4.0]], [0, 1, 2])
    assert cls_targets[3].tolist() == [0, 1, 1]  # both of length 3, the action of length 6 loses
    assert offsets[3].tolist() == [1, 2]  # those of the first of the two
    assert cls_targets[1].tolist() == [0, 0, 0]  # 5 from the end of the first action: out of this level's range


def test_borders_are_outside_and_range_ends_inside():
    cls_targets, _ = one_video([[2.0, 6.0]], [0])
    assert cls_targets[:16, 0].nonzero().flatten().tolist() == [3, 4, 5]
    cls_targets, _ = one_video([[1.0, 7.0]], [0])
    assert cls_targets[:16, 0].nonzero().flatten().tolist() == [3, 4, 5]  # at most 4 from either end
    assert (cls_targets[16:24, 0] * pyramid(16)[16:24, 0]).unique().tolist() == [0, 2, 6]  # here 4 to 8, so not t = 4


def test_video_without_actions_has_no_positives_beside_one_with():
    segments, labels = (
        [torch.zeros(0, 2), torch.tensor([[2.0, 6.0]])],
        [torch.zeros(0, dtype=torch.int64), torch.tensor([2])],
    )
    cls_targets, offsets = assign_targets(pyramid(16), segments, labels, 3)
    assert cls_targets[0].sum() == 0 and offsets[0].abs().sum() == 0
    assert cls_targets[1].sum() > 0 and set(cls_targets[1].nonzero()[:, 1].tolist()) == {2}


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="5 to 5, but there are 3 classes"):
        one_video([[2.0, 6.0]], [5])
    with pytest.raises(ValueError, match="'middle'"):
        one_video([[2.0, 6.0]], [0], center_sample="middle")
