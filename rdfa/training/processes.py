"""Several processes that train or evaluate as one, as torchrun starts them. One alone is the same, without talk.

All of them do the same at the same time, each with its share of the data; what they add up or collect is the same in
all of them afterwards. Only the main one (rank 0) writes files and shows progress.
"""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rdfa.data.share import Share
from rdfa.errors import RunError, UsageError
from rdfa.training.session import launched, open_session, open_store

# Words of the messages that the communication libraries have for a process that is gone.
_GONE = ("gloo", "NCCL", "by peer", "Broken pipe", "recvValue", "Connection refused")


class Processes(Share):
    """The processes of one training, seen from one of them."""

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum(self, x: Tensor) -> Tensor:
        """The sum of the tensors `x` (of one shape, on each process's device) of all processes."""
        if self.world > 1:
            dist.all_reduce(x)
        return x

    def collect(self, value: Any) -> list[Any]:
        """The picklable `value` of every process, by rank."""
        values = [value] * self.world
        if self.world > 1:
            dist.all_gather_object(values, value)
        return values

    def from_main(self, value: Any) -> Any:
        """The picklable `value` of the main process."""
        values = [value]
        if self.world > 1:
            dist.broadcast_object_list(values)
        return values[0]

    def replicate(self, model: nn.Module, device: torch.device) -> nn.Module:
        """`model`, on `device`, so that after its backward the gradients are the averages over all processes."""
        if self.world == 1:
            return model
        return DistributedDataParallel(model, [device] if device.type == "cuda" else None)


ALONE = Processes()


def resolve_device(name: str) -> torch.device:
    """The device that Training.device names; "auto": the GPU where there is one. Each process has a GPU of its own."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("Training.device = 'cuda', but torch finds no GPU: use 'auto' or 'cpu'")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if not launched():
        return torch.device("cuda")
    index, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if index >= count:
        raise UsageError(
            f"{index + 1} or more processes on a machine, but torch finds {count} GPUs: --nproc_per_node {count}"
        )
    return torch.device("cuda", index)


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[Processes]:
    """Within it the processes that torchrun started are joined: by nccl between GPUs, by gloo between CPUs.

    Raises:
        RunError: another process is gone, which ends this one too.
    """
    if not launched():
        yield ALONE
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        processes, store = Processes(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])), open_store()
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            store=dist.PrefixStore(open_session(store, processes.rank, processes.world), store),
            rank=processes.rank,
            world_size=processes.world,
        )
        with contextlib.nullcontext() if processes.is_main else _quiet():
            yield processes
        dist.destroy_process_group()
    except RuntimeError as error:  # not destroyed then: that could wait for those who are gone
        if isinstance(error, RunError) or not _tells_of_loss(error):
            raise
        raise RunError(
            "another process of this training is gone; start again to continue from the last checkpoint "
            "(torchrun --max_restarts=3 does so by itself)"
        ) from error


def _tells_of_loss(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or any(word in str(error) for word in _GONE)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What every process would say, the main one says."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield
