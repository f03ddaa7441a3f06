"""history.csv grows, and is never mixed with another version's."""

import csv
import dataclasses

import pytest

from rdfa.bench.report import history
from rdfa.bench.results import Row
from rdfa.errors import RunError
from tests.bench.fakes import MACHINE

LATENCY = {"min": 1.0, "mean": 2.0, "p50": 2.5, "p90": 3.0, "p99": 4.0}
ROW = Row("eager", "cpu", "float32", "sweep", 1, 32, "valid", latency_ms=LATENCY, parity={"max_abs": 1e-6})
SERVER = dataclasses.replace(ROW, scenario="Server", loadgen={"result": "INVALID", "target_qps": 12.5})
FAILED = Row("aoti", "cpu", "float32", "sweep", 1, 32, "invalid: a, b")


def read(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_rows_are_appended_with_run_and_machine(tmp_path):
    path = tmp_path / "history.csv"
    history.append(path, MACHINE, [ROW, SERVER])
    history.append(path, MACHINE | {"time": "later"}, [FAILED])
    rows = read(path)
    assert [row["run"] for row in rows] == [MACHINE["time"], MACHINE["time"], "later"]
    assert [(row["p50_ms"], row["loadgen_result"], row["target_qps"]) for row in rows] == [
        ("2.5", "", ""), ("2.5", "INVALID", "12.5"), ("", "", ""),
    ]  # fmt: skip
    assert rows[2]["verdict"] == "invalid: a, b"
    assert "<Imaginary> CPU" in rows[0]["machine"]


def test_a_file_with_other_columns_is_left_alone(tmp_path):
    path = tmp_path / "history.csv"
    path.write_text("backend,p50\neager,1\n")
    with pytest.raises(RunError, match="has the columns of another version: move it away"):
        history.append(path, MACHINE, [ROW])
    assert path.read_text() == "backend,p50\neager,1\n"
