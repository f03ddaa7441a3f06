"""The comparison that every export and every benchmark row rests on."""

import numpy as np
import pytest

from rdfa.runtime.parity import compare
from rdfa.runtime.session import Outputs

LENGTHS = [8, 4]


@pytest.fixture
def reference():
    rng = np.random.default_rng(0)
    return Outputs(rng.standard_normal((2, 12, 3)), rng.random((2, 12, 2)), rng.random((2, 12)) > 0.3)


def changed(outputs, **fields):
    return Outputs(**(outputs._asdict() | fields))


def test_equal_outputs(reference):
    assert compare(reference, reference, LENGTHS) == (0.0, 0.0, True)


def test_rounding_passes_and_its_size_is_reported(reference):
    logits = reference.cls_logits.copy()
    logits[1, 9, 2] += 2e-5
    parity = compare(changed(reference, cls_logits=logits), reference, LENGTHS)
    assert parity.ok
    assert parity.max_abs == pytest.approx(2e-5)
    assert parity.relative_l2 == pytest.approx(2e-5 / np.linalg.norm(reference.cls_logits[:, 8:]))


def test_one_wrong_value_fails(reference):
    offsets = reference.offsets.copy()
    offsets[0, 3, 1] += 3e-4
    assert not compare(changed(reference, offsets=offsets), reference, LENGTHS).ok


def test_small_error_everywhere_in_one_level_fails(reference):
    """Each value is within its tolerance, the coarse level as a whole is not."""
    logits = reference.cls_logits.copy()
    logits[:, 8:] += 9e-5
    parity = compare(changed(reference, cls_logits=logits), reference, LENGTHS)
    assert parity.max_abs < 1e-4
    assert parity.relative_l2 > 3e-5
    assert not parity.ok


def test_level_of_zeros(reference):
    """Offsets of a level may all be zero: rounding against it is no infinite error."""
    zeros = reference.offsets.copy()
    zeros[:, 8:] = 0
    almost = zeros.copy()
    almost[0, 10, 0] = 1e-8
    assert compare(changed(reference, offsets=almost), changed(reference, offsets=zeros), LENGTHS).ok


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_fail(reference, bad):
    logits = reference.cls_logits.copy()
    logits[0, 0, 0] = bad
    parity = compare(changed(reference, cls_logits=logits), reference, LENGTHS)
    assert not parity.ok and parity.max_abs == np.inf


def test_other_mask_or_shape_fails(reference):
    assert not compare(changed(reference, point_mask=~reference.point_mask), reference, LENGTHS).ok
    assert not compare(Outputs(*(value[:1] for value in reference)), reference, LENGTHS).ok
