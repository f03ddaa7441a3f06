"""The device of a torch backend: checked before anything is loaded for it."""

import torch

from rdfa.errors import UsageError


def check_device(device: str) -> None:
    """Raise UsageError where torch has no such device."""
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device {device!r} was asked for, but torch finds no GPU here: use 'cpu', and a file for it")
