"""What the forward and the backward kernel share: how a tile reads its sequences, and B and C in their packed order.

Letters: R rows (channels of one sequence) of a tile, LT lanes along time for each row, M = R LT the tile's threads;
V time steps of one 16-byte access, K accesses of a lane in turn, T = K V the steps of a lane, BLOCK = LT T those of a
tile in one turn; N states. A thread holds T steps of one row in registers.

Programs take `segment` blocks of a row each: all of them, or fewer where rows alone do not fill the device.

One launch takes `directions` (1 or 2) times `batch` sequences. The second direction reads time from the other end, in
place: `backwards` is a number that each program works out, and steps change places in registers. Channels may be
branches of `shared` channels each, which have A, D, the bias and z in common.

UNIT: the length and all strides are multiples of it, and are passed divided by it, so that the compiler sees which
accesses can be 16 bytes wide; no length then needs a kernel of its own.

Everything is two-dimensional, [M, V], and cut into one register tensor [M] per step: reshape and split of the dimension
that a thread holds itself move nothing, whereas a tile [R, LT, V] is laid out anew, through shared memory.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)  # the hardware's exponential is base 2

# Arguments whose value must not make Triton compile anew.
SIZES = ["L", "batch", "channels", "groups", "shared", "reverse", "rows", "segment", "segments", "ALL", "h_s"]
SIZES += [f"{name}_{axis}" for name in ("u", "delta", "z", "y", "dy", "du", "ddelta", "dz") for axis in "rbd"]
SIZES += [f"{name}_{axis}" for name in "BC" for axis in "rbgnt"]


@triton.jit
def locate(batch, channels, groups, shared, reverse, R: tl.constexpr, LT: tl.constexpr):
    """Which rows the threads of this program hold; rows of one tile share B and C, so no tile crosses a group.

    The program's sequence x group, its direction, its sequence of that direction and whether time runs backwards; for
    each thread its row among all channels, its channel among the shared ones, whether that row exists (the others are
    copies of the group's last one), and its lane. 64 bits wherever an address will be computed.
    """
    per_group = channels // groups
    tiles = tl.cdiv(per_group, R)
    program = tl.program_id(0)
    sequence_group = program // tiles
    sequence = sequence_group // groups
    direction = sequence // batch
    thread = tl.arange(0, R * LT)
    in_group = program % tiles * R + thread // LT
    row = sequence_group % groups * per_group + tl.minimum(in_group, per_group - 1)
    return (
        sequence_group.to(tl.int64),
        direction.to(tl.int64),
        (sequence % batch).to(tl.int64),
        direction != reverse,
        row.to(tl.int64),
        (row % shared).to(tl.int64),
        in_group < per_group,
        thread % LT,
    )


@triton.jit
def rows_of(ptr, direction, b, row, r_stride, b_stride, d_stride, UNIT: tl.constexpr):
    """Where each thread's row begins."""
    return ptr + (direction * r_stride + b * b_stride + row * d_stride) * UNIT


@triton.jit
def positions(start, L, V: tl.constexpr, backwards):
    """Where in memory the V steps from `start` [M] lie, [M, V] ascending; backwards, step t lies at L - 1 - t."""
    # By arithmetic on scalars: behind a choice between two tensors the compiler no longer sees 16-byte accesses.
    first = tl.where(backwards, L - V, 0)
    sign = tl.where(backwards, -1, 1)
    return (first + sign * start)[:, None] + tl.arange(0, V)[None, :]


@triton.jit
def load_stored(rows, at, L, EVEN: tl.constexpr):
    if EVEN:
        x = tl.load(rows[:, None] + at)
    else:
        x = tl.load(rows[:, None] + at, mask=(at >= 0) & (at < L), other=0.0)
    return x


@triton.jit
def load_rows(rows, at, L, EVEN: tl.constexpr):
    return load_stored(rows, at, L, EVEN).to(tl.float32)


@triton.jit
def store_rows(rows, at, x, real, L, EVEN: tl.constexpr):
    mask = real[:, None]
    if not EVEN:
        mask = mask & (at >= 0) & (at < L)
    tl.store(rows[:, None] + at, x.to(rows.dtype.element_ty), mask=mask)


@triton.jit
def split_steps(x_MV, M: tl.constexpr, V: tl.constexpr, backwards):
    """[M, V] -> V tensors [M] in the order of the recurrence."""
    if V == 4:
        a, b = tl.split(tl.reshape(x_MV, [M, 2, 2]))
        x0, x2 = tl.split(a)
        x1, x3 = tl.split(b)
        steps = (x0, x1, x2, x3)
    else:
        a, b = tl.split(tl.reshape(x_MV, [M, 4, 2]))
        a0, a1 = tl.split(tl.reshape(a, [M, 2, 2]))
        b0, b1 = tl.split(tl.reshape(b, [M, 2, 2]))
        x0, x4 = tl.split(a0)
        x2, x6 = tl.split(a1)
        x1, x5 = tl.split(b0)
        x3, x7 = tl.split(b1)
        steps = (x0, x1, x2, x3, x4, x5, x6, x7)
    return flip(steps, 0, V, backwards)


@triton.jit
def join_steps(steps, start: tl.constexpr, M: tl.constexpr, V: tl.constexpr, backwards):
    """Inverse of `split_steps` for the V tensors from `start`."""
    s = flip(steps, start, V, backwards)
    if V == 4:
        x = tl.reshape(tl.join(tl.join(s[0], s[2]), tl.join(s[1], s[3])), [M, 4])
    else:
        a = tl.reshape(tl.join(tl.join(s[0], s[4]), tl.join(s[2], s[6])), [M, 4])
        b = tl.reshape(tl.join(tl.join(s[1], s[5]), tl.join(s[3], s[7])), [M, 4])
        x = tl.reshape(tl.join(a, b), [M, 8])
    return x


@triton.jit
def flip(steps, start: tl.constexpr, V: tl.constexpr, backwards):
    """V elements of a tuple from `start`, backwards the last first."""
    flipped = ()
    for i in tl.static_range(V):
        if backwards is False:
            flipped = flipped + (steps[start + i],)
        else:
            flipped = flipped + (tl.where(backwards, steps[start + V - 1 - i], steps[start + i]),)
    return flipped


@triton.jit
def softplus(x):
    """max(x, 0) + log1p(exp(-|x|)), the logarithm by a polynomial: relative error 1.6e-7, where the hardware's log2 has
    1e-4 at the small steps that decide how long a state lasts."""
    e = tl.exp2(tl.abs(x) * -LOG2E)
    p = tl.fma(e, 0.005267004482448101, -0.029662232846021652)
    p = tl.fma(e, p, 0.07851840555667877)
    p = tl.fma(e, p, -0.13691769540309906)
    p = tl.fma(e, p, 0.19121578335762024)
    p = tl.fma(e, p, -0.24847683310508728)
    p = tl.fma(e, p, 0.3331981897354126)
    p = tl.fma(e, p, -0.4999953806400299)
    p = tl.fma(e, p, 1.0)
    return tl.fma(e, p, tl.maximum(x, 0.0))


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x)) as a squared reciprocal root: a quotient takes three more instructions to guard its range."""
    root = tl.rsqrt(1.0 + tl.exp2(x * -LOG2E))
    return root * root


@triton.jit
def combine_lanes(p0, s0, p1, s1):
    """h -> p h + s of two neighbours, the earlier first, as one."""
    return p0 * p1, tl.fma(s0, p1, s1)


@triton.jit
def packed_block(BC_ptr, block, N, BLOCK: tl.constexpr):
    """Where packed block `block` begins: B of the first state, C of it, B of the second ..."""
    return BC_ptr + block * N * (2 * BLOCK)


@triton.jit
def load_packed(packed, lane, M: tl.constexpr, LT: tl.constexpr, T: tl.constexpr):
    """The T steps of each lane from the row of B or C at `packed`.

    Each access takes 4 steps, and those of neighbouring lanes are neighbours: all are full lines of the cache.
    """
    steps = ()
    for i in tl.static_range(T // 4):
        at = (lane * 4)[:, None] + tl.arange(0, 4)[None, :] + i * (LT * 4)
        steps = steps + split_steps(tl.load(packed + at), M, 4, False)
    return steps


@triton.jit
def packed_places(block, N, g, n, L, backwards, LT: tl.constexpr, T: tl.constexpr):
    """Of states n [n, 1] and all steps of a block: the time of each step, whether it exists, and where it is packed.

    Packed blocks are [N, 2, T / 4, LT, 4], in the order of the recurrence.
    """
    BLOCK: tl.constexpr = LT * T
    i = tl.arange(0, BLOCK)[None, :]
    t = g * BLOCK + i
    inside = (n < N) & (t < L)
    place = (block * N + n) * (2 * BLOCK) + i % T // 4 * (LT * 4) + i // T * 4 + i % 4
    return tl.where(backwards, L - 1 - t, t), inside, place


@triton.jit(do_not_specialize=SIZES)
def pack_kernel(
    B_ptr, C_ptr, BC_ptr, L, N, batch, groups, reverse,
    B_r, B_b, B_g, B_n, B_t, C_r, C_b, C_g, C_n, C_t,
    STATES: tl.constexpr, LT: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """B and C [directions, batch, groups, N, L] -> float32 blocks, 0 beyond L."""
    blocks = tl.cdiv(L, LT * T)
    block = tl.program_id(0).to(tl.int64)
    sequence_group = block // blocks
    g = sequence_group % groups
    sequence = sequence_group // groups
    direction = sequence // batch
    b = sequence % batch
    n = (tl.program_id(1) * STATES + tl.arange(0, STATES)).to(tl.int64)[:, None]
    t, inside, place = packed_places(block, N, block % blocks, n, L, direction != reverse, LT, T)
    B_rows = B_ptr + direction * B_r + b * B_b + g * B_g
    C_rows = C_ptr + direction * C_r + b * C_b + g * C_g
    b_values = tl.load(B_rows + n * B_n + t * B_t, mask=inside, other=0.0)
    c_values = tl.load(C_rows + n * C_n + t * C_t, mask=inside, other=0.0)
    tl.store(BC_ptr + place, b_values.to(tl.float32), mask=n < N)
    tl.store(BC_ptr + place + LT * T, c_values.to(tl.float32), mask=n < N)


@triton.jit(do_not_specialize=SIZES)
def unpack_kernel(
    packed_ptr, dB_ptr, dC_ptr, L, N, batch, groups, reverse,
    STATES: tl.constexpr, LT: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """The inverse of `pack_kernel`: dB and dC [directions, batch, groups, N, L] from packed blocks."""
    blocks = tl.cdiv(L, LT * T)
    block = tl.program_id(0).to(tl.int64)
    sequence_group = block // blocks
    direction = sequence_group // groups // batch
    n = (tl.program_id(1) * STATES + tl.arange(0, STATES)).to(tl.int64)[:, None]
    t, inside, place = packed_places(block, N, block % blocks, n, L, direction != reverse, LT, T)
    out = (sequence_group * N + n) * L + t
    tl.store(dB_ptr + out, tl.load(packed_ptr + place, mask=inside), mask=inside)
    tl.store(dC_ptr + out, tl.load(packed_ptr + place + LT * T, mask=inside), mask=inside)


@triton.jit(do_not_specialize=SIZES)
def join_segments_kernel(
    h_ptr, sum_ptr, A_ptr, start_ptr,
    N, h_s, rows, shared, segments,
    FROM_LAST: tl.constexpr, ELEMENTS: tl.constexpr,
):  # fmt: skip
    """h [segments, N, rows]: from the state after each segment when it starts from 0, to the one before it.

    The sum of dt over a segment, sum [segments, rows], says how much of a state is left behind it. start [rows, N] or
    None is the state before the first segment; FROM_LAST goes through them from the last to the first. h_s: the stride
    of h between segments.
    """
    element = tl.program_id(0).to(tl.int64) * ELEMENTS + tl.arange(0, ELEMENTS)
    n = element // rows
    row = element % rows
    inside = n < N
    A = tl.load(A_ptr + n * shared + row % shared, mask=inside, other=0.0)
    h = tl.zeros([ELEMENTS], tl.float32)
    if start_ptr is not None:
        h = tl.load(start_ptr + row * N + n, mask=inside, other=0.0)
    # Segments are few where rows are many: 32 bits hold every offset.
    segment = segments - 1 if FROM_LAST else 0
    for _ in tl.range(0, segments):
        here = h_ptr + segment * h_s + element
        end = tl.load(here, mask=inside, other=0.0)
        sum_dt = tl.load(sum_ptr + segment * rows + row, mask=inside, other=0.0)
        tl.store(here, h, mask=inside)
        h = tl.fma(tl.exp2(sum_dt * A), h, end)
        segment += -1 if FROM_LAST else 1
