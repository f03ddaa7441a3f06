"""The search for a rate, against backends whose limit is known."""

import pytest

from rdfa.bench.scenarios.search import highest_rate


@pytest.mark.parametrize("limit", [3.0, 20.0, 55.0, 69.0, 71.0, 100.0, 150.0])
def test_the_limit_is_bracketed(limit):
    tried = []

    def keeps_bound(rate):
        tried.append(rate)
        return rate <= limit

    low, high = highest_rate(100.0, keeps_bound)
    assert low <= limit < high
    assert len(tried) == 5
    assert low == 0 or high == float("inf") or high - low < 0.6 * limit


def test_more_steps_come_closer():
    low, high = highest_rate(100.0, lambda rate: rate <= 43.21, steps=14)
    assert high - low < 0.01 * 43.21


def test_no_limit_and_no_rate():
    assert highest_rate(10.0, lambda rate: True)[1] == float("inf")
    low, high = highest_rate(10.0, lambda rate: False)
    assert low == 0 and high == pytest.approx(7.0 / 16)
