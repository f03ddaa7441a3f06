"""What an artifact says about itself."""

import dataclasses
import json

from ops import library
from rdfa import config as configs
from rdfa import deploy
from rdfa.data.settings import DatasetSettings, LoaderSettings
from rdfa.deploy import manifest as manifests
from rdfa.runtime import manifest as reader
from tests.deploy import artifacts


def test_feature_spec_holds_what_a_caller_must_know():
    config = artifacts.tiny_config()
    model = dataclasses.replace(config.model, generator=dataclasses.replace(config.model.generator, max_seq_len=96))
    dataset = DatasetSettings(
        num_classes=3, max_seq_len=96, feat_stride=8, downsample_rate=2, num_frames=32, default_fps=15
    )
    changed = configs.Config(model=model, dataset=dataset, loader=LoaderSettings(max_div_factor=3, padding_value=-1))
    assert manifests.feature_spec(changed) == {
        "dimension": 6,
        "stride": 8,
        "num_frames": 32,
        "downsample_rate": 2,
        "default_fps": 15.0,
        "resize": None,
        "max_seq_len": 96,
        "multiple": 6,  # of the loader's 3 and the coarsest stride 2
        "max_time": 6912,
        "padding_value": -1.0,
    }


def test_written_manifest_reads_back(tmp_path):
    config = artifacts.tiny_config()
    manifest = manifests.describe(config, ["a", "b", "ü"], {"run": "r"})
    (tmp_path / "weights").write_bytes(b"abc")
    manifests.add_file(manifest, tmp_path / "weights", "safetensors", dtype="float32")
    manifests.write(tmp_path, manifest)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.json", "weights"]
    again = reader.read(tmp_path)
    assert again == manifest
    reader.verify(tmp_path, again)
    assert configs.from_text(again["config"]) == config
    entry = again["files"]["weights"]
    # The SHA-256 of "abc", as every description of the algorithm gives it.
    assert entry["sha256"] == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert (entry["size"], entry["format"], entry["dtype"]) == (3, "safetensors", "float32")


def test_a_resized_video_has_one_frame_per_position():
    config = artifacts.tiny_config()
    dataset = DatasetSettings(num_classes=3, max_seq_len=64, feat_stride=8, num_frames=16, resize=True)
    spec = manifests.feature_spec(dataclasses.replace(config, dataset=dataset))
    assert (spec["resize"], spec["stride"], spec["num_frames"], spec["downsample_rate"]) == (64, 1, 1, 1)


def test_artifact_of_a_detector_that_does_not_tell_classes_apart(tmp_path):
    config = artifacts.tiny_config()
    model = dataclasses.replace(config.model, cls_head=dataclasses.replace(config.model.cls_head, num_classes=1))
    config = dataclasses.replace(
        config, model=model, dataset=dataclasses.replace(config.dataset, class_agnostic=True, num_classes=3)
    )
    artifacts.write_run(tmp_path / "run", artifacts.tiny_detector(config), config)
    assert deploy.export(tmp_path / "run", tmp_path / "artifact", formats=[])["classes"] == ["action"]


def test_artifact_of_a_run():
    folder = artifacts.tiny_artifact()
    manifest = json.loads((folder / "manifest.json").read_text())
    optional = {library.pack_path().name, library.onnxruntime_path().name}
    expected = {"detector.onnx", "detector.ts.pt", "librdfa_ops.so", "model.safetensors"}
    assert manifest["files"].keys() - optional == expected
    assert sorted(path.name for path in folder.iterdir()) == sorted([*manifest["files"], "manifest.json"])
    assert manifest["source"] == {"run": "tiny_run", "checkpoint": "step_00000003", "weights": "ema"}
    assert manifest["classes"] == ["jump", "class_1", "throw"]
    assert {"rdfa", "torch", "onnx", "python", "git_commit"} <= manifest["versions"].keys()
    for name in ("detector.onnx", "detector.ts.pt", "model.safetensors"):
        entry = manifest["files"][name]
        assert [value["name"] for value in entry["inputs"]] == ["features", "mask"]
        assert [value["name"] for value in entry["outputs"]] == ["cls_logits", "offsets", "point_mask"]
        assert entry["inputs"][0]["shape"] == ["batch", 6, "time"]
        assert [(row["batch"], row["time"]) for row in entry["parity"]] == [(2, 4608), (1, 2336), (3, 1184)]
        assert all(row["ok"] and row["max_abs"] < 1e-4 and row["detections"] >= 0.99 for row in entry["parity"])
