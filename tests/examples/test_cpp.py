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
MODELS = {"torchscript": "detector.ts.pt", "aoti": "detector.pt2"}


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


def artifact_of(kind):
    return artifacts.tiny_artifact() if kind == "torchscript" else artifacts.aoti_artifact()


@pytest.fixture
def copy(tmp_path):
    """Copies the artifact that has a file of that format; returns its folder and its manifest."""

    def make(kind):
        folder = shutil.copytree(artifact_of(kind), tmp_path / "artifact")
        return folder, json.loads((folder / "manifest.json").read_text())

    return make


def run(program, *arguments):
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True)


def from_python(folder, video, *arguments, backend="torchscript"):
    """The rows that the program should print, from the result file of `rdfa.detect`."""
    output = video.with_suffix(".json")
    command = ["--artifact", folder, "--backend", backend, "--features", video, "--output", output, *arguments]
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


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("length, order", [(1, "C"), (37, "C"), (64, "F"), (67, "C")])
def test_prints_the_detections_of_the_package(program, features, length, order, kind):
    video, folder = features(length, order), artifact_of(kind)
    expected = from_python(folder, video, "--fps", 29.97, backend=kind)
    assert_same(from_cpp(program, folder, video, "--fps", 29.97), expected)


@pytest.mark.parametrize("change", [{"method": "none"}, {"multiclass": False, "max_seg_num": 3}, {"pre_nms_topk": 1}])
def test_aoti_decodes_as_the_manifest_says(program, features, copy, change):
    folder, manifest = copy("aoti")
    video = features(37)
    before = from_cpp(program, folder, video, "--fps", 25)
    manifest["decoding"] |= change
    (folder / "manifest.json").write_text(json.dumps(manifest))
    found = from_cpp(program, folder, video, "--fps", 25)
    assert found and found != before
    if "max_seg_num" in change:
        assert len(found) == 3
    if "pre_nms_topk" in change:
        assert len(found) <= len(manifest["decoding"]["levels"])


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


def flip_a_bit(folder, manifest, model):
    path = folder / model
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(folder, manifest, model):
    (folder / model).write_bytes((folder / model).read_bytes()[:-1])


def truncate_the_library(folder, manifest, model):
    truncate(folder, manifest, "librdfa_ops.so")


def leave_the_directory(folder, manifest, model):
    shutil.copyfile(folder / model, folder.parent / model)
    manifest["files"][f"../{model}"] = manifest["files"].pop(model)


def link(folder, manifest, model):
    (folder / model).rename(folder.parent / model)
    (folder / model).symlink_to(folder.parent / model)


def remove(folder, manifest, model):
    (folder / model).unlink()


def outdate(folder, manifest, model):
    manifest["format_version"] = 2


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize(
    "damage, message",
    [
        (flip_a_bit, "{} differs from the SHA-256"),
        (truncate, "{} has"),
        (truncate_the_library, "librdfa_ops.so has"),
        (leave_the_directory, "'../{}', which leaves the directory"),
        (link, "'{}', which leaves the directory"),
        (remove, "{} is missing"),
        (outdate, "not of format version 1"),
    ],
)
def test_refuses_a_damaged_artifact_in_one_line(program, features, copy, kind, damage, message):
    folder, manifest = copy(kind)
    damage(folder, manifest, MODELS[kind])
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert_refused(run(program, folder, features(9), "--fps", 25), 1, message.format(MODELS[kind]))


def change_processor(manifest):
    manifest["files"]["detector.pt2"]["processor"] = "SVE256"


def drop_decoding(manifest):
    del manifest["decoding"]


def misname_method(manifest):
    manifest["decoding"]["method"] = "gentle"


@pytest.mark.parametrize(
    "change, message",
    [
        (change_processor, "was compiled for processors with SVE256, this one has"),
        (drop_decoding, "has no section 'decoding': export the artifact again"),
        (misname_method, "decoding method 'gentle' is unknown"),
    ],
)
def test_refuses_an_aoti_file_that_it_cannot_run(program, features, copy, change, message):
    folder, manifest = copy("aoti")
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert_refused(run(program, folder, features(9), "--fps", 25), 1, message)


@pytest.mark.parametrize(
    "model, message",
    [
        ("detector.pt3", "has no file 'detector.pt3' in its manifest"),
        ("detector.onnx", "is a file of format onnx: only torchscript and aoti run here"),
    ],
)
def test_refuses_another_model(program, features, model, message):
    video = features(9)
    named = from_cpp(program, artifact(), video, "--fps", 25, "--model", "detector.ts.pt")
    assert_same(named, from_cpp(program, artifact(), video, "--fps", 25))
    assert_refused(run(program, artifact(), video, "--fps", 25, "--model", model), 1, message)


def test_refuses_a_manifest_that_is_cut_off(program, features, tmp_path):
    shutil.copytree(artifact(), tmp_path / "artifact")
    path = tmp_path / "artifact" / "manifest.json"
    path.write_text(path.read_text()[:-20])
    assert_refused(
        run(program, tmp_path / "artifact", features(9), "--fps", 25), 1, "manifest.json is refused: no JSON"
    )


@pytest.mark.parametrize("size", [0, 1, 55, 56, 63, 64, 119, 120, 70001])
def test_sha256_at_every_kind_of_end(program, tmp_path, size):
    """A model of that size passes, so that the next file is asked for."""
    content = bytes(i * 7 % 251 for i in range(size))
    (tmp_path / "model").write_bytes(content)
    entry = {"format": "torchscript", "size": size, "sha256": hashlib.sha256(content).hexdigest()}
    manifest = {"format_version": 1, "files": {"model": entry}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert_refused(run(program, tmp_path, tmp_path / "video.npy", "--fps", 25), 1, "has no operator library")


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


def test_refuses_another_device_than_that_of_the_file(program, features):
    answer = run(program, artifact(), features(9), "--fps", 25, "--device", "cuda")
    assert_refused(answer, 1, "detector.ts.pt was exported for cpu: use --device cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_refuses_a_gpu_that_is_not_there(program, features, copy):
    folder, manifest = copy("torchscript")
    manifest["files"]["detector.ts.pt"]["device"] = "cuda"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert_refused(run(program, folder, features(9), "--fps", 25), 1, "libtorch finds no GPU here")


def check_on(device, program, video, kind, dtype):
    """The rows of the program and those of `rdfa.detect`, whose kernels Triton makes where there is one."""
    folder = artifacts.artifact_for(device)
    model = deploy.artifact.FORMATS[kind].file_in(dtype)
    expected = from_python(folder, video, "--fps", 25, "--dtype", dtype, backend=kind)
    found = from_cpp(program, folder, video, "--fps", 25, "--model", model, "--device", device)
    assert [row[2] for row in found] == [row[2] for row in expected] and len(found) >= 3
    for k in (0, 1, 3):
        np.testing.assert_allclose([row[k] for row in found], [row[k] for row in expected], rtol=1e-3, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.skipif(not library.pack_path().exists(), reason="there is no pack of kernels: python -m ops.aot")
@pytest.mark.parametrize("dtype", artifacts.GPU_DTYPES)
@pytest.mark.parametrize("kind", MODELS)
def test_the_same_detections_on_a_gpu(program, features, kind, dtype):
    """With the kernels compiled ahead of time: there is no Python in this process, so no Triton."""
    check_on("cuda", program, features(67), kind, dtype)


def test_class_names_may_hold_any_character(program, features, tmp_path):
    folder = tmp_path / "artifact"
    shutil.copytree(artifact(), folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["classes"] = ['a "quoted" \\ name', "grün", "😀", "\u0001\t"]
    video = features(9)
    for ascii_only in (True, False):
        (folder / "manifest.json").write_text(json.dumps(manifest, ensure_ascii=ascii_only), encoding="utf-8")
        answer = run(program, folder, video, "--fps", 25).stdout
        assert {name for name in manifest["classes"][:3] if f"\t{name}\t" in answer} == set(manifest["classes"][:3])
