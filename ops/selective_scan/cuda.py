"""The operators of the selective scan for CUDA tensors: choose a tile, pack B and C, launch the Triton kernels, and add
up what their programs leave.

Letters as in `triton_common`, which is imported, with Triton, when the first call arrives. No result depends on an
order of execution: every run gives the same bits. Where Triton interprets its kernels, CPU tensors are taken as well.
"""

import importlib.util
from dataclasses import dataclass

import torch
from torch import Tensor

from ops import library
from ops.selective_scan.layout import count_groups, empty_projection

HAS_TRITON = importlib.util.find_spec("triton") is not None
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
ACCESS_BYTES = 16
# Channels with more states take several launches: a thread holds all the states of a launch in registers.
STATES_PER_LAUNCH = 16
ENOUGH_WARPS = 1500


@dataclass(frozen=True)
class Tile:
    """R `rows` by LT `lanes`, `steps` of each lane, and the registers a thread may take (None: all there are)."""

    rows: int
    lanes: int
    steps: int
    registers: int | None = None


# Fewer lanes need fewer instructions but leave fewer warps: the first tile with ENOUGH_WARPS is taken, else the last.
# Measured on an H200; with 168 registers each of its schedulers holds three warps.
FORWARD_TILES = (Tile(32, 1, 16, 168), Tile(8, 4, 8, 168), Tile(1, 32, 8, 168))


def forward_tile(batch: int, groups: int, rows_per_group: int) -> Tile:
    for tile in FORWARD_TILES:
        if batch * groups * (rows_per_group // tile.rows) >= ENOUGH_WARPS:
            return tile
    return FORWARD_TILES[-1]


def backward_tile(dtype: torch.dtype) -> Tile:
    """One access per lane; 8 rows, whose share in the gradients of B and C is added up within the warp."""
    return Tile(8, 4, ACCESS_BYTES // dtype.itemsize)


def states_shape(u: Tensor, A: Tensor) -> tuple[int, ...]:
    """Of what `forward_train` keeps: the state before each block of the backward."""
    return (u.shape[0], u.shape[1], (u.shape[2] + _save(u) - 1) // _save(u), A.shape[1])


def supports(*tensors: Tensor | None) -> bool:
    """Whether these arguments go to the Triton kernels: all on the GPU in one of DTYPES, with Triton installed."""
    fits = all(t is None or (t.device.type == "cuda" and t.dtype in DTYPES) for t in tensors)
    return fits and HAS_TRITON and library.available()


def forward(u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse):
    """``rdfa::selective_scan``: y and the last state."""
    return _forward(u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse, None)


def forward_train(u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse):
    """``rdfa::selective_scan_train``: also the states that `backward` starts from."""
    states = torch.empty(states_shape(u, A), dtype=torch.float32, device=u.device)
    return *_forward(u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse, states), states


def _forward(u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse, states):
    from ops.selective_scan.triton_forward import forward_kernel

    batch, channels, length = u.shape
    groups = count_groups(B, C, channels) if channels else 1
    tile = forward_tile(batch, groups, channels // groups)
    y = library.empty_bdl(u)
    last_state = torch.empty(batch, channels, A.shape[1], dtype=torch.float32, device=u.device)
    B, C = (_grouped(m, groups, u) for m in (B, C))
    u, delta, z = _time_contiguous(u, delta, z)
    A, D, delta_bias = _contiguous(A, D, delta_bias)
    access = _access(u)
    chunks = _chunks(A)
    parts = _parts(y, len(chunks))
    with torch.cuda.device_of(u):
        for i, chunk in enumerate(chunks):
            forward_kernel[_grid(tile, batch, groups, channels)](
                u, delta, A[:, chunk], _pack(B[:, :, chunk], C[:, :, chunk], tile, reverse),
                D if i == 0 else None, z, delta_bias, parts[i], last_state[..., chunk],
                None if states is None else states[..., chunk],
                length, channels, groups, *_strides(u, delta, z, parts[i]),
                N=chunk.stop - chunk.start, K=tile.steps // access, V=access, SAVE=_save(u),
                **_constants(tile, A, length, delta_softplus, reverse),
            )  # fmt: skip
    return _collect(parts, y), last_state


def backward(grad_y, grad_last_state, u, delta, A, B, C, D, z, delta_bias, states, delta_softplus, reverse):
    """``rdfa::selective_scan_backward``: the gradients of u, delta, A, B, C, D, z and delta_bias, empty where None."""
    from ops.selective_scan.triton_backward import backward_kernel

    batch, channels, length = u.shape
    groups = count_groups(B, C, channels) if channels else 1
    tile = backward_tile(u.dtype)
    blocks = states.shape[2]
    (programs,) = grid = _grid(tile, batch, groups, channels)

    def zeros(*shape):
        return torch.zeros(shape, dtype=torch.float32, device=u.device)

    du, ddelta = library.empty_bdl(u), library.empty_bdl(delta)
    dz = None if z is None else library.empty_bdl(z)
    # One value per batch element and channel. D is used in the first launch alone; the bias has a share in each.
    dA, dD = zeros(batch, *A.shape), zeros(batch, channels)
    dBC = zeros(batch, groups, 2, A.shape[1], length)
    projections = B, C
    B, C = (_grouped(m, groups, u) for m in (B, C))
    grad_y, u, delta, z = _time_contiguous(grad_y, u, delta, z)
    A, D, delta_bias, grad_last_state = _contiguous(A, D, delta_bias, grad_last_state)
    chunks = _chunks(A)
    dbias = zeros(len(chunks), batch, channels)
    du_parts, ddelta_parts, dz_parts = (None if t is None else _parts(t, len(chunks)) for t in (du, ddelta, dz))
    with torch.cuda.device_of(u):
        for i, chunk in enumerate(chunks):
            N = chunk.stop - chunk.start
            slots = torch.empty(programs, blocks, 2 * N, tile.lanes * tile.steps, dtype=torch.float32, device=u.device)
            outputs = du_parts[i], ddelta_parts[i], None if z is None else dz_parts[i]
            backward_kernel[grid](
                grad_y, u, delta, A[:, chunk], _pack(B[:, :, chunk], C[:, :, chunk], tile, reverse),
                D if i == 0 else None, z, delta_bias, states[..., chunk],
                None if grad_last_state is None else grad_last_state[..., chunk],
                *outputs, dA[..., chunk], slots, dD, dbias[i],
                length, channels, groups, *_strides(grad_y, u, delta, z, *outputs),
                N=N, V=tile.steps, **_constants(tile, A, length, delta_softplus, reverse),
            )  # fmt: skip
            dBC[:, :, :, chunk] = _unpack(slots, dBC[:, :, :, chunk].shape, tile, reverse)
    dB, dC = (_ungrouped(dBC[:, :, i], m) for i, m in enumerate(projections))
    empty = zeros(0)
    return (
        _collect(du_parts, du),
        _collect(ddelta_parts, ddelta),
        dA.sum(0),
        dB,
        dC,
        empty if D is None else dD.sum(0),
        empty if z is None else _collect(dz_parts, dz),
        empty.clone() if delta_bias is None else dbias.sum((0, 1)),
    )


def _access(u):
    return ACCESS_BYTES // u.element_size()


def _save(u):
    tile = backward_tile(u.dtype)
    return tile.lanes * tile.steps


def _chunks(A):
    N = A.shape[1]
    return [slice(n, min(n + STATES_PER_LAUNCH, N)) for n in range(0, N, STATES_PER_LAUNCH)]


def _grid(tile, batch, groups, channels):
    return (batch * groups * -(-(channels // groups) // tile.rows),)


def _constants(tile, A, length, delta_softplus, reverse):
    return {
        "ALL": A.shape[1],
        "R": tile.rows,
        "LT": tile.lanes,
        "EVEN": length % (tile.lanes * tile.steps) == 0,
        "SOFTPLUS": delta_softplus,
        "REVERSE": reverse,
        "num_warps": tile.rows * tile.lanes // 32,
        "maxnreg": tile.registers,
        "enable_fp_fusion": True,
    }


def _time_contiguous(*tensors):
    return [t if t is None or t.stride(2) == 1 else t.contiguous() for t in tensors]


def _contiguous(*tensors):
    return [None if t is None else t.contiguous() for t in tensors]


def _strides(*tensors):
    return [s for t in tensors for s in ((0, 0) if t is None else t.stride()[:2])]


def _parts(result, launches):
    """Where each launch writes its share of `result`, [launches, B, D, L]: float32 where several are added up."""
    if launches == 1 and result.stride(2) == 1:
        return result[None]
    dtype = result.dtype if launches == 1 else torch.float32
    return torch.empty((launches, *result.shape), dtype=dtype, device=result.device)


def _collect(parts, result):
    if parts.data_ptr() != result.data_ptr():
        result.copy_(parts.sum(0) if len(parts) > 1 else parts[0])
    return result


def _grouped(m, groups, u):
    """B or C as [batch, groups, N, L]; copied only where its channels have to be repeated in between."""
    if m.dim() == 2:
        return m[None, :, :, None].expand(u.shape[0], groups, -1, u.shape[2])
    m = m[:, None] if m.dim() == 3 else m
    return m.expand(-1, groups, -1, -1) if m.shape[1] in (1, groups) else m.repeat_interleave(groups // m.shape[1], 1)


def _ungrouped(gradient, m):
    """The gradient of B or C from that of what `_grouped` made of it."""
    if m.dim() == 2:
        total = gradient.sum((0, 3))
    else:
        given = m.shape[1] if m.dim() == 4 else 1
        total = gradient.unflatten(1, (given, gradient.shape[1] // given)).sum(2)
    return empty_projection(m).copy_(total.reshape(m.shape))


def _pack(B, C, tile, reverse):
    from ops.selective_scan.triton_common import pack_kernel

    batch, groups, N, length = B.shape
    block = tile.lanes * tile.steps
    blocks = -(-length // block)
    BC = torch.empty(batch * groups * blocks, 2 * N, block, dtype=torch.float32, device=B.device)
    pack_kernel[(batch * groups * blocks,)](
        B, C, BC, length, groups, *B.stride(), *C.stride(),
        N=N, N_POWER=1 << (N - 1).bit_length(), LT=tile.lanes, T=tile.steps, REVERSE=reverse, num_warps=1,
    )  # fmt: skip
    return BC


def _unpack(slots, shape, tile, reverse):
    """The sum over the programs of each group, in the order of `shape`, [batch, groups, 2, N, L]."""
    batch, groups, _, N, length = shape
    blocks = slots.shape[1]
    total = slots.view(batch, groups, len(slots) // (batch * groups), -1).sum(2)
    total = total.view(batch, groups, blocks, 2, N, tile.steps // 4, tile.lanes, 4).permute(0, 1, 3, 4, 2, 6, 5, 7)
    total = total.reshape(batch, groups, 2, N, blocks * tile.lanes * tile.steps)[..., :length]
    return total.flip(-1) if reverse else total
