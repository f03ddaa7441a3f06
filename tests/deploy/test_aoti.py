"""The AOTInductor file: outputs where it was not traced, threads, what it needs, and what is refused."""

import json
import shutil
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._inductor import cpp_builder

import export
from ops import library
from rdfa import cli, runtime
from rdfa.deploy import aoti, form
from rdfa.errors import RunError, UsageError
from rdfa.modeling.fa_bi_s6 import FeatureAggregatedBiS6
from rdfa.runtime import aoti_backend
from tests.deploy import artifacts

pytestmark = pytest.mark.slow  # one compilation, of about half a minute


@pytest.fixture(scope="module")
def artifact():
    return artifacts.aoti_artifact()


@pytest.fixture(scope="module")
def session(artifact):
    return runtime.load(artifact, "aoti", threads=1)


@pytest.fixture
def copy(artifact, tmp_path):
    return shutil.copytree(artifact, tmp_path / "copy")


def make_inputs(batch, time):
    rng = np.random.default_rng(time)
    mask = np.arange(time) < np.linspace(1, time, batch)[:, None]
    return rng.standard_normal((batch, 6, time), dtype=np.float32) * mask[:, None], mask


@pytest.mark.parametrize("batch, time", [(1, 2), (5, 34), (2, 576), (1, 1154), (3, 4608)])
@torch.no_grad()
def test_equals_the_detector_at_sizes_that_were_not_traced(session, batch, time):
    features, mask = make_inputs(batch, time)
    outputs = session.run(features, mask)
    detector = artifacts.tiny_detector(artifacts.tiny_config())
    for value, wanted in zip(outputs, detector(torch.from_numpy(features), torch.from_numpy(mask)), strict=True):
        assert value.shape == wanted.shape
        np.testing.assert_allclose(value, wanted.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_form_of_a_gpu_keeps_its_axes_dynamic(monkeypatch, dtype):
    """Its operations, traced on a CPU: of the library's operators they are those that have kernels for GPUs."""
    monkeypatch.setattr(FeatureAggregatedBiS6, "forward", FeatureAggregatedBiS6._fused_forward)
    monkeypatch.setattr(FeatureAggregatedBiS6, "scans", FeatureAggregatedBiS6._fused_scans)
    detector = artifacts.tiny_detector(artifacts.tiny_config())
    with torch.no_grad():
        graph = aoti._trace(form.deployed(detector, dtype, "cuda"), 10, "cpu").graph
    called = {str(node.target) for node in graph.nodes if node.op == "call_function"}
    assert {name for name in called if "rdfa" in name} == {"rdfa.causal_conv1d.default", "rdfa.selective_scan.default"}
    *_, features, mask = (node.meta["val"].shape for node in graph.nodes if node.op == "placeholder")
    assert not any(isinstance(size, int) for size in (features[0], features[2], *mask))


def test_manifest_vouches_for_it(artifact):
    files = json.loads((artifact / "manifest.json").read_text())["files"]
    pack = {library.pack_path().name} if library.pack_path().exists() else set()  # an optional build
    assert set(files) == {"detector.pt2", "librdfa_ops.so", "model.safetensors"} | pack
    entry = files["detector.pt2"]
    assert entry["format"] == "aoti"
    assert [value["name"] for value in entry["inputs"]] == ["features", "mask"]
    assert [value["name"] for value in entry["outputs"]] == ["cls_logits", "offsets", "point_mask"]
    assert entry["processor"] == torch.backends.cpu.get_cpu_capability()
    assert len(entry["parity"]) == 3 and all(row["ok"] for row in entry["parity"])


def test_kernels_use_the_threads_of_the_session(artifact, threads):
    """Those of the exporting process are not compiled in, and the results do not depend on them."""
    with zipfile.ZipFile(artifact / "detector.pt2") as package:
        source = next(package.read(name).decode() for name in package.namelist() if name.endswith(".kernel.cpp"))
    assert "#pragma omp parallel\n" in source
    assert "num_threads" not in source
    inputs = make_inputs(2, 1184)
    threads(2)
    two = runtime.load(artifact, "aoti", threads=2).run(*inputs)
    one = runtime.load(artifact, "aoti", threads=1).run(*inputs)
    for value, wanted in zip(two, one):
        np.testing.assert_allclose(value, wanted, rtol=1e-5, atol=1e-6)


def test_no_path_of_this_machine_is_inside(artifact):
    """Neither in the sources nor in the machine code; only names long enough not to stand there by chance."""
    folders = [torch._inductor.runtime.runtime_utils.default_cache_dir(), str(Path(torch.__file__).parents[1])]
    folders += [f"{tempfile.gettempdir()}/tmp", str(Path(export.__file__).parent)]
    with zipfile.ZipFile(artifact / "detector.pt2") as package:
        assert package.testzip() is None
        for member in package.namelist():
            content = package.read(member)
            assert [folder for folder in folders if folder.encode() in content] == [], member


def test_anonymising_leaves_everything_in_its_place(tmp_path):
    path = tmp_path / "x.pt2"
    with zipfile.ZipFile(path, "w") as package:
        package.writestr("x/a.so", b"\0/home/me/include/a.h\0/home/me\0/home/met")
        package.writestr("x/version", b"1")
    aoti.anonymise(path, ["/home/me/include", "/home/me"])
    with zipfile.ZipFile(path) as package:
        assert package.namelist() == ["x/a.so", "x/version"]
        assert package.read("x/a.so") == b"\0................/a.h\0........\0........t"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["detector.pt2", "librdfa_ops.so"])
def test_flipped_bit(copy, name):
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(RunError, match=f"{name} differs from the SHA-256"):
        runtime.load(copy, "aoti")


def test_truncated_file_and_a_path_out_of_the_directory(copy):
    path, manifest = copy / "detector.pt2", json.loads((copy / "manifest.json").read_text())
    shutil.copyfile(path, copy.parent / "detector.pt2")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(RunError, match=r"detector\.pt2 has \d+ bytes, the manifest says"):
        runtime.load(copy, "aoti")
    manifest["files"]["../detector.pt2"] = manifest["files"].pop("detector.pt2")
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RunError, match=r"'\.\./detector\.pt2', which leaves the directory"):
        runtime.load(copy, "aoti")


def test_file_of_another_device_is_named(copy):
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["files"]["detector.pt2"]["device"] = "cuda"
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UsageError, match=r"detector\.pt2 was exported for 'cuda'"):
        runtime.load(copy, "aoti", device="cpu")
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="torch finds no GPU"):
            runtime.load(copy, "aoti", device=None)


@pytest.mark.parametrize(
    "here, compiled_for, serves",
    [
        ("AVX512", "AVX2", True),
        ("AVX512", "AVX512", True),
        ("AVX2", "AVX512", False),
        ("DEFAULT", "AVX2", False),
        ("SVE256", "SVE256", True),
        ("SVE256", "AVX2", False),
    ],
)
def test_processor_must_have_the_instructions(artifact, monkeypatch, here, compiled_for, serves):
    manifest = {"files": {"detector.pt2": {"processor": compiled_for}, "librdfa_ops.so": {"format": "library"}}}
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: here)
    if serves:
        aoti_backend.start(artifact / "detector.pt2", manifest, "cpu", None)
    else:
        with pytest.raises(UsageError, match=f"compiled for processors with {compiled_for}, this one has {here}"):
            aoti_backend.start(artifact / "detector.pt2", manifest, "cpu", None)


def test_file_that_torch_cannot_load(tmp_path):
    (tmp_path / "detector.pt2").write_bytes(b"PK and nothing more")
    entry = {"processor": torch.backends.cpu.get_cpu_capability()}
    manifest = {"files": {"detector.pt2": entry}, "versions": {"torch": "2.99"}}
    with pytest.raises(RunError, match=r"made with torch 2\.99, does not load") as caught:
        aoti_backend.start(tmp_path / "detector.pt2", manifest, "cpu", None)
    assert "\n" not in str(caught.value)


def test_without_a_compiler_one_line_and_exit_2(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(cpp_builder.config.cpp, "cxx", (None, "no-such-compiler"))
    cpp_builder.cpp_compiler_search.cache_clear()
    flags = ["--run_dir", str(artifacts.tiny_run()), "--output", str(tmp_path / "out"), "--formats", "aoti"]
    try:
        assert cli.run(export.main, flags) == 2
    finally:
        cpp_builder.cpp_compiler_search.cache_clear()
    error = capsys.readouterr().err
    assert "install g++" in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_without_the_library_the_remedy_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(library, "loaded", lambda: False)
    with pytest.raises(UsageError, match=r"python -m ops\.build"):
        aoti.export(artifacts.tiny_detector(artifacts.tiny_config()), tmp_path / "x.pt2", 10)
