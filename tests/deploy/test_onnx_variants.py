"""The other ONNX files: for GPUs, without functions, in float16. What each computes, and what is in it."""

import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest

from ops import library
from rdfa import runtime
from rdfa.deploy import verify
from tests.deploy import artifacts

pytestmark = pytest.mark.slow

# How many nodes a graph may have once its functions are inlined: three scans, and what is around them.
CEILINGS = {"detector": 520, "detector.gpu": 1250, "detector.inlined": 520}
FILES = [f"{name}{dtype}.onnx" for name in CEILINGS for dtype in ("", ".float16")]
# (batch, time). None was traced; 2 is the shortest sequence.
SIZES = [(1, 2), (5, 34), (2, 1154), (1, 2336)]


@pytest.fixture(scope="module")
def artifact():
    return artifacts.onnx_artifact()


@pytest.fixture(scope="module")
def sessions(artifact):
    """File, and how it is run -> session."""
    opened = {(file, "function"): runtime.open_file(artifact, file, "onnxruntime", native=False) for file in FILES}
    if library.onnxruntime_path().exists():
        for file in ("detector.onnx", "detector.float16.onnx"):
            opened[file, "kernel"] = runtime.open_file(artifact, file, "onnxruntime")
    return opened


@pytest.fixture(scope="module")
def common_case():
    """Of enough numbers for the errors of float16 to be no matter of luck."""
    config = artifacts.tiny_config()
    return verify.make_case(artifacts.tiny_detector(config), config, 5, 236)


@pytest.mark.parametrize("batch, time", SIZES)
def test_every_file_is_right_at_sizes_that_were_not_traced(sessions, common_case, batch, time):
    config = artifacts.tiny_config()
    detector = artifacts.tiny_detector(config)
    case = verify.make_case(detector, config, batch, time)
    own = verify.own_error(detector, [case, common_case], "float16")
    for (file, way), session in sessions.items():
        row = verify.check(session, case, config, own if "float16" in file else None)
        assert row.ok, (file, way, row, own)


@pytest.mark.parametrize("file", FILES)
def test_nodes_stay_below_the_ceiling(artifact, file):
    model = onnx.load(artifact / file)
    onnx.checker.check_model(model, full_check=True)
    sizes = {function.name: len(function.node) for function in model.functions}
    total = sum(sizes.get(node.op_type, 1) for node in model.graph.node)
    casts = 80 if "float16" in file else 0
    assert total < CEILINGS[file.removesuffix(".onnx").removesuffix(".float16")] + casts


@pytest.mark.parametrize("dtype", ["", ".float16"])
def test_inlined_file_has_standard_nodes_alone(artifact, dtype):
    model = onnx.load(artifact / f"detector.inlined{dtype}.onnx")
    assert not model.functions
    assert {node.domain for node in model.graph.node} == {""}
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": 18}
    assert {entry.key for entry in model.metadata_props} == {"classes", "features", "rdfa_version"}


def test_file_for_gpus_has_no_control_flow(artifact):
    operators = {
        node.op_type for function in onnx.load(artifact / "detector.gpu.onnx").functions for node in function.node
    }
    assert "Exp" in operators and not {"Scan", "Loop", "If"} & operators


def test_half_file_holds_halves_between_float32_inputs_and_outputs(artifact):
    graph = onnx.load(artifact / "detector.float16.onnx").graph
    whole = onnx.load(artifact / "detector.onnx").graph
    weights = {
        kind: sum(np.prod(t.dims, dtype=int) for t in graph.initializer if t.data_type == kind)
        for kind in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
    }
    # A, D and the bias of delta stay float32.
    assert weights[onnx.TensorProto.FLOAT] < 0.2 * weights[onnx.TensorProto.FLOAT16]
    for values, wanted in ((graph.input, whole.input), (graph.output, whole.output)):
        assert [value.SerializeToString() for value in values] == [value.SerializeToString() for value in wanted]


def test_manifest_tells_the_files_apart(artifact):
    session = runtime.load(artifact, "onnxruntime", dtype="float16")
    files = session.manifest["files"]
    assert {name: (entry["format"], entry["dtype"]) for name, entry in files.items() if name in FILES} == {
        "detector.onnx": ("onnx", "float32"),
        "detector.float16.onnx": ("onnx", "float16"),
        "detector.gpu.onnx": ("onnx_gpu", "float32"),
        "detector.gpu.float16.onnx": ("onnx_gpu", "float16"),
        "detector.inlined.onnx": ("onnx_inlined", "float32"),
        "detector.inlined.float16.onnx": ("onnx_inlined", "float16"),
    }
    for name, entry in files.items():
        if name != "manifest.json":
            assert [row["ok"] for row in entry["parity"]] == [True] * 3, name
    assert files["detector.float16.onnx"]["parity"][0]["max_abs"] > 10 * files["detector.onnx"]["parity"][0]["max_abs"]


def test_openvino_gives_the_outputs_of_onnxruntime(artifact):
    pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install 'rdfa-s6[openvino]'")
    ours, theirs = (runtime.load(artifact, backend, threads=1) for backend in ("openvino", "onnxruntime"))
    rng = np.random.default_rng(0)
    for batch, time in SIZES[:3]:
        features = rng.standard_normal((batch, 6, time), dtype=np.float32)
        mask = np.arange(time) < np.linspace(1, time, batch)[:, None]
        for value, wanted in zip(ours.run(features, mask), theirs.run(features, mask)):
            assert value.dtype == wanted.dtype
            assert np.linalg.norm(value ^ wanted if value.dtype == bool else value - wanted) <= 1e-5 * np.linalg.norm(
                wanted
            )


def test_plain_onnxruntime_loads_every_file(artifact):
    """Without anything of ours: no library, no options."""
    for file in FILES:
        session = onnxruntime.InferenceSession(artifact / file, providers=["CPUExecutionProvider"])
        outputs = session.run(None, {"features": np.zeros((1, 6, 4), np.float32), "mask": np.ones((1, 4), bool)})
        assert [value.dtype for value in outputs] == [np.float32, np.float32, np.bool_]


# Needs numpy and onnxruntime; prints how far the outputs with the library are from those without.
ALONE = """
import sys
import numpy as np
import onnxruntime
model, library = sys.argv[1:]
features = np.random.default_rng(0).standard_normal((2, 6, 70), dtype=np.float32)
inputs = {"features": features, "mask": np.ones((2, 70), bool)}
outputs = []
for native in (False, True):
    options = onnxruntime.SessionOptions()
    if native:
        options.register_custom_ops_library(library)
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    outputs.append(session.run(["cls_logits", "offsets"], inputs))
print(max(np.linalg.norm(a - b) / np.linalg.norm(a) for a, b in zip(*outputs)))
print(sorted(name for name in sys.modules if name.split(".")[0] in ("torch", "rdfa", "ops", "onnx")))
"""


@pytest.mark.skipif(not library.onnxruntime_path().exists(), reason="librdfa_ort.so is not built")
def test_file_and_library_in_onnxruntime_alone(artifact, tmp_path):
    command = [sys.executable, "-I", "-c", ALONE, artifact / "detector.onnx", artifact / "librdfa_ort.so"]
    answer = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    difference, modules = answer.stdout.splitlines()
    assert 0 < float(difference) < 1e-5
    assert modules == "[]"
