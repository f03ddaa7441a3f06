"""Launching kernels of a pack through the driver: in a process that has a driver which runs them on the CPU."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ops.aot import pack
from tests.ops.aot import tools

ROOT = Path(__file__).parents[3]


def run(folder, *command, **environment):
    environment = os.environ | {"RDFA_FAKE_FOLDER": str(folder)} | environment
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip


def run_tests(folder, file, *options):
    command = ("-m", "pytest", "-q", "-p", "no:cacheprovider", f"tests/ops/aot/{file}", *options)
    answer = run(folder, *command, LD_LIBRARY_PATH=str(folder / "driver"))
    if answer.returncode:
        pytest.fail(answer.stdout, pytrace=False)


def test_with_a_driver(folder):
    run_tests(folder, "with_fake_driver.py")


def test_onnxruntime_with_a_driver(ort_folder):
    run_tests(ort_folder, "with_fake_driver_ort.py")


def test_ptx_where_the_pack_has_no_machine_code(folder, tmp_path):
    """On a device of 9.0, with a pack that has only PTX for it."""
    shutil.copyfile(folder / "on_cpu.so", tmp_path / "on_cpu.so")
    shutil.copytree(folder / "driver", tmp_path / "driver")
    tools.strip(folder / "librdfa_ops.cubins", tmp_path / "librdfa_ops.cubins", 9)
    kinds = {kind for kernel in pack.read(tmp_path / "librdfa_ops.cubins").values() for kind, _, _ in kernel.binaries}
    assert kinds == {"ptx"}
    run_tests(tmp_path, "with_fake_driver.py", "-k", "segments or wide")


CALL = """
import os, torch
torch.ops.load_library(os.environ["RDFA_FAKE_FOLDER"] + "/on_cpu.so")
for _ in range(2):
    try:
        torch.ops.rdfa_on_cpu.causal_conv1d(torch.zeros(1, 1, 8), torch.zeros(1, 2), None, False, False)
        print("ran")
    except RuntimeError as error:
        print(error)
"""


def test_an_older_gpu_than_any_in_the_pack_is_named(folder):
    driver = {"LD_LIBRARY_PATH": str(folder / "driver")}
    lines = run(folder, "-c", CALL, RDFA_FAKE_CAPABILITY="75", **driver).stdout.splitlines()
    expected = "holds no kernels for this GPU of compute capability 7.5, only for 8.0, 9.0 and later: use a newer GPU"
    assert lines[0] == lines[1] and expected in lines[0]


def test_a_machine_without_a_driver(folder):
    lines = run(folder, "-c", CALL).stdout.splitlines()
    if lines[0] == "ran" or "failed on the GPU" in lines[0]:
        pytest.skip("this machine has a driver")
    assert lines[0] == lines[1] and lines[0].startswith("no NVIDIA driver (libcuda.so.1") and "use the CPU" in lines[0]


def test_a_library_without_its_pack(folder, tmp_path):
    (tmp_path / "on_cpu.so").write_bytes((folder / "on_cpu.so").read_bytes())
    answer = run(tmp_path, "-c", CALL, LD_LIBRARY_PATH=str(folder / "driver"))
    expected = f"{tmp_path / 'librdfa_ops.cubins'} is missing, which holds the GPU kernels: copy it there or make it"
    assert all(line.startswith(expected) for line in answer.stdout.splitlines())


SESSION = """
import os
from ops import build
from tests.ops.selective_scan import test_export
build.ORT_LIBRARY = os.environ["RDFA_FAKE_FOLDER"] + "/ort_on_cpu.so"
try:
    test_export.open_ort(test_export.make_model(), native=True)
    print("opened")
except Exception as error:
    print(str(error).splitlines()[0])
"""


def test_a_session_does_not_start_without_pack_or_driver(ort_folder, tmp_path):
    shutil.copyfile(ort_folder / "ort_on_cpu.so", tmp_path / "ort_on_cpu.so")
    driver = {"LD_LIBRARY_PATH": str(ort_folder / "driver")}
    assert run(ort_folder, "-c", SESSION, **driver).stdout.splitlines()[-1] == "opened"
    message = run(tmp_path, "-c", SESSION, **driver).stdout.splitlines()[-1]
    assert f"SelectiveScan: {tmp_path / 'librdfa_ops.cubins'} is missing, which holds the GPU kernels" in message
    message = run(ort_folder, "-c", SESSION).stdout.splitlines()[-1]
    if message != "opened":  # else this machine has a driver
        assert "SelectiveScan: no NVIDIA driver (libcuda.so.1" in message and "use the CPU" in message
