"""Mean average precision per backend: the same as through the files of detect and evaluate."""

import json

import pytest

from ops import library
from rdfa import config, detect, evaluate, runtime
from rdfa.bench import accuracy
from rdfa.bench.candidates import Candidate
from rdfa.bench.results import Row
from rdfa.errors import RunError
from rdfa.evaluation.given_set import GivenSet
from rdfa.runtime import manifest as manifests
from tests.deploy import artifacts
from tests.deploy.artifacts import tiny_artifact

if not library.loaded():
    pytest.skip(f"the artifact needs the native library: {library.REMEDY}", allow_module_level=True)


@pytest.fixture(scope="module")
def given() -> GivenSet:
    return artifacts.given_set()


def fill(given, backend, name="eager"):
    manifest = manifests.read(tiny_artifact())
    settings = config.from_text(manifest["config"])
    rows = [Row(name, "cpu", "float32", s, 1, 64, "valid", samples=1) for s in ("sweep", "Server")]
    opened = [Candidate(name, "float32", backend)]
    accuracy.fill(rows, given, opened, settings, settings.post, manifest["classes"], lambda line: None)
    return rows


def test_every_row_of_a_backend_has_the_value_of_detect_and_evaluate(given, tmp_path):
    rows = fill(given, runtime.load(tiny_artifact(), "eager"))
    found, figures = tmp_path / "found.json", tmp_path / "map.json"
    flags = ["--artifact", tiny_artifact(), "--backend", "eager", "--features", *given.features]
    detect.main([str(f) for f in [*flags, "--annotations", given.annotations, "--subset", "Test", "--output", found]])
    flags = ["--ground_truth", given.annotations, "--predictions", found, "--subset", "Test", "--output", figures]
    evaluate.main([str(f) for f in flags])
    expected = json.loads(figures.read_text())["average_mAP"]
    assert 0 < expected < 1
    assert [row.average_map for row in rows] == [pytest.approx(expected, abs=1e-6)] * 2


def test_a_backend_that_fails_on_the_set_loses_its_speed(given):
    class Broken:
        def run(self, features, mask):
            raise RunError("no such length")

    rows = fill(given, Broken())
    assert {row.verdict for row in rows} == {"invalid: on the given set, raised RunError: video v1: no such length"}
    assert all(row.average_map is None and row.samples == 0 for row in rows)
