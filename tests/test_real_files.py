"""Every file of the folder of real data is read as what it is, or refused for what is wrong with it."""

import os
from pathlib import Path

import pytest

from rdfa.data.annotations import load_annotations
from rdfa.data.features import load_features
from rdfa.errors import RunError
from rdfa.inference.fusion import ClassScores
from rdfa.inference.results import read_results

ROOT = Path(os.environ.get("RDFA_DATA", "nowhere"))
pytestmark = pytest.mark.skipif("RDFA_DATA" not in os.environ, reason="RDFA_DATA is not set: no real data")


def class_scores(path):
    names = load_annotations(ROOT / "activitynet/activity_net.v1-3.reconstructed.json.gz").class_names
    return ClassScores(path, {} if "thumos14" in path.name else names, 20 if "thumos14" in path.name else 200)


def predictions(path):
    return read_results(path, {})[0]


READ = {
    "thumos14/thumos14.json.gz": load_annotations,
    "thumos14/thumos_14_anno.opentad.json.gz": load_annotations,
    "thumos14/thumos14_cls_scores.pkl": class_scores,
    "thumos14/predictions_a2net_af38.txt.gz": predictions,
    "thumos14/c3d_features/*.npy": load_features,
    "activitynet/activity_net.v1-3.reconstructed.json.gz": load_annotations,
    "activitynet/activity_net.v1-2.min.json.gz": load_annotations,
    "activitynet/sample_detection_prediction.json.gz": predictions,
    "activitynet/stale_best_score.json.gz": class_scores,
    "hacs/HACS_segments_readme_example.json": load_annotations,
    "hacs/hacs_val_top3_cls_scores.json.gz": class_scores,
    "ego4d/clip_annotations_split.json.gz": load_annotations,
    "gym_i3d/annotations.json": load_annotations,
    "gym_i3d/gt.json": load_annotations,
    "gym_i3d/i3d_features/*.npy": load_features,
    "gym_i3d/highjump.npy.gz": load_features,
    "mmaction2_eval_localization/gt.json": load_annotations,
    "mmaction2_eval_localization/result.json": predictions,
}
REFUSED = {
    # A configuration is pickled beside the tensor: loading it would run code.
    "features_i3d_video_features/*.pt": (load_features, "needs omegaconf.dictconfig.DictConfig to be unpickled"),
    # Tables, not annotations in one of the layouts.
    "epic_kitchens/EPIC_100_validation.csv.gz": (load_annotations, "not valid JSON"),
    # Lists of classes and frame rates, which name no actions.
    "activitynet/action_name.csv": (load_annotations, "not valid JSON"),
    "activitynet/action_label_mapping.json": (load_annotations, "no videos found"),
    "activitynet/video_fps.json.gz": (load_annotations, "no videos found"),
    "ego4d/ego4d_label_map.txt": (load_annotations, "not valid JSON"),
    "ego4d/moment_classes_idx.json": (load_annotations, "no videos found"),
}


def files(pattern):
    found = sorted(ROOT.glob(pattern))
    assert found, pattern
    return found


@pytest.mark.parametrize("pattern", READ)
def test_is_read(pattern):
    for path in files(pattern):
        READ[pattern](path)


@pytest.mark.parametrize("pattern", REFUSED)
def test_is_refused(pattern):
    load, reason = REFUSED[pattern]
    for path in files(pattern):
        with pytest.raises(RunError) as error:
            load(path)
        assert reason in str(error.value) and path.name in str(error.value) and "\n" not in str(error.value)


def test_no_file_is_left_out():
    known = {path for pattern in (*READ, *REFUSED) for path in files(pattern)}
    rest = {path.name for path in ROOT.rglob("*") if path.is_file() and path not in known}
    assert rest == {"README.md", "EXPECTED.json"}
