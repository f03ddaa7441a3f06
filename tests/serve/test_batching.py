"""What is computed together: equal lengths only, full batches, in order, and nothing for those who left."""

import asyncio
import threading
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rdfa.serve.batching import Batcher


@dataclass(frozen=True)
class Job:
    length: int
    size: int
    name: int


class Recorder:
    """Computes names; the first batch only when `go` is set, so that the others gather."""

    def __init__(self, go=True):
        self.batches, self.go = [], threading.Event()
        if go:
            self.go.set()

    def __call__(self, jobs):
        assert self.go.wait(10)
        self.batches.append(list(jobs))
        return [job.name for job in jobs]


def test_lengths_are_not_mixed_and_batches_are_filled():
    recorder = Recorder(go=False)
    shapes = [(64, 1), (64, 1), (96, 1), (64, 3), (96, 2), (64, 1), (64, 1)]

    async def run():
        batcher = Batcher(recorder, max_videos=4, delay=0.0)
        tasks = [asyncio.ensure_future(batcher.submit(Job(*shape, i))) for i, shape in enumerate(shapes)]
        await asyncio.sleep(0.05)
        assert batcher.waiting == 9  # the first is being computed
        recorder.go.set()
        return await asyncio.gather(*tasks)

    assert asyncio.run(run()) == list(range(7))
    assert [[job.name for job in batch] for batch in recorder.batches] == [[0], [1, 3], [2, 4], [5, 6]]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([64, 96, 128]), st.integers(1, 5)), min_size=1, max_size=25))
def test_every_job_gets_its_own_result(shapes):
    recorder = Recorder()

    async def run():
        batcher = Batcher(recorder, max_videos=5, delay=0.001)
        return await asyncio.gather(*(batcher.submit(Job(*shape, i)) for i, shape in enumerate(shapes)))

    assert asyncio.run(run()) == list(range(len(shapes)))
    for batch in recorder.batches:
        assert len({job.length for job in batch}) == 1
        assert sum(job.size for job in batch) <= 5
        assert [job.name for job in batch] == sorted(job.name for job in batch)


def test_a_lone_job_waits_no_longer_than_the_delay():
    async def run():
        batcher = Batcher(Recorder(), max_videos=4, delay=0.2)
        start = asyncio.get_running_loop().time()
        await batcher.submit(Job(64, 1, 0))
        alone = asyncio.get_running_loop().time()
        await asyncio.gather(batcher.submit(Job(64, 2, 1)), batcher.submit(Job(64, 2, 2)))
        return alone - start, asyncio.get_running_loop().time() - alone

    alone, full = asyncio.run(run())
    assert 0.2 <= alone < 1
    assert full < 0.2


def test_cancelled_job_is_not_computed():
    recorder = Recorder(go=False)

    async def run():
        batcher = Batcher(recorder, max_videos=1, delay=0.0)
        running, waiting, last = (asyncio.ensure_future(batcher.submit(Job(64, 1, i))) for i in range(3))
        await asyncio.sleep(0.05)
        running.cancel()
        waiting.cancel()
        await asyncio.sleep(0)
        recorder.go.set()
        return await last

    assert asyncio.run(run()) == 2
    assert [batch[0].name for batch in recorder.batches] == [0, 2]


def test_failures_reach_their_jobs_and_the_next_batch_runs():
    def compute(jobs):
        if jobs[0].length == 1:
            raise RuntimeError("all")
        return [ValueError("one") if job.name == 1 else job.name for job in jobs]

    async def run():
        batcher = Batcher(compute, max_videos=2, delay=0.001)
        jobs = [Job(1, 1, 7), Job(1, 1, 8), Job(2, 1, 0), Job(2, 1, 1)]
        return await asyncio.gather(*map(batcher.submit, jobs), return_exceptions=True)

    first, second, good, bad = asyncio.run(run())
    assert str(first) == str(second) == "all"
    assert good == 0 and isinstance(bad, ValueError)


def test_job_larger_than_a_batch_is_refused():
    with pytest.raises(ValueError, match="5 videos"):
        asyncio.run(Batcher(Recorder(), 4, 0.0).submit(Job(64, 5, 0)))
