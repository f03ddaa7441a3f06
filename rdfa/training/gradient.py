"""The gradient of a batch that several processes share, and that each computes in parts, in any precision.

Shapes: B videos, C channels or classes, T frames of the feature grid, P points of all pyramid levels.
"""

import contextlib
import itertools
from typing import NamedTuple

import torch
from torch import Tensor

from rdfa.config import Config
from rdfa.data.dataset import Batch
from rdfa.errors import UsageError
from rdfa.modeling.detector import Detector
from rdfa.modeling.layers import rows_of_batch
from rdfa.runtime.torch_device import tf32_products
from rdfa.training.losses import criterion
from rdfa.training.processes import Processes
from rdfa.training.recording import RecordedGradients, rng_state, set_rng_state
from rdfa.training.targets import assign_targets

LOSSES = ("cls_loss", "reg_loss", "loss")


class Part(NamedTuple):
    """Some rows of a batch with their targets, on the device."""

    features_BCT: Tensor
    mask_BT: Tensor
    cls_targets_BPC: Tensor
    offset_targets_BP2: Tensor


class ReadyBatch(NamedTuple):
    """A process's rows of a batch, in the parts that it computes one after the other."""

    parts: list[Part]
    positives: Tensor  # points that learn an action: an integer scalar on the device
    video_ids: list[str]


class BatchGradient:
    """What one process and one part at a time add to the gradient of a whole batch.

    The loss of a batch is a sum over its videos divided by a normaliser that depends on all of them, through the number
    of positive points alone. That number is counted first, in all parts of all processes; then each part has its term
    of the loss, and the terms add up. Every part draws the random numbers of the whole batch and uses those of its own
    rows. So the gradient is that of one process that computes the batch at once, up to the rounding of sums, and all
    processes are at the same state of the random generator at all times.

    With Training.precision float16 and bfloat16 the detector runs under autocast; float16 scales the loss, by a factor
    that `scaler` adapts, so that small gradients survive.

    `recorder` is set where parts are recorded as CUDA graphs (Training.cuda_graph). Gradients must then be zeroed in
    place before each batch.

    Raises:
        UsageError: a batch that is too small to be divided.
    """

    def __init__(self, config: Config, model: Detector, device: torch.device, processes: Processes):
        self.config, self.model, self.device, self.processes = config, model, device, processes
        training = config.engine.training
        self._check(config.loader.batch_size, training.accumulate)
        model.backbone.stem_module.recompute(training.recompute_stem)
        self.network = processes.replicate(model, device)
        self.products = tf32_products if training.precision == "tf32" else contextlib.nullcontext
        self.dtype = torch.float32 if training.precision == "tf32" else getattr(torch, training.precision)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
        self._points: dict[int, Tensor] = {}
        # DistributedDataParallel and checkpointing do things in a backward that a graph can't hold.
        records = training.cuda_graph and device.type == "cuda" and processes.world == 1 and not training.recompute_stem
        self.recorder = RecordedGradients(model.parameters(), device) if records else None

    def prepare(self, batch: Batch) -> ReadyBatch:
        """`batch`, this process's rows of the whole one, on the device, with targets; doesn't wait for the device."""
        parts, counts = [], []
        for rows in divide(batch, min(self.config.engine.training.accumulate, len(batch.features))):
            features_BCT = rows.features.to(self.device, non_blocking=True)
            mask_BT = rows.mask.to(self.device, non_blocking=True)
            points_P4 = self._points_of(features_BCT.shape[-1])
            cls_targets_BPC, offset_targets_BP2 = self._targets(rows, points_P4)
            point_mask_BP = mask_BT[:, points_P4[:, 0].long()]  # a point is valid where its clip is
            counts.append((point_mask_BP & (cls_targets_BPC > 0).any(dim=-1)).sum())
            parts.append(Part(features_BCT, mask_BT, cls_targets_BPC, offset_targets_BP2))
        return ReadyBatch(parts, torch.stack(counts).sum(), batch.video_ids)

    def __call__(self, batch: ReadyBatch, rows: range, total: int) -> dict[str, Tensor]:
        """Add the gradient (times the factor of `scaler`) to the parameters; returns the losses of the whole batch.

        Args:
            batch: see `prepare`.
            rows, total: which of how many rows it is (see `Loader.rows`); none: `batch` is padding.
        """
        positives = self.processes.sum(batch.positives)
        # Padding draws as any row does, and uses what it likes.
        first = rows.start if len(rows) else 0
        before, losses = rng_state(self.device), []
        for index, part in enumerate(batch.parts):
            if index:
                set_rng_state(self.device, before)
            is_last = index == len(batch.parts) - 1
            with contextlib.nullcontext() if is_last else self._unshared(), rows_of_batch(self.model, first, total):
                losses.append(self._part(part, positives, (first, total)))
            first += len(part.mask_BT)
        return dict(zip(LOSSES, self.processes.sum(torch.stack(losses).sum(dim=0))))

    def _part(self, part: Part, positives: Tensor, rows: tuple[int, int]) -> Tensor:
        if self.recorder is None:
            return self._backward(*part, positives)
        return self.recorder(self._backward, rows, *part, positives)

    def _backward(self, features_BCT, mask_BT, cls_targets_BPC, offset_targets_BP2, positives) -> Tensor:
        """Add the gradient of a part; returns its terms of `LOSSES`."""
        with self.products():
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                outputs = self.network(features_BCT, mask_BT)
            losses = criterion(*outputs, cls_targets_BPC, offset_targets_BP2, self.config.engine.criterion, positives)
            # Several processes average their gradients, but the terms of the loss are to be added.
            self.scaler.scale(losses["loss"] * self.processes.world).backward()
        return torch.stack([losses[name].detach() for name in LOSSES])

    def _targets(self, rows: Batch, points_P4: Tensor) -> tuple[Tensor, Tensor]:
        settings = self.config.engine.criterion
        return assign_targets(
            points_P4,
            rows.segments,
            rows.labels,
            self.config.model.cls_head.num_classes,
            settings.center_sample,
            settings.center_sample_radius,
        )

    def _points_of(self, num_frames: int) -> Tensor:
        if num_frames not in self._points:
            self._points[num_frames] = self.model.points(num_frames)
        return self._points[num_frames]

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
