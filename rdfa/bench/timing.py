"""Fair timing of several variants of one computation, and an honest answer to "is one of them faster?".

The rules: every variant is warmed up until its calls stop getting faster; inputs rotate, so that no variant lives off a
cached one; variants take turns in short blocks, so that a change of the machine's clock or load hits all alike, and the
order of turns is reversed every round; percentiles come from the raw samples. A twin, one variant measured twice under
two names, shows the spread between equals: a difference inside it is none.

Latencies are wall-clock times, disturbed or not. Which of two variants is the faster is decided round by round, and by
CPU time where that is the honest measure: a call that keeps one thread and never waits takes its CPU time on a machine
of its own, and what other programs took from it says nothing about it. (Measured with a load of 5 on 2 cores: 30 pairs
of calls tell the ratio to 0.3 % by CPU time and to 4 % by the wall clock.) A call that waits by itself, for a device, a
lock or another of its threads, is compared by the wall clock: its threads would spin, and its device would not count.
"""

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

Clock = Callable[[], float]

ROUNDS = 20
# While two runs of one variant still differ by more than `STEADY`, or a difference shows that isn't certain, rounds go
# on for up to `PATIENCE` times as long; for longer where they are compared by CPU time, which more rounds always make
# more certain.
STEADY = 0.02
PATIENCE, CPU_PATIENCE = 2, 6
# A warm-up ends when the fastest of the last `WARM_WINDOW` calls gains less than `WARM_GAIN` on all calls before them,
# or when it has taken as long as the timing may take.
WARM_WINDOW = 3
WARM_GAIN = 0.02
# Slow variants may take `OVERDRAFT` times the budget to get this many timed calls; the slowest get one.
LEAST_CALLS = 3
OVERDRAFT = 3
# Thread pools of other variants keep spinning for some milliseconds after their turn: a block of calls shorter than
# this starts with an untimed one.
SETTLE_S = 0.05
# A call that waits does so every time; a page that is not there makes any program wait once in a while.
STRAY_WAITS = 0.05
PERCENTS = (50, 90, 95, 97, 99, 99.9)
# An interval of a ratio leaves out its true value once in so many times, at most.
CERTAIN = 0.005


@dataclass
class Samples:
    """Seconds per call of one variant, one list per round: of the wall clock, and of CPU time of the whole process."""

    blocks: list[list[float]] = field(default_factory=list)
    cpu_blocks: list[list[float]] = field(default_factory=list)
    waits: int = 0  # times that the calling thread gave up its core by itself
    warmup_calls: int = 0

    @property
    def all(self) -> list[float]:
        return [s for block in self.blocks for s in block]

    @property
    def undisturbed(self) -> bool:
        """Whether CPU time is what a call takes: see the head of this file."""
        return len(self.cpu_blocks) == len(self.blocks) > 0 and self.waits <= STRAY_WAITS * len(self.all)

    def rounds(self, by_cpu: bool) -> list[float]:
        """A figure for each round, what two variants are compared by: the median of its wall-clock times, or the least
        of its CPU times, to which interruptions can only add (what was in the cache has to be fetched again)."""
        return list(map(min, self.cpu_blocks)) if by_cpu else list(map(statistics.median, self.blocks))


def measure(
    variants: Mapping[str, Callable[[int], object]],
    seconds: float,
    clock: Clock = time.perf_counter,
    *,
    one_thread: bool = False,
    twins: tuple[str, str] | None = None,
) -> dict[str, Samples]:
    """Time every variant for about `seconds` of its own calls, in `ROUNDS` interleaved rounds.

    Args:
        variants: name -> function that runs the computation on input number `i` (it takes `i` modulo its inputs).
        seconds: budget per variant, warm-up not included. A variant with slower calls still gets a warm-up and one to
            `LEAST_CALLS` timed calls.
        clock: seconds, monotonic.
        one_thread: the variants were told to use one thread of a CPU, so CPU time may be what they take.
        twins: two names of one variant; more rounds are made while their times differ, or while another variant seems
            to differ from them and may not.
    """
    samples = {name: Samples() for name in variants}
    estimates = {name: _warm_up(call, seconds, clock, samples[name]) for name, call in variants.items()}
    spent = dict.fromkeys(variants, 0.0)
    for turn in range(ROUNDS * (CPU_PATIENCE if one_thread else PATIENCE)):
        if turn and turn % ROUNDS == 0 and _steady(samples, twins):
            break
        allowed = seconds * (1 + turn // ROUNDS)
        budget = allowed * (OVERDRAFT if turn < LEAST_CALLS else 1)
        running = [name for name in variants if turn == 0 or spent[name] + estimates[name] <= budget]
        for name in running if turn % 2 == 0 else reversed(running):
            calls = max(1, math.floor(seconds / ROUNDS / estimates[name]))
            block = _block(variants[name], calls, settle=estimates[name] < SETTLE_S, clock=clock)
            # Time that other programs take does not shorten a measurement that they do not disturb.
            own = block.cpu if one_thread and block.waits == 0 else block.wall
            spent[name] += sum(own)
            estimates[name] = min(estimates[name], *own)
            samples[name].blocks.append(block.wall)
            if one_thread:
                samples[name].cpu_blocks.append(block.cpu)
                samples[name].waits += block.waits
    return samples


def _steady(samples: Mapping[str, Samples], twins: tuple[str, str] | None) -> bool:
    if twins is None:
        return True
    base, spread = samples[twins[0]], compare(*(samples[name] for name in twins)).spread
    return spread <= STEADY and not any(compare(base, other).in_doubt(spread) for other in samples.values())


def _warm_up(call: Callable[[int], object], seconds: float, clock: Clock, samples: Samples) -> float:
    """Run until steady; return the seconds that a call takes."""
    times: list[float] = []
    while True:
        times += _block(call, 1, settle=False, clock=clock).wall
        samples.warmup_calls += 1
        if sum(times) >= seconds:
            break
        earlier, last = times[:-WARM_WINDOW], times[-WARM_WINDOW:]
        if earlier and min(last) >= (1 - WARM_GAIN) * min(earlier):
            break
    return max(min(times), 1e-9)


@dataclass
class _Block:
    wall: list[float]
    cpu: list[float]
    waits: int


def _block(call: Callable[[int], object], calls: int, *, settle: bool, clock: Clock) -> _Block:
    if settle:
        call(calls)
    block = _Block([], [], -_voluntary_switches())
    for i in range(calls):
        start, cpu_start = clock(), time.process_time()
        call(i)
        block.cpu.append(time.process_time() - cpu_start)
        block.wall.append(clock() - start)
    block.waits += _voluntary_switches()
    return block


def _voluntary_switches() -> int:
    """How often this thread has given up its core to wait; 0 where the system does not say."""
    with contextlib.suppress(ImportError, AttributeError):
        import resource

        return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
    return 0


def percentile(samples: Sequence[float], percent: float) -> float:
    """Nearest rank: the smallest sample that at least `percent` % of all do not exceed; always one that was seen."""
    ordered = sorted(samples)
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


def latency_ms(samples: Samples) -> dict[str, float]:
    """min, mean and percentiles in milliseconds."""
    times = [1e3 * s for s in samples.all]
    figures = {"min": min(times), "mean": statistics.fmean(times)}
    figures |= {f"p{p:g}": percentile(times, p) for p in PERCENTS}
    return {name: round(value, 6) for name, value in figures.items()}


@dataclass(frozen=True)
class Comparison:
    """How much longer `other` takes than `base`: the ratio of their times, the interval it lies in, and by what clock
    ("cpu" or "wall")."""

    ratio: float
    low: float
    high: float
    clock: str = "wall"

    def equal(self, spread: float) -> bool:
        """True when the difference is inside the spread between equals, or its interval reaches into half of that.

        Half, because the spread is the far end of an interval too: all of it would count the noise twice.
        """
        inside = self.low <= 1.0 + spread / 2 and self.high >= 1.0 - spread / 2
        return inside or abs(self.ratio - 1.0) <= spread

    def in_doubt(self, spread: float) -> bool:
        """Whether it shows a difference beyond the spread, of which more rounds would make certain or nothing."""
        return abs(self.ratio - 1.0) > spread and self.equal(spread)

    @property
    def spread(self) -> float:
        """Of a twin: the largest difference from 1 that its interval allows."""
        return max(abs(self.low - 1.0), abs(self.high - 1.0))


def compare(base: Samples, other: Samples) -> Comparison:
    """Median over the rounds of the ratio of their figures, with its distribution-free interval of at least 99.5 %.

    Both variants of a round ran next to each other, so what disturbed one disturbed the other. With fewer than nine
    rounds no such interval exists, and the extremes stand in for it.
    """
    by_cpu = base.undisturbed and other.undisturbed
    ratios = sorted(b / a for a, b in zip(base.rounds(by_cpu), other.rounds(by_cpu)))
    n = len(ratios)
    # The median lies outside [ratios[k], ratios[n-1-k]] with probability 2 * P(Binomial(n, 1/2) <= k).
    k, tail = 0, 2 / 2**n
    while tail + 2 * math.comb(n, k + 1) / 2**n <= CERTAIN:
        k += 1
        tail += 2 * math.comb(n, k) / 2**n
    return Comparison(statistics.median(ratios), ratios[k], ratios[n - 1 - k], "cpu" if by_cpu else "wall")
