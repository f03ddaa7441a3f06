"""ONNX form of the selective scan: a node ``rdfa::SelectiveScan`` and a model-local function that says what it means.

    SelectiveScan(u, delta, A, B, C, D?, z?, delta_bias?) {delta_softplus, reverse} -> y

    u, delta, z, y [B,D,L]   A [D,N]   B, C [B,G,N,L] (G divides D)   D, delta_bias [D]   any float type, float32 state

Where a runtime has a native kernel of that name it runs the kernel; everywhere else it inlines the function, whose body
is standard operators (opset 18), so one file serves both. `node` emits the node while a module is exported, and
`add_functions` completes the exported model.

The body is one ONNX ``Scan`` over time with the state laid out [B,G,N,D/G]: per step one exponential, three products, a
sum and a matrix product ``C_t h``. The matrix form of the recurrence (cumulative sums and products) is not used: it
overflows on ordinary inputs. Names of dimensions are left out (they would collide with the caller's when inlined) and
the body of the loop captures nothing (A travels as a loop state), because not every runtime accepts that.

A function cannot ask whether an optional input is there or what an attribute says, so each combination is a function of
its own, told apart by the field ``overload`` ("" is the one with every input, softplus and forward in time).
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx
    import torch

DOMAIN, NAME, OPSET = "rdfa", "SelectiveScan", 18
INPUTS = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
OPTIONAL = INPUTS[5:]


def node(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, reverse=False) -> "torch.Tensor":
    """Emit one SelectiveScan node while ``torch.onnx.export(dynamo=True)`` traces; same meaning as
    `ops.selective_scan`.

    Args:
        u, delta: [B,D,L]. A: [D,N]. B, C: [D,N], [B,N,L] or [B,G,N,L]. D, delta_bias: [D] or None. z: [B,D,L] or None.

    Returns:
        y [B,D,L] in u's dtype.
    """
    import torch

    inputs = (u, delta, A, _grouped(B, u), _grouped(C, u), D, z, delta_bias)
    attributes = {"delta_softplus": int(delta_softplus), "reverse": int(reverse)}
    return torch.onnx.ops.symbolic(f"{DOMAIN}::{NAME}", inputs, attributes, dtype=u.dtype, shape=u.shape, version=1)


def _grouped(B, u):
    """B or C in its general form [B,G,N,L]."""
    if B.dim() == 2:
        return B[None, :, :, None].expand(u.shape[0], -1, -1, u.shape[2])
    return B.unsqueeze(1) if B.dim() == 3 else B


def add_functions(model: "onnx.ModelProto") -> int:
    """Append the function of every kind of SelectiveScan node in `model`, in place; returns the number of nodes."""
    import onnx

    kinds = {}
    nodes = [n for n in model.graph.node if (n.domain, n.op_type) == (DOMAIN, NAME)]
    for n in nodes:
        given = {name for name, value in zip(INPUTS, n.input) if value}
        flags = {a.name: bool(a.i) for a in n.attribute}
        proto = function({name: name in given for name in OPTIONAL}, **flags)
        n.overload = proto.overload
        kinds[proto.overload] = proto
    model.functions.extend(kinds.values())
    if kinds and DOMAIN not in {entry.domain for entry in model.opset_import}:
        model.opset_import.append(onnx.helper.make_opsetid(DOMAIN, 1))
    return len(nodes)


def function(given: dict[str, bool], delta_softplus: bool, reverse: bool) -> "onnx.FunctionProto":
    """The FunctionProto of one kind of SelectiveScan node.

        dt = softplus(delta + delta_bias)   h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t   y_t = (C_t h_t + D u_t) silu(z_t)

    Args:
        given: for each of D, z and delta_bias whether the node has it; absent ones are left out of the formula.
    """
    from onnx import helper

    body = _Body()
    u, delta, A, B, C = (body("Cast", name, to=1) for name in INPUTS[:5])
    optional = {name: body("Cast", name, to=1) for name in OPTIONAL if given[name]}
    if "delta_bias" in optional:
        delta = body("Add", delta, body("Unsqueeze", optional["delta_bias"], body.ints(1)))
    if delta_softplus:
        delta = _softplus(body, delta)
    # [B,D,L] -> [L,B,G,1,D/G], [B,G,N,L] -> [L,B,G,N,1] and [L,B,G,1,N]: a step then needs no reshaping of its own.
    batch, length = body("Shape", u, start=0, end=1), body("Shape", u, start=2, end=3)
    groups = body("Shape", B, start=1, end=2)
    split = body("Concat", batch, groups, body.ints(1), body.ints(-1), length, axis=0)
    time_first = {"perm": [4, 0, 1, 2, 3]}
    steps_dt = body("Transpose", body("Reshape", delta, split), **time_first)
    steps_dtu = body("Transpose", body("Reshape", body("Mul", delta, u), split), **time_first)
    steps_B = body("Transpose", body("Unsqueeze", B, body.ints(4)), perm=[3, 0, 1, 2, 4])
    steps_C = body("Transpose", body("Unsqueeze", C, body.ints(4)), perm=[3, 0, 1, 4, 2])
    # A [D,N] -> [G,N,D/G], the layout of the state.
    states = body("Shape", A, start=1, end=2)
    A = body("Reshape", A, body("Concat", groups, body.ints(-1), states, axis=0))
    A = body("Transpose", A, perm=[0, 2, 1])
    h0 = body("Expand", body.floats(0.0), body("Concat", batch, body("Shape", A), axis=0))
    steps = [steps_dt, steps_dtu, steps_B, steps_C]
    if reverse:
        steps = [_flip_time(body, values) for values in steps]
    y = body("Scan", h0, A, *steps, outputs=3, body=_step(), num_scan_inputs=len(steps))[2]
    if reverse:
        y = _flip_time(body, y)
    y = body("Reshape", body("Transpose", y, perm=[1, 2, 3, 4, 0]), body("Shape", u))
    if "D" in optional:
        y = body("Add", y, body("Mul", u, body("Unsqueeze", optional["D"], body.ints(1))))
    if "z" in optional:
        y = body("Mul", y, body("Mul", optional["z"], body("Sigmoid", optional["z"])))
    body.nodes.append(helper.make_node("CastLike", [y, "u"], ["y"]))
    absent = [f"no_{name}" for name in OPTIONAL if not given[name]]
    overload = "_".join(absent + ["raw_delta"] * (not delta_softplus) + ["reverse"] * reverse)
    return helper.make_function(
        DOMAIN, NAME, list(INPUTS), ["y"], body.nodes, [helper.make_opsetid("", OPSET)],
        attributes=["delta_softplus", "reverse"], overload=overload,
    )  # fmt: skip


def _flip_time(body: "_Body", values: str) -> str:
    """`values` with its first axis reversed; the scan's own directions are not implemented by every runtime."""
    return body("Slice", values, body.ints(-1), body.ints(-(2**31)), body.ints(0), body.ints(-1))


def _softplus(body: "_Body", x: str) -> str:
    """max(x, 0) + log1p(exp(-|x|)) with log1p(e) = log(w) e / (w - 1), w = 1 + e rounded.

    ONNX has no log1p, and log(1 + e) alone loses the small time steps. Three times as fast as ``Softplus`` in ONNX
    Runtime. Where e vanishes beside 1, the quotient is kept finite and the result is 0 (off by less than 6e-8).
    """
    one = body.floats(1.0)
    e = body("Exp", body("Neg", body("Abs", x)))
    w = body("Add", e, one)
    quotient = body("Div", e, body("Max", body("Sub", w, one), body.floats(1e-30)))
    return body("Add", body("Relu", x), body("Mul", body("Log", w), quotient))


def _step() -> "onnx.GraphProto":
    """One time step: state and inputs [B,G,...] as laid out in `function`."""
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("Mul", ["dt", "A"], ["exponent"]),
        helper.make_node("Exp", ["exponent"], ["decay"]),
        helper.make_node("Mul", ["decay", "h"], ["kept"]),
        helper.make_node("Mul", ["dtu", "B"], ["added"]),
        helper.make_node("Add", ["kept", "added"], ["h_next"]),
        helper.make_node("MatMul", ["C", "h_next"], ["y"]),
        helper.make_node("Identity", ["A"], ["A_next"]),
    ]

    def values(*names):
        return [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names]

    return helper.make_graph(nodes, "step", values("h", "A", "dt", "dtu", "B", "C"), values("h_next", "A_next", "y"))


class _Body:
    """Collects nodes; calling it adds one and returns the name of its output, or a list of names if it has several."""

    def __init__(self):
        self.nodes = []
        self._constants = {}

    def __call__(self, op_type: str, *inputs: str, outputs: int = 1, **attributes):
        from onnx import helper

        names = [f"{op_type.lower()}_{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op_type, list(inputs), names, **attributes))
        return names[0] if outputs == 1 else names

    def ints(self, value: int) -> str:
        """A constant [value] int64."""
        return self._constant(value_ints=[value])

    def floats(self, value: float) -> str:
        """A scalar constant float32."""
        return self._constant(value_float=value)

    def _constant(self, **attributes) -> str:
        key = repr(attributes)
        if key not in self._constants:
            self._constants[key] = self("Constant", **attributes)
        return self._constants[key]
