"""The command: from feature files to a result file, with a tiny detector; every way of naming videos; its refusals."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from rdfa import cli, detect, runtime
from rdfa.config import load
from rdfa.deploy.manifest import feature_spec
from rdfa.inference import detectors
from rdfa.inference.results import read_results
from rdfa.modeling.detector import build_detector
from rdfa.run_dir import point, write_checkpoint, write_config
from rdfa.runtime.session import Session

RDFA_DATA = os.environ.get("RDFA_DATA")
GIN = Path(__file__).parent.parent / "gin"
CHANNELS = 8
NAMES = {0: "Diving", 1: "HighJump", 2: "LongJump"}


def write_run(folder, *params):
    """A run directory with random weights, sure of what it sees."""
    torch.manual_seed(0)
    config = load([GIN / "tiny.gin"], ["Dataset.annotation_file = ''", "Dataset.feature_dir = ''", *params])
    detector = build_detector(config.model)
    torch.nn.init.zeros_(detector.cls_head.cls_head.conv.bias)
    write_config(folder, config, NAMES)
    write_checkpoint(folder, 1, detector.state_dict(), detector.state_dict(), {"epoch": 1})
    point(folder, "latest", 1)
    return folder


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run"), "PostProcessing.max_seg_num = 10")


def write_features(folder, **lengths):
    folder.mkdir(parents=True, exist_ok=True)
    for i, (name, length) in enumerate(lengths.items()):
        array = np.random.RandomState(i).standard_normal((length, CHANNELS)).astype(np.float32)
        np.save(folder / f"{name}.npy", array)
    return folder


@pytest.fixture
def files(tmp_path):
    """Two test videos and one for training: (features, annotations)."""
    write_features(tmp_path / "features", b=70, a=20, c=30)

    def video(subset, **fields):
        # A class that the detector does not have: annotated actions must not matter here.
        return {"subset": subset, "annotations": [{"segment": [0, 1], "label": "Yoga", "label_id": 77}], **fields}

    database = {
        "v_b": video("Test", fps=10.0, duration=30.0),
        "v_a": video("Test", fps=10.0, duration=5.0),
        "v_c": video("Validation", fps=10.0),
    }
    (tmp_path / "a.json").write_text(json.dumps({"database": database}))
    return tmp_path / "features", tmp_path / "a.json"


def found_by(run_dir, output, *flags):
    detect.main(["--run_dir", str(run_dir), "--output", str(output), *map(str, flags)])
    found, names = read_results(output, NAMES)
    assert names == NAMES
    return found


def test_the_test_subset_in_the_order_of_the_annotations(run_dir, files, tmp_path, capsys):
    features, annotations = files
    found = found_by(run_dir, tmp_path / "p.json", "--features", features, "--annotations", annotations)
    assert list(found) == ["v_b", "v_a"]
    assert [len(d) for d in found.values()] == [10, 10]
    assert 5.0 < found["v_b"].segments_N2.max() <= 30.0
    assert found["v_a"].segments_N2.min() >= 0.0 and found["v_a"].segments_N2.max() <= 5.0
    assert "20 detections in 2 videos" in capsys.readouterr().out


@pytest.mark.parametrize("batch_size", [1, 2])
def test_any_subset_and_batch_size(run_dir, files, tmp_path, batch_size):
    features, annotations = files
    write_features(features, d=25)
    flags = ["--features", features, "--annotations", annotations, "--subset", "validation", "--batch_size", batch_size]
    assert list(found_by(run_dir, tmp_path / "p.json", *flags)) == ["v_c"]


def test_without_annotations_every_file_is_a_video(run_dir, files, tmp_path):
    features, _ = files
    (features / "readme.txt").write_text("not features")
    found = found_by(run_dir, tmp_path / "p.json.gz", "--features", features, "--fps", 10, "--batch_size", 2)
    assert list(found) == ["a", "b", "c"]
    # 70 clips, one every 4 frames, of 16 frames
    assert found["b"].segments_N2.max() <= (69 * 4 + 16) / 10
    one = found_by(run_dir, tmp_path / "p.json", "--features", features / "b.npy", "--fps", 10)
    assert list(one) == ["b"]
    np.testing.assert_allclose(one["b"].scores_N, found["b"].scores_N, rtol=1e-4)


def test_a_single_file_is_found_in_any_subset(run_dir, files, tmp_path):
    features, annotations = files
    found = found_by(run_dir, tmp_path / "p.json", "--features", features / "c.npy", "--annotations", annotations)
    assert list(found) == ["v_c"]


def test_the_frame_rate_given_replaces_the_annotated(run_dir, files, tmp_path):
    features, annotations = files
    flags = ["--features", features / "c.npy", "--annotations", annotations]
    slow = found_by(run_dir, tmp_path / "p.json", *flags)["v_c"]
    fast = found_by(run_dir, tmp_path / "p.json", *flags, "--fps", 20)["v_c"]
    np.testing.assert_allclose(fast.segments_N2, slow.segments_N2 / 2, rtol=1e-6)


def test_class_scores_are_fused_and_declared(run_dir, files, tmp_path):
    features, annotations = files
    (tmp_path / "s.json").write_text(json.dumps({"a": [0.0, 0.25, 0.0], "b": [0.5, 0.0, 0.0]}))
    flags = ["--features", features, "--annotations", annotations, "--ext_score_file", tmp_path / "s.json"]
    found = found_by(run_dir, tmp_path / "p.json", *flags)
    assert {i: set(d.labels_N.tolist()) for i, d in found.items()} == {"v_b": {0}, "v_a": {1}}
    declared = json.loads((tmp_path / "p.json").read_text())["external_data"]
    assert declared == {"used": True, "details": "class scores s.json"}


@pytest.fixture(scope="module")
def agnostic_run(tmp_path_factory):
    """A detector that does not tell classes apart, of resized videos."""
    one_class = ["Dataset.class_agnostic = True", "PtTransformerClsHead.num_classes = 1", "Dataset.resize = True"]
    return write_run(tmp_path_factory.mktemp("run"), "PostProcessing.max_seg_num = 10", *one_class)


def test_a_class_agnostic_detector_finds_actions_and_class_scores_name_them(agnostic_run, files, tmp_path):
    features, annotations = files
    flags = ["--run_dir", str(agnostic_run), "--features", str(features), "--annotations", str(annotations)]
    detect.main([*flags, "--fps", "10", "--output", str(tmp_path / "p.json")])
    results = json.loads((tmp_path / "p.json").read_text())["results"]
    assert {entry["label"] for found in results.values() for entry in found} == {"action"}
    (tmp_path / "s.json").write_text(
        json.dumps({"results": {"a": [0.5, 0.0], "b": [0.2, 0.7]}, "class": ["LongJump", "Diving"]})
    )
    found = found_by(agnostic_run, tmp_path / "q.json", *flags[2:], "--ext_score_file", tmp_path / "s.json")
    # Seconds need no frame rate: the videos were resized, and have durations.
    assert {i: set(d.labels_N.tolist()) for i, d in found.items()} == {"v_b": {0, 2}, "v_a": {2}}
    assert 5.0 < found["v_b"].segments_N2.max() <= 30.0
    (tmp_path / "s.json").write_text(json.dumps({"a": [0.5, 0.0, 0.1]}))
    flags += ["--ext_score_file", str(tmp_path / "s.json"), "--output", str(tmp_path / "r.json")]
    assert cli.run(detect.main, flags) == 2 and not (tmp_path / "r.json").exists()


def test_a_class_agnostic_artifact_takes_the_names_of_the_class_scores(agnostic_run, files, tmp_path, monkeypatch):
    features, annotations = files
    source = detectors.open_run(str(agnostic_run), "cpu")

    def call(features, mask):
        with torch.inference_mode():
            return [o.numpy() for o in source.runner.forward(torch.from_numpy(features), torch.from_numpy(mask))]

    text = (agnostic_run / "config.gin").read_text()
    manifest = {"config": text, "classes": ["action"], "features": feature_spec(source.config)}
    monkeypatch.setattr(runtime, "load", lambda path, name, **kind: Session(manifest, name, "cpu", call))
    (tmp_path / "s.json").write_text(
        json.dumps({"a": {"class": "Yoga", "score": 0.5}, "b": {"class": "Polo", "score": 1}})
    )
    flags = ["--artifact", "OUT", "--backend", "eager", "--features", str(features), "--annotations", str(annotations)]
    detect.main([*flags, "--ext_score_file", str(tmp_path / "s.json"), "--output", str(tmp_path / "p.json")])
    results = json.loads((tmp_path / "p.json").read_text())["results"]
    assert {i: {entry["label"] for entry in found} for i, found in results.items()} == {
        "v_a": {"Yoga"},
        "v_b": {"Polo"},
    }


def test_features_in_one_hdf5_file_and_in_two_folders(run_dir, files, tmp_path):
    h5py = pytest.importorskip("h5py")
    features, annotations = files
    with h5py.File(tmp_path / "all.h5", "w") as file:
        for path in features.iterdir():
            file[f"v_{path.stem}"] = np.load(path)
    expected = found_by(run_dir, tmp_path / "p.json", "--features", features, "--annotations", annotations)
    flags = ["--features", tmp_path / "all.h5"]
    found = found_by(run_dir, tmp_path / "q.json", *flags, "--annotations", annotations)
    assert list(found) == list(expected)
    np.testing.assert_array_equal(found["v_a"].scores_N, expected["v_a"].scores_N)
    assert list(found_by(run_dir, tmp_path / "q.json", *flags, "--fps", 10)) == ["v_a", "v_b", "v_c"]
    halves = [tmp_path / "rgb", tmp_path / "flow"]
    for folder, columns in zip(halves, (slice(None, 5), slice(5, None))):
        folder.mkdir()
        for path in features.iterdir():
            np.save(folder / path.name, np.load(path)[:, columns])
    found = found_by(run_dir, tmp_path / "q.json", "--features", *halves, "--annotations", annotations)
    np.testing.assert_array_equal(found["v_b"].scores_N, expected["v_b"].scores_N)
    assert list(found_by(run_dir, tmp_path / "q.json", "--features", *halves, "--fps", 10)) == ["a", "b", "c"]


def test_an_artifact_is_run_by_the_first_backend_that_can(run_dir, files, tmp_path, monkeypatch):
    features, _ = files
    source = detectors.open_run(str(run_dir), "cpu")

    def call(features, mask):
        with torch.inference_mode():
            return [o.numpy() for o in source.runner.forward(torch.from_numpy(features), torch.from_numpy(mask))]

    text = (run_dir / "config.gin").read_text()
    manifest = {"config": text, "classes": list(NAMES.values()), "features": feature_spec(source.config)}
    loaded = []
    monkeypatch.setattr(runtime, "availability", lambda path, dtype: {"torchscript": "no torch", "onnxruntime": None})
    monkeypatch.setattr(
        runtime,
        "load",
        lambda path, name, **kind: (loaded.append((path, name)), Session(manifest, name, "cpu", call))[1],
    )
    flags = ["--features", str(features), "--fps", "10", "--output", str(tmp_path / "p.json")]
    detect.main(["--artifact", "OUT", *flags])
    detect.main(["--artifact", "OUT", "--backend", "eager", *flags])
    assert loaded == [("OUT", "onnxruntime"), ("OUT", "eager")]
    by_artifact, _ = read_results(tmp_path / "p.json", NAMES)
    by_run = found_by(run_dir, tmp_path / "q.json", "--features", features, "--fps", 10)
    for video_id, found in by_run.items():
        np.testing.assert_array_equal(found.segments_N2, by_artifact[video_id].segments_N2)

    monkeypatch.setattr(runtime, "availability", lambda path, dtype: {"torchscript": "no torch", "onnxruntime": "none"})
    assert cli.run(detect.main, ["--artifact", "OUT", *flags]) == 2


def spoil(features, kind):
    array = np.load(features / "a.npy")
    if kind == "nan":
        array[3, 2] = np.nan
    changed = {"dimension": array[:, :5], "empty": array[:0]}.get(kind, array)
    np.save(features / "a.npy", changed)
    if kind == "truncated":
        data = (features / "a.npy").read_bytes()
        (features / "a.npy").write_bytes(data[: len(data) // 2])
    if kind == "missing":
        (features / "a.npy").unlink()


@pytest.mark.parametrize(
    ("kind", "code", "message"),
    [
        ("dimension", 1, "expected 8 channels"),
        ("nan", 1, "not finite"),
        ("empty", 1, "no clips"),
        ("truncated", 1, "damaged"),
        ("missing", 2, "1 of 2 feature files are missing"),
    ],
)
def test_bad_features_are_one_line_and_leave_no_result(run_dir, files, tmp_path, capsys, kind, code, message):
    features, annotations = files
    spoil(features, kind)
    flags = ["--features", str(features), "--annotations", str(annotations), "--output", str(tmp_path / "p.json")]
    assert cli.run(detect.main, ["--run_dir", str(run_dir), *flags]) == code
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1 and message in lines[0]
    assert ("v_a.*" if kind == "missing" else "features/a.npy") in lines[0]
    assert not (tmp_path / "p.json").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--features", "nowhere"], "no such file or folder"),
        (["--features", "features"], "give --fps"),
        (["--features", "nothing", "--fps", "30"], "no feature file"),
        (["--features", "features", "--annotations", "nofps.json"], "no fps"),
        (["--features", "features", "--annotations", "a.json", "--subset", "Tset"], "did you mean 'Test'"),
        (["--features", "other.npy", "--annotations", "a.json"], "belongs to none of 3 videos"),
        (["--features", "features", "--fps", "30", "--device", "cuda"], "finds no GPU"),
        (["--features", "features", "--fps", "30", "--ext_score_file", "nowhere.json"], "cannot read nowhere.json"),
    ],
)
def test_wrong_invocations_are_one_line(run_dir, files, tmp_path, capsys, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    Path("nothing").mkdir()
    np.save("other.npy", np.zeros((4, CHANNELS), np.float32))
    Path("nofps.json").write_text(json.dumps({"database": {"v_a": {"subset": "Test", "annotations": []}}}))
    assert cli.run(detect.main, ["--run_dir", str(run_dir), "--output", "p.json", *flags]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error:") and message in error


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "one of the arguments --artifact --run_dir is required"),
        (["--artifact", "OUT", "--run_dir", "RUN"], "not allowed with argument --artifact"),
        (["--run_dir", "RUN", "--backend", "eager"], "--backend chooses what runs an --artifact"),
        (["--run_dir", "RUN", "--batch_size", "0"], "--batch_size 0: give at least 1"),
        (["--run_dir", "RUN", "--fps", "nan"], "--fps nan: give a positive number"),
    ],
)
def test_flags_that_contradict_each_other_exit_2(flags, message, capsys):
    assert cli.run(detect.main, ["--features", "x", "--output", "p.json", *flags]) == 2
    assert message in capsys.readouterr().err


def test_help_shows_a_command_to_paste(capsys):
    with pytest.raises(SystemExit, match="0"):
        detect.main(["--help"])
    assert "python -m rdfa.detect --artifact OUT" in capsys.readouterr().out


@pytest.mark.skipif(not RDFA_DATA, reason="needs RDFA_DATA")
def test_a_real_untrimmed_video(tmp_path):
    """164 clips of I3D features, float64 and compressed, whose id ends in .npy."""
    root = Path(RDFA_DATA, "gym_i3d")
    run = write_run(tmp_path / "run", "EmbeddingModule.input_c = 2048", "Dataset.feat_stride = 4")
    flags = ["--features", root / "highjump.npy.gz", "--annotations", root / "gt.json"]
    found = found_by(run, tmp_path / "p.json", *flags)
    assert list(found) == ["highjump.npy"]
    assert len(found["highjump.npy"]) > 0
    assert found["highjump.npy"].segments_N2.max() <= 24.0
