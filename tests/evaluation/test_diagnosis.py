"""Kinds of predictions, what each costs, and where they fall: cases by hand, and a plain count on random ones."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rdfa.evaluation.diagnosis import BACKGROUND_IOU, KINDS, curves, diagnose
from rdfa.evaluation.mean_ap import mean_average_precision


def truth(video_id, rows, duration=None):
    table = np.array(rows, float).reshape(-1, 3)
    return SimpleNamespace(id=video_id, segments_N2=table[:, :2], labels_N=table[:, 2].astype(int), duration=duration)


def found(rows):
    table = np.array(rows, float).reshape(-1, 4)
    return SimpleNamespace(segments_N2=table[:, :2], labels_N=table[:, 2].astype(int), scores_N=table[:, 3])


VIDEO = truth("v", [(0, 10, 0), (20, 30, 0), (40, 50, 1), (60, 70, 2)], duration=100.0)


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ((0, 9, 0), "double detection"),
        ((0, 4, 0), "localization error"),
        ((40, 49, 0), "wrong label"),
        ((40, 44, 0), "confusion"),
        ((80, 90, 0), "background"),
        ((20, 29, 0), "true positive"),
        # Right class and wrong class overlap alike: the right class tells more.
        ((8, 10.5, 0), "localization error"),
    ],
)
def test_kinds(row, kind):
    shares = diagnose([VIDEO], {"v": found([(0, 10, 0, 0.9), (*row, 0.8)])}, 0.5).shares
    expected = {"true positive": 0.5, kind: 0.5} if kind != "true positive" else {kind: 1.0}
    # Two segments of class 0: its best two predictions are all there are.
    assert dict(zip(KINDS, shares[0])) == {**dict.fromkeys(KINDS, 0.0), **expected}
    np.testing.assert_allclose(shares, np.tile(shares[0], (10, 1)))


def test_gains_are_what_map_rises_by_without_the_errors():
    rows = [(80, 90, 0, 0.9), (0, 10, 0, 0.8), (0, 4, 0, 0.7), (20, 30, 0, 0.6), (40, 50, 1, 0.5), (41, 44, 2, 0.4)]
    predictions = {"v": found(rows)}
    diagnosis = diagnose([VIDEO], predictions, 0.5)
    before = mean_average_precision([VIDEO], predictions, [0.5]).average
    for kind, left_out in (("background", 0), ("localization error", 2), ("confusion", 5)):
        kept = {"v": found(rows[:left_out] + rows[left_out + 1 :])}
        after = mean_average_precision([VIDEO], kept, [0.5]).average
        assert diagnosis.gains[kind] == pytest.approx(after - before, abs=1e-12)
    assert diagnosis.gains["background"] > 0.1 and diagnosis.gains["wrong label"] == 0.0


def test_sensitivity_groups_hold_all_ground_truth_and_leave_other_matches_out():
    videos = [truth(str(i), [(0, 1 + i, 0)], duration=2.0 * (1 + i) if i else None) for i in range(10)]
    # The shorter half is found; the best prediction of all is a false one.
    rows = {str(i): found([(0, 1 + i, 0, 0.9 - i / 100)]) for i in range(5)}
    diagnosis = diagnose(videos, {**rows, "9": found([(50, 60, 0, 0.99)])}, 0.5)
    length = diagnosis.sensitivity["length"]
    assert [(g.low, g.high, g.count) for g in length] == [(1, 3, 3), (4, 5, 2), (6, 7, 2), (8, 9, 2), (10, 10, 1)]
    assert [g.missed for g in length] == [0, 0, 1, 1, 1]
    # Three of three found behind one false one; each counts as 10 / 3 segments, as if the class had all ten.
    weight = 10 / 3
    assert length[0].normalized_ap == pytest.approx(3 * weight / (3 * weight + 1))
    assert [g.normalized_ap for g in length[2:]] == [0, 0, 0]
    assert sum(g.count for g in diagnosis.sensitivity["coverage"]) == 9
    assert [(g.low, g.count) for g in diagnosis.sensitivity["instances"]] == [(1, 10)]


def test_without_durations_there_is_no_coverage():
    assert set(diagnose([truth("a", [(0, 1, 0)])], {}, 0.5).sensitivity) == {"length", "instances"}


ROWS = st.lists(st.tuples(st.integers(0, 12), st.integers(1, 8), st.integers(0, 2)), min_size=1, max_size=8)


@settings(max_examples=100, deadline=None)
@given(ROWS, ROWS, st.sampled_from([0.3, 0.5, 0.75]))
def test_curves_enclose_the_ap_and_kinds_are_those_of_a_plain_count(gt, pred, tiou):
    videos = [truth("v", [(start, start + length, label) for start, length, label in gt])]
    rows = [(start, start + length, label, 1 - i / 10) for i, (start, length, label) in enumerate(pred)]
    predictions = {"v": found(rows)}
    result = mean_average_precision(videos, predictions, [tiou], keep_duplicates=True)
    (of_class,) = curves(videos, predictions, [tiou], keep_duplicates=True)
    areas = [(np.diff(curve.recall, prepend=0) * curve.precision).sum() for curve in of_class]
    np.testing.assert_allclose(areas, result.ap_KC[0], atol=1e-12)

    counts, claimed = np.zeros(len(KINDS), int), set()
    for start, end, label, _ in rows:
        ious = [overlap((start, end), (s, s + n)) for s, n, _ in gt]
        if not any(label == other for _, _, other in gt):
            continue
        same = [(iou, i) for i, iou in enumerate(ious) if gt[i][2] == label]
        others = [iou for i, iou in enumerate(ious) if gt[i][2] != label]
        free = [(iou, i) for iou, i in same if iou >= tiou and i not in claimed]
        best, best_other = max(same)[0], max(others, default=0)
        if free:
            claimed.add(max(free)[1])
            kind = 0
        elif best >= tiou:
            kind = 1
        elif best_other >= tiou:
            kind = 3
        elif best >= BACKGROUND_IOU:
            kind = 2
        else:
            kind = 4 if best_other >= BACKGROUND_IOU else 5
        counts[kind] += 1
    shares = diagnose(videos, predictions, tiou, keep_duplicates=True).shares[-1]  # eight are within the best 10 G
    np.testing.assert_allclose(shares * max(counts.sum(), 1), counts, atol=1e-12)


def overlap(a, b):
    shared = max(min(a[1], b[1]) - max(a[0], b[0]), 0)
    return shared / (a[1] - a[0] + b[1] - b[0] - shared)
