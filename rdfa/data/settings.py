"""Settings of annotations, features and batching, named and defaulted as in the published ``dataset.yaml``."""

import math
from dataclasses import dataclass

from rdfa.errors import UsageError
from rdfa.settings import Settings, setting


@dataclass(frozen=True)
class DatasetSettings(Settings):
    """Where annotations and features are, how they are named and sampled."""

    num_classes: int = setting(20, ge=1, doc="classes of the benchmark")
    class_agnostic: bool = setting(False, doc="detect actions of any class; external class scores name them")
    annotation_file: str = setting("", doc="anno_info.format.file_path")
    feature_dir: str | tuple[str, ...] = setting("", doc="folder or HDF5 file; a list: joined along channels")
    feature_prefix: str = setting("", doc="file name: prefix + video id + type + ext")
    feature_type: str | tuple[str, ...] = setting("", doc="a list: several files per video, joined along channels")
    feature_ext: str = setting("", doc="one of rdfa.data.features.EXTENSIONS; empty: whichever exists")
    exclude: tuple[str, ...] = setting((), doc="videos left out of training and evaluation")
    skip_missing: bool = setting(False, doc="go on without the videos whose feature file is missing")
    train_subset: str = setting("Validation", doc="subset of the annotations to train on (any spelling)")
    test_subset: str = setting("Test", doc="subset of the annotations to evaluate on (any spelling)")
    feat_stride: int = setting(4, ge=1, doc="frames between two feature vectors")
    downsample_rate: int = setting(1, ge=1, doc="keep every n-th feature vector")
    num_frames: int = setting(16, ge=1, doc="frames that one feature vector covers")
    default_fps: float | None = setting(None, gt=0.0, doc="frame rate of all videos; None: that of the annotations")
    resize: bool = setting(False, doc="bring each video to max_seq_len clips, by linear interpolation")
    max_seq_len: int = setting(2304, ge=1, doc="length of a training sequence, and the least length in evaluation")
    trunc_thresh: float = setting(0.5, ge=0.0, le=1.0, doc="least part of an action that a crop must keep")
    crop_ratio: tuple[float, float] | None = setting((0.9, 1.0), gt=0.0, le=1.0, doc="random crop of short videos")

    def __post_init__(self):
        super().__post_init__()
        if self.crop_ratio is not None and self.crop_ratio[0] > self.crop_ratio[1]:
            raise UsageError(f"Dataset.crop_ratio = {self.crop_ratio}: the lower end is above the upper one")
        if self.resize and self.downsample_rate != 1:
            raise UsageError(f"Dataset.downsample_rate = {self.downsample_rate}: must be 1 with Dataset.resize = True")
        folders, types = _listed(self.feature_dir), _listed(self.feature_type)
        counts = {len(folders), len(types)}
        if 0 in counts or (len(counts) > 1 and 1 not in counts):
            raise UsageError(
                f"Dataset.feature_dir = {self.feature_dir!r}, feature_type = {self.feature_type!r}: "
                "give lists of one length, or only one of them"
            )

    @property
    def streams(self) -> list[tuple[str, str]]:
        """(folder, type) of each of the files that hold a video's features, in the order of their channels."""
        folders, types = _listed(self.feature_dir), _listed(self.feature_type)
        count = max(len(folders), len(types))
        return list(zip(folders * (count // len(folders)), types * (count // len(types))))

    @property
    def grid(self) -> tuple[int, int]:
        """Frames from one position of the feature grid to the next, and frames that one covers.

        A resized video counts as one of `max_seq_len` frames, one per position, and its frame rate is `max_seq_len`
        over its duration: positions are then (x + 0.5) duration / max_seq_len seconds, whatever the clips were.
        """
        return (1, 1) if self.resize else (self.feat_stride * self.downsample_rate, self.num_frames)


def _listed(value: str | tuple[str, ...]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else value


@dataclass(frozen=True)
class LoaderSettings(Settings):
    """Batching."""

    pin_memory: bool = setting(False)
    num_workers: int = setting(20, ge=0, doc="0: load in the main process")
    seed: int = setting(1234567891, ge=0, lt=2**64)
    batch_size: int = setting(2, ge=1, doc="videos per step of the optimiser, of all processes together")
    padding_value: float = setting(0.0)
    max_div_factor: int = setting(1, ge=1, doc="pad longer videos to a multiple of this and of the coarsest stride")

    def padding_multiple(self, coarsest_stride: int) -> int:
        """What the padded length of a video longer than max_seq_len is a multiple of."""
        return math.lcm(self.max_div_factor, coarsest_stride)
