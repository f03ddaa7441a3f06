"""The system under test, as LoadGen calls it: a queue of samples, and workers that answer them with a backend."""

import queue
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import mlperf_loadgen as lg
import numpy as np

from rdfa.bench.scenarios.backend import Backend, Serving
from rdfa.runtime.session import Outputs

_END = None
# A backend that failed once answers nothing more; this keeps LoadGen from drawing millions of samples meanwhile.
FAILED_S = 0.01


class SystemUnderTest:
    """Answers LoadGen's samples while the block runs.

        with SystemUnderTest(backend, serving, samples) as sut:
            lg.ConstructSUT(sut.issue, sut.flush) ...

    Args:
        samples: (features [C,T], mask [T]) of the videos that LoadGen draws from by index.

    Attributes:
        error: the first exception of the backend, or None. answered: videos so far.
        last: indices and outputs of the last answered batch, for a look at whether they belong together.
    """

    def __init__(self, backend: Backend, serving: Serving, samples: Sequence[tuple[np.ndarray, np.ndarray]]):
        self._backend, self._serving, self._samples = backend, serving, samples
        self._waiting: queue.SimpleQueue = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, name=f"bench-worker-{i}", daemon=True) for i in range(serving.workers)
        ]
        self.error: Exception | None = None
        self.answered = 0
        self.last: tuple[list[int], Outputs] | None = None

    def __enter__(self) -> "SystemUnderTest":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        for _ in self._threads:
            self._waiting.put(_END)
        for thread in self._threads:
            thread.join()

    def issue(self, samples: Sequence[Any]) -> None:
        """Called by LoadGen with the samples of a query."""
        for sample in samples:
            self._waiting.put((sample.id, sample.index))

    def flush(self) -> None:
        """Called by LoadGen after the last query; nothing is held back here."""

    def _work(self) -> None:
        while (first := self._waiting.get()) is not _END:
            taken = [first]
            while len(taken) < self._serving.max_batch:
                try:
                    more = self._waiting.get_nowait()
                except queue.Empty:
                    break
                if more is _END:
                    self._waiting.put(_END)
                    break
                taken.append(more)
            self._answer([index for _, index in taken])
            lg.QuerySamplesComplete([lg.QuerySampleResponse(identity, 0, 0) for identity, _ in taken])

    def _answer(self, indices: list[int]) -> None:
        if self.error is not None:
            time.sleep(FAILED_S)
            return
        try:
            self.last = indices, self._backend.run(*batch_of(self._samples, indices))
            self.answered += len(indices)
        except Exception as error:  # whatever a backend raises belongs in its row
            self.error = error


def batch_of(samples: Sequence[tuple[np.ndarray, np.ndarray]], indices: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """features [B,C,T] and mask [B,T] of the samples with these indices."""
    features, masks = zip(*(samples[i] for i in indices))
    return np.stack(features), np.stack(masks)
