"""Settings of the detector, named and defaulted as in the published ``model.yaml``."""

from dataclasses import dataclass

from rdfa.errors import UsageError
from rdfa.settings import Settings, setting


@dataclass(frozen=True)
class EmbeddingModuleSettings(Settings):
    """Two convolutions from clip features to the embedding."""

    input_c: int = setting(3200, ge=1, doc="channels of the clip features")
    emb_c: int = setting(512, ge=1, doc="channels of the embedding")
    kernel_size: int = setting(3, ge=1)
    stride: int = setting(1, ge=1, le=1, doc="fixed at 1: points and targets assume one embedding per clip")
    padding: int | None = setting(None, ge=0, doc="None: kernel_size // 2, which keeps the length")
    dilation: int = setting(1, ge=1)
    groups: int = setting(1, ge=1)
    bias: bool = setting(False)
    padding_mode: str = setting("zeros", choices=("zeros", "reflect", "replicate", "circular"))

    def __post_init__(self):
        super().__post_init__()
        if self.padding is None:
            object.__setattr__(self, "padding", self.kernel_size // 2)
        for name in ("input_c", "emb_c"):
            if getattr(self, name) % self.groups:
                raise UsageError(
                    f"EmbeddingModule.groups = {self.groups} does not divide {name} = {getattr(self, name)}"
                )
        if 2 * self.padding != self.dilation * (self.kernel_size - 1):
            raise UsageError(
                f"EmbeddingModule.padding = {self.padding} changes the sequence length: kernel_size {self.kernel_size} "
                f"and dilation {self.dilation} need {self.dilation * (self.kernel_size - 1) / 2:g}"
            )


@dataclass(frozen=True)
class StemModuleSettings(Settings):
    """The recurrent stem: `block_n` blocks, each applied `recurrent` times with the same weights."""

    block_n: int = setting(1, ge=1)
    emb_c: int = setting(512, ge=1)
    kernel_size: int = setting(4, ge=1, doc="accepted and unused: the block's widths are 2, 3 and 4, as published")
    drop_path_rate: float = setting(0.3, ge=0.0, lt=1.0)
    recurrent: int = setting(4, ge=1)


@dataclass(frozen=True)
class BranchModuleSettings(Settings):
    """The down-sampling branch: `block_n` blocks, each halving the length."""

    block_n: int = setting(5, ge=0)
    emb_c: int = setting(512, ge=1)
    kernel_size: int = setting(4, ge=1, doc="accepted and unused: the block's width is 4, as published")
    drop_path_rate: float = setting(0.3, ge=0.0, lt=1.0)


@dataclass(frozen=True)
class FPNIdentitySettings(Settings):
    """Neck that only normalises each pyramid level."""

    in_channels: int = setting(512, ge=1)
    out_channel: int = setting(512, ge=1)
    with_ln: bool = setting(True)
    scale_factor: int = setting(2, ge=2, le=2, doc="fixed at 2: the branch halves the length per level")
    start_level: int = setting(0, ge=0, doc="first level of the backbone that the heads see")


@dataclass(frozen=True)
class FPN1DSettings(FPNIdentitySettings):
    """Feature pyramid neck: lateral 1x1, top-down sum, depthwise 3."""


@dataclass(frozen=True)
class PointGeneratorSettings(Settings):
    """Points on the time axis and the range of offsets each pyramid level regresses."""

    max_seq_len: int = setting(2304, ge=1)
    max_buffer_len_factor: float = setting(6.0, ge=1.0)
    scale_factor: int = setting(2, ge=2, le=2)
    fpn_levels: int | None = setting(None, ge=1, doc="None: one more than BranchModule.block_n")
    regression_range: tuple[tuple[float, float], ...] = setting(
        ((0.0, 4.0), (4.0, 8.0), (8.0, 16.0), (16.0, 32.0), (32.0, 64.0), (64.0, 10000.0)), ge=0.0
    )


@dataclass(frozen=True)
class PtTransformerClsHeadSettings(Settings):
    """Classification head."""

    input_dim: int = setting(512, ge=1)
    feat_dim: int = setting(512, ge=1)
    num_classes: int = setting(20, ge=1)
    prior_prob: float = setting(0.01, ge=0.0, lt=1.0, doc="prior of a positive; 0 leaves the bias at zero")
    num_layers: int = setting(3, ge=1)
    kernel_size: int = setting(3, ge=1)
    with_ln: bool = setting(True)
    empty_cls: tuple[int, ...] = setting((), ge=0, doc="classes that are never trained: their bias starts at -13.8")


@dataclass(frozen=True)
class PtTransformerRegHeadSettings(Settings):
    """Offset regression head."""

    input_dim: int = setting(512, ge=1)
    feat_dim: int = setting(512, ge=1)
    fpn_levels: int | None = setting(None, ge=1, doc="None: one more than BranchModule.block_n")
    num_layers: int = setting(3, ge=1)
    kernel_size: int = setting(3, ge=1)
    with_ln: bool = setting(True)


@dataclass(frozen=True)
class DetectorSettings(Settings):
    """Which of the parts above the detector is made of."""

    backbone: str = setting("ResidualSharedBiMambaBackbone", choices=("ResidualSharedBiMambaBackbone",))
    neck: str = setting("FPNIdentity", choices=("FPNIdentity", "FPN1D"))
    generator: str = setting("PointGenerator", choices=("PointGenerator",))
    heads: tuple[str, str] = setting(
        ("PtTransformerClsHead", "PtTransformerRegHead"), choices=("PtTransformerClsHead", "PtTransformerRegHead")
    )


@dataclass(frozen=True)
class ModelSettings:
    """All settings of one detector, checked against each other."""

    detector: DetectorSettings = DetectorSettings()
    embedding: EmbeddingModuleSettings = EmbeddingModuleSettings()
    stem: StemModuleSettings = StemModuleSettings()
    branch: BranchModuleSettings = BranchModuleSettings()
    fpn_identity: FPNIdentitySettings = FPNIdentitySettings()
    fpn_1d: FPN1DSettings = FPN1DSettings()
    generator: PointGeneratorSettings = PointGeneratorSettings()
    cls_head: PtTransformerClsHeadSettings = PtTransformerClsHeadSettings()
    reg_head: PtTransformerRegHeadSettings = PtTransformerRegHeadSettings()

    def __post_init__(self):
        emb_c, levels = self.embedding.emb_c, self.fpn_levels
        if levels < 1:
            raise UsageError(
                f"{self.detector.neck}.start_level = {self.neck.start_level} leaves no level: "
                f"BranchModule.block_n = {self.branch.block_n}"
            )
        expected = {
            "StemModule.emb_c": (self.stem.emb_c, emb_c),
            "BranchModule.emb_c": (self.branch.emb_c, emb_c),
            f"{self.detector.neck}.in_channels": (self.neck.in_channels, emb_c),
            "PtTransformerClsHead.input_dim": (self.cls_head.input_dim, self.neck.out_channel),
            "PtTransformerRegHead.input_dim": (self.reg_head.input_dim, self.neck.out_channel),
            "PointGenerator.fpn_levels": (self.generator.fpn_levels or levels, levels),
            "PtTransformerRegHead.fpn_levels": (self.reg_head.fpn_levels or levels, levels),
            "the number of PointGenerator.regression_range entries": (len(self.generator.regression_range), levels),
        }
        if self.detector.neck == "FPNIdentity":
            expected["FPNIdentity.out_channel"] = (self.neck.out_channel, emb_c)
        for name, (value, wanted) in expected.items():
            if value != wanted:
                raise UsageError(f"{name} is {value}, but the parts before it give {wanted}: set both alike")
        for name, head in (("PtTransformerClsHead", self.cls_head), ("PtTransformerRegHead", self.reg_head)):
            if head.kernel_size % 2 == 0:
                raise UsageError(
                    f"{name}.kernel_size = {head.kernel_size} changes the sequence length: give an odd number"
                )
        for label in self.cls_head.empty_cls:
            if label >= self.cls_head.num_classes:
                raise UsageError(
                    f"PtTransformerClsHead.empty_cls names class {label}: num_classes is {self.cls_head.num_classes}"
                )
        if self.detector.heads != ("PtTransformerClsHead", "PtTransformerRegHead"):
            raise UsageError(
                f"Detector.heads = {self.detector.heads}: expected the classification head, then the regression head"
            )

    @property
    def fpn_levels(self) -> int:
        """Pyramid levels that the heads see: the stem's output and one per branch block, from start_level on."""
        return self.branch.block_n + 1 - self.neck.start_level

    @property
    def coarsest_stride(self) -> int:
        """Stride of the coarsest level; the time axis of the detector's input is a multiple of it."""
        return 2**self.branch.block_n

    @property
    def neck(self) -> FPNIdentitySettings:
        """The settings of the neck in use."""
        return self.fpn_1d if self.detector.neck == "FPN1D" else self.fpn_identity
