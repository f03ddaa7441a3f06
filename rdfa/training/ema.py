"""Exponential moving average of the weights, which evaluation and export use."""

import copy

import torch
from torch import nn


class ModelEMA:
    """Keeps `module`, a copy of a model whose parameters follow the model's:

        averaged <- decay averaged + (1 - decay) current        after each step of the optimiser, from the first one on

    As published there is no warm-up of the decay, and buffers keep their first values (the detector has none that
    training changes). The copy stays in eval mode and takes no gradients.
    """

    def __init__(self, model: nn.Module, decay: float = 0.999):
        self.module = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the parameters of `model`, which has the structure of the copied one."""
        averaged, current = list(self.module.parameters()), list(model.parameters())
        torch._foreach_lerp_(averaged, current, 1 - self.decay)
