"""The operator library for ONNX Runtime: number formats, refusals, threads, and that it is all by itself."""

import subprocess

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
torch = pytest.importorskip("torch")  # before onnxruntime, which on a GPU takes torch's CUDA libraries
onnxruntime = pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper  # noqa: E402

from ops import build, library  # noqa: E402
from ops.selective_scan import export  # noqa: E402
from tests.ops.selective_scan.test_export import RANKS, assert_close, expected, make_inputs  # noqa: E402

pytestmark = pytest.mark.skipif(
    not build.ORT_LIBRARY.exists(), reason="librdfa_ort.so is not built: python -m ops.build --onnxruntime_headers DIR"
)

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
ON_GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(CUDA not in onnxruntime.get_available_providers(), reason=f"this onnxruntime has no {CUDA}"),
    pytest.mark.skipif(not library.pack_path().exists(), reason="there is no pack of kernels: python -m ops.aot"),
]
FLOAT, HALF, BFLOAT = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16


@pytest.fixture(params=[CPU, pytest.param(CUDA, marks=ON_GPU)])
def provider(request):
    return request.param


def make_session(kinds=None, threads=1, provider=CPU):
    """One node with every input; `kinds` gives the number format of those that are not float32."""
    kinds = dict.fromkeys(export.INPUTS, FLOAT) | (kinds or {})
    values = [helper.make_tensor_value_info(name, kinds[name], [None] * RANKS[name]) for name in export.INPUTS]
    # Inputs and outputs are float32, so that numpy can hold them; casts stand between them and the node.
    given = [helper.make_tensor_value_info(f"{v.name}_32", FLOAT, [None] * RANKS[v.name]) for v in values]
    nodes = [helper.make_node("Cast", [f"{name}_32"], [name], to=kinds[name]) for name in export.INPUTS]
    nodes.append(helper.make_node(export.NAME, export.INPUTS, ["y"], domain=export.DOMAIN, delta_softplus=1, reverse=0))
    nodes.append(helper.make_node("Cast", ["y"], ["y_32"], to=FLOAT))
    graph = helper.make_graph(nodes, "scan", given, [helper.make_tensor_value_info("y_32", FLOAT, [None] * 3)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", export.OPSET)], ir_version=10)
    export.add_functions(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.register_custom_ops_library(str(build.ORT_LIBRARY))
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=[provider])
    assert session.get_providers()[0] == provider
    session.disable_fallback()
    return lambda inputs: session.run(None, {f"{name}_32": value for name, value in inputs.items()})[0]


@pytest.mark.parametrize(
    "kinds, tolerance",
    [
        (dict.fromkeys(export.INPUTS, HALF), 1e-3),
        (dict.fromkeys(export.INPUTS, BFLOAT), 8e-3),
        ({"B": BFLOAT, "delta": HALF, "D": HALF}, 4e-3),
        ({"u": HALF, "z": HALF}, 1e-3),
        ({"u": BFLOAT, "A": HALF, "C": HALF}, 8e-3),
    ],
    ids=["float16", "bfloat16", "mixed", "half u", "bfloat u"],
)
def test_number_formats_mix(kinds, tolerance, provider):
    inputs = make_inputs((2, 21, 5, 37, 3))
    assert_close(make_session(kinds, provider=provider)(inputs), expected(inputs, delta_softplus=True), tolerance)


def skip_alone(u, D):
    """y = D u, with every other term zero."""
    L = u.shape[2]
    zero = {"B": np.zeros((1, 1, 1, L), np.float32), "C": np.zeros((1, 1, 1, L), np.float32)}
    scan = {"delta": np.zeros_like(u), "A": np.zeros((1, 1), np.float32), "delta_bias": np.zeros(1, np.float32)}
    # silu(z) is 1 to the last digit where sigmoid(z) is and z is 1: there is no such z, so z is large and y is scaled.
    return {"u": u, "D": D, "z": np.full_like(u, 128.0), **zero, **scan}


def test_every_half_comes_in_and_goes_out_right(provider):
    """All finite numbers, subnormal ones too: what comes out is numpy's rounding of the float32 product."""
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    u = every[np.isfinite(every)].astype(np.float32).reshape(1, 1, -1)
    run = make_session({"u": HALF}, provider=provider)
    for D in (2.0**-7, 0.7 * 2.0**-7, 1e-3 * 2.0**-7, 3 * 2.0**-7):  # times z = 2^7
        y = run(skip_alone(u, np.array([D], np.float32)))
        with np.errstate(over="ignore"):
            want = (u * np.float32(D) * np.float32(128)).astype(np.float16).astype(np.float32)
        np.testing.assert_array_equal(y, want)


def test_threads_do_not_change_the_result():
    inputs = make_inputs((3, 70, 16, 65, 1))
    one, four = (make_session(threads=threads)(inputs) for threads in (1, 4))
    np.testing.assert_array_equal(one, four)


@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
def test_every_instruction_set(monkeypatch, isa):
    monkeypatch.setenv("RDFA_CPU_ISA", isa)
    inputs = make_inputs((2, 21, 5, 37, 3))
    try:
        y = make_session()(inputs)
    except onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument as error:
        assert "this CPU lacks it" in str(error)
        pytest.skip(f"this CPU has no {isa}")
    assert_close(y, expected(inputs))


@pytest.mark.parametrize(
    "name, shape, message",
    [
        ("delta", (2, 6, 8), r"delta has shape \[2, 6, 8\], expected \[2, 6, 9\]"),
        ("A", (5, 3), r"A has shape \[5, 3\], expected \[6, N\]"),
        ("A", (6, 257), "A has shape .* N from 1 to 256"),
        ("B", (2, 4, 3, 9), "B has shape .* expected .* G a divisor of D"),
        ("C", (2, 3, 3, 9), "C has 3 groups and B has 2"),
        ("D", (7,), r"D has shape \[7\], expected \[6\]"),
        ("z", (1, 6, 9), "z has shape"),
    ],
)
def test_wrong_shapes_are_refused(name, shape, message, provider):
    inputs = make_inputs((2, 6, 3, 9, 2)) | {name: np.zeros(shape, np.float32)}
    with pytest.raises(Exception, match=f"SelectiveScan: {message}"):
        make_session(provider=provider)(inputs)


@pytest.mark.parametrize(
    "shape", [(2, 6, 3, 65, 2), (1, 5, 35, 18, 1), (1, 2, 16, 20001, 1), (2, 64, 16, 300, 1)], ids=str
)
def test_sizes(shape, provider):
    inputs = make_inputs(shape)
    assert_close(
        make_session(provider=provider)(inputs), expected(inputs), 1e-5
    )  # a GPU's exponential has two digits less


@pytest.mark.parametrize("shape", [(0, 3, 2, 5, 1), (2, 3, 2, 0, 1)])
def test_nothing_to_do(shape, provider):
    inputs = make_inputs(shape)
    assert make_session(provider=provider)(inputs).shape == inputs["u"].shape


def test_library_needs_nothing_but_the_compilers_own():
    listing = subprocess.run(["ldd", build.ORT_LIBRARY], capture_output=True, text=True, check=True).stdout
    needed = {line.split()[0].partition(".so")[0].split("/")[-1] for line in listing.splitlines()}
    allowed = {"linux-vdso", "libstdc++", "libm", "libgcc_s", "libc", "libdl", "ld-linux-x86-64", "ld-linux-aarch64"}
    assert needed <= allowed
    symbols = subprocess.run(["nm", "-D", "--defined-only", build.ORT_LIBRARY], capture_output=True, text=True).stdout
    ours = {line.split()[-1] for line in symbols.splitlines() if line.split()[1] == "T"}
    assert ours == {"RegisterCustomOps"}
