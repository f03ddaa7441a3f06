"""The gradients of the scan in Triton. Letters, and what a tile is, in `triton_common`; here K = 1, so T = V."""

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


@triton.jit
def scan_from_last_lane(p, s, R: tl.constexpr, LT: tl.constexpr):
    """For each lane q -> p q + s of all lanes from the last to this one, applied to q = 0: [R, LT].

    By doubling distances: a reverse tl.associative_scan would first reverse its operands by shuffles.
    """
    p = tl.reshape(p, [R, LT])
    s = tl.reshape(s, [R, LT])
    lane = tl.broadcast_to(tl.arange(0, LT)[None, :], [R, LT])
    for i in tl.static_range(5):
        if (1 << i) < LT:
            later = tl.minimum(lane + (1 << i), LT - 1)
            there = lane + (1 << i) < LT
            p_later = tl.gather(p, later, 1)
            s = tl.where(there, tl.fma(p, tl.gather(s, later, 1), s), s)
            p = tl.where(there, p * p_later, p)
    return s


@triton.jit
def halve(values, row_RL, HALF: tl.constexpr, R: tl.constexpr, LT: tl.constexpr):
    """Rows at distance HALF exchange: each keeps HALF of its 2 HALF values and adds what the other had for them."""
    upper = (row_RL & HALF) != 0
    kept = ()
    for j in tl.static_range(HALF):
        low = tl.reshape(values[j], [R, LT])
        high = tl.reshape(values[j + HALF], [R, LT])
        received = tl.gather(tl.where(upper, low, high), row_RL ^ HALF, 0)
        kept = kept + (tl.where(upper, high, low) + received,)
    return kept


@triton.jit
def sum_rows(values, row_RL, R: tl.constexpr, LT: tl.constexpr, V: tl.constexpr):
    """V values summed over the 8 rows of a tile in a fixed order; row r is left with that of value r % V, [R, LT].

    Values are halved as they are summed: V exchanges in all, where summing each by itself takes 3 V.
    """
    tl.static_assert(R == 8)
    v = values
    if V == 8:
        v = halve(v, row_RL, 4, R, LT)
    v = halve(v, row_RL, 2, R, LT)
    v = halve(v, row_RL, 1, R, LT)
    s = v[0]
    if V == 4:
        s = s + tl.gather(s, row_RL ^ 4, 0)
    return s


@triton.jit
def sum_lanes(pointer, x, real, lane, R: tl.constexpr, LT: tl.constexpr):
    """Store the sum over the lanes of each row."""
    total = tl.broadcast_to(tl.sum(tl.reshape(x, [R, LT]), 1)[:, None], [R, LT])
    tl.store(pointer, tl.reshape(total, [R * LT]), mask=real & (lane == 0))


@triton.jit(do_not_specialize=SIZES)
def backward_kernel(
    dy_ptr, u_ptr, delta_ptr, A_ptr, BC_ptr, D_ptr, z_ptr, bias_ptr, states_ptr, dlast_ptr,
    du_ptr, ddelta_ptr, dz_ptr, dA_ptr, dBC_ptr, dD_ptr, dbias_ptr,
    L, batch, channels, groups, shared, reverse,
    dy_r, dy_b, dy_d, u_r, u_b, u_d, delta_r, delta_b, delta_d, z_r, z_b, z_d,
    du_r, du_b, du_d, ddelta_r, ddelta_b, ddelta_d, dz_r, dz_b, dz_d,
    N: tl.constexpr, ALL: tl.constexpr, R: tl.constexpr, LT: tl.constexpr, V: tl.constexpr,
    UNIT: tl.constexpr, EVEN: tl.constexpr, SOFTPLUS: tl.constexpr,
):  # fmt: skip
    """Gradients from dy and dlast, walking the blocks from the last to the first.

    Arguments as of the forward kernel, which saved the states at the start of every block of this one. With
    h_t = a_t h_(t-1) + x_t B_t, x = dt u, and g = dy silu(z), for each state, backwards in time:

        gh_t = g_t C_t + a_(t+1) gh_(t+1)        the gradient of h_t; q_t = a_t gh_t is what reaches h_(t-1)
        dC_t = g_t h_t        dB_t = gh_t x_t        dx_t = sum_n gh_t B_t        du_t = dx_t dt_t + D g_t
        dA = sum_t q_t h_(t-1) dt_t                  ddt_t = dx_t u_t + sum_n q_t h_(t-1) A

    h is computed anew in each block. dBC has a slot per program, packed as BC is; dA, dD and dbias one per batch
    element and row. They are summed elsewhere: nothing here depends on the order in which programs run.
    """
    M: tl.constexpr = R * LT
    BLOCK: tl.constexpr = LT * V
    L = L * UNIT
    sequence_group, direction, b, backwards, row, channel, real, lane = locate(
        batch, channels, groups, shared, reverse, R, LT
    )
    lane_RL = tl.broadcast_to(tl.arange(0, LT)[None, :], [R, LT])
    row_RL = tl.broadcast_to(tl.arange(0, R)[:, None], [R, LT])
    previous = (lane_RL + (LT - 1)) % LT
    following = (lane_RL + 1) % LT
    blocks = tl.cdiv(L, BLOCK)
    dy_rows = rows_of(dy_ptr, direction, b, row, dy_r, dy_b, dy_d, UNIT)
    u_rows = rows_of(u_ptr, direction, b, row, u_r, u_b, u_d, UNIT)
    delta_rows = rows_of(delta_ptr, direction, b, row, delta_r, delta_b, delta_d, UNIT)
    du_rows = rows_of(du_ptr, direction, b, row, du_r, du_b, du_d, UNIT)
    ddelta_rows = rows_of(ddelta_ptr, direction, b, row, ddelta_r, ddelta_b, ddelta_d, UNIT)
    z_rows = rows_of(z_ptr, direction, b, channel, z_r, z_b, z_d, UNIT)
    dz_rows = rows_of(dz_ptr, direction, b, row, dz_r, dz_b, dz_d, UNIT)
    state_row = (direction * batch + b) * channels + row
    state = states_ptr + (state_row * blocks + blocks - 1) * ALL
    quad = first_quad(BC_ptr, sequence_group * blocks + blocks - 1, lane, N, BLOCK)
    step_RL = row_RL % V
    slot = tl.program_id(0).to(tl.int64) * blocks + blocks - 1
    sums = dBC_ptr + slot * (2 * N * BLOCK) + step_RL // 4 * (LT * 4) + lane_RL * 4 + step_RL % 4
    summed = row_RL < V
    A = ()
    dA = ()
    q = ()  # what reaches the state at the end of the block, in the last lane alone
    for n in tl.static_range(N):
        A = A + (load_A(A_ptr, channel, n, ALL),)
        dA = dA + (tl.zeros([M], tl.float32),)
        if dlast_ptr is not None:
            q = q + (tl.load(dlast_ptr + state_row * ALL + n, mask=real, other=0.0),)
        else:
            q = q + (tl.zeros([M], tl.float32),)
    if D_ptr is not None:
        D = tl.load(D_ptr + channel)
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + channel)
    dD = tl.zeros([M], tl.float32)
    dbias = tl.zeros([M], tl.float32)

    for block in tl.range(blocks - 1, -1, -1):
        at = positions(block * BLOCK + lane * V, L, V, backwards)
        inside = (at >= 0) & (at < L)
        u_MV = load_rows(u_rows, at, L, EVEN)
        dt_MV = load_rows(delta_rows, at, L, EVEN)
        # The copies of the last row get no gradient, and so add nothing to the sums over rows.
        g_MV = tl.where(real[:, None], load_rows(dy_rows, at, L, EVEN), 0.0)
        if bias_ptr is not None:
            dt_MV += bias[:, None]
        if SOFTPLUS:
            dt_MV = softplus(dt_MV)
        if not EVEN:
            dt_MV = tl.where(inside, dt_MV, 0.0)
        if z_ptr is not None:
            z_MV = load_rows(z_rows, at, L, EVEN)
            g_MV = g_MV * (z_MV * sigmoid(z_MV))
        if D_ptr is not None:
            dD += tl.sum(g_MV * u_MV, 1)
        u = split_steps(u_MV, M, V, backwards)
        dt = split_steps(dt_MV, M, V, backwards)
        g = split_steps(g_MV, M, V, backwards)
        x = ()
        y = ()
        dx = ()
        ddt = ()
        sum_dt = tl.zeros([M], tl.float32)
        for i in tl.static_range(V):
            x = x + (u[i] * dt[i],)
            y = y + (D * u[i] if D_ptr is not None else tl.zeros([M], tl.float32),)
            dx = dx + (tl.zeros([M], tl.float32),)
            ddt = ddt + (tl.zeros([M], tl.float32),)
            sum_dt += dt[i]

        dA_new = ()
        q_new = ()
        for n in tl.static_range(N):
            B = load_quads(quad, n * BLOCK, M, LT, V)
            C = load_quads(quad, (N + n) * BLOCK, M, LT, V)
            h_start = tl.load(state + n, mask=lane == 0, other=0.0)
            a = ()
            xB = ()
            s = h_start
            for i in tl.static_range(V):
                a = a + (tl.exp2(dt[i] * A[n]),)
                xB = xB + (x[i] * B[i],)
                s = tl.fma(a[i], s, xB[i])
            p = tl.exp2(sum_dt * A[n])
            r = tl.where(lane == LT - 1, q[n], 0.0)
            for k in tl.static_range(V):
                r = a[V - 1 - k] * tl.fma(g[V - 1 - k], C[V - 1 - k], r)

            # The state each lane starts from, and what reaches the one it ends with. The lane at the other end gets
            # what goes over to the next block.
            _, ends = tl.associative_scan((tl.reshape(p, [R, LT]), tl.reshape(s, [R, LT])), 1, combine_lanes)
            h = tl.where(lane == 0, h_start, tl.reshape(tl.gather(ends, previous, 1), [M]))
            starts = scan_from_last_lane(p, r, R, LT)
            after = tl.reshape(tl.gather(starts, following, 1), [M])
            qi = tl.where(lane == LT - 1, q[n], after)
            q_new = q_new + (after,)

            hs = (h,)
            y_new = ()
            dC = ()
            for i in tl.static_range(V):
                h = tl.fma(a[i], h, xB[i])
                hs = hs + (h,)
                y_new = y_new + (tl.fma(C[i], h, y[i]),)
                dC = dC + (g[i] * h,)
            y = y_new

            dA_n = dA[n]
            dx_new = ()
            ddt_new = ()
            dB = ()
            for k in tl.static_range(V):  # step V - 1 - k: from the last to the first, the tuples filled from behind
                gh = tl.fma(g[V - 1 - k], C[V - 1 - k], qi)
                qi = a[V - 1 - k] * gh
                w = qi * hs[V - 1 - k]  # hs[i] is the state before step i
                dx_new = (tl.fma(gh, B[V - 1 - k], dx[V - 1 - k]),) + dx_new
                ddt_new = (tl.fma(w, A[n], ddt[V - 1 - k]),) + ddt_new
                dB = (gh * x[V - 1 - k],) + dB
                dA_n = tl.fma(w, dt[V - 1 - k], dA_n)
            dx = dx_new
            ddt = ddt_new
            dA_new = dA_new + (dA_n,)
            tl.store(sums + n * BLOCK, sum_rows(dB, row_RL, R, LT, V), mask=summed)
            tl.store(sums + (N + n) * BLOCK, sum_rows(dC, row_RL, R, LT, V), mask=summed)
        dA = dA_new
        q = q_new

        du = ()
        ddelta = ()
        for i in tl.static_range(V):
            du = du + (dx[i] * dt[i],)
            ddelta = ddelta + (tl.fma(ddt[i], 0.6931471805599453, dx[i] * u[i]),)  # A is in units of log2(e)
        du_MV = join_steps(du, 0, M, V, backwards)
        ddelta_MV = join_steps(ddelta, 0, M, V, backwards)
        # The inputs are read again: keeping them in registers over the loop above would cost more.
        gate = load_rows(dy_rows, at, L, EVEN)
        if z_ptr is not None:
            z_MV = load_rows(z_rows, at, L, EVEN)
            sig = sigmoid(z_MV)
            dz_MV = gate * join_steps(y, 0, M, V, backwards) * sig * (1.0 + z_MV * (1.0 - sig))
            store_rows(dz_rows, at, dz_MV, real, L, EVEN)
            gate = gate * z_MV * sig
        if D_ptr is not None:
            du_MV += D[:, None] * gate
        store_rows(du_rows, at, du_MV, real, L, EVEN)
        if SOFTPLUS:
            raw = load_rows(delta_rows, at, L, EVEN)
            if bias_ptr is not None:
                raw += bias[:, None]
            ddelta_MV = ddelta_MV * sigmoid(raw)
        if not EVEN:
            ddelta_MV = tl.where(inside, ddelta_MV, 0.0)
        store_rows(ddelta_rows, at, ddelta_MV, real, L, EVEN)
        dbias += tl.sum(ddelta_MV, 1)
        state -= ALL
        quad -= 2 * N * BLOCK
        sums -= 2 * N * BLOCK

    for n in tl.static_range(N):
        sum_lanes(dA_ptr + state_row * ALL + n, dA[n], real, lane, R, LT)
    if D_ptr is not None:
        sum_lanes(dD_ptr + state_row, dD, real, lane, R, LT)
    if bias_ptr is not None:
        sum_lanes(dbias_ptr + state_row, dbias, real, lane, R, LT)
