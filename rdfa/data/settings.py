"""Settings of annotations, features and batching, named and defaulted as in the published ``dataset.yaml``."""

from dataclasses import dataclass

from rdfa.errors import UsageError
from rdfa.settings import Settings, setting


@dataclass(frozen=True)
class DatasetSettings(Settings):
    """Where annotations and features are, how they are named and sampled."""

    num_classes: int = setting(20, ge=1, doc="classes of the benchmark")
    annotation_file: str = setting("", doc="anno_info.format.file_path")
    feature_dir: str = setting("", doc="feat_info.format.dir_path")
    feature_prefix: str = setting("", doc="file name: prefix + video id + type + ext")
    feature_type: str = setting("")
    feature_ext: str = setting("", doc="'.npy', '.pt' or '.npy.gz'; empty: whichever exists")
    skip_missing: bool = setting(False, doc="go on without the videos whose feature file is missing")
    train_subset: str = setting("Validation", doc="subset of the annotations to train on (any case)")
    test_subset: str = setting("Test", doc="subset of the annotations to evaluate on (any case)")
    feat_stride: int = setting(4, ge=1, doc="frames between two feature vectors")
    downsample_rate: int = setting(1, ge=1, doc="keep every n-th feature vector")
    num_frames: int = setting(16, ge=1, doc="frames that one feature vector covers")
    default_fps: float | None = setting(None, gt=0.0, doc="frame rate of all videos; None: that of the annotations")
    max_seq_len: int = setting(2304, ge=1, doc="length of a training sequence, and the least length in evaluation")
    trunc_thresh: float = setting(0.5, ge=0.0, le=1.0, doc="least part of an action that a crop must keep")
    crop_ratio: tuple[float, float] | None = setting((0.9, 1.0), gt=0.0, le=1.0, doc="random crop of short videos")

    def __post_init__(self):
        super().__post_init__()
        if self.crop_ratio is not None and self.crop_ratio[0] > self.crop_ratio[1]:
            raise UsageError(f"Dataset.crop_ratio = {self.crop_ratio}: the lower end is above the upper one")


@dataclass(frozen=True)
class LoaderSettings(Settings):
    """Batching."""

    pin_memory: bool = setting(False)
    num_workers: int = setting(20, ge=0, doc="0: load in the main process")
    seed: int = setting(1234567891, ge=0)
    batch_size: int = setting(2, ge=1)
    padding_value: float = setting(0.0)
    max_div_factor: int = setting(1, ge=1, doc="pad longer videos to a multiple of this and of the coarsest stride")
