"""The gradient of a batch that several processes share, and that each computes in parts, in any precision.

Shapes: B videos, C channels or classes, T frames of the feature grid, P points of all pyramid levels.
"""

import contextlib
import itertools

import torch
from torch import Tensor

from rdfa.config import Config
from rdfa.data.dataset import Batch
from rdfa.errors import UsageError
from rdfa.modeling.detector import Detector
from rdfa.modeling.layers import rows_of_batch
from rdfa.training.losses import criterion
from rdfa.training.processes import Processes
from rdfa.training.targets import assign_targets


class BatchGradient:
    """What one process and one part at a time add to the gradient of a whole batch.

    The loss of a batch is a sum over its videos divided by a normaliser that depends on all of them, through the number
    of positive points alone. That number is counted first, in all parts of all processes; then each part has its term
    of the loss, and the terms add up. Every part draws the random numbers of the whole batch and uses those of its own
    rows. So the gradient is that of one process that computes the batch at once, up to the rounding of sums, and all
    processes are at the same state of the random generator at all times.

    With Training.precision other than float32 the detector runs under autocast; float16 scales the loss, by a factor
    that `scaler` adapts, so that small gradients survive.

    Raises:
        UsageError: a batch that is too small to be divided.
    """

    def __init__(self, config: Config, model: Detector, device: torch.device, processes: Processes):
        self.config, self.model, self.device, self.processes = config, model, device, processes
        training = config.engine.training
        self._check(config.loader.batch_size, training.accumulate)
        model.backbone.stem_module.recompute(training.recompute_stem)
        self.network = processes.replicate(model, device)
        self.dtype = getattr(torch, training.precision)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)

    def __call__(self, batch: Batch, rows: range, total: int) -> dict[str, Tensor]:
        """Add the gradient (times the factor of `scaler`) to the parameters; returns the losses of the whole batch.

        Args:
            batch: this process's rows of the whole batch.
            rows, total: which of how many (see `Loader.rows`); none: `batch` is padding.
        """
        parts = divide(batch, min(self.config.engine.training.accumulate, len(batch.features)))
        targets = [self._targets(part) for part in parts]
        positives = self.processes.sum(torch.stack([count for _, _, count in targets]).sum())
        # Padding draws as any row does, and uses what it likes.
        first = rows.start if len(rows) else 0
        before, losses = _rng_state(self.device), []
        for index, (part, part_targets) in enumerate(zip(parts, targets)):
            if index:
                _set_rng_state(self.device, before)
            is_last = index == len(parts) - 1
            with contextlib.nullcontext() if is_last else self._unshared(), rows_of_batch(self.model, first, total):
                losses.append(self._backward(part, *part_targets[:2], positives))
            first += len(part.features)
        totals = self.processes.sum(torch.stack([torch.stack(list(terms.values())) for terms in losses]).sum(dim=0))
        return dict(zip(losses[0], totals))

    def _backward(self, part: Batch, cls_targets_BPC: Tensor, offset_targets_BP2: Tensor, positives: Tensor) -> dict:
        features_BCT, mask_BT = part.features.to(self.device), part.mask.to(self.device)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            outputs = self.network(features_BCT, mask_BT)
        losses = criterion(*outputs, cls_targets_BPC, offset_targets_BP2, self.config.engine.criterion, positives)
        # Several processes average their gradients, but the terms of the loss are to be added.
        self.scaler.scale(losses["loss"] * self.processes.world).backward()
        return {name: loss.detach() for name, loss in losses.items()}

    def _targets(self, part: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Class and offset targets, and the number of positive points."""
        settings = self.config.engine.criterion
        points_P4 = self.model.points(part.features.shape[-1])
        cls_targets_BPC, offset_targets_BP2 = assign_targets(
            points_P4,
            part.segments,
            part.labels,
            self.config.model.cls_head.num_classes,
            settings.center_sample,
            settings.center_sample_radius,
        )
        point_mask_BP = part.mask.to(self.device)[:, points_P4[:, 0].long()]  # a point is valid where its clip is
        return cls_targets_BPC, offset_targets_BP2, (point_mask_BP & (cls_targets_BPC > 0).any(dim=-1)).sum()

    def _unshared(self) -> contextlib.AbstractContextManager:
        """Gradients stay in this process: they are exchanged once, after the last part."""
        return self.network.no_sync() if self.processes.world > 1 else contextlib.nullcontext()

    def _check(self, batch_size: int, accumulate: int) -> None:
        world, weight = self.processes.world, self.config.engine.criterion.loss_weight
        if batch_size < world * accumulate:
            raise UsageError(
                f"Loader.batch_size = {batch_size} is the batch of all {world} processes, each of which computes its "
                f"share in Training.accumulate = {accumulate} parts: it must be at least {world * accumulate}"
            )
        if weight < 0 and world * accumulate > 1:
            raise UsageError(
                f"Criterion.loss_weight = {weight:g} weighs by the losses of a whole batch: give a weight >= 0, or use "
                "one process and Training.accumulate = 1"
            )


def divide(batch: Batch, parts: int) -> list[Batch]:
    """`batch` in `parts` pieces of consecutive rows, of equal size give or take one."""
    if parts == 1:
        return [batch]
    total = len(batch.features)
    cuts = [total * part // parts for part in range(parts + 1)]
    return [Batch(*(column[start:stop] for column in batch)) for start, stop in itertools.pairwise(cuts)]


def _rng_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _set_rng_state(device: torch.device, state: Tensor) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)
