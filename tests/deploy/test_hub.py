"""A published folder: its model card, and that it detects what the run detects, as a run and as an artifact."""

import json

import pytest
import torch
import yaml

from rdfa import cli, convert, detect
from rdfa.deploy import export
from rdfa.run_dir import RunDirectory, load_detector
from tests.test_detect import NAMES, write_features, write_run


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    params = [
        "Dataset.feature_dir = '/home/me/secret/i3d'",
        "Dataset.annotation_file = '/home/me/secret/thumos14.json'",
    ]
    run = write_run(tmp_path_factory.mktemp("run"), "PostProcessing.max_seg_num = 10", *params)
    rows = [{"kind": "eval", "epoch": e, "step": s, "mAP": 0.1 * e, "mAP@0.5": 0.2 * e} for e, s in ((1, 1), (2, 2))]
    being_written = '{"kind": "ev'
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + being_written)
    return run


@pytest.fixture(scope="module")
def folder(run_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "my-model"
    flags = ["--to", "safetensors", "--run_dir", str(run_dir), "--output", str(folder), "--license", "apache-2.0"]
    assert cli.run(convert.main, flags) == 0
    return folder


def test_paths_of_class_scores_lose_their_folders_too(tmp_path):
    run = write_run(tmp_path / "run", "PostProcessing.ext_score_file = '/home/me/secret/scores.json'")
    convert.main(["--to", "safetensors", "--run_dir", str(run), "--output", str(tmp_path / "x")])
    assert RunDirectory(tmp_path / "x").config().post.ext_score_file == "scores.json"
    assert "/home/me" not in (tmp_path / "x" / "manifest.json").read_text()


def header(folder):
    _, text, body = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(text), body


def test_the_folder_holds_what_a_hub_expects(folder):
    assert {path.name for path in folder.iterdir()} == {
        "README.md", "config.gin", "classes.json", "model.safetensors", "manifest.json",
    }  # fmt: skip
    for name in ("config.gin", "manifest.json", "README.md"):
        assert "/home/me" not in (folder / name).read_text()
    assert RunDirectory(folder).config().dataset.feature_dir == "i3d"


def test_the_card_has_the_figures_of_the_published_checkpoint(folder):
    facts, body = header(folder)
    assert (facts["library_name"], facts["license"]) == ("rdfa-s6", "apache-2.0")
    (model,) = facts["model-index"]
    assert model["name"] == "my-model"
    (result,) = model["results"]
    assert result["dataset"] == {"type": "thumos14", "name": "thumos14", "split": "Test"}
    assert [(m["name"], m["value"]) for m in result["metrics"]] == [("mAP", 0.1), ("mAP@0.5", 0.2)]
    assert "| mAP@0.5 | 0.2000 |" in body and "3: Diving, HighJump, LongJump" in body
    assert json.loads((folder / "manifest.json").read_text())["files"]["model.safetensors"]["sha256"] in body


def test_figures_of_an_evaluation_replace_those_of_training(run_dir, tmp_path, capsys):
    (tmp_path / "m.json").write_text(json.dumps({"tiou": [0.5, 0.75], "mAP": [0.5, 0.25], "average_mAP": 0.375}))
    flags = ["--to", "safetensors", "--run_dir", str(run_dir), "--output", str(tmp_path / "x")]
    convert.main([*flags, "--metrics", str(tmp_path / "m.json")])
    metrics = header(tmp_path / "x")[0]["model-index"][0]["results"][0]["metrics"]
    assert [m["value"] for m in metrics] == [0.375, 0.5, 0.25]
    (tmp_path / "m.json").write_text("{}")
    assert cli.run(convert.main, [*flags, "--metrics", str(tmp_path / "m.json")]) == 1
    assert "holds no metrics" in capsys.readouterr().err


def test_it_detects_what_the_run_detects(run_dir, folder, tmp_path):
    features = write_features(tmp_path / "features", a=20, b=70)
    flags = ["--features", str(features), "--fps", "10"]
    outputs = []
    for i, source in enumerate((["--run_dir", run_dir], ["--run_dir", folder], ["--artifact", folder])):
        outputs.append(tmp_path / f"{i}.json")
        detect.main([*map(str, source), *flags, "--output", str(outputs[-1])])
    assert outputs[0].read_bytes() == outputs[1].read_bytes() == outputs[2].read_bytes()
    assert RunDirectory(folder).class_names() == NAMES


def test_it_can_be_exported_and_published_again(run_dir, folder, tmp_path):
    manifest = export(folder, tmp_path / "artifact", formats=("torchscript",))
    assert manifest["files"]["detector.ts.pt"]["parity"]
    convert.main(["--to", "safetensors", "--run_dir", str(folder), "--output", str(tmp_path / "again")])
    expected, _ = load_detector(run_dir)
    for source in (folder, tmp_path / "again"):
        for name, tensor in load_detector(source)[0].state_dict().items():
            assert torch.equal(tensor, expected.state_dict()[name])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--to", "safetensors"], "give --run_dir"),
        (["--run_dir", "RUN"], "--model_yaml and --checkpoint"),
        (["--model_yaml", "m", "--checkpoint", "c", "--metrics", "m"], "give --to safetensors"),
        (["--to", "safetensors", "--run_dir", "nowhere"], "nowhere is not a run directory"),
    ],
)
def test_contradictions_are_one_line(flags, message, tmp_path, capsys):
    assert cli.run(convert.main, [*flags, "--output", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
