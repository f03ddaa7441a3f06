"""The forward scan in Triton. Letters, and what a tile is, in `triton_common`."""

import triton
import triton.language as tl

from ops.selective_scan.triton_common import (
    SIZES,
    combine_lanes,
    join_steps,
    load_packed,
    load_stored,
    locate,
    packed_block,
    positions,
    rows_of,
    sigmoid,
    softplus,
    split_steps,
    store_rows,
)


@triton.jit
def load_block(rows, start, L, K: tl.constexpr, V: tl.constexpr, backwards, EVEN: tl.constexpr):
    """The steps of each lane from `start`, K accesses [M, V], as they are stored."""
    accesses = ()
    for k in tl.static_range(K):
        accesses = accesses + (load_stored(rows, positions(start + k * V, L, V, backwards), L, EVEN),)
    return accesses


@triton.jit(do_not_specialize=SIZES)
def forward_kernel(
    u_ptr, delta_ptr, A_ptr, BC_ptr, D_ptr, z_ptr, bias_ptr, y_ptr, h_ptr, states_ptr, sum_ptr,
    L, ALL, batch, channels, groups, shared, reverse, rows, segment,
    u_r, u_b, u_d, delta_r, delta_b, delta_d, z_r, z_b, z_d, y_r, y_b, y_d,
    N: tl.constexpr, R: tl.constexpr, LT: tl.constexpr, K: tl.constexpr, V: tl.constexpr,
    UNIT: tl.constexpr, EVEN: tl.constexpr, SOFTPLUS: tl.constexpr, SAVE: tl.constexpr, STARTED: tl.constexpr,
):  # fmt: skip
    """y [directions, batch, channels, L] and, every SAVE steps, the state before it, states [L / SAVE, ALL, rows].

    h [segments, ALL, rows] is left with the state after each segment; before, if STARTED, it holds the one before it,
    which is 0 otherwise. Of the ALL states, N are computed; there are `rows` (directions x batch x channels) of each. A
    [ALL, shared], in units of log2(e), D and bias [shared], h and states are float32; D, z, bias, h and states may be
    None. z [directions, batch, shared, L]. EVEN: L is a multiple of the block. Where y is None only h and sum
    [segments, rows], of dt over each segment, are computed.

    A thread holds all N states in registers. In each block, the lanes of a row first run their T steps, the first lane
    from the carried state and the others from 0; then learn by a scan over the lanes which state they start from, and
    run the T steps again; the exponentials are kept from the first time. With one lane there is nothing to learn, and
    one run.
    """
    M: tl.constexpr = R * LT
    T: tl.constexpr = K * V
    BLOCK: tl.constexpr = LT * T
    L = L * UNIT
    sequence_group, direction, b, backwards, row, channel, real, lane = locate(
        batch, channels, groups, shared, reverse, R, LT
    )
    previous = (tl.broadcast_to(tl.arange(0, LT)[None, :], [R, LT]) + (LT - 1)) % LT
    carries = (lane == 0) & real
    blocks = tl.cdiv(L, BLOCK)
    first_block = tl.program_id(1) * segment
    packed = packed_block(BC_ptr, sequence_group * blocks + first_block, N, BLOCK)
    u_rows = rows_of(u_ptr, direction, b, row, u_r, u_b, u_d, UNIT)
    delta_rows = rows_of(delta_ptr, direction, b, row, delta_r, delta_b, delta_d, UNIT)
    if y_ptr is not None:
        y_rows = rows_of(y_ptr, direction, b, row, y_r, y_b, y_d, UNIT)
    if z_ptr is not None:
        z_rows = rows_of(z_ptr, direction, b, channel, z_r, z_b, z_d, UNIT)
    if D_ptr is not None:
        D = tl.load(D_ptr + channel)
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + channel)
    state_row = (direction * batch + b) * channels + row
    if h_ptr is not None:
        h_rows = h_ptr + tl.program_id(1).to(tl.int64) * ALL * rows + state_row
    # One row's A is the same in all lanes, and asked for anew in each block: its registers serve the schedule better.
    KEEP_A: tl.constexpr = R > 1
    A = ()
    h = ()  # the state before the block, in the first lane, and 0 in the others
    for n in tl.static_range(N):
        if KEEP_A:
            A = A + (tl.load(A_ptr + n * shared + channel),)
        if STARTED:
            h = h + (tl.load(h_rows + n * rows, mask=carries, other=0.0),)
        else:
            h = h + (tl.zeros([M], tl.float32),)
    total_dt = tl.zeros([M], tl.float32)

    # u and delta are asked for one block ahead of their use, B and C one state: a warp has few others to wait with. One
    # lane has no registers left for that.
    AHEAD: tl.constexpr = LT > 1
    last_block = tl.minimum(first_block + segment, blocks) - 1
    if AHEAD:
        u = load_block(u_rows, first_block * BLOCK + lane * T, L, K, V, backwards, EVEN)
        delta = load_block(delta_rows, first_block * BLOCK + lane * T, L, K, V, backwards, EVEN)
    for block in tl.range(first_block, last_block + 1):
        start = block * BLOCK + lane * T
        next_B = load_packed(packed, lane, M, LT, T)
        next_C = load_packed(packed + BLOCK, lane, M, LT, T)
        if states_ptr is not None:
            tl.static_assert(SAVE % T == 0)
            keep = (start % SAVE == 0) & (start < L) & real
            states = states_ptr + (start // SAVE).to(tl.int64) * ALL * rows + state_row
        dt = ()
        x = ()
        y = ()
        sum_dt = tl.zeros([M], tl.float32)
        for k in tl.static_range(K):
            at = positions(start + k * V, L, V, backwards)
            u_MV = u[k] if AHEAD else load_stored(u_rows, at, L, EVEN)
            dt_MV = (delta[k] if AHEAD else load_stored(delta_rows, at, L, EVEN)).to(tl.float32)
            if bias_ptr is not None:
                dt_MV += bias[:, None]
            if SOFTPLUS:
                dt_MV = softplus(dt_MV)
            if not EVEN:
                dt_MV = tl.where((at >= 0) & (at < L), dt_MV, 0.0)  # a step that is not there leaves the state alone
            us = split_steps(u_MV.to(tl.float32), M, V, backwards)
            dts = split_steps(dt_MV, M, V, backwards)
            for i in tl.static_range(V):
                dt = dt + (dts[i],)
                x = x + (dts[i] * us[i],)
                y = y + (D * us[i] if D_ptr is not None else tl.zeros([M], tl.float32),)
                sum_dt += dts[i]
        if AHEAD:
            ahead = tl.minimum(block + 1, last_block) * BLOCK + lane * T
            u = load_block(u_rows, ahead, L, K, V, backwards, EVEN)
            delta = load_block(delta_rows, ahead, L, K, V, backwards, EVEN)
            if y_ptr is not None and z_ptr is not None:
                z = load_block(z_rows, start, L, K, V, backwards, EVEN)

        h_end = ()
        for n in tl.static_range(N):
            B = next_B
            C = next_C
            if n + 1 < N:
                next_B = load_packed(packed + (2 * n + 2) * BLOCK, lane, M, LT, T)
                next_C = load_packed(packed + (2 * n + 3) * BLOCK, lane, M, LT, T)
            hn = h[n]
            An = A[n] if KEEP_A else tl.load(A_ptr + n * shared + channel)
            if LT > 1:
                a = ()
                xB = ()
                s = hn
                for i in tl.static_range(T):
                    a = a + (tl.exp2(dt[i] * An),)
                    xB = xB + (x[i] * B[i],)
                    s = tl.fma(a[i], s, xB[i])
                p = tl.exp2(sum_dt * An)  # one exponential instead of the product of the T in a
                _, ends = tl.associative_scan((tl.reshape(p, [R, LT]), tl.reshape(s, [R, LT])), 1, combine_lanes)
                # Each lane gets the end of the one before it; the first one that of the last, for the next block.
                before = tl.reshape(tl.gather(ends, previous, 1), [M])
                h_end = h_end + (tl.where(lane == 0, before, 0.0),)
                hn = tl.where(lane == 0, hn, before)
            if states_ptr is not None:
                tl.store(states + n * rows, hn, mask=keep)
            if LT == 1 or y_ptr is not None:
                y_new = ()
                for i in tl.static_range(T):
                    if LT > 1:
                        hn = tl.fma(a[i], hn, xB[i])
                    else:
                        hn = tl.fma(tl.exp2(dt[i] * An), hn, x[i] * B[i])
                    y_new = y_new + (tl.fma(C[i], hn, y[i]),)
                y = y_new
            if LT == 1:
                h_end = h_end + (hn,)
        h = h_end
        packed += 2 * N * BLOCK

        if sum_ptr is not None:
            total_dt += sum_dt
        if y_ptr is not None:
            for k in tl.static_range(K):
                at = positions(start + k * V, L, V, backwards)
                y_MV = join_steps(y, k * V, M, V, backwards)
                if z_ptr is not None:
                    z_MV = (z[k] if AHEAD else load_stored(z_rows, at, L, EVEN)).to(tl.float32)
                    y_MV = y_MV * (z_MV * sigmoid(z_MV))
                store_rows(y_rows, at, y_MV, real, L, EVEN)

    if h_ptr is not None:
        for n in tl.static_range(N):
            tl.store(h_rows + n * rows, h[n], mask=carries)
    if sum_ptr is not None:
        total = tl.broadcast_to(tl.sum(tl.reshape(total_dt, [R, LT]), 1)[:, None], [R, LT])
        tl.store(sum_ptr + tl.program_id(1).to(tl.int64) * rows + state_row, tl.reshape(total, [M]), mask=carries)
