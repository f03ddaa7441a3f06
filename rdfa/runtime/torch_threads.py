"""Threads of torch for the length of one call: torch's setting belongs to the process, a session's to the session."""

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def pinned(threads: int | None) -> Iterator[None]:
    """Run the block with `threads` threads inside operators; None changes nothing."""
    before = torch.get_num_threads()
    if threads in (None, before):
        yield
        return
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
