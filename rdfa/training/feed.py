"""Batches made ready for the device while it computes the ones before."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

import torch

from rdfa.data.dataset import Batch

Ready = TypeVar("Ready")


class Feed(Generic[Ready]):
    """`prepare(batch)` for each of `batches`, the next one when `look_ahead` is called:

        for ready in feed:
            ...                  # launch work on `ready`
            feed.look_ahead()    # loads and copies while the device works
            ...                  # wait for the results

    On a GPU copies and other work of `prepare` run on a stream of their own. That is safe as long as a batch's work is
    done before the next batch is asked for. What loading or preparing a batch raises is raised where its turn comes.
    """

    def __init__(self, batches: Iterator[Batch], prepare: Callable[[Batch], Ready], device: torch.device):
        self._batches, self._prepare = batches, prepare
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._next: Ready | Exception | None = None

    def __iter__(self) -> Iterator[Ready]:
        while True:
            self.look_ahead()
            ready, self._next = self._next, None
            if isinstance(ready, StopIteration):
                return
            if isinstance(ready, Exception):
                raise ready
            if self._stream is not None:
                torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)
            yield ready

    def look_ahead(self) -> None:
        """Make the next batch ready, if it isn't."""
        if self._next is None:
            try:
                batch = next(self._batches)
                with contextlib.nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
                    self._next = self._prepare(batch)
            except Exception as error:  # StopIteration too
                self._next = error
