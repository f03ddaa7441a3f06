"""The forward scan in Triton. Letters, and what a tile is, in `triton_common`."""

import triton
import triton.language as tl

from ops.selective_scan.triton_common import (
    SIZES,
    combine_lanes,
    first_quad,
    join_steps,
    load_A,
    load_quads,
    load_rows,
    locate,
    positions,
    rows_of,
    sigmoid,
    softplus,
    split_steps,
    store_rows,
)


@triton.jit(do_not_specialize=SIZES)
def forward_kernel(
    u_ptr, delta_ptr, A_ptr, BC_ptr, D_ptr, z_ptr, bias_ptr, y_ptr, last_ptr, states_ptr,
    L, batch, channels, groups, shared, reverse,
    u_r, u_b, u_d, delta_r, delta_b, delta_d, z_r, z_b, z_d, y_r, y_b, y_d,
    N: tl.constexpr, ALL: tl.constexpr, R: tl.constexpr, LT: tl.constexpr, K: tl.constexpr, V: tl.constexpr,
    UNIT: tl.constexpr, EVEN: tl.constexpr, SOFTPLUS: tl.constexpr, SAVE: tl.constexpr,
):  # fmt: skip
    """y [directions, batch, channels, L], the last state [directions, batch, channels, ALL] and, every SAVE steps, the
    state before the step.

    A [shared, ALL] (of which N columns are used), D and bias [shared], last and states [directions, batch, channels,
    L / SAVE, ALL] are float32; D_ptr, z_ptr, bias_ptr, last_ptr and states_ptr may be None. z [directions, batch,
    shared, L]. EVEN: L is a multiple of the block.

    The lanes of a row first run their T steps, the first lane from the carried state and the others from 0; then learn
    by a scan over the lanes which state they start from, and run the T steps again; the exponentials are kept from the
    first time. With one lane there is nothing to learn, and one run.
    """
    M: tl.constexpr = R * LT
    T: tl.constexpr = K * V
    BLOCK: tl.constexpr = LT * T
    L = L * UNIT
    sequence_group, direction, b, backwards, row, channel, real, lane = locate(
        batch, channels, groups, shared, reverse, R, LT
    )
    previous = (tl.broadcast_to(tl.arange(0, LT)[None, :], [R, LT]) + (LT - 1)) % LT
    blocks = tl.cdiv(L, BLOCK)
    quad = first_quad(BC_ptr, sequence_group * blocks, lane, N, BLOCK)
    u_rows = rows_of(u_ptr, direction, b, row, u_r, u_b, u_d, UNIT)
    delta_rows = rows_of(delta_ptr, direction, b, row, delta_r, delta_b, delta_d, UNIT)
    y_rows = rows_of(y_ptr, direction, b, row, y_r, y_b, y_d, UNIT)
    z_rows = rows_of(z_ptr, direction, b, channel, z_r, z_b, z_d, UNIT)
    if D_ptr is not None:
        D = tl.load(D_ptr + channel)
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + channel)
    state_row = (direction * batch + b) * channels + row
    A = ()
    h = ()  # the state before the block, in lane 0 alone
    for n in tl.static_range(N):
        A = A + (load_A(A_ptr, channel, n, ALL),)
        h = h + (tl.zeros([M], tl.float32),)

    for block in tl.range(0, blocks):
        start = block * BLOCK + lane * T
        dt = ()
        x = ()
        y = ()
        sum_dt = tl.zeros([M], tl.float32)
        for k in tl.static_range(K):
            at = positions(start + k * V, L, V, backwards)
            u_MV = load_rows(u_rows, at, L, EVEN)
            dt_MV = load_rows(delta_rows, at, L, EVEN)
            if bias_ptr is not None:
                dt_MV += bias[:, None]
            if SOFTPLUS:
                dt_MV = softplus(dt_MV)
            if not EVEN:
                dt_MV = tl.where((at >= 0) & (at < L), dt_MV, 0.0)  # a step that is not there leaves the state alone
            us = split_steps(u_MV, M, V, backwards)
            dts = split_steps(dt_MV, M, V, backwards)
            for i in tl.static_range(V):
                dt = dt + (dts[i],)
                x = x + (dts[i] * us[i],)
                y = y + (D * us[i] if D_ptr is not None else tl.zeros([M], tl.float32),)
                sum_dt += dts[i]

        # B and C are asked for one state ahead of their use.
        next_B = load_quads(quad, 0, M, LT, T)
        next_C = load_quads(quad, N * BLOCK, M, LT, T)
        h_end = ()
        for n in tl.static_range(N):
            B = next_B
            C = next_C
            if n + 1 < N:
                next_B = load_quads(quad, (n + 1) * BLOCK, M, LT, T)
                next_C = load_quads(quad, (N + n + 1) * BLOCK, M, LT, T)
            hn = h[n]
            if LT > 1:
                a = ()
                xB = ()
                s = tl.where(lane == 0, hn, 0.0)
                for i in tl.static_range(T):
                    a = a + (tl.exp2(dt[i] * A[n]),)
                    xB = xB + (x[i] * B[i],)
                    s = tl.fma(a[i], s, xB[i])
                p = tl.exp2(sum_dt * A[n])  # one exponential instead of the product of the T in a
                _, ends = tl.associative_scan((tl.reshape(p, [R, LT]), tl.reshape(s, [R, LT])), 1, combine_lanes)
                # Each lane gets the end of the one before it; the first one that of the last, for the next block.
                before = tl.reshape(tl.gather(ends, previous, 1), [M])
                h_end = h_end + (before,)
                hn = tl.where(lane == 0, hn, before)
            if states_ptr is not None:
                tl.static_assert(SAVE % T == 0)
                keep = (start % SAVE == 0) & (start < L) & real
                tl.store(states_ptr + (state_row * tl.cdiv(L, SAVE) + start // SAVE) * ALL + n, hn, mask=keep)
            y_new = ()
            for i in tl.static_range(T):
                if LT > 1:
                    hn = tl.fma(a[i], hn, xB[i])
                else:
                    hn = tl.fma(tl.exp2(dt[i] * A[n]), hn, x[i] * B[i])
                y_new = y_new + (tl.fma(C[i], hn, y[i]),)
            y = y_new
            if LT == 1:
                h_end = h_end + (hn,)
        h = h_end
        quad += 2 * N * BLOCK

        for k in tl.static_range(K):
            at = positions(start + k * V, L, V, backwards)
            y_MV = join_steps(y, k * V, M, V, backwards)
            if z_ptr is not None:
                z_MV = load_rows(z_rows, at, L, EVEN)
                y_MV = y_MV * (z_MV * sigmoid(z_MV))
            store_rows(y_rows, at, y_MV, real, L, EVEN)

    if last_ptr is not None:
        for n in tl.static_range(N):
            tl.store(last_ptr + state_row * ALL + n, h[n], mask=(lane == 0) & real)
