"""Calls on a GPU as something that `timing` can measure with the host's clock.

One sample is the replay of a CUDA graph that holds so many calls that launching it takes no part worth speaking of. The
calls of a graph go round copies of the arguments, together larger than twice the L2 cache, and each keeps its results
until the round is over: no call finds what it reads, or overwrites what was written, in the cache.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rdfa.bench import timing
from rdfa.bench.gpu_providers import Stage, flatten

# Launching and waiting costs some 15 us.
REPLAY_S = 3e-3
PROBES = 3


@dataclass(frozen=True)
class Timed:
    """`run(i)` makes `calls` calls and waits for their end."""

    run: Callable[[int], Any]
    calls: int


def prepare(stage: Stage, l2_bytes: int, clock: timing.Clock = time.perf_counter) -> Timed:
    """The stage as a function whose duration is that of `calls` calls."""
    if stage.eager:

        def eager(i: int) -> None:
            stage.call(stage.arguments)
            torch.cuda.synchronize()

        return Timed(eager, 1)
    copies = [stage.arguments] + [_clone(stage.arguments) for _ in range(1, count_copies(stage.arguments, l2_bytes))]
    return replayed(stage.call, copies, clock)


def count_copies(arguments: Any, l2_bytes: int) -> int:
    """Copies of the arguments that one round of calls needs."""
    distinct = {t.data_ptr(): t.numel() * t.element_size() for t in flatten(arguments)}
    return max(2, math.ceil(2 * l2_bytes / max(1, sum(distinct.values()))))


def replayed(call: Callable[[Any], Any], copies: Sequence[Any], clock: timing.Clock = time.perf_counter) -> Timed:
    """A graph of one round of calls; of several rounds, where one takes less than `REPLAY_S`."""
    # A kernel's first call compiles and loads it, which a capture forbids.
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call(copies[0])
    torch.cuda.synchronize()
    timed = _capture(call, copies, 1)
    rounds = rounds_for(min(seconds(timed, clock) for _ in range(PROBES)))
    return timed if rounds == 1 else _capture(call, copies, rounds)


def rounds_for(round_s: float) -> int:
    """Rounds of `round_s` seconds each that last at least `REPLAY_S`."""
    return max(1, math.ceil(REPLAY_S / max(round_s, 1e-6)))


def seconds(timed: Timed, clock: timing.Clock = time.perf_counter) -> float:
    """Of one sample."""
    start = clock()
    timed.run(0)
    return clock() - start


def _capture(call: Callable[[Any], Any], copies: Sequence[Any], rounds: int) -> Timed:
    graph = torch.cuda.CUDAGraph()
    kept: deque[Any] = deque(maxlen=len(copies))
    with torch.cuda.graph(graph):
        for _ in range(rounds):
            for arguments in copies:
                kept.append(call(arguments))

    def run(i: int) -> None:
        graph.replay()
        torch.cuda.synchronize()

    return Timed(run, rounds * len(copies))


def _clone(arguments: Any) -> Any:
    if isinstance(arguments, Tensor):
        return arguments.clone()
    return type(arguments)(_clone(part) for part in arguments)
