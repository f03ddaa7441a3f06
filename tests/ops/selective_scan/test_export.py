"""The ONNX node of the selective scan: what its two bodies and its kernel compute, and that they stay dynamic."""

import itertools

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
torch = pytest.importorskip("torch")

import hypothesis  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from onnx import TensorProto, helper  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402

from ops import build  # noqa: E402
from ops.selective_scan import export  # noqa: E402
from ops.selective_scan.reference import selective_scan_reference as reference  # noqa: E402

RANKS = {"u": 3, "delta": 3, "A": 2, "B": 4, "C": 4, "D": 1, "z": 3, "delta_bias": 1}
# (batch, channels, states, length, groups): odd first, a length of 1, one group per channel.
SHAPES = [(1, 5, 3, 7, 1), (3, 6, 16, 33, 2), (2, 1, 1, 1, 1), (2, 4, 5, 2, 4), (1, 17, 16, 129, 1)]
EVERYTHING = dict.fromkeys(export.OPTIONAL, True)


def make_model(given=EVERYTHING, delta_softplus=True, reverse=False, dtype=TensorProto.FLOAT, body="cpu", **options):
    """A model of one SelectiveScan node whose optional inputs are those `given`; every axis is dynamic."""
    inputs = [name if given.get(name, True) else "" for name in export.INPUTS]
    node = helper.make_node(
        export.NAME, inputs, ["y"], domain=export.DOMAIN, delta_softplus=int(delta_softplus), reverse=int(reverse)
    )
    values = [helper.make_tensor_value_info(name, dtype, [None] * RANKS[name]) for name in inputs if name]
    graph = helper.make_graph([node], "scan", values, [helper.make_tensor_value_info("y", dtype, [None] * 3)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", export.OPSET)], ir_version=10)
    assert export.add_functions(model, body, **options) == 1
    onnx.checker.check_model(model, full_check=True)
    return model


def make_inputs(shape, given=EVERYTHING, seed=0):
    B, D, N, L, G = shape
    rng = np.random.default_rng(seed)

    def normal(*size):
        return rng.standard_normal(size).astype(np.float32)

    values = {
        "u": normal(B, D, L),
        "delta": np.abs(0.5 * normal(B, D, L)),
        "A": -np.exp(0.5 * normal(D, N)),
        "B": normal(B, G, N, L),
        "C": normal(B, G, N, L),
        "D": normal(D),
        "z": normal(B, D, L),
        "delta_bias": np.abs(normal(D)) - 0.2,
    }
    return {name: value for name, value in values.items() if given.get(name, True)}


def expected(values, delta_softplus=True, reverse=False):
    """The plain reference in float64."""
    tensors = {name: torch.from_numpy(value).double() for name, value in values.items()}
    return reference(**tensors, delta_softplus=delta_softplus, reverse=reverse).numpy()


def open_ort(model, native=False):
    options = onnxruntime.SessionOptions()
    if native:
        options.register_custom_ops_library(str(build.ORT_LIBRARY))
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run_ort(model, values, native=False):
    return open_ort(model, native).run(None, values)[0]


def run_onnx(model, values):
    return ReferenceEvaluator(model).run(None, values)[0]


def run_native(model, values):
    return run_ort(model, values, native=True)


needs_library = pytest.mark.skipif(
    not build.ORT_LIBRARY.exists(), reason="librdfa_ort.so is not built: python -m ops.build --onnxruntime_headers DIR"
)
# The body, and what runs it.
WAYS = [
    pytest.param(("cpu", run_ort), id="cpu-ort"),
    pytest.param(("cpu", run_onnx), id="cpu-onnx"),
    pytest.param(("gpu", run_ort), id="gpu-ort"),
    pytest.param(("gpu", run_onnx), id="gpu-onnx"),
    pytest.param(("cpu", run_native), id="native", marks=needs_library),
]
each_way = pytest.mark.parametrize("way", WAYS)


def assert_close(y, want, tolerance=1e-6):
    assert y.shape == want.shape
    assert np.linalg.norm(y - want) <= tolerance * np.linalg.norm(want)


@each_way
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_reference(way, shape):
    body, run = way
    values = make_inputs(shape)
    assert_close(run(make_model(body=body), values), expected(values))


@each_way
@pytest.mark.parametrize("flags", list(itertools.product([False, True], repeat=5)), ids=str)
def test_every_combination_of_inputs_and_attributes(way, flags):
    body, run = way
    *present, delta_softplus, reverse = flags
    given = dict(zip(export.OPTIONAL, present))
    model = make_model(given, delta_softplus, reverse, body=body)
    values = make_inputs((2, 6, 3, 19, 2), given)
    assert_close(run(model, values), expected(values, delta_softplus, reverse))


@pytest.mark.parametrize(
    "body, native", [("cpu", False), ("gpu", False), pytest.param("cpu", True, marks=needs_library)]
)
def test_one_model_serves_every_size(body, native):
    session = open_ort(make_model(body=body), native)
    for shape in [(1, 4, 3, 5, 1), (3, 4, 3, 1, 1), (2, 9, 5, 2336, 3)]:
        values = make_inputs(shape)
        assert_close(session.run(None, values)[0], expected(values))


@each_way
def test_time_steps_from_vanishing_to_huge(way):
    """softplus must neither overflow above 88 nor lose the digits of small time steps."""
    body, run = way
    values = make_inputs((1, 8, 4, 40, 1))
    values["delta"] = np.linspace(-14, 120, 8 * 40, dtype=np.float32).reshape(1, 8, 40)
    values["delta_bias"][:] = 0
    values["D"][:] = 0
    y, want = run(make_model(body=body), values), expected(values)
    assert np.isfinite(y).all()
    for channel in range(8):
        assert_close(y[:, channel], want[:, channel], 1e-5)


@pytest.mark.parametrize("way", [way for way in WAYS if "onnx" not in way.id])
def test_half_precision_computes_in_float32(way):
    body, run = way
    values = make_inputs((2, 5, 16, 65, 1))
    half = {name: value.astype(np.float16) for name, value in values.items()}
    y = run(make_model(dtype=TensorProto.FLOAT16, body=body), half)
    assert y.dtype == np.float16
    want = expected({name: value.astype(np.float32) for name, value in half.items()})
    assert_close(y.astype(np.float32), want, 5e-4)


def test_two_kinds_of_node_in_one_model():
    """Each node runs the function of its own kind, not that of the other."""
    graph_nodes = [
        helper.make_node(export.NAME, list(export.INPUTS), ["forward"], domain="rdfa", delta_softplus=1, reverse=0),
        helper.make_node(export.NAME, list(export.INPUTS), ["backward"], domain="rdfa", delta_softplus=1, reverse=1),
    ]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [None] * RANKS[n]) for n in export.INPUTS]
    outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [None] * 3) for n in ("forward", "backward")]
    graph = helper.make_graph(graph_nodes, "two", values, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    assert export.add_functions(model) == 2
    assert len(model.functions) == 2
    inputs = make_inputs((2, 4, 3, 21, 1))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    forward, backward = session.run(None, inputs)
    assert_close(forward, expected(inputs))
    assert_close(backward, expected(inputs, reverse=True))


def test_loop_body_captures_nothing():
    """Some runtimes refuse a loop body that reads values of the graph around it."""
    scan = next(n for n in make_model().functions[0].node if n.op_type == "Scan")
    body = next(a.g for a in scan.attribute if a.name == "body")
    known = {value.name for value in body.input}
    for node in body.node:
        assert known >= set(node.input), f"{node.op_type} reads a value from outside"
        known |= set(node.output)
    assert not any(v.type.tensor_type.HasField("shape") for v in (*body.input, *body.output))


@pytest.mark.parametrize("body", export.BODIES)
def test_constants_have_axes(body):
    """ONNX Runtime 1.21 takes ``value_ints`` for a tensor without axes, and refuses the paddings that it is for."""
    constants = [node for node in make_model(body=body).functions[0].node if node.op_type == "Constant"]
    assert {attribute.name for node in constants for attribute in node.attribute} == {"value", "value_float"}


def test_body_for_gpus_has_no_control_flow_and_few_nodes():
    """Loops are round trips to the host; and a graph of thousands of nodes takes its time to launch."""
    nodes = make_model(body="gpu").functions[0].node
    assert not {"Scan", "Loop", "If"} & {node.op_type for node in nodes}
    assert len(nodes) < 300


def test_sequence_longer_than_the_body_for_gpus_serves_is_no_number():
    model = make_model(body="gpu", max_length=40)
    for length in (40, 41):
        values = make_inputs((1, 3, 2, length, 1))
        y = run_ort(model, values)
        assert np.isnan(y).all() if length > 40 else np.isfinite(y).all()


@hypothesis.given(length=st.integers(1, 300), max_length=st.integers(0, 100))
@hypothesis.settings(max_examples=25, deadline=None)
def test_body_for_gpus_is_right_up_to_its_longest_sequence(length, max_length):
    values = make_inputs((1, 2, 3, length, 1), seed=length)
    assert_close(run_ort(make_model(body="gpu", max_length=length + max_length), values), expected(values))


def test_inlined_model_gives_the_same():
    """Runtimes without functions get the inlined form."""
    from onnx.inliner import inline_local_functions

    model, values = make_model(), make_inputs((2, 5, 3, 11, 1))
    inlined = inline_local_functions(model)
    assert not inlined.functions
    np.testing.assert_array_equal(run_ort(inlined, values), run_ort(model, values))


class PlainScan(torch.nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.options = options

    def forward(self, u, delta, A, B, C, z):
        return 2 * export.node(u, delta, A, B, C, z=z, **self.options)


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # of torch.onnx, about its own use of torch
@pytest.mark.parametrize("rank", [2, 3, 4])
def test_node_from_torch_with_dynamic_axes(rank):
    """B and C in each of their forms; exported at one size, right at another."""
    x = {name: torch.from_numpy(value) for name, value in make_inputs((2, 4, 3, 8, 2)).items()}

    def form(name, values):
        full = values[name]
        return {2: full[0, 0, :, :1].T.repeat(4, 1), 3: full[:, 0], 4: full}[rank].contiguous()

    def arguments(values):
        return *(values[n] for n in ["u", "delta", "A"]), form("B", values), form("C", values), values["z"]

    auto = torch.export.Dim.DYNAMIC
    dynamic = {0: auto, 2: auto}
    forms = [None if rank == 2 else {0: auto, rank - 1: auto}] * 2
    program = torch.onnx.export(
        PlainScan(delta_softplus=True, reverse=True).eval(), arguments(x), dynamo=True, opset_version=export.OPSET,
        dynamic_shapes=(dynamic, dynamic, None, *forms, dynamic), verbose=False,
    )  # fmt: skip
    model = program.model_proto
    assert export.add_functions(model) == 1
    other = {name: torch.from_numpy(v) for name, v in make_inputs((3, 4, 3, 21, 2), seed=1).items()}
    other["A"] = x["A"]
    inputs = arguments(other)
    y = run_ort(model, {value.name: tensor.numpy() for value, tensor in zip(model.graph.input, inputs)})
    u, delta, A, B, C, z = (tensor.double() for tensor in inputs)
    want = reference(u, delta, A, B, C, z=z, delta_softplus=True, reverse=True)
    assert_close(y, 2 * want.numpy())


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")
@pytest.mark.parametrize("body", export.BODIES)
@pytest.mark.parametrize("kinds", [("BNL", "BGNL"), ("BGNL", "DN")])
def test_node_whose_B_and_C_have_different_groups(kinds, body):
    tensors = {name: torch.from_numpy(value) for name, value in make_inputs((2, 4, 3, 8, 2)).items()}
    forms = {"BNL": lambda m: m[:, 0], "BGNL": lambda m: m, "DN": lambda m: m[0, 0, :, :4].T.contiguous()}
    B, C = (forms[kind](tensors[name]) for kind, name in zip(kinds, "BC"))
    inputs = *(tensors[name] for name in ("u", "delta", "A")), B, C, tensors["z"]
    model = torch.onnx.export(
        PlainScan().eval(), inputs, dynamo=True, opset_version=export.OPSET, verbose=False
    ).model_proto
    export.add_functions(model, body)
    y = run_ort(model, {value.name: tensor.numpy() for value, tensor in zip(model.graph.input, inputs)})
    u, delta, A, B, C, z = (tensor.double() for tensor in inputs)
    assert_close(y, 2 * reference(u, delta, A, B, C, z=z).numpy())
