"""The benchmark of a training step, on a CPU and a tiny detector, with stand-ins for the rival's kernels."""

import csv

import pytest

from benchmarks import training_gpu
from rdfa import cli
from rdfa.bench.backends import published
from tests.bench import rival_modules

TINY = (
    *("NUM_CLASSES = 3", "FEATURE_DIM = 8", "EMB_C = 8", "MAX_SEQ_LEN = 64"),
    *("StemModule.recurrent = 1", "Training.clip_grad_l2norm = 0.5"),
)


def run(folder, *argv):
    params = [part for text in TINY for part in ("--gin_param", text)]
    return cli.run(training_gpu.main, ["--output", str(folder), "--device", "cpu", "--seconds", "0.02", *params, *argv])


def test_rows_of_all_variants(tmp_path, monkeypatch):
    rival_modules.install(monkeypatch)
    monkeypatch.setattr(published, "missing", list)
    assert run(tmp_path, "--dtype", "float32,bfloat16", "--variants", "published,eager") == 0
    with open(tmp_path / "training.csv") as file:
        rows = list(csv.DictReader(file))
    assert [(row["variant"], row["dtype"]) for row in rows] == [
        *((name, "float32") for name in ("published", "eager")),
        *((name, "bfloat16") for name in ("published", "eager")),
    ]
    for row in rows:
        assert float(row["gradient_error"]) < (1e-5 if row["dtype"] == "float32" else 0.3)
        assert float(row["step_ms"]) > 0 and float(row["times_as_fast_as_published"]) > 0
        assert row["memory_mb_per_video"] == "" and "torch" in row["machine"]
    assert float(rows[0]["times_as_fast_as_published"]) == 1
    assert float(rows[1]["times_as_fast_as_published"]) > 1  # a stand-in is a loop over time


@pytest.mark.skipif(not published.missing(), reason="the reference kernels are installed")
def test_without_the_reference_ours_are_measured(tmp_path, capsys):
    assert run(tmp_path, "--dtype", "float32", "--variants", "published,eager") == 0
    with open(tmp_path / "training.csv") as file:
        (row,) = csv.DictReader(file)
    assert row["variant"] == "eager" and row["times_as_fast_as_eager"] == "1.0"
    assert run(tmp_path, "--variants", "published") == 1
    assert "pip install 'rdfa-s6[reference]'" in capsys.readouterr().err
