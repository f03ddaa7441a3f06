"""Launch the Triton kernels of the scan: pack B and C, choose a tile, and add up what the programs leave.

Everything here is in one form: r directions (the second reads time from the other end), b sequences each, E channels
in branches of D, which share A, the skip D, the bias and z; G groups of channels that share B and C; N states, L steps.

    u, delta, y [r,b,E,L]   A [D,N]   B, C [r,b,G,N,L]   D, delta_bias [D]   z [r,b,D,L]   states [blocks,N,r b E]

A, D, delta_bias and states are float32. Letters of tiles as in `triton_common`, which is imported, with Triton, when
the first call arrives. No result depends on an order of execution: every run gives the same bits.
"""

import math

import torch

from ops.selective_scan import tiles
from ops.selective_scan.tiles import ACCESS_BYTES

# Channels with more states take several launches of the forward, which holds all states in registers.
STATES_PER_LAUNCH = 16
# States of rows that a program of the kernel that joins segments takes.
JOINED_PER_PROGRAM = 128
# Elements of B, and of C, that a program of the kernel that packs them takes at most.
PACKED_PER_PROGRAM = 512


def states_shape(u, N: int) -> tuple[int, ...]:
    """Of what the forward keeps for the backward: the state before each of its blocks; u is [.., E, L]."""
    return -(-u.shape[-1] // tiles.backward_tile(u.dtype).block), N, math.prod(u.shape[:-1])


def forward(u, delta, A, B, C, D, z, delta_bias, y, *, softplus, reverse=False, states=None, last=False, scaled=False):
    """Fill y and, where given, states; returns the last state [N, r b E], if asked for it. A may be `scale_A` of it
    already (scaled)."""
    from ops.selective_scan.triton_forward import forward_kernel

    groups, N, rows = B.shape[2], B.shape[3], u[..., 0].numel()
    tile = tiles.forward_tile(u, groups)
    blocks, programs = -(-u.shape[-1] // tile.block), _programs(tile, u, groups)
    segment = tiles.segment(u.device, programs, blocks, tiles.FORWARD_SEGMENT, tiles.FORWARD_WAVES)
    segments = -(-blocks // segment)
    u, delta, z = _time_contiguous(u, delta, z)
    D, delta_bias = _contiguous(D, delta_bias)
    A = A if scaled else scale_A(A)
    h = u.new_empty(segments, N, rows, dtype=torch.float32) if last or segments > 1 else None
    chunks = [slice(n, n + STATES_PER_LAUNCH) for n in range(0, N, STATES_PER_LAUNCH)]
    if len(chunks) == 1 and y.stride(-1) == 1:
        parts = y[None]
    else:  # each launch has its share of y
        dtype = y.dtype if len(chunks) == 1 else torch.float32
        parts = y.new_empty(len(chunks), *y.shape, dtype=dtype)

    def run(chunk, BC, y, states, sums, started):
        sequences = u, delta, z, y
        forward_kernel[programs, segments](
            u, delta, A[chunk], BC, D if chunk.start == 0 else None, z, delta_bias, y,
            None if h is None else h[:, chunk], states, sums, *_sizes(u, A, groups, reverse, segment, sequences),
            N=len(A[chunk]), K=tile.steps // _access(u), V=_access(u), STARTED=started,
            SAVE=tiles.backward_tile(u.dtype).block, **_constants(tile, u, sequences, softplus),
        )  # fmt: skip

    with torch.cuda.device_of(u):
        for chunk, part in zip(chunks, parts, strict=True):
            BC = _pack(B[..., chunk, :], C[..., chunk, :], tile, reverse)
            if segments > 1:
                sums = u.new_empty(segments, rows, dtype=torch.float32)
                run(chunk, BC, None, None, sums, started=False)
                _join_segments(h[:, chunk], sums, A[chunk], None, from_last=False)
            run(chunk, BC, part, None if states is None else states[:, chunk], None, started=segments > 1)
    if parts.data_ptr() != y.data_ptr():
        y.copy_(parts.sum(0) if len(parts) > 1 else parts[0])
    return h[-1] if last else None


def backward(
    grad_y, grad_last_state, u, delta, A, B, C, D, z, delta_bias, states, du, ddelta, dz, *, softplus, reverse=False
):
    """Fill du, ddelta and dz, all [r,b,E,L] (each branch has its share in the gradient of z).

    grad_last_state [.., N] has the rows in order, or is None. Returns the gradients of A [D,N], B and C [r,b,G,N,L],
    D [D] and delta_bias [D], in float32.
    """
    from ops.selective_scan.triton_backward import adjoint_kernel, backward_kernel

    groups, (shared, N) = B.shape[2], A.shape
    tile = tiles.backward_tile(u.dtype)
    blocks, _, rows = states.shape
    programs = _programs(tile, u, groups)
    segment = tiles.segment(u.device, programs, blocks, tiles.BACKWARD_SEGMENT, tiles.BACKWARD_WAVES)
    segments = -(-blocks // segment)

    def empty(*shape):
        return torch.empty(shape, dtype=torch.float32, device=u.device)

    grad_y, u, delta, z = _time_contiguous(grad_y, u, delta, z)
    D, delta_bias, grad_last_state = _contiguous(D, delta_bias, grad_last_state)
    A, BC = scale_A(A), _pack(B, C, tile, reverse)
    results = [t if t is None or t.stride(-1) == 1 else t.new_empty(t.shape) for t in (du, ddelta, dz)]
    q, sums = empty(segments, N, rows), empty(segments, N + 2, rows, tile.lanes)
    slots = empty(programs, blocks * N * 2 * tile.block)
    dB, dC = empty(*B.shape), empty(*C.shape)
    with torch.cuda.device_of(u):
        if segments > 1:
            sum_dt, sequences = empty(segments, rows), (grad_y, delta, z)
            adjoint_kernel[programs, segments](
                grad_y, delta, A, BC, z, delta_bias, q, sum_dt, *_sizes(u, A, groups, reverse, segment, sequences),
                V=tile.steps, **_constants(tile, u, sequences, softplus),
            )  # fmt: skip
            _join_segments(q, sum_dt, A, grad_last_state, from_last=True)
        elif grad_last_state is not None:
            q[0].copy_(grad_last_state.view(rows, N).t())
        sequences = grad_y, u, delta, z, *results
        backward_kernel[programs, segments](
            grad_y, u, delta, A, BC, D, z, delta_bias, states, q, *results, sums, slots,
            *_sizes(u, A, groups, reverse, segment, sequences),
            V=tile.steps, STARTED=segments > 1 or grad_last_state is not None,
            **_constants(tile, u, sequences, softplus),
        )  # fmt: skip
        _unpack(slots, dB, dC, tile, reverse)
    for result, given in zip(results, (du, ddelta, dz)):
        if result is not given:
            given.copy_(result)
    total = sums.view(segments, N + 2, rows // shared, shared, tile.lanes).sum((0, 2, 4))
    # Of an operator, no result may be a view of another.
    return total[:N].t().contiguous(), dB, dC, total[N].clone(), total[N + 1].clone()


def _access(u):
    return ACCESS_BYTES // u.element_size()


def _programs(tile, u, groups):
    directions, batch, channels, _ = u.shape
    return directions * batch * groups * -(-(channels // groups) // tile.rows)


def _unit(u, sequences):
    """As of `triton_common`: the steps of one access where length and strides allow it, else 1."""
    sizes = [u.shape[-1], *(s for t in sequences if t is not None for s in t.stride()[:-1])]
    return _access(u) if all(size % _access(u) == 0 for size in sizes) else 1


def _sizes(u, A, groups, reverse, segment, sequences):
    """The kernels' integer arguments."""
    directions, batch, channels, length = u.shape
    unit = _unit(u, sequences)
    strides = [s // unit for t in sequences for s in ((0, 0, 0) if t is None else t.stride()[:-1])]
    rows = directions * batch * channels
    return length // unit, len(A), batch, channels, groups, A.shape[1], int(reverse), rows, segment, *strides


def _constants(tile, u, sequences, softplus):
    unit = _unit(u, sequences)
    return {
        "R": tile.rows,
        "LT": tile.lanes,
        "UNIT": unit,
        "EVEN": unit > 1 and u.shape[-1] % tile.block == 0,
        "SOFTPLUS": softplus,
        "num_warps": tile.rows * tile.lanes // 32,
        "num_stages": 1,
        "maxnreg": tile.registers,
        "enable_fp_fusion": True,
    }


def _time_contiguous(*tensors):
    return [t if t is None or t.stride(-1) == 1 else t.contiguous() for t in tensors]


def _contiguous(*tensors):
    return [None if t is None else t.contiguous() for t in tensors]


def scale_A(A):
    """[D, N] -> [N, D] such that exp(dt A) = exp2(dt scaled)."""
    return torch.mul(A.t(), math.log2(math.e), out=A.new_empty(A.shape[::-1]))


def _pack(B, C, tile, reverse):
    from ops.selective_scan.triton_common import pack_kernel

    directions, batch, groups, N, length = B.shape
    blocks = directions * batch * groups * -(-length // tile.block)
    # The kernels ask for one state ahead, behind the last one too.
    BC = torch.empty((blocks * N + 1) * 2 * tile.block, dtype=torch.float32, device=B.device)
    with torch.cuda.device_of(B):
        packing = _packing(tile)
        pack_kernel[blocks, -(-N // packing["STATES"])](
            B, C, BC, length, N, batch, groups, int(reverse), *B.stride(), *C.stride(), **packing
        )
    return BC


def _unpack(slots, dB, dC, tile, reverse):
    from ops.selective_scan.triton_common import unpack_kernel

    directions, batch, groups, N, length = dB.shape
    sequences = directions * batch * groups
    total = slots.view(sequences, -1, slots.shape[1]).sum(1)
    packing = _packing(tile)
    unpack_kernel[sequences * -(-length // tile.block), -(-N // packing["STATES"])](
        total, dB, dC, length, N, batch, groups, int(reverse), **packing
    )


def _packing(tile):
    states = max(1, min(STATES_PER_LAUNCH, PACKED_PER_PROGRAM // tile.block))
    warps = max(1, states * tile.block // 128)
    return {"STATES": states, "LT": tile.lanes, "T": tile.steps, "num_warps": warps}


def _join_segments(h, sums, A, start, from_last):
    from ops.selective_scan.triton_common import join_segments_kernel

    segments, N, rows = h.shape
    join_segments_kernel[(-(-rows * N // JOINED_PER_PROGRAM),)](
        h,
        sums,
        A,
        start,
        N,
        h.stride(0),
        rows,
        A.shape[1],
        segments,
        FROM_LAST=from_last,
        ELEMENTS=JOINED_PER_PROGRAM,
        num_warps=4,
    )
