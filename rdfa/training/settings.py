"""Settings of optimisation, named and defaulted as in the published ``engine.yaml`` and ``run.yaml``."""

from dataclasses import dataclass

from rdfa.errors import UsageError
from rdfa.settings import Settings, setting


@dataclass(frozen=True)
class TrainingSettings(Settings):
    """The loop."""

    max_epochs: int = setting(50, ge=1)
    clip_grad_l2norm: float = setting(1.0, ge=0.0, doc="largest norm of the gradient; 0: no clipping")
    print_freq: int = setting(5, ge=1, doc="iterations between two lines of progress")
    ema_decay: float = setting(0.999, ge=0.0, lt=1.0, doc="decay of the averaged weights, which evaluation uses")
    eval_start_epoch: int = setting(25, ge=0, doc="first epoch (counted from 1) that is followed by an evaluation")
    eval_every: int = setting(1, ge=1, doc="epochs between two evaluations; the last epoch is always evaluated")
    checkpoint_every: int = setting(0, ge=0, doc="iterations between two checkpoints; 0: one at the end of each epoch")
    keep_checkpoints: int = setting(3, ge=1, doc="recent checkpoints kept besides 'best'")
    tiou: tuple[float, ...] = setting((0.3, 0.4, 0.5, 0.6, 0.7), gt=0.0, le=1.0, doc="thresholds of the reported mAP")
    device: str = setting("auto", choices=("auto", "cpu", "cuda"))
    precision: str = setting(
        "float32",
        choices=("float32", "tf32", "float16", "bfloat16"),
        doc="of activations in training; weights, losses and evaluation stay float32. On a GPU torch rounds the inputs "
        "of float32 convolutions to TF32; with tf32 those of all products",
    )
    accumulate: int = setting(
        1, ge=1, doc="parts in which a process computes its share of a batch: less memory, the same gradient"
    )
    recompute_stem: bool = setting(
        False, doc="gradient checkpointing: the backward computes the stem again instead of keeping its activations"
    )
    cuda_graph: bool = setting(
        True, doc="record a GPU's forward and backward once and replay it: one process, without recompute_stem"
    )

    def __post_init__(self):
        super().__post_init__()
        if not self.tiou:
            raise UsageError("Training.tiou = (): give at least one threshold")


@dataclass(frozen=True)
class CriterionSettings(Settings):
    """Label assignment and loss."""

    name: str = setting("loss1", choices=("loss1",), doc="sigmoid focal loss and centre DIoU loss")
    center_sample: str = setting("radius", choices=("radius", "none"))
    center_sample_radius: float = setting(1.5, gt=0.0, doc="in strides of the level")
    init_loss_norm: float = setting(100.0, gt=0.0)
    init_loss_norm_momentum: float = setting(0.9, ge=0.0, le=1.0)
    label_smoothing: float = setting(0.0, ge=0.0, lt=1.0)
    loss_weight: float = setting(1.0, doc="weight of the regression loss; negative: the detached ratio of both losses")


@dataclass(frozen=True)
class OptimizerSettings(Settings):
    """Which optimiser."""

    name: str = setting("AdamW", choices=("SGD", "AdamW"))


@dataclass(frozen=True)
class SGDSettings(Settings):
    lr: float = setting(1.0e-4, gt=0.0)
    momentum: float = setting(0.9, ge=0.0, lt=1.0)
    weight_decay: float = setting(5.0e-2, ge=0.0)


@dataclass(frozen=True)
class AdamWSettings(Settings):
    lr: float = setting(1.0e-4, gt=0.0)
    weight_decay: float = setting(5.0e-2, ge=0.0)


SCHEDULERS = ("LinearWarmupCosineAnnealingLR", "LinearWarmupMultiStepLR", "CosineAnnealingLR", "MultiStepLR")


@dataclass(frozen=True)
class SchedulerSettings(Settings):
    """Which schedule of the learning rate. All of them step once per iteration; their settings count epochs."""

    name: str = setting("LinearWarmupCosineAnnealingLR", choices=SCHEDULERS)


@dataclass(frozen=True)
class LinearWarmupCosineAnnealingLRSettings(Settings):
    T_max: int | None = setting(None, ge=1, doc="None: Training.max_epochs")
    T_warmup: int = setting(5, ge=0)
    warmup_start_lr: float = setting(0.0, ge=0.0)
    eta_min: float = setting(1e-8, ge=0.0)


@dataclass(frozen=True)
class LinearWarmupMultiStepLRSettings(Settings):
    T_warmup: int = setting(5, ge=0)
    milestones: tuple[int, ...] = setting((30, 60, 90), ge=0, doc="epochs after the warm-up")
    warmup_start_lr: float = setting(0.0, ge=0.0)
    gamma: float = setting(0.1, gt=0.0)


@dataclass(frozen=True)
class CosineAnnealingLRSettings(Settings):
    max_epochs: int | None = setting(None, ge=1, doc="None: Training.max_epochs")
    eta_min: float = setting(0.0, ge=0.0)


@dataclass(frozen=True)
class MultiStepLRSettings(Settings):
    milestone_epochs: tuple[int, ...] = setting((), ge=0)
    gamma: float = setting(0.1, gt=0.0)


@dataclass(frozen=True)
class WandbSettings(Settings):
    """Arguments of ``wandb.init``; used only when `key` (or the environment variable WANDB_API_KEY) is given."""

    key: str = setting("", doc="never written to any file")
    entity: str = setting("")
    project: str = setting("[Project] RSMamba-TAL-Dev")
    name: str = setting("", doc="empty: the name of the run directory")
    id: str = setting("", doc="empty: as name, so that a resumed run continues the same record")
    job_type: str = setting("train")
    group: str | None = setting(None)
    tags: tuple[str, ...] = setting(())
    notes: str = setting("RS-Mamba initial update")
    resume: str = setting("auto", choices=("allow", "never", "must", "auto"))
    save_code: bool = setting(True)
    mode: str = setting("online", choices=("online", "offline", "disabled"))


@dataclass(frozen=True)
class EngineSettings:
    """All settings of one training."""

    training: TrainingSettings = TrainingSettings()
    criterion: CriterionSettings = CriterionSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    sgd: SGDSettings = SGDSettings()
    adamw: AdamWSettings = AdamWSettings()
    scheduler: SchedulerSettings = SchedulerSettings()
    warmup_cosine: LinearWarmupCosineAnnealingLRSettings = LinearWarmupCosineAnnealingLRSettings()
    warmup_multistep: LinearWarmupMultiStepLRSettings = LinearWarmupMultiStepLRSettings()
    cosine: CosineAnnealingLRSettings = CosineAnnealingLRSettings()
    multistep: MultiStepLRSettings = MultiStepLRSettings()
    wandb: WandbSettings = WandbSettings()
