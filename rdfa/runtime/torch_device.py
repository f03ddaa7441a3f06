"""The device of a torch backend: checked before anything is loaded for it, and held to full precision."""

import contextlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from rdfa.errors import UsageError
from rdfa.runtime.torch_threads import pinned


def check_device(device: str) -> None:
    """Raise UsageError where torch has no such device."""
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device {device!r} was asked for, but torch finds no GPU here: use 'cpu', and a file for it")


def numpy_call(
    model: Callable[[Tensor, Tensor], Sequence[Tensor]], device: str, threads: int | None
) -> Callable[[np.ndarray, np.ndarray], list[np.ndarray]]:
    """`model` on `device`, with `threads` threads and in full precision, for inputs and outputs of numpy."""

    def call(features: np.ndarray, mask: np.ndarray) -> list[np.ndarray]:
        with pinned(threads), full_precision(device), torch.inference_mode():
            outputs = model(torch.from_numpy(features).to(device), torch.from_numpy(mask).to(device))
            return [o.cpu().numpy() for o in outputs]

    return call


@contextlib.contextmanager
def full_precision(device: str) -> Iterator[None]:
    """Run the block with float32 convolutions that are float32; on a GPU torch rounds their inputs to TF32 by default,
    which costs three digits."""
    if torch.device(device).type != "cuda":
        yield
        return
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


@contextlib.contextmanager
def tf32_products() -> Iterator[None]:
    """Run the block with matrix products of a GPU in float32 whose inputs are rounded to TF32."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
