"""Timing on a clock of our own: deterministic, and without waiting."""

import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rdfa.bench import timing
from tests.bench.fakes import FakeClock, noisy_call


@pytest.mark.parametrize(
    ("percent", "expected"), [(0, 10.0), (1, 10.0), (50, 50.0), (90, 90.0), (91, 100.0), (99, 100.0), (100, 100.0)]
)
def test_percentile_is_the_nearest_rank(percent, expected):
    samples = [float(v) for v in range(10, 101, 10)]
    random.Random(0).shuffle(samples)
    assert timing.percentile(samples, percent) == expected


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50), st.integers(1, 100))
def test_percentile_is_the_smallest_sample_that_covers_enough(samples, percent):
    value = timing.percentile(samples, percent)

    def covered(limit):
        return 100 * sum(s <= limit for s in samples) >= percent * len(samples)

    assert value in samples
    assert covered(value)
    assert not any(covered(s) for s in samples if s < value)


def test_latency_figures_come_from_the_raw_samples():
    samples = timing.Samples([[0.001, 0.003], [0.002, 0.010]])
    assert timing.latency_ms(samples) == {"min": 1.0, "mean": 4.0, "p50": 2.0} | dict.fromkeys(
        ("p90", "p95", "p97", "p99", "p99.9"), 10.0
    )


def test_variants_take_turns_in_alternating_order_and_inputs_rotate():
    clock, log = FakeClock(), []

    def call(name):
        def run(i):
            log.append((name, i))
            clock.sleep(0.1)

        return run

    samples = timing.measure({"a": call("a"), "b": call("b")}, seconds=8.0, clock=clock)
    timed = log[samples["a"].warmup_calls + samples["b"].warmup_calls :]
    assert timed[:16] == [(n, i) for n in "abba" for i in range(4)]  # a b | b a
    assert [len(s.blocks) for s in samples.values()] == [timing.ROUNDS] * 2
    assert all(s == pytest.approx(0.1) for s in samples["a"].all)


def test_budget_is_kept():
    clock = FakeClock()
    samples = timing.measure({"fast": lambda i: clock.sleep(0.001), "slow": lambda i: clock.sleep(0.3)}, 2.0, clock)
    assert sum(samples["fast"].all) == pytest.approx(2.0)
    assert len(samples["slow"].all) == 6  # a seventh would not fit


@pytest.mark.parametrize(("seconds", "calls"), [(0.9, 3), (1.5, 2), (30.0, 1)])
def test_slow_calls_overdraw_the_budget_to_be_made_three_times(seconds, calls):
    clock = FakeClock()
    samples = timing.measure({"slow": lambda i: clock.sleep(seconds)}, 1.0, clock)
    assert samples["slow"].all == pytest.approx([seconds] * calls)


def test_a_call_far_longer_than_the_budget_is_made_twice():
    clock, calls = FakeClock(), []

    def call(i):
        calls.append(i)
        clock.sleep(30.0)

    samples = timing.measure({"slow": call}, 1.0, clock)
    assert (len(calls), samples["slow"].warmup_calls, samples["slow"].all) == (2, 1, [30.0])


def test_warm_up_goes_on_while_calls_get_faster():
    clock, durations = FakeClock(), iter([0.1, 0.08, 0.06, 0.05, 0.04, 0.03] + [0.02] * 10_000)
    samples = timing.measure({"a": lambda i: clock.sleep(next(durations))}, 5.0, clock)
    assert max(samples["a"].all) == pytest.approx(0.02)


def test_a_slow_first_call_does_not_stand_for_the_others():
    """A compiler or an autotuner runs in the first call; it may cost more than the whole budget."""
    clock, durations = FakeClock(), iter([3.0] + [0.02] * 10_000)
    samples = timing.measure({"a": lambda i: clock.sleep(next(durations))}, 1.0, clock)
    assert 0.7 < sum(samples["a"].all) <= 1.0


def test_short_blocks_start_with_an_untimed_call():
    """The first call after another variant's turn is slower (its threads still spin): it must not count."""
    clock, last = FakeClock(), []

    def call(name):
        def run(i):
            clock.sleep(0.02 if last[-1:] == [name] else 0.2)
            last.append(name)

        return run

    samples = timing.measure({"a": call("a"), "b": call("b")}, 4.0, clock)
    assert max(samples["a"].all + samples["b"].all) == pytest.approx(0.02)


@pytest.mark.parametrize("seed", range(20))
def test_identical_variants_are_called_equal(seed):
    clock = FakeClock()
    calls = {name: noisy_call(clock, 0.01, 0.1, f"{seed}{name}") for name in ("a", "twin", "b")}
    samples = timing.measure(calls, 1.0, clock)
    spread = timing.compare(samples["a"], samples["twin"]).spread
    assert spread < 0.1
    assert timing.compare(samples["a"], samples["b"]).equal(spread)


@pytest.mark.parametrize("seed", range(20))
def test_five_percent_are_found_through_noise_that_hits_all(seed):
    """The machine slows down and recovers during the run; the ratio of neighbours does not see it."""
    clock, rng = FakeClock(), random.Random(seed)

    def call(seconds):
        return lambda i: clock.sleep(seconds * (1.3 if clock() % 7 < 3 else 1.0) * (1 + 0.02 * rng.uniform(-1, 1)))

    samples = timing.measure({"a": call(0.01), "b": call(0.0105), "twin": call(0.01)}, 5.0, clock)
    comparison = timing.compare(samples["a"], samples["b"])
    assert comparison.ratio == pytest.approx(1.05, abs=0.01)
    assert not comparison.equal(timing.compare(samples["a"], samples["twin"]).spread)


def test_interval_of_twenty_rounds_leaves_out_three_at_each_end():
    base = timing.Samples([[1.0]] * 20)
    other = timing.Samples([[1.0 + 0.01 * i] for i in range(20)])
    comparison = timing.compare(base, other)
    assert (comparison.low, comparison.high, comparison.clock) == (1.03, 1.16, "wall")


def counting(steps: int):
    """A call of one thread that never waits; its work is a number of steps."""

    def call(i):
        for _ in range(steps):
            pass

    return call


@pytest.mark.slow
def test_equal_and_five_percent_slower_in_twenty_of_twenty_runs_whatever_else_the_machine_does():
    """On the real clock: the steps, and with them the work, differ by exactly 5 %."""
    variants = {"a": counting(20_000), "twin": counting(20_000), "b": counting(20_000), "slow": counting(21_000)}
    for _ in range(20):
        samples = timing.measure(variants, 0.1, one_thread=True, twins=("a", "twin"))
        spread = timing.compare(samples["a"], samples["twin"]).spread
        assert timing.compare(samples["a"], samples["b"]).equal(spread)
        slow = timing.compare(samples["a"], samples["slow"])
        assert not slow.equal(spread) and slow.ratio > 1


def test_a_call_that_waits_is_compared_by_the_wall_clock():
    calls = {"a": lambda i: time.sleep(0.001), "b": lambda i: time.sleep(0.002)}
    samples = timing.measure(calls, 0.02, one_thread=True)
    comparison = timing.compare(samples["a"], samples["b"])
    assert comparison.clock == "wall" and comparison.ratio > 1.2


@pytest.mark.parametrize(("waits", "clock"), [(0, "cpu"), (2, "cpu"), (3, "wall")])
def test_a_stray_wait_changes_no_clock(waits, clock):
    blocks = [[0.01, 0.01]] * 20
    disturbed = timing.Samples(blocks, blocks, waits=waits)
    assert timing.compare(timing.Samples(blocks, blocks), disturbed).clock == clock


@pytest.mark.parametrize(
    ("ratio", "low", "high", "equal"),
    [
        (1.05, 1.02, 1.08, False), (1.05, 1.009, 1.08, True), (1.019, 1.015, 1.02, True), (0.95, 0.92, 0.98, False),
        (0.95, 0.92, 0.995, True),
    ],
)  # fmt: skip
def test_equal_within_a_spread_of_two_percent(ratio, low, high, equal):
    assert timing.Comparison(ratio, low, high).equal(0.02) is equal


def test_more_rounds_are_made_while_twins_differ():
    clock, rng = FakeClock(), random.Random(0)
    calls = {name: lambda i: clock.sleep(0.01 * (1 + rng.random())) for name in ("a", "b")}
    samples = timing.measure(calls, 0.5, clock, twins=("a", "b"))
    assert len(samples["a"].blocks) > timing.ROUNDS
    assert sum(samples["a"].all) < 1.1 * 0.5 * timing.PATIENCE


@pytest.mark.parametrize(("disturbed", "rounds"), [(0.0, timing.ROUNDS), (0.3, timing.ROUNDS * timing.PATIENCE)])
def test_more_rounds_are_made_while_a_difference_is_in_doubt(disturbed, rounds):
    """Three of ten blocks of the slower one are the faster: too many for the interval of twenty rounds."""
    clock, rng = FakeClock(), random.Random(0)
    slower = lambda i: clock.sleep(0.038 if rng.random() < disturbed else 0.042)  # noqa: E731
    calls = {"a": lambda i: clock.sleep(0.04), "twin": lambda i: clock.sleep(0.04), "b": slower}
    samples = timing.measure(calls, 1.0, clock, twins=("a", "twin"))
    assert len(samples["a"].blocks) == rounds


@pytest.mark.parametrize(
    ("ratio", "low", "high", "in_doubt"),
    [(1.05, 0.999, 1.08, True), (1.05, 1.02, 1.08, False), (1.019, 0.99, 1.04, False), (0.95, 0.92, 1.0, True)],
)
def test_in_doubt_is_what_seems_to_differ_and_may_not(ratio, low, high, in_doubt):
    assert timing.Comparison(ratio, low, high).in_doubt(0.02) is in_doubt


def test_few_rounds_give_the_extremes():
    comparison = timing.compare(timing.Samples([[1.0], [1.0]]), timing.Samples([[0.9], [1.2]]))
    assert (comparison.low, comparison.high, comparison.ratio) == (0.9, 1.2, pytest.approx(1.05))
    assert comparison.equal(0.0)
