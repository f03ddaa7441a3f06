"""Learning rate schedules: each a function of the iteration alone.

A schedule has no state, so the rate of a resumed run is that of an uninterrupted one by construction. Settings count
epochs, schedules step once per iteration: with n iterations per epoch, iteration i (from 0) of a run trains at rate(i).
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence

import torch

from rdfa.errors import UsageError
from rdfa.training.settings import EngineSettings

Schedule = Callable[[int], float]


def linear_warmup(after: Schedule, base_lr: float, start_lr: float, warmup: int) -> Schedule:
    """From `start_lr` at iteration 0 to `base_lr` at iteration warmup - 1, linearly; then after(i - warmup).

    One iteration of warm-up trains at `start_lr`; none at all starts with after(0).
    """

    def rate(i: int) -> float:
        if i >= warmup:
            return after(i - warmup)
        return start_lr + (base_lr - start_lr) * i / max(warmup - 1, 1)

    return rate


def cosine(base_lr: float, eta_min: float, period: int) -> Schedule:
    """eta_min + (base_lr - eta_min) (1 + cos(pi i / period)) / 2: falls until `period`, then rises again."""
    return lambda i: eta_min + 0.5 * (base_lr - eta_min) * (1 + math.cos(math.pi * i / period))


def multistep(base_lr: float, milestones: Sequence[int], gamma: float) -> Schedule:
    """base_lr gamma^k, where k counts the milestones (iterations) that are reached."""
    ordered = sorted(milestones)
    return lambda i: base_lr * gamma ** bisect_right(ordered, i)


def build_schedule(settings: EngineSettings, iterations_per_epoch: int) -> Schedule:
    """The schedule that `settings.scheduler` names.

    - LinearWarmupCosineAnnealingLR: warm-up of T_warmup epochs, then one half cosine that ends at epoch T_max.
    - LinearWarmupMultiStepLR: warm-up, then times gamma at each milestone, in epochs from the end of the warm-up.
    - CosineAnnealingLR: one half cosine over max_epochs.
    - MultiStepLR: times gamma at each of milestone_epochs.

    T_max and max_epochs follow Training.max_epochs when None. If that is no longer than the warm-up, the whole training
    is warm-up; a T_max given explicitly must be longer (UsageError).
    """
    n = iterations_per_epoch
    base_lr = settings.sgd.lr if settings.optimizer.name == "SGD" else settings.adamw.lr
    name = settings.scheduler.name
    if name == "CosineAnnealingLR":
        chosen = settings.cosine
        return cosine(base_lr, chosen.eta_min, (chosen.max_epochs or settings.training.max_epochs) * n)
    if name == "MultiStepLR":
        return multistep(base_lr, [m * n for m in settings.multistep.milestone_epochs], settings.multistep.gamma)
    if name == "LinearWarmupMultiStepLR":
        chosen = settings.warmup_multistep
        after = multistep(base_lr, [m * n for m in chosen.milestones], chosen.gamma)
    else:
        chosen = settings.warmup_cosine
        if chosen.T_max is not None and chosen.T_max <= chosen.T_warmup:
            raise UsageError(
                f"LinearWarmupCosineAnnealingLR.T_max = {chosen.T_max} must be greater than T_warmup = "
                f"{chosen.T_warmup}: lower T_warmup, or leave T_max at None to follow Training.max_epochs"
            )
        annealing = (chosen.T_max or settings.training.max_epochs) - chosen.T_warmup
        after = cosine(base_lr, chosen.eta_min, max(annealing, 1) * n)
    return linear_warmup(after, base_lr, chosen.warmup_start_lr, chosen.T_warmup * n)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Use `lr` for all parameter groups from the next step on."""
    for group in optimizer.param_groups:
        group["lr"] = lr
