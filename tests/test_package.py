"""What importing the package does to its process, and what it is as a wheel."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, ("1000", None)),
        ({"GOMP_SPINCOUNT": "7"}, ("7", None)),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, (None, "ACTIVE")),
    ],
    ids=["default", "spincount", "policy"],
)
def test_threads_wait_briefly_unless_told_otherwise(given, wanted):
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    code = f"import os, sys, rdfa; print(tuple(map(os.environ.get, {names!r})), 'torch' in sys.modules)"
    environment = {k: v for k, v in os.environ.items() if k not in names} | given
    answer = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert answer.stdout == f"{wanted} False\n"


@pytest.mark.parametrize("script", ["train.py", "export.py", "serve_bench.py"])
def test_help_answers_without_torch(script):
    """So that a flag's mistake is told at once, and torch meets the settings of `rdfa/__init__.py`."""
    code = (
        "import runpy, sys\n"
        f"sys.argv = [{script!r}, '--help']\n"
        "try:\n"
        f"    runpy.run_path({script!r}, run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    print(end.code, 'torch' in sys.modules)\n"
    )
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert answer.stdout.splitlines()[-1] == "0 False", answer.stderr


def test_a_wheel_is_for_one_platform_and_every_python(tmp_path):
    """Built where there is no compiler: it still comes to be, with sources to build from later."""
    pytest.importorskip("setuptools")
    source, output = tmp_path / "a folder", tmp_path / "wheel"
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("ops", "rdfa"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("objects", "*.so", "*.cubins"))
    command = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "-w", output, source]
    subprocess.run(command, env=os.environ | {"CXX": "/no/such/compiler"}, capture_output=True, check=True)
    (wheel,) = output.iterdir()
    assert "-py3-none-" in wheel.name and not wheel.name.endswith("-any.whl")
    files = zipfile.ZipFile(wheel).namelist()
    assert "ops/csrc/linear/kernel.inl" in files and "rdfa/bench/results.schema.json" in files
