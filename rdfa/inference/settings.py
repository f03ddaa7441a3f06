"""Settings of decoding and non-maximum suppression, named and defaulted as in the published ``engine.yaml``."""

from dataclasses import dataclass

from rdfa.settings import Settings, setting


@dataclass(frozen=True)
class PostProcessingSettings(Settings):
    """From raw outputs to final detections."""

    pre_nms_thresh: float = setting(0.001, ge=0.0, lt=1.0, doc="least class score of a candidate")
    pre_nms_topk: int = setting(2000, ge=1, doc="candidates kept per pyramid level")
    duration_thresh: float = setting(0.05, ge=0.0, doc="least duration of a candidate, on the feature grid")
    nms_method: str = setting("soft", choices=("soft", "hard", "none"))
    iou_threshold: float = setting(0.1, ge=0.0, le=1.0, doc="hard NMS only; the Gaussian soft NMS has no threshold")
    min_score: float = setting(0.001, ge=0.0, lt=1.0, doc="soft NMS drops candidates whose score decays below it")
    max_seg_num: int = setting(200, ge=1, doc="detections kept per class and per video")
    multiclass_nms: bool = setting(True, doc="suppress within each class; otherwise across classes")
    nms_sigma: float = setting(0.5, gt=0.0, doc="width of the Gaussian of soft NMS")
    voting_thresh: float = setting(
        0.7, ge=0.0, le=1.0, doc="class-agnostic NMS: overlap of segments to average; 0: off"
    )
    ext_score_file: str | None = setting(None, doc="external video-level class scores to fuse with")
