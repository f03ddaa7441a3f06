"""Published runs become run directories with the published outputs; bad files are refused, and never run."""

import math
import os
import pickle
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from rdfa import cli, convert, run_dir
from rdfa.errors import UsageError
from rdfa.modeling.detector import build_detector
from rdfa.run_dir import RunDirectory, load_detector, load_meta, load_weights
from tests.golden import rebuild
from tests.modeling.cases import golden_input, golden_state
from tests.published_run import profiler_keys, write_pt, write_yaml, yaml_trees

SMALL = {"input_c": 24, "emb_c": 32, "num_classes": 5}


def command(yaml_files: dict[str, Path], checkpoint: Path, output: Path) -> list[str]:
    flags = [part for name, path in yaml_files.items() for part in (f"--{name}_yaml", str(path))]
    return [*flags, "--checkpoint", str(checkpoint), "--output", str(output)]


@pytest.fixture(scope="module")
def state():
    return golden_state("small_a")


@pytest.fixture
def small(tmp_path, state):
    """YAML files of golden case a and the path where a test puts its checkpoint."""
    return write_yaml(tmp_path, {"model": yaml_trees(**SMALL)["model"]}), tmp_path / "c.pt", tmp_path / "run"


@pytest.mark.parametrize("case", ["small_a", "small_c"])
def test_a_published_run_gives_the_published_outputs(tmp_path, capsys, case):
    state, neck = golden_state(case), rebuild.case_meta(case)["neck"]
    yaml_files = write_yaml(tmp_path, yaml_trees(**SMALL, neck=neck))
    training = {name: tensor + 1 for name, tensor in state.items()}
    write_pt(tmp_path / "thumos_best.pt", training, OrderedDict(reversed(state.items())))

    assert cli.run(convert.main, command(yaml_files, tmp_path / "thumos_best.pt", tmp_path / "run")) == 0

    printed = capsys.readouterr().out
    assert "epoch 37, mAP 0.744" in printed and "158 profiler buffers" in printed
    assert f"{sum(t.numel() for t in state.values()):,} parameters in {len(state)} tensors" in printed
    assert "not taken over: optimizer, scheduler" in printed and "no class names" in printed
    assert "without counterpart, left out: args, dataset.loader.max_seq_len, hydra" in printed

    detector, config = load_detector(tmp_path / "run")
    assert config.model.detector.neck == neck and config.engine.warmup_cosine.T_max == 50
    assert "secret-key" not in (tmp_path / "run" / "config.gin").read_text()
    golden = rebuild.load_npz(f"model_{case}")
    features, mask = golden_input(case)
    with torch.inference_mode():
        cls_logits, offsets, _ = detector(features, mask)
    for name, output in (("cls_logits", cls_logits), ("offsets", offsets)):
        for level, actual in enumerate(output.split(detector.level_lengths(features.shape[2]), 1)):
            np.testing.assert_allclose(actual, golden[f"{name}_{level}"], rtol=1e-4, atol=1e-4)

    folder = RunDirectory(tmp_path / "run").checkpoint("best")
    assert folder == RunDirectory(tmp_path / "run").checkpoint("latest")
    assert load_meta(folder) == {"step": 37, "epoch": 37, "mAP": 0.744, "converted_from": "thumos_best.pt"}
    for name, tensor in load_weights(folder, "model").items():
        assert torch.equal(tensor, training[name]), name


def test_stray_keys_are_the_published_158():
    assert len(profiler_keys()) == 158


def test_weights_pass_both_ways(small, state):
    """What we save, the published code loads: the same names, shapes, dtypes and order."""
    yaml_files, checkpoint, output = small
    torch.save(state, checkpoint)
    convert.convert(yaml_files, checkpoint, output)
    ours = load_detector(output)[0].state_dict()
    assert list(ours) == list(state)
    assert all(torch.equal(ours[name], state[name]) and ours[name].dtype == torch.float32 for name in state)


def test_a_bare_state_dict_and_one_without_average(small, state):
    yaml_files, checkpoint, output = small
    torch.save(OrderedDict(state), checkpoint)
    lines = convert.convert(yaml_files, checkpoint, output)
    assert any("a bare state_dict" in line for line in lines)
    assert load_meta(RunDirectory(output).checkpoint())["step"] == 0
    torch.save({"model": state, "epoch": 3}, checkpoint)
    lines = convert.convert(yaml_files, checkpoint, output.with_name("second"))
    assert any("no model_ema" in line for line in lines)


def test_class_names_come_from_the_annotations(tmp_path, small, state):
    _, checkpoint, output = small
    annotations = tmp_path / "annotations.json"
    annotations.write_text(
        '{"database": {"v": {"subset": "Test", "duration": 9.0, "fps": 30.0, "annotations": '
        '[{"label": "High jump", "label_id": 3, "segment": [1.0, 2.0]}]}}}'
    )
    trees = yaml_trees(**SMALL)
    trees["dataset"]["dataset"]["anno_info"]["format"]["file_path"] = str(annotations)
    torch.save(state, checkpoint)
    lines = convert.convert(write_yaml(tmp_path, trees), checkpoint, output)
    assert RunDirectory(output).class_names() == {3: "High jump"}
    assert any("1 class names" in line for line in lines)


class RunsCode:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def make_pickle(path, evil, state):
    path.write_bytes(pickle.dumps(RunsCode(evil)))


BAD_FILES = {
    "code in the zip": (
        lambda p, evil, s: torch.save({"model": s, "x": RunsCode(evil)}, p),
        r"was refused: it holds \S*mkdir",
    ),
    "code in a bare pickle": (make_pickle, "was refused: it is a pickle of something else than weights"),
    "code, old format": (
        lambda p, evil, s: torch.save({"x": RunsCode(evil)}, p, _use_new_zipfile_serialization=False),
        r"was refused: it holds \S*mkdir",
    ),
    "an object": (lambda p, evil, s: torch.save({"model": s, "x": Path("a")}, p), r"was refused: it holds pathlib"),
    "empty": (lambda p, evil, s: p.write_bytes(b""), r"not a whole \.pt file of weights \(empty\)"),
    "text": (lambda p, evil, s: p.write_text("hello\n"), r"not a whole \.pt file"),
    "missing": (lambda p, evil, s: None, "cannot read .*No such file"),
    "a directory": (lambda p, evil, s: p.mkdir(), "cannot read .*Is a directory"),
    "a list": (lambda p, evil, s: torch.save([s], p), "holds no weights"),
    "no weights": (lambda p, evil, s: torch.save({"model": {}}, p), "holds no weights"),
    "numbers": (lambda p, evil, s: torch.save({"model": {"a": 1}}, p), "holds no weights"),
    "NaN": (
        lambda p, evil, s: torch.save(s | {"neck.fpn_norms.0.bias": torch.full((1, 32, 1), torch.nan)}, p),
        r"weights that are not finite: neck\.fpn_norms\.0\.bias",
    ),
    "missing names": (
        lambda p, evil, s: torch.save({k: v for k, v in s.items() if "neck" not in k}, p),
        r"12 missing \(neck\.fpn_norms\.0\.weight, .* and 8 more\)",
    ),
    "another name": (lambda p, evil, s: torch.save(s | {"typo": torch.ones(1)}, p), r"1 unexpected \(typo\)"),
    "another shape": (
        lambda p, evil, s: torch.save(s | {"neck.fpn_norms.0.bias": torch.ones(32)}, p),
        r"1 of another shape \(neck\.fpn_norms\.0\.bias \[32\] instead of \[1, 32, 1\]\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_checkpoints_exit_2_with_one_line(small, state, capsys, kind):
    yaml_files, checkpoint, output = small
    make, message = BAD_FILES[kind]
    evil = checkpoint.with_name("evil")
    make(checkpoint, evil, state)

    assert cli.run(convert.main, command(yaml_files, checkpoint, output)) == 2

    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and str(checkpoint) in captured.err and len(captured.err) < 600
    with pytest.raises(UsageError, match=message):
        convert.convert(yaml_files, checkpoint, output)
    assert not evil.exists() and not output.exists()


@pytest.mark.parametrize("kept", [0.02, 0.5, 0.999])
def test_a_truncated_checkpoint_exits_2(small, state, capsys, kept):
    yaml_files, checkpoint, output = small
    write_pt(checkpoint, state, state)
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[: int(kept * len(content))])
    assert cli.run(convert.main, command(yaml_files, checkpoint, output)) == 2
    assert "is not a whole .pt file" in capsys.readouterr().err
    assert not output.exists()


def test_a_flipped_bit_exits_2(small, state, capsys):
    yaml_files, checkpoint, output = small
    write_pt(checkpoint, state, state)
    content = bytearray(checkpoint.read_bytes())
    content[len(content) // 2] ^= 1  # within a tensor: torch reads it without complaint
    checkpoint.write_bytes(content)
    assert cli.run(convert.main, command(yaml_files, checkpoint, output)) == 2
    assert "is damaged: " in capsys.readouterr().err
    assert not output.exists()


@pytest.mark.parametrize("epoch", ["x", -5, math.inf, None])
def test_figures_that_are_none_are_left_out(tmp_path, epoch):
    path, weights = tmp_path / "c.pt", {"a": torch.ones(2)}
    torch.save({"model": weights, "model_ema": weights, "epoch": epoch, "mAP": math.nan}, path)
    published = convert.read_checkpoint(path)
    assert published.meta == {}
    assert published.notes == [f"epoch = {epoch!r} is not a figure: left out", "mAP = nan is not a figure: left out"]


def test_scalars_of_both_numpy_generations_are_read(tmp_path):
    path, weights = tmp_path / "c.pt", {"a": torch.ones(2)}
    write_pt(path, weights, weights)
    assert convert.read_checkpoint(path).meta == {"epoch": 37, "mAP": 0.744}
    # numpy 1 pickled the same scalar under another module; the old format stores the pickle as it is.
    torch.save({"model": weights, "mAP": np.float64(0.5)}, path, _use_new_zipfile_serialization=False)
    new, old = b"numpy._core.multiarray", b"numpy.core.multiarray"
    content = path.read_bytes()
    assert (new in content) != (old in content)
    path.write_bytes(content.replace(new, b"@").replace(old, new).replace(b"@", old))
    assert convert.read_checkpoint(path).meta == {"mAP": 0.5}


def test_the_allowance_for_numpy_ends_with_the_reading(tmp_path):
    path, weights = tmp_path / "c.pt", {"a": torch.ones(2)}
    write_pt(path, weights, weights)
    convert.read_checkpoint(path)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)


def test_a_run_directory_is_not_overwritten(small, state):
    yaml_files, checkpoint, output = small
    torch.save(state, checkpoint)
    convert.convert(yaml_files, checkpoint, output)
    with pytest.raises(UsageError, match="is a run directory already: choose another --output"):
        convert.convert(yaml_files, checkpoint, output)
    with pytest.raises(UsageError, match="cannot make run directory"):
        convert.convert(yaml_files, checkpoint, checkpoint / "run")


def test_model_and_checkpoint_must_belong_together(tmp_path, small, state):
    _, checkpoint, output = small
    torch.save(state, checkpoint)
    trees = yaml_trees(input_c=24, emb_c=32, num_classes=7)
    with pytest.raises(UsageError, match=r"2 of another shape \(cls_head\.cls_head\.conv\.weight .*model\.yaml"):
        convert.convert(write_yaml(tmp_path, {"model": trees["model"]}), checkpoint, output)


def test_a_conversion_that_failed_can_be_repeated(small, state, capsys, monkeypatch):
    yaml_files, checkpoint, output = small
    write_pt(checkpoint, state, state)

    def full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(run_dir, "write_weights", full)
        assert cli.run(convert.main, command(yaml_files, checkpoint, output)) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert cli.run(convert.main, command(yaml_files, checkpoint, output)) == 0


def test_help_shows_an_example(capsys):
    with pytest.raises(SystemExit) as left:
        convert.main(["--help"])
    assert left.value.code == 0 and "python -m rdfa.convert --model_yaml" in capsys.readouterr().out


def test_the_module_is_a_command(tmp_path):
    flags = ["--model_yaml", str(tmp_path / "no.yaml"), "--checkpoint", "c.pt", "--output", str(tmp_path / "run")]
    refused = subprocess.run(
        [sys.executable, "-m", "rdfa.convert", *flags], capture_output=True, text=True, timeout=120
    )
    assert refused.returncode == 2 and refused.stderr.startswith("error: cannot read") and not refused.stdout
    assert refused.stderr.count("\n") == 1


def test_fresh_weights_of_ours_convert_like_published_ones(small):
    yaml_files, checkpoint, output = small
    config, _ = convert.read_config(yaml_files)
    write_pt(checkpoint, build_detector(config.model).state_dict(), build_detector(config.model).state_dict())
    assert len(convert.convert(yaml_files, checkpoint, output)) >= 5
