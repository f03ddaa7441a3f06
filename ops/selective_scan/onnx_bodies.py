"""Bodies of the ONNX function in `ops.selective_scan.export`: two ways to write the recurrence in standard operators.

    h_t = exp(dt_t A) h_{t-1} + dtu_t B_t,   y_t = C_t h_t       h_0 = 0, float32

    dt, dtu, y [B,D,L]   A [D,N]   B, C [B,G,N,L]       M chunks of K = CHUNK steps

`loop`, for CPUs: one ONNX ``Scan`` over time, per step one exponential, three products, a sum and a matrix product. The
body of the loop captures nothing (A travels as a loop state), because not every runtime accepts that. `chunks`, for
GPUs, where each step of a loop would be a round trip to the host: no control flow. All chunks advance side by side, and
what one hands to the next is summed in log2(M) steps.

Names of dimensions are left out: they would collide with the caller's when the function is inlined. The matrix form of
the recurrence (quotients of cumulative products) is not used: it overflows on ordinary inputs.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

CHUNK = 16
_TIME = -1  # the axis of time in what the bodies take and give


class Body:
    """Collects nodes; calling it adds one and returns the name of its output, or a list of names if it has several.

    Nodes are called `prefix` and a number, by which a profile tells the nodes of an inlined function from others.
    """

    def __init__(self, prefix: str):
        self._prefix = prefix
        self.nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, str] = {}

    def __call__(self, op_type: str, *inputs: str, outputs: int = 1, **attributes):
        from onnx import helper

        names = [f"{op_type.lower()}_{len(self.nodes)}_{i}" for i in range(outputs)]
        node_name = f"{self._prefix}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, list(inputs), names, name=node_name, **attributes))
        return names[0] if outputs == 1 else names

    def ints(self, *values: int) -> str:
        """A constant int64 vector; a tensor, because ONNX Runtime 1.21 takes ``value_ints`` for one without axes."""
        from onnx import TensorProto, helper

        return self._constant(value=helper.make_tensor("", TensorProto.INT64, [len(values)], values))

    def floats(self, value: float) -> str:
        """A scalar constant float32."""
        return self._constant(value_float=value)

    def reverse(self, x: str) -> str:
        """`x` backwards in time; the directions of ``Scan`` are not implemented by every runtime."""
        return self("Slice", x, self.ints(-1), self.ints(-(2**31)), self.ints(_TIME), self.ints(-1))

    def _constant(self, **attributes) -> str:
        key = repr(attributes)
        if key not in self._constants:
            self._constants[key] = self("Constant", **attributes)
        return self._constants[key]


def loop(body: Body, dt: str, dtu: str, A: str, B: str, C: str) -> str:
    """The recurrence as a ``Scan``, with the state laid out [B,G,N,D/G]; any length."""
    batch, length = body("Shape", dt, start=0, end=1), body("Shape", dt, start=2, end=3)
    groups = body("Shape", B, start=1, end=2)
    # [B,D,L] -> [L,B,G,1,D/G], [B,G,N,L] -> [L,B,G,N,1] and [L,B,G,1,N]: a step then needs no reshaping of its own.
    split = body("Concat", batch, groups, body.ints(1), body.ints(-1), length, axis=0)
    steps = [body("Transpose", body("Reshape", x, split), perm=[4, 0, 1, 2, 3]) for x in (dt, dtu)]
    steps.append(body("Transpose", body("Unsqueeze", B, body.ints(4)), perm=[3, 0, 1, 2, 4]))
    steps.append(body("Transpose", body("Unsqueeze", C, body.ints(4)), perm=[3, 0, 1, 4, 2]))
    A = _by_group(body, A, groups)
    h0 = body("Expand", body.floats(0.0), body("Concat", batch, body("Shape", A), axis=0))
    y = body("Scan", h0, A, *steps, outputs=3, body=_step(), num_scan_inputs=len(steps))[2]
    return body("Reshape", body("Transpose", y, perm=[1, 2, 3, 4, 0]), body("Shape", dt))


def _by_group(body: Body, A: str, groups: str) -> str:
    """A [D,N] -> [G,N,D/G], the layout of the states."""
    states = body("Shape", A, start=1, end=2)
    A = body("Reshape", A, body("Concat", groups, body.ints(-1), states, axis=0))
    return body("Transpose", A, perm=[0, 2, 1])


def _step() -> "onnx.GraphProto":
    """One time step of `loop`: state and inputs [B,G,...] as laid out there."""
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


def chunks(body: Body, dt: str, dtu: str, A: str, B: str, C: str, max_length: int) -> str:
    """The recurrence without control flow, for L <= `max_length`; a longer sequence gives NaN, not a wrong number.

    Memory: decays and inputs of all steps, 2 B D N L numbers, and the states of one step of all chunks.
    """
    batch, groups = body("Shape", dt, start=0, end=1), body("Shape", B, start=1, end=2)
    length = body("Shape", dt, start=2, end=3)
    count = body("Div", body("Add", length, body.ints(CHUNK - 1)), body.ints(CHUNK))
    padded = body("Mul", count, body.ints(CHUNK))
    padding = body("Concat", body.ints(0), body("Sub", padded, length), axis=0)

    def steps(x: str, rows: str, columns: str) -> list[str]:
        """[B, ..., L] -> CHUNK times [1, B, M, G, rows, columns]. Padding has dt = dtu = 0, which changes no state."""
        x = body("Pad", x, padding, "", body.ints(_TIME))
        shape = body("Concat", batch, groups, rows, columns, count, body.ints(CHUNK), axis=0)
        x = body("Transpose", body("Reshape", x, shape), perm=[5, 0, 4, 1, 2, 3])
        return body("Split", x, axis=0, outputs=CHUNK, num_outputs=CHUNK)

    one, rest = body.ints(1), body.ints(-1)
    steps_dt, steps_dtu = steps(dt, one, rest), steps(dtu, one, rest)
    steps_B, steps_C = steps(B, rest, one), steps(C, one, rest)
    too_long = body("Greater", length, body.ints(max_length))
    A = _by_group(body, body("Where", too_long, body.floats(float("nan")), A), groups)

    decays = [body("Exp", body("Mul", step, A)) for step in steps_dt]
    inputs = [body("Mul", step, B_t) for step, B_t in zip(steps_dtu, steps_B)]

    def advance(h: str, k: int) -> str:
        return body("Add", body("Mul", decays[k], h), inputs[k])

    # What each chunk makes of a zero state, and how much of another it would leave.
    state = inputs[0]
    for k in range(1, CHUNK):
        state = advance(state, k)
    decay = body("Exp", body("Mul", body("Sum", *steps_dt), A))

    def earlier(x: str, distance: int) -> str:
        """`x` of the chunk that lies `distance` before; zeros where there is none."""
        x = body("Pad", x, body.ints(distance, 0), "", body.ints(2))
        return body("Slice", x, body.ints(0), count, body.ints(2))

    distance = 1
    while distance * CHUNK < max_length:  # sums over twice as many chunks each time
        state = body("Add", state, body("Mul", decay, earlier(state, distance)))
        decay = body("Mul", decay, earlier(decay, distance))
        distance *= 2

    state, rows = earlier(state, 1), []
    for k in range(CHUNK):
        state = advance(state, k)
        rows.append(body("MatMul", steps_C[k], state))
    y = body("Transpose", body("Concat", *rows, axis=0), perm=[1, 3, 4, 5, 2, 0])
    y = body("Reshape", y, body("Concat", batch, body("Shape", dt, start=1, end=2), padded, axis=0))
    return body("Slice", y, body.ints(0), length, body.ints(_TIME))
