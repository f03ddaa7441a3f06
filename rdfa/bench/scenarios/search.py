"""The highest rate of a Poisson stream at which a backend keeps a bound on its latency."""

from collections.abc import Callable

FIRST = 0.7  # of the rate that the backend does without waiting
STEPS = 5
FASTER, SLOWER = 1.25, 0.5


def highest_rate(capacity: float, keeps_bound: Callable[[float], bool], steps: int = STEPS) -> tuple[float, float]:
    """The highest rate found that keeps the bound, and the lowest that does not.

    From `FIRST` of the capacity up in steps of a quarter, or down by halves, then by bisection.

    Args:
        capacity: samples per second without a break. keeps_bound: a short test at a rate.

    Returns:
        (0, r) when no rate tried keeps the bound, (r, infinity) when all do.
    """
    low, high, rate = 0.0, float("inf"), FIRST * capacity
    for _ in range(steps):
        if keeps_bound(rate):
            low = rate
        else:
            high = rate
        if high == float("inf"):
            rate = FASTER * low
        elif low == 0.0:
            rate = SLOWER * high
        else:
            rate = (low + high) / 2
    return low, high
