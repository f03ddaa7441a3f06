"""The training loop: epochs, averages, evaluations, checkpoints, and exact continuation after any interruption."""

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from rdfa.config import Config
from rdfa.data.annotations import load_annotations
from rdfa.data.dataset import FeatureDataset, make_loader
from rdfa.errors import RunError, UsageError
from rdfa.modeling.detector import build_detector
from rdfa.run_dir import (
    claimed,
    load_training_state,
    load_weights,
    point,
    prune_checkpoints,
    write_checkpoint,
    write_config,
)
from rdfa.training.checkpoint import (
    capture_rng,
    check_same_settings,
    checkpoint_to_resume,
    previous_checkpoint,
    restore_rng,
    seed_everything,
)
from rdfa.training.ema import ModelEMA
from rdfa.training.evaluate import Evaluator, describe
from rdfa.training.feed import Feed
from rdfa.training.gradient import BatchGradient, ReadyBatch
from rdfa.training.logging import MetricsLog, ProgressReport, say
from rdfa.training.optim import build_optimizer, clip_gradients, restore_optimizer
from rdfa.training.processes import ALONE, Processes, joined, resolve_device
from rdfa.training.schedules import build_schedule, set_lr


def train(config: Config, run_dir: Path, resume: str = "auto") -> None:
    """Train until Training.max_epochs are done, in `run_dir`; see `checkpoint_to_resume` for `resume`.

    Under torchrun the processes share each batch; `run_dir` must be the same folder for all of them.

    Raises:
        UsageError: settings or flags that do not fit the data, the checkpoint or each other.
        RunError: bad data, a damaged checkpoint, a loss that is not finite, or a process that is gone.
    """
    with joined(resolve_device(config.engine.training.device)) as processes:
        checkpoint = processes.from_main(checkpoint_to_resume(run_dir, resume) if processes.is_main else None)
        if checkpoint is not None:
            check_same_settings(checkpoint, config)
        trainer = Trainer(config, run_dir, processes)
        if checkpoint is not None:
            trainer.restore(checkpoint)
        trainer.run()


class Trainer:
    """One training: model, optimiser, data and position.

    The position is (`epoch`, counted from 1; `batch`, those of the epoch that are done; `step`, all iterations done).
    Whatever the next iteration depends on is either a function of settings and position (learning rate, order and
    cropping of the data) or in the checkpoint (weights, moments, averages, random generators).

    Of several `processes`, each holds all of this and moves in step with the others; the main one writes. A checkpoint
    can be continued by any number of them.
    """

    def __init__(self, config: Config, run_dir: Path, processes: Processes = ALONE):
        self.config, self.run_dir, self.processes = config, run_dir, processes
        self.device = resolve_device(config.engine.training.device)
        seed_everything(config.loader.seed)
        self.annotations = load_annotations(config.dataset.annotation_file)
        subset, channels = config.dataset.train_subset, config.model.embedding.input_c
        for name in (subset, config.dataset.test_subset):
            say(self.annotations.summary(name))
        dataset = FeatureDataset(config.dataset, self.annotations, subset, training=True, feature_dim=channels)
        self.loader = make_loader(dataset, config.loader, config.model.coarsest_stride, processes)
        self.evaluator = Evaluator(config, self.annotations, processes)
        self.model = build_detector(config.model).to(self.device)
        self.ema = ModelEMA(self.model, config.engine.training.ema_decay)
        self.gradient = BatchGradient(config, self.model, self.device, processes)
        self.scaler = self.gradient.scaler
        self.optimizer = build_optimizer(self.model, config.engine)
        self.schedule = build_schedule(config.engine, len(self.loader))
        self.epoch, self.batch, self.step = 1, 0, 0
        self.sums: dict[str, float] = {}  # of this epoch's iterations, for its averages
        self.best_mAP: float | None = None
        self.metrics_position = 0

    def run(self) -> None:
        """Train from the current position to the last epoch."""
        training = self.config.engine.training
        with self._open_log() as self.log:
            while self.epoch <= training.max_epochs:
                self._train_epoch()
                mAP = self._evaluate() if self.evaluation_is_due() else None
                self.epoch, self.batch, self.sums = self.epoch + 1, 0, {}
                self._save(mAP)
        best = "" if self.best_mAP is None else f", best average mAP {self.best_mAP:.4f}"
        say(f"training is complete: {self.step} iterations{best}. Checkpoints: {self.run_dir / 'checkpoints'}")

    @contextlib.contextmanager
    def _open_log(self) -> Iterator[MetricsLog | None]:
        """The run directory and its metrics, which the main process alone writes."""
        if not self.processes.is_main:
            yield None
            return
        with claimed(self.run_dir):
            write_config(self.run_dir, self.config, self.annotations.class_names)
            with contextlib.closing(MetricsLog(self.run_dir, self.config, self.metrics_position, self.step)) as log:
                yield log

    def _write_metrics(self, kind: str, values: dict[str, float]) -> None:
        if self.log is not None:
            self.log.write(kind, self.epoch, self.step, values)

    def _train_epoch(self) -> None:
        training, started = self.config.engine.training, time.monotonic()
        title = f"epoch {self.epoch}/{training.max_epochs}"
        self.model.train()
        with ProgressReport(title, len(self.loader), training.print_freq, done=self.batch) as progress:
            feed = Feed(self.loader.epoch(self.epoch, start=self.batch), self.gradient.prepare, self.device)
            for batch in feed:
                values = self._iteration(batch, feed.look_ahead)
                progress.step(f"loss {values['loss']:.4f}  lr {values['lr']:.2e}  |grad| {values['grad_norm']:.3g}")
                if (
                    training.checkpoint_every
                    and self.step % training.checkpoint_every == 0
                    and self.batch < len(self.loader)
                ):
                    self._save(mAP=None)
        averages = {name: total / self.batch for name, total in self.sums.items()}
        averages["lr"] = values["lr"]
        if self.device.type == "cuda":
            averages["memory_mb_per_video"] = self.memory_per_video() / 2**20
        self._write_metrics("train", {**averages, "seconds": round(time.monotonic() - started, 3)})
        say(f"{title}  average " + "  ".join(f"{name} {value:.4g}" for name, value in averages.items()))
        if averages["reg_loss"] == 0:
            say(
                "warning: no action of this epoch lay where the features are, so only background was learned: check "
                "Dataset.feat_stride, downsample_rate, num_frames and the frame rates",
                sys.stderr,
            )

    def memory_per_video(self) -> float:
        """Bytes of a GPU that each video took at the peak, beside weights, averages, gradients and moments."""
        held = [*self.model.parameters(), *self.ema.module.parameters()]
        held += [p.grad for p in self.model.parameters() if p.grad is not None]
        held += [x for state in self.optimizer.state.values() for x in state.values() if torch.is_tensor(x)]
        videos = -(-self.config.loader.batch_size // (self.processes.world * self.config.engine.training.accumulate))
        return (torch.cuda.max_memory_allocated(self.device) - sum(x.nbytes for x in held)) / videos

    def _iteration(self, batch: ReadyBatch, meanwhile: Callable[[], None] = lambda: None) -> dict[str, float]:
        """One step of the optimiser and the average; the losses, norm of the gradient and rate it went with.

        `meanwhile` is called while the device computes the gradient.
        """
        lr = self.schedule(self.step)
        set_lr(self.optimizer, lr)
        self.optimizer.zero_grad(set_to_none=self.gradient.recorder is None)
        losses = self.gradient(batch, *self.loader.rows(self.batch))
        self.scaler.unscale_(self.optimizer)
        losses["grad_norm"] = clip_gradients(self.model, self.config.engine.training.clip_grad_l2norm)
        meanwhile()
        values = dict(zip(losses, torch.stack(list(losses.values())).tolist()))  # one wait for the device
        if self.scaler.is_enabled():
            self._note_overflow(values)
        self._require_finite(values, batch)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.ema.update(self.model)
        self.step += 1
        self.batch += 1
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        return {**values, "lr": lr}

    def _note_overflow(self, values: dict[str, float]) -> None:
        """A float16 gradient that the scale made too large: no step is made, and the next scale is half of this one."""
        overflow = not math.isfinite(values["grad_norm"]) and self.scaler.get_scale() > 1
        values["overflow"] = float(overflow)  # their average is the share of the steps that were lost
        if overflow:
            values["grad_norm"] = 0.0

    def _require_finite(self, values: dict[str, float], batch: ReadyBatch) -> None:
        for name, value in values.items():
            if not math.isfinite(value):  # in all processes, since their sums are the same
                ids = [video_id for share in self.processes.collect(batch.video_ids) for video_id in share]
                wider = ", use Training.precision = 'bfloat16'" if self.scaler.is_enabled() else ""
                raise RunError(
                    f"{name} is {value} in iteration {self.step + 1} (epoch {self.epoch}) on videos "
                    f"{', '.join(ids)}: check their features{wider}, or lower the learning rate "
                    f"({self.schedule(self.step):g}); the last checkpoint is untouched"
                )

    def evaluation_is_due(self) -> bool:
        """Whether the current epoch is followed by an evaluation."""
        training = self.config.engine.training
        since_start = self.epoch - training.eval_start_epoch
        return self.epoch == training.max_epochs or (since_start >= 0 and since_start % training.eval_every == 0)

    def _evaluate(self) -> float:
        """Average mAP of the averaged weights."""
        result = self.evaluator.evaluate(self.evaluator.detections(self.ema.module))
        per_threshold = {f"mAP@{tiou:g}": float(mAP) for tiou, mAP in zip(result.tiou_K, result.mAP)}
        self._write_metrics("eval", {"mAP": result.average, **per_threshold})
        say(f"epoch {self.epoch}  {describe(result)}")
        return result.average

    def _save(self, mAP: float | None) -> None:
        """Write a checkpoint of the current position and point 'latest', and for a new best mAP 'best', to it."""
        is_best = mAP is not None and (self.best_mAP is None or mAP > self.best_mAP)
        if is_best:
            self.best_mAP = mAP
        if self.log is None:
            return
        state = {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "rng": capture_rng(),
            "epoch": self.epoch,
            "batch": self.batch,
            "step": self.step,
            "batches_per_epoch": len(self.loader),
            "sums": self.sums,
            "best_mAP": self.best_mAP,
            "metrics_position": self.log.flush(),
        }
        meta = {"epoch": self.epoch - 1, "batch": self.batch, "mAP": mAP}
        write_checkpoint(self.run_dir, self.step, self.model.state_dict(), self.ema.module.state_dict(), meta, state)
        # 'latest' last: if a kill comes between the two, the step is done again and 'best' is set again.
        if is_best:
            point(self.run_dir, "best", self.step)
        point(self.run_dir, "latest", self.step)
        prune_checkpoints(self.run_dir, self.config.engine.training.keep_checkpoints)

    def restore(self, checkpoint: Path) -> None:
        """Take over the state of a step folder, of this run directory or of another."""
        try:
            state = load_training_state(checkpoint)
            self.model.load_state_dict(load_weights(checkpoint, "model"))
            self.ema.module.load_state_dict(load_weights(checkpoint, "ema"))
        except RunError as error:
            raise RunError(f"{error}{previous_checkpoint(checkpoint.parent.parent, checkpoint.name)}") from error
        if state["batches_per_epoch"] != len(self.loader):
            raise UsageError(
                f"{checkpoint} was trained on {state['batches_per_epoch']} batches per epoch, the data now gives "
                f"{len(self.loader)}: restore Dataset.annotation_file and feature_dir, or train in another --run_dir"
            )
        restore_optimizer(self.optimizer, state["optimizer"])
        self.scaler.load_state_dict(state.get("scaler"))
        self.epoch, self.batch, self.step = state["epoch"], state["batch"], state["step"]
        self.sums, self.best_mAP = state["sums"], state["best_mAP"]
        restore_rng(state["rng"])
        if checkpoint.resolve().parent == (self.run_dir / "checkpoints").resolve():
            self.metrics_position = state["metrics_position"]
            if self.processes.is_main:
                point(self.run_dir, "latest", self.step)  # an older one than the latest becomes the latest
        say(f"continuing {checkpoint} at epoch {self.epoch}, iteration {self.step}")
