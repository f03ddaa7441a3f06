"""The command: wrong invocations, and `--kernels` on a small model."""

import json

import pytest

import serve_bench
from rdfa import cli

TINY = ["--gin_file", "gin/tiny.gin", "--gin_param", "Dataset.annotation_file = ''", "--gin_param",
        "Dataset.feature_dir = ''"]  # fmt: skip


def run(*argv) -> int:
    """Exit code of the command; argparse exits by itself."""
    try:
        return cli.run(serve_bench.main, [str(part) for part in argv])
    except SystemExit as end:
        return end.code


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--output", "o"), "one of the arguments --artifact --kernels --compare is required"),
        (("--kernels",), "--output"),
        (("--kernels", "--artifact", "a", "--output", "o"), "not allowed with"),
        (
            ("--artifact", "a", "--output", "o", "--scenarios", "serve"),
            "'serve' is unknown; valid: all, sweep",
        ),
        (("--artifact", "a", "--output", "o", "--scenarios", ""), "'' is unknown; valid: all, sweep"),
        (("--artifact", "a", "--output", "o", "--batch", "1,x"), "'1,x' is no list of positive integers"),
        (("--artifact", "a", "--output", "o", "--time", "0"), "'0' is no list of positive integers"),
        (("--artifact", "a", "--output", "o", "--threads", "0"), "--threads 0: give at least 1"),
        (("--artifact", "a", "--output", "o", "--seconds", "-1"), "--seconds -1.0: give a positive number"),
        (("--artifact", "a", "--output", "o", "--dtype", "int4"), "'int4' is unknown; valid: all, float32"),
        (("--artifact", "a", "--output", "o", "--p99_ms", "0"), "--p99_ms 0.0: give a positive number"),
        (("--artifact", "a", "--output", "o", "--features", "f"), "--annotations and --features go together"),
        (("--compare", "nowhere", "nothing"), "--compare nowhere: no result of serve_bench.py is there"),
        (("--artifact", "nowhere", "--output", "o"), "nowhere is no artifact"),
        (("--kernels", "--device", "cuda", "--output", "o"), "use --device cpu"),
        (("--kernels", "--output", "o", "--gin_param", "StemModul.emb_c = 8"), "did you mean 'StemModule'?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_invocations_exit_2_with_one_line(argv, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(*argv) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_help_shows_an_example(capsys):
    assert run("--help") == 0
    assert "python serve_bench.py --artifact OUT --output" in capsys.readouterr().out


def test_kernels_of_a_small_model(tmp_path, capsys):
    code = run("--kernels", *TINY, "--time", 32, "--seconds", 0.001, "--threads", 1, "--output", tmp_path / "out")
    assert code == 0, capsys.readouterr().err
    result = json.loads((tmp_path / "out" / "kernels.json").read_text())
    layers = {row["layer"] for row in result["rows"]}
    assert layers == {"stem time, branch 1", "stem time", "stem gate", *(f"branch {i}" for i in range(2, 6))}
    assert {row["verdict"].split(":")[0] for row in result["rows"]} <= {"valid", "skipped"}
    assert result["environment"]["threads"] == 1
    assert "causal_conv1d" in capsys.readouterr().out


@pytest.mark.parametrize("held", [True, False])
def test_all_dtypes_have_int8_where_the_artifact_has_it(held):
    manifest = {"files": {"detector.ts.int8.pt": {"dtype": "int8"}} if held else {}}
    assert ("int8" in serve_bench._dtypes(serve_bench.DTYPES, manifest)) is held
    assert serve_bench._dtypes(("int8",), manifest) == ("int8",)  # asked for by name, its absence is an error
