"""Optimisers with the published parameter groups, and clipping of the gradient."""

from typing import Any

import torch
from torch import Tensor, nn

from rdfa.training.settings import EngineSettings


def parameter_groups(model: nn.Module) -> tuple[list[str], list[str]]:
    """Names of the parameters with and without weight decay, each sorted.

    Decayed are the weights of linear layers and convolutions, and A_log and D of the selective scans: Mamba exempts
    these two, but the published code decays them, and the learnt weights depend on it. Not decayed are biases,
    normalisation and the learnt scales. Position in (decayed + not decayed) is the index in the published state of the
    optimiser.
    """
    decay, no_decay = [], []
    for module_name, module in model.named_modules():
        decays = {"A_log", "D"}
        if isinstance(module, (nn.Linear, nn.Conv1d)):
            decays.add("weight")
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                full_name = f"{module_name}.{name}" if module_name else name
                (decay if name in decays else no_decay).append(full_name)
    return sorted(decay), sorted(no_decay)


def build_optimizer(model: nn.Module, settings: EngineSettings) -> torch.optim.Optimizer:
    """The optimiser that `settings.optimizer` names, with two groups: decayed and not decayed parameters."""
    parameters = dict(model.named_parameters())
    chosen = settings.sgd if settings.optimizer.name == "SGD" else settings.adamw
    groups = [
        {"params": [parameters[name] for name in names], "weight_decay": weight_decay}
        for names, weight_decay in zip(parameter_groups(model), (chosen.weight_decay, 0.0))
    ]
    fused = True if next(model.parameters()).is_cuda else None  # a few launches for all parameters
    if settings.optimizer.name == "SGD":
        return torch.optim.SGD(groups, lr=chosen.lr, momentum=chosen.momentum, fused=fused)
    return torch.optim.AdamW(groups, lr=chosen.lr, fused=fused)


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Take over a state_dict that was saved on any device: how the step is computed stays the optimiser's own."""
    own = optimizer.param_groups
    groups = [{**saved, "fused": group["fused"]} for saved, group in zip(state["param_groups"], own)]
    optimizer.load_state_dict({**state, "param_groups": groups})


def clip_gradients(model: nn.Module, max_norm: float) -> Tensor:
    """Scale the gradients so that their joint L2 norm is at most `max_norm` (0: do not); returns the norm before."""
    return nn.utils.clip_grad_norm_(model.parameters(), max_norm if max_norm > 0 else torch.inf)
