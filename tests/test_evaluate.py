"""The command: figures of real data sets, the file and table it writes, and its refusals."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from rdfa import cli, evaluate
from rdfa.errors import UsageError

RDFA_DATA = os.environ.get("RDFA_DATA")
GOLDEN = Path(__file__).parent / "golden" / "eval_map.json"


def write(path, content):
    path.write_text(json.dumps(content))
    return str(path)


@pytest.fixture
def files(tmp_path):
    """Two videos, two classes; one prediction right, one of an unknown class, one in an unknown video."""

    def video(subset, *annotations):
        rows = [{"segment": segment, "label": name, "label_id": label} for segment, name, label in annotations]
        return {"subset": subset, "duration": 20.0, "fps": 30.0, "annotations": rows}

    database = {
        "v_a": video("Test", ([0, 10], "Diving", 0), ([0, 10], "Diving", 0), ([5, 9], "HighJump", 4)),
        "v_b": video("Validation", ([0, 10], "Diving", 0)),
    }
    results = {
        "a": [{"label": "Diving", "score": 0.9, "segment": [0, 9]}, {"label": "Yoga", "score": 0.8, "segment": [0, 9]}],
        "c": [{"label": "HighJump", "score": 0.7, "segment": [5, 9]}],
    }
    truth = write(tmp_path / "truth.json", {"database": database})
    return ["--ground_truth", truth, "--predictions", write(tmp_path / "p.json", {"results": results})]


def test_table_file_and_warning(files, tmp_path, capsys):
    output = tmp_path / "new" / "m.json"
    evaluate.main([*files, "--subset", "tesT", "--tiou", "0.5:0.95:2", "--output", str(output)])
    assert json.loads(output.read_text()) == {
        "tiou": [0.5, 0.95],
        "mAP": [0.5, 0.0],
        "average_mAP": 0.25,
        "per_class": {"Diving": [1.0, 0.0], "HighJump": [0.0, 0.0]},
        "recall": {"1x": [0.5, 0.0], "5x": [0.5, 0.0]},
        "num_ground_truth": 2,
        "num_predictions": 3,
    }
    printed, warned = capsys.readouterr()
    assert "0.25000000" in printed and "2 ground-truth segments, 3 predictions" in printed
    assert warned.count("\n") == 1
    assert "1 predictions of 'Yoga' without ground truth left out" in warned
    assert "1 predictions in videos without ground truth ('c') count as false" in warned


def test_keep_duplicates(files, tmp_path):
    output = tmp_path / "m.json"
    evaluate.main([*files, "--subset", "Test", "--tiou", "0.5", "--keep_duplicates", "--output", str(output)])
    figures = json.loads(output.read_text())
    assert (figures["num_ground_truth"], figures["per_class"]["Diving"]) == (3, [0.5])


@pytest.mark.parametrize(
    ("extra", "code", "message"),
    [
        ([], 2, "subsets Test, Validation: choose one"),
        (["--subset", "Tset"], 2, "did you mean 'Test'"),
        (["--subset", "Test", "--tiou", "a:b:c"], 2, "0.3:0.7:5"),
        (["--subset", "Test", "--tiou", "0:1:5"], 2, "each above 0"),
        (["--subset", "Test", "--predictions", "nowhere.json"], 2, "cannot read nowhere.json"),
        (["--subset", "Test", "--ground_truth", "nowhere.json"], 2, "nowhere.json"),
        (["--subset", "Test", "--timeline", "t.png", "--video", "v_x"], 2, "--video 'v_x' is not in the subset"),
        (["--subset", "Test", "--predictions", __file__], 1, "test_evaluate.py"),
    ],
)
def test_refusals_are_one_line(files, extra, code, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.run(evaluate.main, [*files, *extra]) == code
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(error) == 1 and message in error[0]


def test_a_video_needs_a_timeline(files):
    with pytest.raises(UsageError, match="--video chooses the video of --timeline"):
        evaluate.main([*files, "--video", "v_a"])


def test_timeline(files, tmp_path, capsys):
    for extra in ([], ["--video", "a"]):
        picture = tmp_path / "t.png"
        evaluate.main([*files, "--subset", "Test", "--timeline", str(picture), *extra])
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert "timeline of v_a" in capsys.readouterr().out
        picture.unlink()


@pytest.mark.parametrize(
    ("text", "thresholds"), [("0.3:0.7:5", [0.3, 0.4, 0.5, 0.6, 0.7]), ("0.5", [0.5]), ("0.5,0.75", [0.5, 0.75])]
)
def test_thresholds(text, thresholds):
    np.testing.assert_allclose(evaluate.parse_tiou(text), thresholds, rtol=1e-15)


@pytest.mark.parametrize("text", ["", "0.3:0.7", "0.3:0.7:x", "0.3:0.7:-1", "half"])
def test_thresholds_that_are_none(text):
    with pytest.raises(UsageError, match="--tiou"):
        evaluate.parse_tiou(text)


def test_golden_files_pass_through_the_command(tmp_path):
    """The published evaluator's input, annotations and columns of predictions, as files."""
    case = next(c for c in json.loads(GOLDEN.read_text()) if c["kind"] == "emptyvid")
    command = ["--ground_truth", write(tmp_path / "g.json", case["gt"]), "--subset", case["split"]]
    command += ["--predictions", write(tmp_path / "p.json", case["predictions"]), "--output", str(tmp_path / "m.json")]
    evaluate.main([*command, "--tiou", ",".join(map(repr, case["tiou_thresholds"]))])
    figures = json.loads((tmp_path / "m.json").read_text())
    np.testing.assert_allclose(figures["mAP"], case["mAP"], atol=1e-6)
    assert figures["num_ground_truth"] == case["n_gt"]


ANET = "activitynet/activity_net.v1-3.reconstructed.json.gz"
SAMPLE = "activitynet/sample_detection_prediction.json.gz"
MMACTION = "mmaction2_eval_localization"


@pytest.mark.skipif(not RDFA_DATA, reason="needs RDFA_DATA")
@pytest.mark.parametrize(
    ("truth", "predictions", "options", "path"),
    [
        (f"{MMACTION}/gt.json", f"{MMACTION}/result.json", [], (MMACTION,)),
        (ANET, SAMPLE, ["--subset", "Validation"], ("activitynet_sample_detection_prediction", "rdfa_s6_code")),
        (ANET, SAMPLE, ["--subset", "val"], ("activitynet_sample_detection_prediction", "actionformer_code")),
        (
            ANET,
            SAMPLE,
            ["--subset", "validation", "--keep_duplicates"],
            ("activitynet_sample_detection_prediction", "official_code_no_dedup"),
        ),
    ],
    ids=["mmaction2", "activitynet", "activitynet-actionformer", "activitynet-official"],
)
def test_gives_the_figures_of_independent_evaluators(truth, predictions, options, path, tmp_path, capsys):
    root = Path(RDFA_DATA)
    expected = json.loads((root / "EXPECTED.json").read_text())
    for key in path:
        expected = expected[key]
    if not isinstance(expected, dict):
        expected = {"average_mAP": expected, "mAP": [expected] * 10}
    named = {name.partition(" ")[0].removeprefix("published_"): value for name, value in expected.items()}
    per_threshold = named.get("mAP", named.get("published"))
    options = [*options, "--tiou", "0.5:0.95:10"]
    output = tmp_path / "m.json"
    command = ["--ground_truth", str(root / truth), "--predictions", str(root / predictions), "--output", str(output)]
    evaluate.main([*command, *options])
    figures = json.loads(output.read_text())
    average = named.get("average_mAP", named.get("average"))
    np.testing.assert_allclose(figures["mAP"], per_threshold, atol=1e-6)
    assert figures["average_mAP"] == pytest.approx(average, abs=1e-6)
    if "recall@1x,5x" in named:
        recall = np.array([figures["recall"]["1x"], figures["recall"]["5x"]])
        np.testing.assert_allclose(recall.T, named["recall@1x,5x"], atol=1e-6)
    printed = next(line for line in capsys.readouterr().out.splitlines() if "average" in line)
    assert float(printed.split("│")[2]) == pytest.approx(average, abs=1e-6)
