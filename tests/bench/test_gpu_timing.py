"""Graphs of calls, on a stand-in for CUDA whose clock moves by what the recorded calls cost."""

import contextlib
from types import SimpleNamespace

import pytest
import torch

from rdfa.bench import gpu_limits, gpu_timing
from rdfa.bench.gpu_limits import Limits
from rdfa.bench.gpu_providers import Stage
from rdfa.bench.gpu_timing import REPLAY_S, count_copies, rounds_for
from tests.bench.fakes import FakeClock


class FakeCuda:
    """Calls run once where they are captured, and their time passes again in every replay."""

    def __init__(self):
        self.clock = FakeClock()
        self.graphs = []
        self.synchronized = 0

    def Stream(self):
        return SimpleNamespace(wait_stream=lambda other: None)

    def current_stream(self):
        return None

    def stream(self, stream):
        return contextlib.nullcontext()

    def synchronize(self):
        self.synchronized += 1

    def CUDAGraph(self):
        graph = SimpleNamespace(seconds=0.0)
        graph.replay = lambda: self.clock.sleep(graph.seconds)
        self.graphs.append(graph)
        return graph

    @contextlib.contextmanager
    def graph(self, graph):
        start = self.clock.now
        yield
        graph.seconds, self.clock.now = self.clock.now - start, start


@pytest.fixture
def cuda(monkeypatch):
    fake = FakeCuda()
    monkeypatch.setattr(gpu_timing, "torch", SimpleNamespace(cuda=fake))
    return fake


def test_copies_exceed_twice_the_cache():
    u, z = torch.zeros(100, dtype=torch.float32), torch.zeros(50, dtype=torch.float64)
    assert count_copies((u, [z, (u,)]), 4000) == 10  # u is counted once: 800 bytes
    assert count_copies((u, z), 4001) == 11
    assert count_copies((u, z), 10) == 2


def test_short_rounds_are_repeated_until_launching_them_costs_nothing_to_speak_of():
    assert rounds_for(1e-3) == 3
    assert rounds_for(1e-2) == 1
    assert rounds_for(0.0) < 10_000


@pytest.mark.parametrize(("call_s", "rounds"), [(1e-4, 8), (0.01, 1)])
def test_one_sample_is_a_replay_of_whole_rounds_and_long_enough(cuda, call_s, rounds):
    seen = []

    def call(arguments):
        seen.append(arguments)
        cuda.clock.sleep(call_s)
        return object()

    timed = gpu_timing.replayed(call, ["a", "b", "c", "d"], clock=cuda.clock)
    assert timed.calls == 4 * rounds
    start, recorded, waits = cuda.clock.now, len(seen), cuda.synchronized
    timed.run(0)
    assert cuda.clock.now - start == pytest.approx(timed.calls * call_s)
    assert cuda.clock.now - start >= REPLAY_S
    assert len(seen) == recorded and cuda.synchronized == waits + 1
    assert seen[-4:] == ["a", "b", "c", "d"]


def test_results_of_a_round_live_as_long_as_its_arguments_rotate(cuda):
    alive = [0]
    most = []

    class Result:
        def __init__(self):
            alive[0] += 1
            most.append(alive[0])

        def __del__(self):
            alive[0] -= 1

    def call(arguments):
        cuda.clock.sleep(1e-5)
        return Result()

    gpu_timing.replayed(call, range(5), clock=cuda.clock)
    # The sixth call's result is made before the first one's memory returns to the graph.
    assert max(most) == 6 and alive[0] == 0


def test_a_stage_gets_copies_of_its_own(cuda):
    x, weights = torch.arange(8.0).reshape(2, 4).t(), [torch.ones(3)]
    seen = []

    def call(arguments):
        seen.append(arguments)
        cuda.clock.sleep(1.0)

    timed = gpu_timing.prepare(Stage((x, weights), call, dict, ""), l2_bytes=50, clock=cuda.clock)
    assert timed.calls == 3
    first, *others = seen[-3:]
    assert first[0] is x
    for other in others:
        assert torch.equal(other[0], x) and other[0].stride() == x.stride() and isinstance(other[1], list)
    assert len({arguments[0].data_ptr() for arguments in seen[-3:]}) == 3
    assert len({arguments[1][0].data_ptr() for arguments in seen[-3:]}) == 3


def test_an_eager_stage_is_timed_call_by_call(cuda):
    stage = Stage("arguments", lambda arguments: cuda.clock.sleep(0.5), dict, "", eager=True)
    timed = gpu_timing.prepare(stage, l2_bytes=50)
    timed.run(0)
    assert (timed.calls, cuda.clock.now, cuda.synchronized) == (1, 0.5, 1)


def test_the_floor_is_the_larger_bound():
    limits = Limits(multiprocessors=132, clock_hz=1.98e9, l2_bytes=50_000_000, copy_bytes_per_s=4.3e12)
    # The stem's scan at batch 1: 113 million states, each with 1 + 3/16 operations of the exponential unit.
    seconds, by = limits.floor_s(134_479_872, 47_775_744)
    assert (round(seconds * 1e6, 1), by) == (32.2, "exponentials")
    assert limits.floor_s(0, 4_300_000) == (pytest.approx(1e-6), "memory")


def test_the_copy_speed_counts_both_directions(cuda, monkeypatch):
    class Bytes:
        def copy_(self, other):
            cuda.clock.sleep(0.5e-3)

    monkeypatch.setattr(gpu_limits, "torch", SimpleNamespace(
        ones=lambda *a, **k: Bytes(), empty_like=lambda t: t, uint8=None,
        cuda=SimpleNamespace(get_device_properties=lambda: SimpleNamespace(L2_cache_size=7)),
    ))  # fmt: skip
    details = {"sm_clock_max_mhz": 1980.0, "multiprocessors": 132}
    monkeypatch.setattr(gpu_limits.environment, "gpu_details", lambda: details)
    limits = gpu_limits.probe(clock=cuda.clock)
    assert limits.copy_bytes_per_s == pytest.approx(2 * 2**30 / 0.5e-3)
    assert (limits.multiprocessors, limits.clock_hz, limits.l2_bytes) == (132, 1.98e9, 7)
    details["sm_clock_max_mhz"] = None
    with pytest.raises(gpu_limits.RunError, match="nvidia-smi does not answer"):
        gpu_limits.probe(clock=cuda.clock)
