"""Which requests are computed together: only videos of equal padded length, since padding is part of the input.

One batch is computed at a time, in a thread of its own: a loaded artifact is not shared between threads, and its
operators use all cores. What arrives meanwhile waits and forms the next batches.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol


class Job(Protocol):
    """Part of a batch: `size` videos that may be computed with others of the same `length`."""

    length: int
    size: int


@dataclass(eq=False)
class _Entry:
    job: Job
    result: asyncio.Future
    arrived: float


class Batcher:
    """Runs jobs in batches; for one event loop.

    The oldest job chooses the length; jobs of that length join it in the order of their arrival until the next would
    make more than `max_videos`. A batch that is not full is held back until its oldest job has waited `delay` seconds.

    Args:
        run: computes a batch, in a thread; gives a result or an exception per job.
    """

    def __init__(self, run: Callable[[Sequence[Any]], Sequence[Any]], max_videos: int, delay: float):
        self._run, self._max_videos, self._delay = run, max_videos, delay
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="detector")
        self._waiting: list[_Entry] = []
        self._running = False

    @property
    def waiting(self) -> int:
        """Videos that are not in a batch yet."""
        return sum(entry.job.size for entry in self._waiting)

    async def submit(self, job: Job) -> Any:
        """The result of `job`, which `run` may give as an exception. Cancelled, it is dropped if it still waits.

        Raises:
            ValueError: more videos than a batch may have.
        """
        if job.size > self._max_videos:
            raise ValueError(f"{job.size} videos do not fit in a batch of {self._max_videos}")
        loop = asyncio.get_running_loop()
        entry = _Entry(job, loop.create_future(), loop.time())
        self._waiting.append(entry)
        self._start()
        try:
            return await entry.result
        except asyncio.CancelledError:
            if entry in self._waiting:
                self._waiting.remove(entry)
            raise

    def _start(self) -> None:
        """Compute a batch, if there is one to compute and none is being computed."""
        if self._running or not self._waiting:
            return
        loop = asyncio.get_running_loop()
        oldest, batch, videos = self._waiting[0], [], 0
        for entry in self._waiting:
            if entry.job.length == oldest.job.length:
                if videos + entry.job.size > self._max_videos:
                    videos = self._max_videos  # full: the next one has to wait
                    break
                batch.append(entry)
                videos += entry.job.size
        due = oldest.arrived + self._delay
        if videos < self._max_videos and loop.time() < due:
            loop.call_at(due, self._start)
            return
        taken = set(batch)
        self._waiting = [entry for entry in self._waiting if entry not in taken]
        self._running = True
        task = loop.run_in_executor(self._thread, self._run, [entry.job for entry in batch])
        task.add_done_callback(lambda done: self._done(batch, done))

    def _done(self, batch: Sequence[_Entry], done: asyncio.Future) -> None:
        error = done.exception()
        for entry, result in zip(batch, [error] * len(batch) if error else done.result(), strict=True):
            if entry.result.done():  # its caller gave up
                continue
            if isinstance(result, BaseException):
                entry.result.set_exception(result)
            else:
                entry.result.set_result(result)
        self._running = False
        self._start()
