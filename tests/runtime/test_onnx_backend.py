"""ONNX Runtime: the operator library, the report of the nodes, and nodes that stray from the device asked for."""

import json
import shutil
import types

import numpy as np
import onnxruntime
import pytest

from ops import library
from rdfa import runtime
from rdfa.deploy import manifest as manifests
from rdfa.errors import RunError, UsageError
from rdfa.runtime import onnx_backend
from tests.deploy import artifacts

needs_library = pytest.mark.skipif(
    not library.onnxruntime_path().exists(),
    reason="librdfa_ort.so is not built: python -m ops.build --onnxruntime_headers DIR",
)


@pytest.fixture(scope="module")
def artifact():
    return artifacts.tiny_artifact()


def make_inputs(batch=2, time=70):
    features = np.random.default_rng(0).standard_normal((batch, 6, time), dtype=np.float32)
    return features, np.ones((batch, time), bool)


def paths(session):
    return {node.path for node in session.nodes()}


def test_functions_are_inlined_without_the_library(artifact):
    nodes = runtime.load(artifact, "onnxruntime", native=False).nodes()
    assert {node.path for node in nodes} == {"function", "standard"}
    assert [node.operator for node in nodes].count("Scan") == 3
    assert {node.provider for node in nodes} == {"CPUExecutionProvider"}
    assert len({node.name for node in nodes}) == len(nodes)
    # Shapes are computed too, in integers.
    assert {node.computes for node in nodes} == {True, False}
    assert next(node for node in nodes if node.operator == "Conv").computes


@needs_library
def test_kernels_run_with_the_library(artifact):
    session = runtime.load(artifact, "onnxruntime", threads=1)
    nodes = session.nodes()
    assert {node.path for node in nodes} == {"kernel", "standard"}
    assert [node.operator for node in nodes if node.path == "kernel"] == ["SelectiveScan"] * 3
    plain = runtime.load(artifact, "onnxruntime", threads=1, native=False)
    for value, wanted in zip(session.run(*make_inputs()), plain.run(*make_inputs())):
        np.testing.assert_allclose(value, wanted, rtol=1e-5, atol=1e-5)


@needs_library
def test_threads_do_not_change_the_outputs(artifact):
    one, two = (runtime.load(artifact, "onnxruntime", threads=threads) for threads in (1, 2))
    np.testing.assert_allclose(one.run(*make_inputs()).offsets, two.run(*make_inputs()).offsets, rtol=1e-5, atol=1e-6)


def test_library_of_another_machine_is_left_out(artifact, tmp_path):
    """As on another processor, or with an older onnxruntime: the artifact works all the same."""
    folder = shutil.copytree(artifact, tmp_path / "copy")
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "librdfa_ort.so").write_text("not for this machine")
    manifests.add_file(manifest, folder / "librdfa_ort.so", "onnx_library")
    manifests.write(folder, manifest)
    with pytest.warns(UserWarning, match="librdfa_ort.so is left out, which is slower: it does not load here"):
        session = runtime.load(folder, "onnxruntime")
    assert "kernel" not in paths(session)
    runtime.load(folder, "onnxruntime", native=False)


@needs_library
def test_flipped_bit_in_the_library(artifact, tmp_path):
    folder = shutil.copytree(artifact, tmp_path / "copy")
    content = bytearray((folder / "librdfa_ort.so").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "librdfa_ort.so").write_bytes(content)
    with pytest.raises(RunError, match=r"librdfa_ort\.so differs from the SHA-256"):
        runtime.load(folder, "onnxruntime")


def test_other_backends_tell_nothing(artifact):
    assert runtime.load(artifact, "eager").nodes() == []


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="this one serves GPUs")
def test_onnxruntime_without_a_gpu_provider(artifact):
    with pytest.raises(UsageError, match=r"no CUDAExecutionProvider: pip install 'rdfa-s6\[gpu\]'"):
        runtime.open_file(artifact, "detector.onnx", "onnxruntime", device="cuda:0")


def event(name, provider, kind, operator="Mul"):
    facts = {"op_name": operator, "provider": provider, "output_type_shape": [{kind: [2, 3]}]}
    return {"cat": "Node", "name": f"{name}_kernel_time", "args": facts}


CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


@pytest.fixture
def on_gpu(artifact, monkeypatch):
    """Opens the file as on a machine with a GPU, where the profile says what `events` say."""

    class FakeSession:
        def __init__(self, path, options, providers):
            self.profile, self.providers = options.profile_file_prefix, [name for name, _ in providers]
            self.fallback = True
            assert providers == [(CUDA, {"device_id": "1", "use_tf32": "0"})]

        def get_providers(self):
            return [*self.providers, CPU]

        def disable_fallback(self):
            self.fallback = False

        def run(self, names, inputs):
            assert not self.fallback
            if self.events is None:
                raise ValueError("no cuDNN\nand more")

        def end_profiling(self):
            with open(self.profile, "w") as file:
                onnx_backend.json.dump(self.events, file)
            return self.profile

    fake = types.SimpleNamespace(
        InferenceSession=FakeSession,
        SessionOptions=onnxruntime.SessionOptions,
        get_available_providers=lambda: [CUDA, CPU],
        preload_dlls=lambda: print("Failed to load libcufft.so"),
    )
    monkeypatch.setattr(onnx_backend, "onnxruntime", fake)

    def load(*events, fails=False, folder=artifact, **options):
        FakeSession.events = None if fails else [{"cat": "Session", "name": "x"}, *events]
        return runtime.open_file(folder, "detector.onnx", "onnxruntime", device="cuda:1", **options)

    return load


def test_computing_on_the_cpu_in_a_gpu_session_is_refused_unless_allowed(on_gpu):
    shapes = event("shape", CPU, "int64", "Shape")
    assert [node.provider for node in on_gpu(event("a", CUDA, "float"), shapes).nodes()] == [CUDA, CPU]
    stray = event("b", CPU, "float16", "Resize")
    with pytest.raises(RunError, match=r"1 of 3 nodes compute on the CPU, not on cuda:1 as asked \(Resize\)") as caught:
        on_gpu(event("a", CUDA, "float"), shapes, stray)
    assert "\n" not in str(caught.value)
    assert len(on_gpu(event("a", CUDA, "float"), stray, host_nodes=True).nodes()) == 2


@needs_library
def test_kernels_of_a_gpu_are_those_of_the_pack(on_gpu, artifact, tmp_path, monkeypatch):
    """Without it the functions do, as the library would refuse to start."""
    folder = shutil.copytree(artifact, tmp_path / "copy")
    registered = []
    options = onnxruntime.SessionOptions
    monkeypatch.setattr(options, "register_custom_ops_library", lambda self, path: registered.append(path))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"].pop("librdfa_ops.cubins", None)
    manifests.write(folder, manifest)
    on_gpu(event("a", CUDA, "float"), folder=folder)
    assert registered == []
    (folder / "librdfa_ops.cubins").write_bytes(b"kernels")
    manifests.add_file(manifest, folder / "librdfa_ops.cubins", "cubins")
    manifests.write(folder, manifest)
    session = on_gpu(event("scan", CUDA, "float", "SelectiveScan"), folder=folder)
    assert set(registered) == {str(folder / "librdfa_ort.so")}
    assert [(node.path, node.provider) for node in session.nodes()] == [("kernel", CUDA)]
    (folder / "librdfa_ops.cubins").write_bytes(b"kernelt")
    with pytest.raises(RunError, match=r"librdfa_ops\.cubins differs from the SHA-256"):
        on_gpu(folder=folder)


def test_session_that_does_not_run_on_the_gpu(on_gpu, capsys):
    with pytest.raises(RunError, match=r"detector\.onnx does not run on cuda:1: no cuDNN$"):
        on_gpu(fails=True)
    printed = capsys.readouterr()
    assert printed.out == "" and "libcufft" in printed.err


def test_session_that_lost_its_provider_is_refused(on_gpu, monkeypatch):
    monkeypatch.setattr(onnx_backend.onnxruntime.InferenceSession, "get_providers", lambda self: [CPU])
    with pytest.raises(RunError, match="finds no device for CUDAExecutionProvider"):
        on_gpu()


def test_option_of_another_backend(artifact):
    with pytest.raises(TypeError, match="native"):
        runtime.load(artifact, "eager", native=False)
