"""The launches of a forward and a backward as one."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from rdfa.runtime.cuda_graph import Recording, record


class RecordedGradients:
    """Calls of a function that adds to the gradients of `parameters`, as CUDA graphs: one for each size of its inputs.

    A graph writes to the addresses it was recorded with, so the gradients are tensors that stay: they start as zeros,
    and are to be zeroed, not dropped. Random numbers continue the device's generator as they would without a graph.
    The graphs share their memory, since they run one after the other.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], device: torch.device):
        self._parameters = [p for p in parameters if p.requires_grad]
        self._device = device
        self._recordings: dict[tuple, Recording] = {}
        self._pool = None

    def __call__(self, function: Callable[..., Tensor], variant: tuple, *inputs: Tensor) -> Tensor:
        """`function(*inputs)`, which may depend on `variant` and on the shapes of its inputs beside their values."""
        key = (variant, *((x.shape, x.dtype) for x in inputs))
        if key not in self._recordings:
            self._recordings[key] = self._record(function, inputs)
        recording = self._recordings[key]
        for own, given in zip(recording.inputs, inputs):
            own.copy_(given)
        recording.graph.replay()
        return recording.output.clone()  # the next replay, of any of the graphs, may write there

    def _record(self, function: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> Recording:
        """A recording, whose first calls leave no trace."""
        for parameter in self._parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients, random = [parameter.grad.clone() for parameter in self._parameters], rng_state(self._device)
        recording = record(function, tuple(x.clone() for x in inputs), self._pool)
        self._pool = recording.graph.pool()
        for parameter, gradient in zip(self._parameters, gradients):
            parameter.grad.copy_(gradient)
        set_rng_state(self._device, random)
        return recording


def rng_state(device: torch.device) -> Tensor:
    """Of the generator that `device` draws from."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def set_rng_state(device: torch.device, state: Tensor) -> None:
    """Undo of `rng_state`."""
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)
