"""ONNX form of the selective scan: a node ``rdfa::SelectiveScan`` and a model-local function that says what it means.

    SelectiveScan(u, delta, A, B, C, D?, z?, delta_bias?) {delta_softplus, reverse} -> y

    u, delta, z, y [B,D,L]   A [D,N]   B, C [B,G,N,L] (G divides D)   D, delta_bias [D]   any float type, float32 state

Where a runtime has a native kernel of that name it runs the kernel; everywhere else it inlines the function, whose body
is standard operators (opset 18), so one file serves both. `node` emits the node while a module is exported, and
`add_functions` completes the exported model.

The recurrence in the middle of the body is written in one of two ways (`ops.selective_scan.onnx_bodies`): "cpu" loops
over time, "gpu" has no control flow. On one processor the other form is slow, not wrong.

A function cannot ask whether an optional input is there or what an attribute says, so each combination is a function of
its own, told apart by the field ``overload`` ("" is the one with every input, softplus and forward in time).
"""

from typing import TYPE_CHECKING

from ops.selective_scan.onnx_bodies import Body, chunks, loop

if TYPE_CHECKING:
    import onnx
    import torch

DOMAIN, NAME, OPSET = "rdfa", "SelectiveScan", 18
INPUTS = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
OPTIONAL = INPUTS[5:]
BODIES = ("cpu", "gpu")
MAX_LENGTH = 16384  # of the body for GPUs: its size grows with the logarithm


def node(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, reverse=False) -> "torch.Tensor":
    """Emit one SelectiveScan node while ``torch.onnx.export(dynamo=True)`` traces; same meaning as
    `ops.selective_scan`.

    Args:
        u, delta: [B,D,L]. A: [D,N]. B, C: [D,N], [B,N,L] or [B,G,N,L]. D, delta_bias: [D] or None. z: [B,D,L] or None.

    Returns:
        y [B,D,L] in u's dtype.
    """
    import torch

    from ops.selective_scan.layout import count_groups, grouped

    groups = count_groups(B, C, u.shape[1])
    inputs = (u, delta, A, grouped(B, groups, u), grouped(C, groups, u), D, z, delta_bias)
    attributes = {"delta_softplus": int(delta_softplus), "reverse": int(reverse)}
    return torch.onnx.ops.symbolic(f"{DOMAIN}::{NAME}", inputs, attributes, dtype=u.dtype, shape=u.shape, version=1)


def add_functions(model: "onnx.ModelProto", body: str = "cpu", max_length: int = MAX_LENGTH) -> int:
    """Append the function of every kind of SelectiveScan node in `model`, in place; returns the number of nodes.

    Args:
        body, max_length: as in `function`.
    """
    import onnx

    kinds = {}
    nodes = [n for n in model.graph.node if (n.domain, n.op_type) == (DOMAIN, NAME)]
    for n in nodes:
        given = {name for name, value in zip(INPUTS, n.input) if value}
        flags = {a.name: bool(a.i) for a in n.attribute}
        proto = function({name: name in given for name in OPTIONAL}, **flags, body=body, max_length=max_length)
        n.overload = proto.overload
        kinds[proto.overload] = proto
    model.functions.extend(kinds.values())
    if kinds and DOMAIN not in {entry.domain for entry in model.opset_import}:
        model.opset_import.append(onnx.helper.make_opsetid(DOMAIN, 1))
    return len(nodes)


def function(
    given: dict[str, bool], delta_softplus: bool, reverse: bool, body: str = "cpu", max_length: int = MAX_LENGTH
) -> "onnx.FunctionProto":
    """The FunctionProto of one kind of SelectiveScan node.

        dt = softplus(delta + delta_bias)   h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t   y_t = (C_t h_t + D u_t) silu(z_t)

    Args:
        given: for each of D, z and delta_bias whether the node has it; absent ones are left out of the formula.
        body: one of `BODIES`. max_length: of "gpu", the longest sequence; a longer one gives NaN.
    """
    from onnx import helper

    graph = Body(f"{NAME}/")
    u, delta, A, B, C = (graph("Cast", name, to=1) for name in INPUTS[:5])
    optional = {name: graph("Cast", name, to=1) for name in OPTIONAL if given[name]}
    if "delta_bias" in optional:
        delta = graph("Add", delta, graph("Unsqueeze", optional["delta_bias"], graph.ints(1)))
    if delta_softplus:
        delta = _softplus(graph, delta)
    in_time = [delta, graph("Mul", delta, u), B, C]
    dt, dtu, B, C = [graph.reverse(x) for x in in_time] if reverse else in_time
    y = loop(graph, dt, dtu, A, B, C) if body == "cpu" else chunks(graph, dt, dtu, A, B, C, max_length)
    if reverse:
        y = graph.reverse(y)
    if "D" in optional:
        y = graph("Add", y, graph("Mul", u, graph("Unsqueeze", optional["D"], graph.ints(1))))
    if "z" in optional:
        y = graph("Mul", y, graph("Mul", optional["z"], graph("Sigmoid", optional["z"])))
    graph.nodes.append(helper.make_node("CastLike", [y, "u"], ["y"], name=f"{NAME}/y"))
    absent = [f"no_{name}" for name in OPTIONAL if not given[name]]
    overload = "_".join(absent + ["raw_delta"] * (not delta_softplus) + ["reverse"] * reverse)
    return helper.make_function(
        DOMAIN, NAME, list(INPUTS), ["y"], graph.nodes, [helper.make_opsetid("", OPSET)],
        attributes=["delta_softplus", "reverse"], overload=overload,
    )  # fmt: skip


def _softplus(body: Body, x: str) -> str:
    """max(x, 0) + log1p(exp(-|x|)) with log1p(e) = log(w) e / (w - 1), w = 1 + e rounded.

    ONNX has no log1p, and log(1 + e) alone loses the small time steps. Three times as fast as ``Softplus`` in ONNX
    Runtime. Where e vanishes beside 1, the quotient is kept finite and the result is 0 (off by less than 6e-8).
    """
    one = body.floats(1.0)
    e = body("Exp", body("Neg", body("Abs", x)))
    w = body("Add", e, one)
    quotient = body("Div", e, body("Max", body("Sub", w, one), body.floats(1e-30)))
    return body("Add", body("Relu", x), body("Mul", body("Log", w), quotient))
