"""Files exported for a GPU, at sizes that were not traced: on Triton's kernels, and on those compiled ahead of time."""

import functools
import itertools
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ops import library
from rdfa import runtime
from tests.deploy import artifacts

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(not library.pack_path().exists(), reason="there is no pack of kernels: python -m ops.aot"),
]

DEVICE = "cuda"
BACKENDS = ("torchscript", "aoti")
FILES = list(itertools.product(BACKENDS, artifacts.GPU_DTYPES))
# Of a machine that has torch and the artifact: no Triton, no operators but those of the artifact's own library.
ALONE = """
import importlib.util, sys
sys.modules["triton"] = None
find = importlib.util.find_spec
importlib.util.find_spec = lambda name: None if name == "ops" else find(name)
"""
RUN = """
import sys
import numpy as np
from rdfa import runtime
artifact, device, inputs, results, *files = sys.argv[1:]
inputs, outputs = np.load(inputs), {}
for backend, dtype in (file.split("-") for file in files):
    session = runtime.load(artifact, backend, device=device, dtype=dtype)
    for size in sorted({name.partition("-")[0] for name in inputs}):
        for name, value in session.run(inputs[f"{size}-features"], inputs[f"{size}-mask"])._asdict().items():
            outputs[f"{backend}-{dtype}-{size}-{name}"] = value
np.savez(results, **outputs)
"""
# How a process comes by the kernels compiled ahead of time.
WAYS = {"told to": ("", {library.GPU_SWITCH: "aot"}), "without Triton": (ALONE, {})}


@functools.cache
def session(backend, dtype):
    return runtime.load(artifacts.artifact_for(DEVICE), backend, device=DEVICE, dtype=dtype)


@functools.cache
def outputs_elsewhere(way):
    """Name -> array of all outputs of all files at all sizes, by one process."""
    prelude, variables = WAYS[way]
    with tempfile.TemporaryDirectory() as folder:
        inputs, results = Path(folder) / "inputs.npz", Path(folder) / "results.npz"
        cases = {f"{batch}x{time}": artifacts.case(batch, time) for batch, time in artifacts.SIZES}
        arrays = {f"{size}-features": case.features_BCT for size, case in cases.items()}
        np.savez(inputs, **arrays, **{f"{size}-mask": case.mask_BT for size, case in cases.items()})
        command = [sys.executable, "-c", prelude + RUN, artifacts.artifact_for(DEVICE), DEVICE, inputs, results]
        command += [f"{backend}-{dtype}" for backend, dtype in FILES]
        environment = os.environ | variables
        answer = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True)
        assert answer.returncode == 0, answer.stderr
        return dict(np.load(results))


@pytest.mark.parametrize("backend, dtype", FILES, ids=lambda value: value)
@pytest.mark.parametrize("size", artifacts.SIZES, ids=str)
def test_parity(size, backend, dtype):
    artifacts.assert_right(session(backend, dtype), *size, dtype)


@pytest.mark.parametrize("backend, dtype", FILES, ids=lambda value: value)
@pytest.mark.parametrize("size", artifacts.SIZES, ids=str)
@pytest.mark.parametrize("way", WAYS)
def test_parity_of_kernels_compiled_ahead_of_time(way, size, backend, dtype):
    arrays, name = outputs_elsewhere(way), f"{backend}-{dtype}-{size[0]}x{size[1]}"
    outputs = runtime.Outputs(*(arrays[f"{name}-{field}"] for field in runtime.Outputs._fields))
    artifacts.assert_right(SimpleNamespace(run=lambda features, mask: outputs), *size, dtype)


def test_manifest_says_where_the_files_run():
    for backend, dtype in FILES:
        assert session(backend, dtype).device == DEVICE
    files = session("aoti", "float32").manifest["files"]
    assert {entry["device"] for entry in files.values() if entry["format"] in BACKENDS} == {DEVICE}
    assert "cubins" in {entry["format"] for entry in files.values()}
