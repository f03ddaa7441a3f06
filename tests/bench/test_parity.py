"""The gate that every speed has to pass."""

import numpy as np
import pytest

from rdfa.bench.parity import compare_detections, compare_outputs
from rdfa.inference.decode import Detections
from rdfa.runtime.session import Outputs

RNG = np.random.default_rng(0)
LEVELS = (4, 2, 1)
EXACT = Outputs(RNG.standard_normal((2, 7, 3)), RNG.random((2, 7, 2)) * 5, RNG.random((2, 7)) < 0.8)


def outputs(**changes):
    """The exact outputs in float32, with the arrays named replaced."""
    return Outputs(*(v.astype(np.float32) if v.dtype == np.float64 else v for v in EXACT._replace(**changes)))


def test_rounding_passes():
    column, reason = compare_outputs(outputs(), EXACT, LEVELS)
    assert reason == ""
    assert column["ok"] is True
    assert 0 < column["max_abs"] < 1e-6
    assert 0 < column["relative_l2"] < 1e-6


@pytest.mark.parametrize("name", ["cls_logits", "offsets"])
@pytest.mark.parametrize(("factor", "ok"), [(0.9, True), (1.1, False)])
def test_tolerance_is_absolute_plus_relative(name, factor, ok, monkeypatch):
    monkeypatch.setattr("rdfa.runtime.parity.RELATIVE_L2", 1.0)
    exact = getattr(EXACT, name)
    changed = exact.copy()
    changed[1, 3, 1] += factor * 1e-4 * (1 + abs(changed[1, 3, 1]))
    column, reason = compare_outputs(outputs(**{name: changed}), EXACT, LEVELS)
    assert column["ok"] is ok
    assert column["max_abs"] == pytest.approx(abs(changed - exact).max(), rel=1e-2)
    assert reason.startswith("" if ok else f"{name} is off by {column['max_abs']:.3g} where the float64 model gives")


def test_a_small_error_everywhere_in_the_coarsest_level_is_found():
    changed = EXACT.cls_logits.copy()
    changed[:, -1] *= 1 + 5e-5
    column, reason = compare_outputs(outputs(cls_logits=changed), EXACT, LEVELS)
    assert not column["ok"]
    assert reason == "a level's relative L2 error is 5e-05, more than 3e-05"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"cls_logits": np.where(np.arange(3) == 1, np.nan, EXACT[0])}, "cls_logits has values that are not finite"),
        ({"offsets": EXACT[1][:, :-1]}, "offsets has shape (2, 6, 2), not (2, 7, 2)"),
        ({"point_mask": ~EXACT[2]}, "point_mask differs at 14 points"),
    ],
    ids=["nan", "shape", "mask"],
)
def test_other_failures_are_named(changes, reason):
    expected = {"max_abs": None, "relative_l2": None, "ok": False}
    assert compare_outputs(outputs(**changes), EXACT, LEVELS) == (expected, reason)


def detections(*rows):
    """(start, end, score, label) per detection."""
    table = np.array(rows, np.float64).reshape(-1, 4)
    return Detections(table[:, :2], table[:, 2], table[:, 3].astype(np.int64))


def test_detections_pair_by_class_and_nearness():
    reference = detections((1, 2, 0.9, 0), (1, 2, 0.8, 1), (5, 7, 0.5, 0))
    found = detections((5.01, 7, 0.52, 0), (1, 2.02, 0.9, 0), (9, 9.5, 0.4, 1))
    result = compare_detections([found], [reference])
    assert (result["count"], result["reference_count"], result["matched"]) == (3, 3, 2)
    assert result["max_abs_segment_s"] == pytest.approx(0.02)
    assert result["max_abs_score"] == pytest.approx(0.02)


def test_a_detection_is_matched_once_and_ties_go_to_the_nearer_score():
    reference = detections((1, 2, 0.9, 0), (1, 2, 0.3, 0))
    result = compare_detections([detections((1, 2, 0.3, 0), (1, 2, 0.9, 0), (1, 2, 0.9, 0))], [reference])
    assert (result["matched"], result["max_abs_score"]) == (2, 0.0)


def test_nothing_found():
    expected = {"count": 0, "reference_count": 1, "matched": 0, "max_abs_segment_s": None, "max_abs_score": None}
    assert compare_detections([detections()], [detections((1, 2, 0.5, 0))]) == expected
