"""`selective_scan`: checks, dispatch, and what torch must know about the library's operators (fakes, autograd).

Letters: B batch, D channels, N states per channel, L time, G groups of channels that share B and C.
"""

import torch
from torch import Tensor

from ops import library
from ops.selective_scan import cuda, launch
from ops.selective_scan.export import node as onnx_node
from ops.selective_scan.layout import count_groups, empty_gradients
from ops.selective_scan.reference import selective_scan_reference

MAX_STATES = 256
# As in csrc/selective_scan/scan.h: the layout of the states that the training forward keeps for the backward.
TILE = 16
STATE_LANES = 16


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    reverse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Selective scan of a diagonal state space model, for every channel d and its N states:

        dt_t = softplus(delta_t + delta_bias)            (softplus only with ``delta_softplus``)
        h_t  = exp(dt_t A) h_{t-1} + dt_t B_t u_t        h_0 = 0
        y_t  = (sum_n C_t h_t + D u_t) silu(z_t)

    Takes what mamba-ssm's ``selective_scan_fn`` takes, with the same meaning. With ``reverse`` time runs from L-1 down
    to 0, without flipping anything.

    Args:
        u, delta: [B,D,L], any strides. On the CPU the fast memory orders are [B,L,D] and [B,D,L], and none is copied;
            on a GPU [B,D,L] is, and others are copied to it.
        A: [D,N] real, N from 1 to 256. N = 16 is the fast case.
        B, C: [B,N,L], [B,G,N,L] with G a divisor of D, or constant in time [D,N] (correct, but slow).
        D, delta_bias: [D] or None. z: [B,D,L] or None.

    Returns:
        y [B,D,L] in u's dtype, the kernels keeping u's memory order; with ``return_last_state`` also the state after
        the last step, [B,D,N] float32. The state and all sums are float32 (float64 when u is float64).

    float32 and bfloat16 on the CPU run the C++ kernels, float16 too, converted to float32 and back; float32, float16
    and bfloat16 on a GPU run the Triton kernels where Triton is installed, else, without gradients, those that
    ``python -m ops.aot`` compiled; everything else, derivatives by `torch.func` or in forward mode, and a machine
    without the library run `selective_scan_reference`. `ops.onnx_export` writes it as one node.
    Differentiable once in every tensor argument, the last state included; results and gradients do not depend on the
    thread count, and repeat to the last bit.

    Raises:
        TypeError, ValueError: an argument of the wrong dtype, shape or device.

    Source: Gu and Dao, Mamba: Linear-Time Sequence Modeling with Selective State Spaces, arXiv 2312.00752, algorithm 2.
    """
    inputs = (u, delta, A, B, C, D, z, delta_bias)
    _check(*inputs)
    if library.recording_onnx:
        if return_last_state:
            raise ValueError("return_last_state=True: the ONNX operator gives y alone; export without the last state")
        return onnx_node(*inputs, delta_softplus, reverse)
    sequences = (u, delta, B, C, z)
    if library.runs_triton(*sequences) or library.runs_aot(*inputs) or library.runs_native(*sequences):
        y, last_state = _native(u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse)
        return (y, last_state) if return_last_state else y
    if wide := library.widened(*sequences):
        wide_u, wide_delta, B, C, z = wide
        y, last_state = _native(wide_u, wide_delta, A, B, C, D, z, delta_bias, delta_softplus, reverse)
        return (y.to(u.dtype), last_state) if return_last_state else y.to(u.dtype)
    return selective_scan_reference(*inputs, delta_softplus, return_last_state, reverse)


def _native(u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse):
    A, D, delta_bias = (None if t is None else t.float() for t in (A, D, delta_bias))
    inputs = (u, delta, A, B, C, D, z, delta_bias)
    # A recorded graph holds the one operator of the contract, whoever requires gradients; its own backward runs the
    # training forward again.
    recorded = torch.jit.is_tracing() or torch.compiler.is_exporting()
    if not recorded and torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs):
        return torch.ops.rdfa.selective_scan_train(*inputs, delta_softplus, reverse)[:2]
    return torch.ops.rdfa.selective_scan(*inputs, delta_softplus, reverse)


def _check(u, delta, A, B, C, D, z, delta_bias):
    required = {"u": u, "delta": delta, "A": A, "B": B, "C": C}
    optional = {"D": D, "z": z, "delta_bias": delta_bias}
    for name, tensor in {**required, **{k: v for k, v in optional.items() if v is not None}}.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} is {type(tensor).__name__}: expected a tensor")
        if tensor.is_complex():
            raise TypeError(f"{name} is complex: only real A, B and C are supported; pass its real part")
        if not tensor.is_floating_point():
            raise TypeError(f"{name} is {tensor.dtype}: expected a real floating-point tensor")
        if tensor.device != u.device:
            raise ValueError(f"{name} is on {tensor.device}, u on {u.device}: move them to one device")
    if u.dim() != 3:
        raise _wrong_shape("u", u, "[B, D, L]")
    if A.dim() != 2:
        raise _wrong_shape("A", A, "[D, N]")
    if not torch.jit.is_tracing():  # sizes are tensors while tracing; the operator checks them whenever it runs
        _check_sizes(u, delta, A, B, C, D, z, delta_bias)


def _check_sizes(u, delta, A, B, C, D, z, delta_bias):
    # Messages are made only when needed: printing a size would make torch.compile take it for a constant.
    batch, channels, length = u.shape
    states = A.shape[1]
    if A.shape[0] != channels or not 1 <= states <= MAX_STATES:
        raise _wrong_shape("A", A, f"[{channels}, N], N from 1 to {MAX_STATES}")
    for name, tensor in (("delta", delta), ("z", z)):
        if tensor is not None and tensor.shape != u.shape:
            raise _wrong_shape(name, tensor, f"that of u, {list(u.shape)}")
    for name, tensor in (("D", D), ("delta_bias", delta_bias)):
        if tensor is not None and tensor.shape != (channels,):
            raise _wrong_shape(name, tensor, f"[{channels}]")
    for name, tensor in (("B", B), ("C", C)):
        if tensor.dim() == 2:
            fits = tensor.shape == (channels, states)
        else:
            fits = 3 <= tensor.dim() <= 4 and tensor.shape[0] == batch and tensor.shape[-2:] == (states, length)
            fits = fits and (tensor.dim() == 3 or (tensor.shape[1] > 0 and channels % tensor.shape[1] == 0))
        if not fits:
            shapes = f"[{channels}, {states}], [{batch}, {states}, {length}] or [{batch}, G, {states}, {length}]"
            raise _wrong_shape(name, tensor, f"{shapes}, G a divisor of {channels}")
    if B.dim() == C.dim() == 4 and B.shape[1] != C.shape[1] and min(B.shape[1], C.shape[1]) != 1:
        raise ValueError(
            f"B has {B.shape[1]} groups and C has {C.shape[1]}: expected the same number, or one of them 1"
        )


def _wrong_shape(name, tensor, expected):
    return ValueError(f"{name} has shape {list(tensor.shape)}: expected {expected}")


def _fake(u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse):
    return library.empty_bdl(u), u.new_empty((u.shape[0], *A.shape), dtype=torch.float32)


def _fake_train(u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse):
    if u.device.type == "cuda":
        states = launch.states_shape(u, A.shape[1])
    else:
        batch, channels, length = u.shape
        groups = count_groups(B, C, channels)
        wide_blocks = groups * ((channels // groups + STATE_LANES - 1) // STATE_LANES)
        states = (batch, (length + TILE - 1) // TILE, wide_blocks, A.shape[1] * STATE_LANES)
    outputs = _fake(u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse)
    return *outputs, u.new_empty(states, dtype=torch.float32)


def _fake_backward(grad_y, grad_last_state, u, delta, A, B, C, D, z, delta_bias, states, delta_softplus, reverse):
    return empty_gradients(u, delta, A, B, C, D, z, delta_bias)


def _setup_context(ctx, inputs, output):
    *tensors, ctx.delta_softplus, ctx.reverse = inputs
    states = output[2:]
    ctx.save_for_backward(*tensors, *states)
    ctx.mark_non_differentiable(*states)
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_y, grad_last_state, grad_states=None):
    if grad_y is None and grad_last_state is None:
        return (None,) * 10
    saved, flags = ctx.saved_tensors, (ctx.delta_softplus, ctx.reverse)  # gradient checkpointing lets them be read once
    inputs = saved[:8]
    states = saved[8] if len(saved) == 9 else torch.ops.rdfa.selective_scan_train(*inputs, *flags)[2]
    u = inputs[0]
    if grad_y is None:
        grad_y = u.new_zeros(()).expand(u.shape)
    gradients = torch.ops.rdfa.selective_scan_backward(grad_y, grad_last_state, *inputs, states, *flags)
    return *(None if t is None else g for t, g in zip(inputs, gradients)), None, None


if library.loaded():
    library.implement_with_triton("selective_scan", cuda.forward)
    library.implement_with_triton("selective_scan_train", cuda.forward_train)
    library.implement_with_triton("selective_scan_backward", cuda.backward)
    torch.library.register_fake("rdfa::selective_scan", _fake)
    torch.library.register_fake("rdfa::selective_scan_train", _fake_train)
    torch.library.register_fake("rdfa::selective_scan_backward", _fake_backward)
    torch.library.register_autograd("rdfa::selective_scan", _backward, setup_context=_setup_context)
    torch.library.register_autograd("rdfa::selective_scan_train", _backward, setup_context=_setup_context)
    library.refuse_gradients("selective_scan_backward", "for second derivatives use ops.selective_scan.reference")
