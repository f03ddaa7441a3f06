"""Real annotations and features through the commands, as a user meets them; needs RDFA_DATA."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import train
from rdfa import cli, detect
from rdfa.inference.results import read_results
from rdfa.run_dir import RunDirectory
from tests.data.factory import real, real_data
from tests.training.tiny import metrics

pytestmark = real_data

GIN = Path(__file__).parent.parent / "gin" / "thumos14.gin"


def flags(run_dir, annotations, features, *params):
    settings = (f"Dataset.annotation_file = '{annotations}'", f"Dataset.feature_dir = '{features}'", *params)
    return ["--gin_file", str(GIN), "--run_dir", str(run_dir), *(p for s in settings for p in ("--gin_param", s))]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """One epoch on 30 real I3D clips of 1 to 39 feature vectors, with a narrow detector."""
    run_dir = tmp_path_factory.mktemp("gym") / "run"
    params = [
        "FEATURE_DIM = 2048",
        "MAX_SEQ_LEN = 64",
        "EMB_C = 16",
        "Training.max_epochs = 1",
        "Loader.num_workers = 0",
    ]
    params += [f"Dataset.{subset}_subset = 'training'" for subset in ("train", "test")]
    params += ["Dataset.feat_stride = 64", "Dataset.num_frames = 64"]
    argv = flags(run_dir, real("gym_i3d/annotations.json"), real("gym_i3d/i3d_features"), *params)
    assert cli.run(train.main, argv) == 0
    return run_dir


def test_missing_features_of_thumos14_are_reported(tmp_path, capsys):
    argv = flags(tmp_path / "run", real("thumos14/thumos14.json.gz"), tmp_path)
    assert cli.run(train.main, argv) == 2
    out, err = capsys.readouterr()
    assert out == "Validation: 200 videos with 3,007 actions\nTest: 212 videos with 3,358 actions\n"
    assert err.startswith(f"error: 200 of 200 feature files of subset 'Validation' are missing in '{tmp_path}': video_")
    assert err.count("\n") == 1 and "check Dataset.feature_dir" in err
    assert not (tmp_path / "run").exists()


def test_one_missing_video_of_thumos14_is_named(tmp_path, capsys):
    path = real("thumos14/thumos14.json.gz")
    for number in range(1, 1001):
        np.save(tmp_path / f"video_validation_{number:07d}.npy", np.zeros((1, 3200), np.float32))
    (tmp_path / "video_validation_0000266.npy").unlink()
    assert cli.run(train.main, flags(tmp_path / "run", path, tmp_path)) == 2
    assert "1 of 200 feature files of subset 'Validation' are missing" in (err := capsys.readouterr().err)
    assert ": video_validation_0000266.*: check" in err
    # Told to go on without it, the next thing that is missing is reported: all of the test subset.
    argv = flags(tmp_path / "run", path, tmp_path, "Dataset.skip_missing = True")
    assert cli.run(train.main, argv) == 2
    warning, error = capsys.readouterr().err.splitlines()
    assert warning.startswith("warning: 1 of 200 feature files of subset 'Validation' are missing")
    assert error.startswith("error: 212 of 212 feature files of subset 'Test' are missing")


def test_an_epoch_on_real_clips(trained):
    (epoch,) = metrics(trained, "train")
    assert epoch["step"] == 15 and 0 < epoch["loss"] < 10 and epoch["reg_loss"] > 0
    assert len(metrics(trained, "eval")) == 1
    assert RunDirectory(trained).class_names()[1] == "bench press"


def test_detections_in_a_real_untrimmed_video(trained, tmp_path, capsys):
    """164 feature vectors, float64 in a .npy.gz, of a video whose id ends in .npy."""
    output, run_dir = tmp_path / "found.json", tmp_path / "run"
    shutil.copytree(trained, run_dir)
    config = run_dir / "config.gin"
    text = config.read_text()
    for name, frames in (("feat_stride", 4), ("num_frames", 16)):  # the clips of the training have one every 64 frames
        text = text.replace(f"Dataset.{name} = 64", f"Dataset.{name} = {frames}")
    config.write_text(text)
    argv = ["--features", real("gym_i3d/highjump.npy.gz"), "--annotations", real("gym_i3d/gt.json"), "--output", output]
    assert cli.run(detect.main, ["--run_dir", str(run_dir), *map(str, argv)]) == 0
    content = json.loads(output.read_text())
    assert content.keys() == {"version", "results", "external_data"} and list(content["results"]) == ["highjump.npy"]
    assert f"{len(content['results']['highjump.npy'])} detections in 1 videos" in capsys.readouterr().out
    # The clips name 15 of 20 classes; the others go by their numbers.
    names = {*map(str, range(20)), *RunDirectory(trained).class_names().values()}
    for entry in content["results"]["highjump.npy"]:
        start, end = entry["segment"]
        assert 0 <= start < end <= 24.0 and 0 < entry["score"] < 1 and entry["label"] in names
    read, _ = read_results(output, RunDirectory(trained).class_names())
    assert len(read["highjump.npy"].scores_N) == len(content["results"]["highjump.npy"]) > 0
