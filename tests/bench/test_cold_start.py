"""What a new process costs."""

import subprocess
import sys

import numpy as np
import pytest

from rdfa.bench import cold_start
from rdfa.bench.cold_start import Shape
from rdfa.errors import RunError
from tests.deploy.artifacts import narrow_artifact


def test_a_process_that_fails_is_quoted(tmp_path):
    with pytest.raises(RunError, match=r"onnxruntime does not run in a new process: .*is no artifact"):
        cold_start.measure(tmp_path / "nowhere", "onnxruntime", "cpu", 1, [Shape(1, 32)])


def test_a_file_of_another_precision_is_started():
    (start,) = cold_start.measure(narrow_artifact(), "torchscript", "cpu", 1, [Shape(1, 32)], "bfloat16").values()
    assert start.load_s > 0 and start.first_inference_ms > 0


def test_peak_memory_grows_with_what_is_used():
    before = cold_start.peak_memory_mb()
    size_mb = before + 64
    block = np.ones(int(size_mb * 2**20 / 8))
    assert cold_start.peak_memory_mb() >= size_mb * 0.9
    del block
    assert cold_start.peak_memory_mb() >= size_mb * 0.9


def test_peak_memory_is_not_that_of_the_parent():
    block = np.ones(400 * 2**20 // 8)
    code = "from rdfa.bench.cold_start import peak_memory_mb; print(peak_memory_mb())"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(child.stdout) < 100 < 400 <= cold_start.peak_memory_mb()
    del block
