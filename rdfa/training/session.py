"""What processes that start together agree on: a name for this start, and which of them says what went wrong."""

import contextlib
import datetime
import os
import time
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rdfa.errors import RunError, UsageError

if TYPE_CHECKING:
    from torch.distributed import Store

PATIENCE = datetime.timedelta(minutes=10)

# Until the processes have agreed on a session: torchrun's number of this start.
_session = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")


def launched() -> bool:
    """Whether this is one of several processes, as torchrun starts them."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def open_store(patience: datetime.timedelta = PATIENCE) -> "Store":
    """The table of keys and values that the processes share."""
    from torch.distributed.rendezvous import rendezvous  # a wrong setting is told without waiting for torch

    return next(rendezvous("env://", timeout=patience))[0]


def open_session(store: "Store", rank: int, world: int) -> str:
    """The name of this start of the processes; all have it when this returns, and no earlier start had it.

    torchrun keeps its store when it starts processes again, so what the earlier ones left there must not be taken for
    the present ones'. Every process leaves a word of its own; the main one answers the words it finds with the name,
    until all have seen it. Answers to words of the past reach nobody.

    Raises:
        RunError: not all processes came within `PATIENCE`.
    """
    global _session
    mine, deadline = uuid.uuid4().hex, time.monotonic() + PATIENCE.total_seconds()
    store.set(f"word/{rank}", mine)
    if rank > 0:
        _session = store.get(f"answer/{mine}").decode()
        store.set(f"seen/{_session}/{rank}", "")
        return _session
    waiting = set(range(1, world))
    while waiting:
        for other in tuple(waiting):
            if store.check([f"word/{other}"]):
                store.set(f"answer/{store.get(f'word/{other}').decode()}", mine)
            if store.check([f"seen/{mine}/{other}"]):
                waiting.discard(other)
        if time.monotonic() > deadline:
            raise RunError(f"{len(waiting)} of {world} processes did not start within {PATIENCE}: see their messages")
        time.sleep(0.01)
    _session = mine
    return mine


@contextlib.contextmanager
def one_voice() -> Iterator[None]:
    """Lets an error of the first process that has one pass; the others end with its exit code and no message.

    A wrong setting is an error in all of them, and one that ends lets the others fail for want of it.
    """
    try:
        yield
    except Exception as error:
        if launched() and not _is_first():
            raise SystemExit(2 if isinstance(error, UsageError) else 1) from error
        raise


def _is_first() -> bool:
    try:
        return open_store(datetime.timedelta(seconds=10)).add(f"failures/{_session}", 1) == 1
    except (RuntimeError, ValueError):
        return True  # nobody can be asked: better said twice than not at all
