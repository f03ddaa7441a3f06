"""Files in int8: what passes the gate, what is written of it, and what does not pass."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import export
from ops import library
from rdfa import cli, config, deploy, runtime
from rdfa.deploy import form, map_gate, verify
from rdfa.deploy import manifest as manifests
from rdfa.errors import RunError, UsageError
from rdfa.evaluation import given_set
from tests.deploy import artifacts

if not library.loaded():
    pytest.skip(f"TorchScript needs the native library: {library.REMEDY}", allow_module_level=True)


@pytest.fixture
def maps(monkeypatch):
    """Gives the mAP of float32, then those of the files."""
    values = []
    monkeypatch.setattr(given_set.OpenedSet, "average_map", lambda *arguments: values.pop(0))
    return values


def pass_tiny(max_loss):
    """What the gate writes of one file."""
    made = artifacts.tiny_config()
    manifest = manifests.describe(made, ["a", "b", "c"], {}) | {"files": {"x": {}}}
    gate = map_gate.MapGate(artifacts.given_set(), max_loss)
    videos = given_set.OpenedSet(gate.given, made)
    map_gate.pass_files(gate, videos, made.post, manifest, None, {"x": None}, lambda step: None)
    return manifest["files"]["x"]["map_gate"]


def test_manifest_holds_the_mean_average_precision_of_both():
    path = artifacts.int8_artifact()
    entry = json.loads((path / "manifest.json").read_text())["files"]["detector.ts.int8.pt"]
    assert (entry["dtype"], entry["inputs"][0]["dtype"], len(entry["parity"])) == ("int8", "float32", 3)
    assert all(row["ok"] and row["relative_l2"] > 1e-3 for row in entry["parity"])
    session = runtime.load(path, "torchscript", dtype="int8", threads=1)
    settings = config.from_text(session.manifest["config"])
    videos = given_set.OpenedSet(artifacts.given_set(), settings)
    gate = entry["map_gate"]
    assert gate["average_map"] == videos.average_map(session, settings.post, session.manifest["classes"])
    exact = runtime.load(artifacts.tiny_artifact(), "eager")
    assert gate["float32_average_map"] == videos.average_map(exact, settings.post, session.manifest["classes"])
    assert (gate["videos"], gate["subset"], gate["annotations"]) == (3, "Test", "annotations.json")
    assert str(artifacts.given_set().annotations) not in (path / "manifest.json").read_text()


@pytest.mark.parametrize("found, passes", [(0.8, True), (0.796, True), (0.79, False), (0.0, False)])
def test_what_may_be_lost(maps, found, passes):
    maps += [0.8, found]
    if passes:
        assert pass_tiny(0.005)["average_map"] == found
        return
    with pytest.raises(RunError, match=rf"x has an average mAP of {found:.4f} on 3 videos .* float32 of 0.8000"):
        pass_tiny(0.005)


def test_a_detector_that_finds_nothing_proves_nothing(maps):
    maps += [0.004, 0.004]
    with pytest.raises(RunError, match=r"no loss of 0\.005 can show"):
        pass_tiny(0.005)


def test_a_loss_leaves_nothing_behind(maps, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(verify, "SIZES", ((2, 34), (1, 24), (3, 12)))
    maps += [0.8, 0.7]
    folder = artifacts.annotated_videos()
    flags = ["--run_dir", artifacts.tiny_run(), "--output", tmp_path / "out", "--formats", "torchscript", "--dtype"]
    flags += ["float32,int8", "--annotations", folder / "annotations.json", "--features", folder]
    assert cli.run(export.main, [str(flag) for flag in flags]) == 1
    assert "a loss of more than 0.005; nothing was written" in " ".join(capsys.readouterr().err.split())
    assert list(tmp_path.iterdir()) == []
    maps += [0.8, 0.7]
    assert cli.run(export.main, [str(flag) for flag in [*flags, "--max_map_loss", "0.2"]]) == 0
    assert "detector.ts.int8.pt: average mAP 0.7000, float32 0.8000" in capsys.readouterr().out
    assert not maps


@pytest.mark.parametrize(
    "dtypes, gate, device, message",
    [
        (["int8"], None, "cpu", "give --annotations A.json and --features DIR"),
        (["float32", "int8"], None, "cpu", "give --annotations A.json and --features DIR"),
        (["float32"], map_gate.MapGate(None), "cpu", "add int8 to --dtype"),
        (["int8"], map_gate.MapGate(None, -0.1), "cpu", "--max_map_loss -0.1"),
        (["int8"], map_gate.MapGate(None), "cuda", "int8 is for CPUs"),
    ],
)
def test_wrong_use(dtypes, gate, device, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        deploy.export(artifacts.tiny_run(), tmp_path, formats=["torchscript"], dtypes=dtypes, gate=gate, device=device)


@pytest.mark.parametrize(
    "named, message",
    [
        (["--features", "f"], "--annotations and --features go together"),
        (["--max_map_loss", "0"], "give --annotations and --features"),
        (["--subset", "Test"], "give --annotations and --features"),
    ],
)
def test_a_set_that_is_half_named(named, message, tmp_path, capsys):
    flags = ["--run_dir", "r", "--output", str(tmp_path / "out"), "--dtype", "int8", *named]
    assert cli.run(export.main, flags) == 2
    assert message in capsys.readouterr().err


def test_a_set_that_is_not_there_is_told_before_the_work(tmp_path):
    given, steps = dataclasses.replace(artifacts.given_set(), annotations="nowhere.json"), []
    with pytest.raises(UsageError, match=r"cannot read nowhere\.json"):
        deploy.export(
            artifacts.tiny_run(),
            tmp_path,
            formats=["torchscript"],
            dtypes=["int8"],
            report=steps.append,
            gate=map_gate.MapGate(given),
        )
    assert not steps


def test_all_actions_are_one_class_to_a_detector_that_knows_none(tmp_path):
    """Which then has the same mAP whatever class the annotations name."""
    made = artifacts.tiny_config()
    dataset = dataclasses.replace(made.dataset, class_agnostic=True)
    shared = {"model": made.model, "loader": made.loader, "padding_multiple": made.padding_multiple}
    agnostic = SimpleNamespace(dataset=dataset, **shared)  # of three classes all the same
    session = runtime.load(artifacts.tiny_artifact(), "eager")
    given, path = artifacts.given_set(), tmp_path / "annotations.json"
    content = json.loads(Path(given.annotations).read_text())
    for video in content["database"].values():
        for i, action in enumerate(video["annotations"]):
            action |= {"label": f"other {i}", "label_id": i}
    path.write_text(json.dumps(content))
    sets = (given, dataclasses.replace(given, annotations=str(path)))
    found = [given_set.OpenedSet(s, agnostic).average_map(session, made.post, ["action"] * 3) for s in sets]
    assert 0 < found[0] == found[1]


def test_a_wrong_file_is_found_beside_the_rounding():
    """A tenth of one projection's weights off by half its largest: more than int8 costs."""
    made = artifacts.tiny_config()
    detector = artifacts.tiny_detector(made)
    cases = [verify.make_case(detector, made, *size) for size in ((2, 34), (1, 24))]
    own = verify.own_error(detector, cases, "int8")
    assert 1e-3 < own.relative_l2 < 0.5 and not own.ok
    manifest = manifests.describe(made, ["a", "b", "c"], {})

    def check(candidate):
        deployed = form.deployed(candidate, "int8")
        call = lambda *inputs: [o.numpy() for o in deployed(*map(torch.from_numpy, inputs))]  # noqa: E731
        return [verify.check(runtime.Session(manifest, "eager", "cpu", call), case, made, own).ok for case in cases]

    assert all(check(detector))
    wrong = artifacts.tiny_detector(made)
    with torch.no_grad():
        weight = wrong.backbone.stem_module.blocks[0].t_mamba.in_proj.weight
        weight[::10] += 0.5 * weight.abs().max()
    assert not all(check(wrong))
