"""export.py: what it writes, what it refuses, and that a failed check leaves nothing behind."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import torch

import export
from ops import library
from rdfa import cli, deploy
from rdfa.deploy import artifact, verify
from rdfa.deploy import onnx as onnx_exporter
from rdfa.errors import RunError, UsageError
from tests.deploy import artifacts

WITHOUT_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")


@pytest.fixture
def quick(monkeypatch):
    """Checks at sizes that take no time, and copies the ONNX file instead of tracing it again."""
    source = artifacts.tiny_artifact() / "detector.onnx"  # itself checked at the true sizes
    monkeypatch.setattr(verify, "SIZES", ((2, 34), (1, 24), (3, 12)))

    def copy(detector, paths, *others):
        for path in paths.values():
            path.write_bytes(source.read_bytes())

    monkeypatch.setattr(onnx_exporter, "export", copy)
    return copy


def damage(path: Path) -> None:
    """Change one weight tensor of an ONNX file by a percent."""
    model = onnx.load(path)
    largest = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    values = onnx.numpy_helper.to_array(largest)
    largest.CopyFrom(onnx.numpy_helper.from_array(values * values.dtype.type(1.01), largest.name))
    onnx.save(model, path)


@pytest.fixture
def damaging(quick, monkeypatch):
    def write(detector, paths, *others):
        quick(detector, paths)
        for path in paths.values():
            damage(path)

    monkeypatch.setattr(onnx_exporter, "export", write)


def arguments(output, *others):
    return ["--run_dir", str(artifacts.tiny_run()), "--output", str(output), *others]


def test_writes_an_artifact_and_prints_the_figures(quick, tmp_path, capsys):
    assert cli.run(export.main, arguments(tmp_path / "deep" / "out")) == 0
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]
    printed = capsys.readouterr().out
    assert "detector.onnx" in printed and "(2, 34)" in printed
    # Weights, TorchScript, ONNX; and ONNX with the operator library, where that is built.
    assert printed.count("✓") == 9 + 3 * library.onnxruntime_path().exists()


def test_manifest_says_what_a_start_takes(quick, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(artifact, "_time_starts", artifacts.TIME_STARTS)
    assert cli.run(export.main, arguments(tmp_path / "out", "--formats", "onnx")) == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    for name in ("detector.onnx", "model.safetensors"):
        start = manifest["files"][name]["start"]
        assert start["time"] == 64
        assert start["load_s"] > 0 and start["first_inference_ms"] > 0 and start["peak_memory_mb"] > 30
    assert "cores" in manifest["measured_on"]
    assert f"{manifest['files']['detector.onnx']['start']['load_s']:.2f} s" in capsys.readouterr().out


def test_one_format_alone(quick, tmp_path):
    manifest = deploy.export(artifacts.tiny_run(), tmp_path / "out", formats=["onnx"])
    assert set(manifest["files"]) - {"librdfa_ort.so"} == {"detector.onnx", "model.safetensors"}


@pytest.mark.parametrize("formats", [["torchscript"], ["onnx"], ["onnx_gpu"]], ids=str)
def test_the_gpu_kernels_go_with_the_library(quick, monkeypatch, tmp_path, formats):
    """Where they were made; they serve nothing without it, and in ONNX Runtime the file for GPUs alone."""
    pack = tmp_path / "librdfa_ops.cubins"
    pack.write_bytes(b"kernels")
    monkeypatch.setattr(library, "pack_path", lambda: pack)
    run, output = artifacts.tiny_run(), tmp_path / "artifact"
    entry = deploy.export(run, output, formats=formats)["files"].get("librdfa_ops.cubins")
    if formats == ["onnx"] or (formats == ["onnx_gpu"] and not library.onnxruntime_path().exists()):
        assert entry is None and not (output / "librdfa_ops.cubins").exists()
    else:
        digest = hashlib.sha256(b"kernels").hexdigest()
        assert entry == {"format": "cubins", "size": 7, "sha256": digest}
        assert (output / "librdfa_ops.cubins").read_bytes() == b"kernels"


def test_checkpoint_can_be_named(quick, tmp_path):
    step = artifacts.tiny_run() / "checkpoints" / "step_00000003"
    for which in ("latest", str(step)):
        assert cli.run(export.main, arguments(tmp_path / "out", "--checkpoint", which, "--formats", "onnx")) == 0


def test_failed_check_exits_1_and_leaves_nothing(damaging, tmp_path, capsys):
    assert cli.run(export.main, arguments(tmp_path / "out")) == 1
    assert list(tmp_path.iterdir()) == []
    error = capsys.readouterr().err
    assert "detector.onnx" in error and "batch 2, time 34" in error
    assert error.count("\n") == 1


def test_failed_check_keeps_the_artifact_that_was_there(damaging, tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    (output / "manifest.json").write_text("an older artifact")
    with pytest.raises(RunError):
        deploy.export(artifacts.tiny_run(), output)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (output / "manifest.json").read_text() == "an older artifact"


def test_artifact_is_replaced_whole(quick, tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    (output / "manifest.json").write_text("an older artifact")
    (output / "detector.pt2").write_text("of another format")
    deploy.export(artifacts.tiny_run(), output, formats=["onnx"])
    names = {path.name for path in output.iterdir()} - {"librdfa_ort.so"}
    assert names == {"detector.onnx", "manifest.json", "model.safetensors"}
    assert json.loads((output / "manifest.json").read_text())["format_version"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    "others, message",
    [
        (["--formats", "torchscipt"], "did you mean 'torchscript'"),
        (["--formats", "onnx,pickle"], "valid: aoti, onnx, onnx_gpu, onnx_inlined, torchscript"),
        (["--dtype", "bfloat16"], "onnx has no dtype bfloat16: it is written in float32, float16"),
        (["--dtype", "float32,bfloat16", "--formats", "onnx"], "no format of onnx has dtype bfloat16"),
        (["--dtype", "float61"], "did you mean 'float16'"),
        (["--device", "gpu"], "valid: cpu, cuda"),
        pytest.param(["--device", "cuda"], "torch finds no GPU", marks=WITHOUT_GPU),
        (["--checkpoint", "nowhere"], "does not exist"),
    ],
)
def test_wrong_flags_exit_2_with_one_line(tmp_path, capsys, others, message):
    assert cli.run(export.main, arguments(tmp_path / "out", *others)) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_output_that_is_no_artifact_is_not_touched(tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("years of work")
    assert cli.run(export.main, arguments(tmp_path)) == 2
    assert "not an artifact" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(UsageError):
        deploy.export(artifacts.tiny_run(), tmp_path / "thesis.tex")


def test_run_that_is_none(tmp_path, capsys):
    assert cli.run(export.main, ["--run_dir", str(tmp_path), "--output", str(tmp_path / "out")]) == 2
    assert "not a run directory" in capsys.readouterr().err


def test_help_shows_an_example():
    answer = subprocess.run([sys.executable, export.__file__, "--help"], capture_output=True, text=True)
    assert answer.returncode == 0
    assert "python export.py --run_dir runs/demo" in answer.stdout
