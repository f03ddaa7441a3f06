"""Launch the Triton kernels of the scan: pack B and C, choose a tile, and add up what the programs leave.

Everything here is in one form: r directions (the second reads time from the other end), b sequences each, E channels
in branches of D, which share A, the skip D, the bias and z; G groups of channels that share B and C; N states, L steps.

    u, delta, y [r,b,E,L]   A [D,N]   B, C [r,b,G,N,L]   D, delta_bias [D]   z [r,b,D,L]   states [r,b,E,blocks,N]

A, D, delta_bias and states are float32. Letters of tiles as in `triton_common`, which is imported, with Triton, when
the first call arrives. No result depends on an order of execution: every run gives the same bits.
"""

import torch

from ops.selective_scan.tiles import ACCESS_BYTES, backward_tile, forward_tile

# Channels with more states take several launches: a thread holds all the states of a launch in registers.
STATES_PER_LAUNCH = 16


def states_shape(u, N: int) -> tuple[int, ...]:
    """Of what the forward keeps for the backward: the state before each of its blocks; u is [.., E, L]."""
    return *u.shape[:-1], -(-u.shape[-1] // backward_tile(u.dtype).block), N


def forward(u, delta, A, B, C, D, z, delta_bias, y, *, softplus, reverse=False, last_state=None, states=None):
    """Fill y and, where given, last_state [r,b,E,N] and states."""
    from ops.selective_scan.triton_forward import forward_kernel

    directions, batch, channels, length = u.shape
    groups = B.shape[2]
    tile = forward_tile(u.device, directions * batch * groups, channels // groups)
    u, delta, z = _time_contiguous(u, delta, z)
    A, D, delta_bias = _contiguous(A, D, delta_bias)
    chunks = _chunks(A)
    parts = _parts(y, len(chunks))
    with torch.cuda.device_of(u):
        for i, chunk in enumerate(chunks):
            sequences = u, delta, z, parts[i]
            forward_kernel[_grid(tile, u, groups)](
                u, delta, A[:, chunk], _pack(B[..., chunk, :], C[..., chunk, :], tile, reverse),
                D if i == 0 else None, z, delta_bias, parts[i],
                None if last_state is None else last_state[..., chunk], None if states is None else states[..., chunk],
                *_sizes(u, A, groups, reverse, sequences),
                K=tile.steps // _access(u), V=_access(u), SAVE=backward_tile(u.dtype).block,
                **_constants(tile, u, A, chunk, sequences, softplus),
            )  # fmt: skip
    _collect(parts, y)


def backward(
    grad_y, grad_last_state, u, delta, A, B, C, D, z, delta_bias, states, du, ddelta, dz, *, softplus, reverse=False
):
    """Fill du, ddelta and dz, all [r,b,E,L] (each branch has its share in the gradient of z).

    Returns the gradients of A [D,N], B and C [2,r,b,G,N,L], D [D] and delta_bias [D], in float32.
    """
    from ops.selective_scan.triton_backward import backward_kernel

    directions, batch, channels, length = u.shape
    groups, (shared, N) = B.shape[2], A.shape
    tile = backward_tile(u.dtype)
    (programs,) = grid = _grid(tile, u, groups)

    def zeros(*shape):
        return torch.zeros(shape, dtype=torch.float32, device=u.device)

    # One value per sequence and channel. D is used in the first launch alone; the bias has a share in each.
    dA, dD = zeros(directions * batch, channels, N), zeros(directions * batch, channels)
    dBC = zeros(2, directions, batch, groups, N, length)
    grad_y, u, delta, z = _time_contiguous(grad_y, u, delta, z)
    A, D, delta_bias, grad_last_state = _contiguous(A, D, delta_bias, grad_last_state)
    chunks = _chunks(A)
    dbias = zeros(len(chunks), directions * batch, channels)
    gradients = [None if t is None else _parts(t, len(chunks)) for t in (du, ddelta, dz)]
    with torch.cuda.device_of(u):
        for i, chunk in enumerate(chunks):
            states_here = chunk.stop - chunk.start
            slots = zeros(0).new_empty(programs, states.shape[3], 2 * states_here, tile.block)
            outputs = [None if t is None else t[i] for t in gradients]
            sequences = grad_y, u, delta, z, *outputs
            backward_kernel[grid](
                grad_y, u, delta, A[:, chunk], _pack(B[..., chunk, :], C[..., chunk, :], tile, reverse),
                D if i == 0 else None, z, delta_bias, states[..., chunk],
                None if grad_last_state is None else grad_last_state[..., chunk],
                *outputs, dA[..., chunk], slots, dD, dbias[i],
                *_sizes(u, A, groups, reverse, sequences),
                V=tile.steps, **_constants(tile, u, A, chunk, sequences, softplus),
            )  # fmt: skip
            dBC[..., chunk, :] = _unpack(slots, dBC[..., chunk, :].shape, tile, reverse)
    for parts, result in zip(gradients, (du, ddelta, dz)):
        if result is not None:
            _collect(parts, result)
    return dA.view(-1, shared, N).sum(0), dBC, dD.view(-1, shared).sum(0), dbias.view(-1, shared).sum(0)


def _access(u):
    return ACCESS_BYTES // u.element_size()


def _chunks(A):
    N = A.shape[1]
    return [slice(n, min(n + STATES_PER_LAUNCH, N)) for n in range(0, N, STATES_PER_LAUNCH)]


def _grid(tile, u, groups):
    directions, batch, channels, _ = u.shape
    return (directions * batch * groups * -(-(channels // groups) // tile.rows),)


def _unit(u, sequences):
    """As of `triton_common`: the steps of one access where length and strides allow it, else 1."""
    sizes = [u.shape[-1], *(s for t in sequences if t is not None for s in t.stride()[:-1])]
    return _access(u) if all(size % _access(u) == 0 for size in sizes) else 1


def _sizes(u, A, groups, reverse, sequences):
    """The kernels' integer arguments."""
    _, batch, channels, length = u.shape
    unit = _unit(u, sequences)
    strides = [s // unit for t in sequences for s in ((0, 0, 0) if t is None else t.stride()[:-1])]
    return length // unit, batch, channels, groups, A.shape[0], int(reverse), *strides


def _constants(tile, u, A, chunk, sequences, softplus):
    unit = _unit(u, sequences)
    return {
        "N": chunk.stop - chunk.start,
        "ALL": A.shape[1],
        "R": tile.rows,
        "LT": tile.lanes,
        "UNIT": unit,
        "EVEN": unit > 1 and u.shape[-1] % tile.block == 0,
        "SOFTPLUS": softplus,
        "num_warps": tile.rows * tile.lanes // 32,
        "maxnreg": tile.registers,
        "enable_fp_fusion": True,
    }


def _time_contiguous(*tensors):
    return [t if t is None or t.stride(-1) == 1 else t.contiguous() for t in tensors]


def _contiguous(*tensors):
    return [None if t is None else t.contiguous() for t in tensors]


def _parts(result, launches):
    """Where each launch writes its share of `result`, [launches, *result]: float32 where several are added up."""
    if launches == 1 and result.stride(-1) == 1:
        return result[None]
    dtype = result.dtype if launches == 1 else torch.float32
    return torch.empty((launches, *result.shape), dtype=dtype, device=result.device)


def _collect(parts, result):
    if parts.data_ptr() != result.data_ptr():
        result.copy_(parts.sum(0) if len(parts) > 1 else parts[0])


def _pack(B, C, tile, reverse):
    from ops.selective_scan.triton_common import pack_kernel

    directions, batch, groups, N, length = B.shape
    blocks = directions * batch * groups * -(-length // tile.block)
    BC = torch.empty(blocks, 2 * N, tile.block, dtype=torch.float32, device=B.device)
    pack_kernel[(blocks,)](
        B, C, BC, length, batch, groups, int(reverse), *B.stride(), *C.stride(),
        N=N, N_POWER=1 << (N - 1).bit_length(), LT=tile.lanes, T=tile.steps, num_warps=max(1, tile.block // 64),
    )  # fmt: skip
    return BC


def _unpack(slots, shape, tile, reverse):
    """The sum over the programs of each group, in the order of `shape`, [2, directions, batch, groups, N, L]."""
    _, directions, batch, groups, N, length = shape
    blocks, sequences = slots.shape[1], directions * batch * groups
    total = slots.view(sequences, len(slots) // sequences, -1).sum(1)
    total = total.view(directions, batch, groups, blocks, 2, N, tile.steps // 4, tile.lanes, 4)
    total = total.permute(4, 0, 1, 2, 5, 3, 7, 6, 8)
    total = total.reshape(2, directions, batch, groups, N, blocks * tile.block)[..., :length]
    backwards = [direction for direction in range(directions) if (direction == 1) != reverse]
    return torch.cat([d.flip(-1) if i in backwards else d for i, d in enumerate(total.split(1, 1))], 1)
