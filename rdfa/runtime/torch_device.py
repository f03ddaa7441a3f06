"""The device of a torch backend: checked before anything is loaded for it, and held to full precision."""

import contextlib
from collections.abc import Iterator

import torch

from rdfa.errors import UsageError


def check_device(device: str) -> None:
    """Raise UsageError where torch has no such device."""
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device {device!r} was asked for, but torch finds no GPU here: use 'cpu', and a file for it")


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
