"""Several processes with the surroundings that torchrun gives them, forked from a server that has torch already."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import train
from rdfa import cli
from tests.training.tiny import forkserver


def run_group(world: int, folder: Path, function: Callable[..., Any], *args: Any, patience: float = 120) -> list[Any]:
    """`function(*args)` in `world` processes; what each returned, by rank; None for one that was killed.

    What each wrote is in `folder`/RANK.log. They have `patience` seconds.
    """
    folder.mkdir(exist_ok=True)
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # torchrun's part
    context = forkserver()
    processes = [
        context.Process(target=_member, args=(rank, world, store.port, folder, function, args)) for rank in range(world)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=patience)
    assert not any(process.is_alive() for process in processes), [p.kill() for p in processes]
    paths = [folder / f"{rank}.pt" for rank in range(world)]
    return [torch.load(path, weights_only=True) if path.exists() else None for path in paths]


def exit_code(argv: list[str]) -> int:
    """Of ``train.py ARGV``."""
    try:
        return cli.run(train.main, argv)
    except SystemExit as stop:
        return stop.code


def _member(rank: int, world: int, port: int, folder: Path, function: Callable[..., Any], args: tuple) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    with open(folder / f"{rank}.log", "w") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        torch.save(function(*args), folder / f"{rank}.pt")
        log.flush()
    os._exit(0)
