"""The C++ example: the detections of `rdfa.detect`, without Python, and what it refuses."""

import dataclasses
import functools
import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from ops import library
from rdfa import cli, deploy, detect
from rdfa.deploy import verify
from tests.deploy import artifacts

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    """Built as README.md says, or by the compiler alone where there is no CMake."""
    if shutil.which("cmake") is None:
        return artifacts.cpp_program(artifacts.CPP_EXAMPLE / "detect.cpp")
    folder = tmp_path_factory.mktemp("build")
    # Without debugging information, which takes long to write.
    options = [f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}", "-DCMAKE_BUILD_TYPE=Debug"]
    options.append("-DCMAKE_CXX_FLAGS_DEBUG=")
    for command in (["cmake", "-S", artifacts.CPP_EXAMPLE, "-B", folder, *options], ["cmake", "--build", folder]):
        answer = subprocess.run(command, capture_output=True, text=True)
        assert answer.returncode == 0, answer.stdout + answer.stderr
    return folder / "detect"


@pytest.fixture
def features(tmp_path):
    """Writes features [T, 6], returns the file."""

    def write(length, order="C", dtype=np.float32, channels=6):
        array = np.random.default_rng(length).standard_normal((length, channels)).astype(dtype, order=order)
        np.save(tmp_path / "video.npy", array)
        return tmp_path / "video.npy"

    return write


@functools.cache
def artifact(**dataset) -> Path:
    """The tiny artifact, or one whose data set has other settings."""
    if not dataset:
        return artifacts.tiny_artifact()
    config = artifacts.tiny_config()
    config = dataclasses.replace(config, dataset=dataclasses.replace(config.dataset, **dataset))
    folder = artifacts.tiny_artifact().parent / "_".join(dataset)
    run = artifacts.write_run(folder / "run", artifacts.tiny_detector(config), config)
    deploy.export(run, folder / "artifact", formats=["torchscript"])
    return folder / "artifact"


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(verify, "SIZES", ((1, 64),))


def run(program, *arguments):
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True)


def from_python(folder, video, *arguments):
    """The rows that the program should print, from the result file of `rdfa.detect`."""
    output = video.with_suffix(".json")
    command = ["--artifact", folder, "--backend", "torchscript", "--features", video, "--output", output, *arguments]
    assert cli.run(detect.main, list(map(str, command))) == 0
    (entries,) = json.loads(output.read_text())["results"].values()
    return [(*map(np.float32, entry["segment"]), entry["label"], np.float32(entry["score"])) for entry in entries]


def from_cpp(program, *arguments):
    answer = run(program, *arguments)
    assert answer.returncode == 0, answer.stderr
    rows = [line.split("\t") for line in answer.stdout.splitlines()]
    return [(np.float32(start), np.float32(end), label, np.float32(score)) for start, end, label, score in rows]


def assert_same(found, expected):
    """To the last bit of float32: the same operators on the same padded input."""
    assert len(found) >= 3
    assert found == expected


@pytest.mark.parametrize("length, order", [(1, "C"), (37, "C"), (64, "F"), (67, "C")])
def test_prints_the_detections_of_the_package(program, features, length, order):
    video = features(length, order)
    expected = from_python(artifact(), video, "--fps", 29.97)
    assert_same(from_cpp(program, artifact(), video, "--fps", 29.97), expected)


@pytest.mark.parametrize(
    "dataset", [{"downsample_rate": 2, "feat_stride": 4, "default_fps": 24.0}, {"resize": True}], ids=["grid", "resize"]
)
def test_prepares_features_as_the_manifest_says(program, features, quick, tmp_path, dataset):
    folder, video, duration = artifact(**dataset), features(131), 20.5
    annotations = tmp_path / "annotations.json"
    entry = {"subset": "test", "duration": duration, "annotations": []}
    annotations.write_text(json.dumps({"database": {video.stem: entry}}))
    expected = from_python(folder, video, "--annotations", annotations)
    assert_same(from_cpp(program, folder, video, "--duration", duration), expected)


def test_process_has_no_python(program):
    libraries = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    assert "libtorch" in libraries
    assert "python" not in libraries.replace(str(Path(torch.__file__).parent), "")


def flip_a_bit(folder, manifest):
    path = folder / "detector.ts.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(folder, manifest):
    path = folder / "librdfa_ops.so"
    path.write_bytes(path.read_bytes()[:-1])


def leave_the_directory(folder, manifest):
    shutil.copyfile(folder / "detector.ts.pt", folder.parent / "detector.ts.pt")
    manifest["files"]["../detector.ts.pt"] = manifest["files"].pop("detector.ts.pt")


def link(folder, manifest):
    (folder / "detector.ts.pt").unlink()
    (folder / "detector.ts.pt").symlink_to(artifact() / "detector.ts.pt")


def remove(folder, manifest):
    (folder / "detector.ts.pt").unlink()


def outdate(folder, manifest):
    manifest["format_version"] = 2


@pytest.mark.parametrize(
    "damage, message",
    [
        (flip_a_bit, "detector.ts.pt differs from the SHA-256"),
        (truncate, "librdfa_ops.so has"),
        (leave_the_directory, "'../detector.ts.pt', which leaves the directory"),
        (link, "'detector.ts.pt', which leaves the directory"),
        (remove, "detector.ts.pt is missing"),
        (outdate, "not of format version 1"),
    ],
)
def test_refuses_a_damaged_artifact_in_one_line(program, features, tmp_path, damage, message):
    folder = tmp_path / "artifact"
    shutil.copytree(artifact(), folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    damage(folder, manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert_refused(run(program, folder, features(9), "--fps", 25), 1, message)


def test_refuses_a_manifest_that_is_cut_off(program, features, tmp_path):
    shutil.copytree(artifact(), tmp_path / "artifact")
    path = tmp_path / "artifact" / "manifest.json"
    path.write_text(path.read_text()[:-20])
    assert_refused(
        run(program, tmp_path / "artifact", features(9), "--fps", 25), 1, "manifest.json is refused: no JSON"
    )


@pytest.mark.parametrize("size", [0, 1, 55, 56, 63, 64, 119, 120, 70001])
def test_sha256_at_every_kind_of_end(program, tmp_path, size):
    """A library of that size passes, so that the next file is asked for."""
    content = bytes(i * 7 % 251 for i in range(size))
    (tmp_path / "library").write_bytes(content)
    entry = {"format": "library", "size": size, "sha256": hashlib.sha256(content).hexdigest()}
    missing = {"format": "torchscript", "size": 1, "sha256": ""}
    manifest = {"format_version": 1, "files": {"library": entry, "model": missing}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert_refused(run(program, tmp_path, tmp_path / "video.npy", "--fps", 25), 1, "model is missing")


def assert_refused(answer, code, message):
    assert answer.returncode == code
    assert answer.stdout == ""
    assert answer.stderr.startswith("error: ") and message in answer.stderr
    assert answer.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        ([], 2, "frame rate of the video is unknown: give --fps"),
        (["--fps", "fast"], 2, "--fps fast: give a positive number"),
        (["--fps", "25", "--duration"], 2, "usage"),
        (["--speed", "25"], 2, "usage"),
        (["--device", "tpu"], 2, "usage"),
        (["--device"], 2, "usage"),
    ],
)
def test_refuses_wrong_arguments(program, features, arguments, code, message):
    assert_refused(run(program, artifact(), features(9), *arguments), code, message)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"dtype": np.float64}, "not float32"),
        ({"channels": 5}, "float32 [time, 6]"),
        ({"length": 64 * 72 + 1}, "at most 4608"),
    ],
)
def test_refuses_features_of_another_kind(program, features, wrong, message):
    video = features(**{"length": 9, **wrong})
    assert_refused(run(program, artifact(), video, "--fps", 25), 1, message)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_refuses_a_gpu_that_is_not_there(program, features):
    answer = run(program, artifact(), features(9), "--fps", 25, "--device", "cuda")
    assert_refused(answer, 1, "libtorch finds no GPU here: use --device cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.skipif(not library.pack_path().exists(), reason="there is no pack of kernels: python -m ops.aot")
def test_the_same_detections_on_a_gpu(program, features):
    """With the kernels compiled ahead of time: there is no Triton in this process."""
    video = features(67)
    expected = from_cpp(program, artifact(), video, "--fps", 25)
    found = from_cpp(program, artifact(), video, "--fps", 25, "--device", "cuda")
    assert [row[2] for row in found] == [row[2] for row in expected] and len(found) >= 3
    for k in (0, 1, 3):
        np.testing.assert_allclose([row[k] for row in found], [row[k] for row in expected], rtol=1e-3, atol=1e-3)


def test_class_names_may_hold_any_character(program, features, tmp_path):
    """Escapes in the manifest are read, though the names come from the TorchScript file."""
    folder = tmp_path / "artifact"
    shutil.copytree(artifact(), folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["classes"] = ['a "quoted" \\ name', "grün", "😀", "\u0001\t"]
    video = features(9)
    for ascii_only in (True, False):
        (folder / "manifest.json").write_text(json.dumps(manifest, ensure_ascii=ascii_only), encoding="utf-8")
        assert len(from_cpp(program, folder, video, "--fps", 25)) >= 3
