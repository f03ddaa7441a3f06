"""The gradients of the scan in Triton. Letters, and what a tile is, in `triton_common`; here K = 1, so T = V."""

import triton
import triton.language as tl

from ops.selective_scan.triton_common import (
    SIZES,
    combine_lanes,
    join_steps,
    load_packed,
    load_rows,
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
def halve(values, thread, HALF: tl.constexpr, LT: tl.constexpr):
    """Rows at distance HALF exchange: each keeps HALF of its 2 HALF values and adds what the other had for them."""
    upper = (thread // LT & HALF) != 0
    kept = ()
    for j in tl.static_range(HALF):
        received = tl.gather(tl.where(upper, values[j], values[j + HALF]), thread ^ (HALF * LT), 0)
        kept = kept + (tl.where(upper, values[j + HALF], values[j]) + received,)
    return kept


@triton.jit
def sum_rows(values, R: tl.constexpr, LT: tl.constexpr, V: tl.constexpr):
    """V values [M] summed over the 8 rows of a tile in a fixed order; row r is left with the sum of value r % V.

    Values are halved as they are summed: V exchanges in all, where summing each by itself takes 3 V.
    """
    tl.static_assert(R == 8)
    thread = tl.arange(0, R * LT)
    v = values
    if V == 8:
        v = halve(v, thread, 4, LT)
    v = halve(v, thread, 2, LT)
    v = halve(v, thread, 1, LT)
    s = v[0]
    if V == 4:
        s = s + tl.gather(s, thread ^ (4 * LT), 0)
    return s


@triton.jit(do_not_specialize=SIZES)
def adjoint_kernel(
    dy_ptr, delta_ptr, A_ptr, BC_ptr, z_ptr, bias_ptr, q_ptr, sum_ptr,
    L, N, batch, channels, groups, shared, reverse, rows, segment,
    dy_r, dy_b, dy_d, delta_r, delta_b, delta_d, z_r, z_b, z_d,
    R: tl.constexpr, LT: tl.constexpr, V: tl.constexpr,
    UNIT: tl.constexpr, EVEN: tl.constexpr, SOFTPLUS: tl.constexpr,
):  # fmt: skip
    """What reaches the state before each segment from the outputs in it, q [segments, N, rows].

    As in `backward_kernel`, q_(t-1) = a_t (g_t C_t + q_t). sum [segments, rows] is that of dt over each segment.
    """
    M: tl.constexpr = R * LT
    BLOCK: tl.constexpr = LT * V
    L = L * UNIT
    sequence_group, direction, b, backwards, row, channel, real, lane = locate(
        batch, channels, groups, shared, reverse, R, LT
    )
    following = (tl.broadcast_to(tl.arange(0, LT)[None, :], [R, LT]) + 1) % LT
    carries = (lane == LT - 1) & real
    blocks = tl.cdiv(L, BLOCK)
    first_block = tl.program_id(1) * segment
    last_block = tl.minimum(first_block + segment, blocks) - 1
    block_packed = packed_block(BC_ptr, sequence_group * blocks + last_block, N, BLOCK)
    dy_rows = rows_of(dy_ptr, direction, b, row, dy_r, dy_b, dy_d, UNIT)
    delta_rows = rows_of(delta_ptr, direction, b, row, delta_r, delta_b, delta_d, UNIT)
    if z_ptr is not None:
        z_rows = rows_of(z_ptr, direction, b, channel, z_r, z_b, z_d, UNIT)
    state_row = (direction * batch + b) * channels + row
    A_rows = A_ptr + channel
    q_rows = q_ptr + tl.program_id(1).to(tl.int64) * N * rows + state_row
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + channel)
    total_dt = tl.zeros([M], tl.float32)
    for block in tl.range(last_block, first_block - 1, -1):
        start = block * BLOCK + lane * V
        at = positions(start, L, V, backwards)
        dt_MV = load_rows(delta_rows, at, L, EVEN)
        g_MV = load_rows(dy_rows, at, L, EVEN)
        if bias_ptr is not None:
            dt_MV += bias[:, None]
        if SOFTPLUS:
            dt_MV = softplus(dt_MV)
        if not EVEN:
            dt_MV = tl.where((at >= 0) & (at < L), dt_MV, 0.0)
        if z_ptr is not None:
            z_MV = load_rows(z_rows, at, L, EVEN)
            g_MV = g_MV * (z_MV * sigmoid(z_MV))
        dt = split_steps(dt_MV, M, V, backwards)
        g = split_steps(g_MV, M, V, backwards)
        sum_dt = tl.zeros([M], tl.float32)
        for i in tl.static_range(V):
            sum_dt += dt[i]
        packed = block_packed
        next_C = load_packed(packed + BLOCK, lane, M, LT, V)
        for n in tl.range(0, N, loop_unroll_factor=2):
            C = next_C
            packed += 2 * BLOCK
            next_C = load_packed(packed + BLOCK, lane, M, LT, V)
            A = tl.load(A_rows + n * shared)
            r = tl.load(q_rows + n * rows, mask=carries & (start < last_block * BLOCK), other=0.0)
            for k in tl.static_range(V):
                r = tl.exp2(dt[V - 1 - k] * A) * tl.fma(g[V - 1 - k], C[V - 1 - k], r)
            starts = scan_from_last_lane(tl.exp2(sum_dt * A), r, R, LT)
            tl.store(q_rows + n * rows, tl.reshape(tl.gather(starts, following, 1), [M]), mask=carries)
        total_dt += sum_dt
        block_packed -= 2 * N * BLOCK
    total = tl.broadcast_to(tl.sum(tl.reshape(total_dt, [R, LT]), 1)[:, None], [R, LT])
    tl.store(sum_ptr + tl.program_id(1).to(tl.int64) * rows + state_row, tl.reshape(total, [M]), mask=carries)


@triton.jit(do_not_specialize=SIZES)
def backward_kernel(
    dy_ptr, u_ptr, delta_ptr, A_ptr, BC_ptr, D_ptr, z_ptr, bias_ptr, states_ptr, q_ptr,
    du_ptr, ddelta_ptr, dz_ptr, sums_ptr, dBC_ptr,
    L, N, batch, channels, groups, shared, reverse, rows, segment,
    dy_r, dy_b, dy_d, u_r, u_b, u_d, delta_r, delta_b, delta_d, z_r, z_b, z_d,
    du_r, du_b, du_d, ddelta_r, ddelta_b, ddelta_d, dz_r, dz_b, dz_d,
    R: tl.constexpr, LT: tl.constexpr, V: tl.constexpr,
    UNIT: tl.constexpr, EVEN: tl.constexpr, SOFTPLUS: tl.constexpr, STARTED: tl.constexpr,
):  # fmt: skip
    """Gradients from dy, walking the blocks of each segment from the last to the first.

    Arguments as of the forward kernel, which saved the states at the start of every block of this one. With
    h_t = a_t h_(t-1) + x_t B_t, x = dt u, and g = dy silu(z), for each state, backwards in time:

        gh_t = g_t C_t + a_(t+1) gh_(t+1)        the gradient of h_t; q_(t-1) = a_t gh_t is what reaches h_(t-1)
        dC_t = g_t h_t        dB_t = gh_t x_t        dx_t = sum_n gh_t B_t        du_t = dx_t dt_t + D g_t
        dA = sum_t q_(t-1) h_(t-1) dt_t              ddt_t = dx_t u_t + sum_n q_(t-1) h_(t-1) A

    h is computed anew in each block. States are a loop, and what one carries from block to block is in memory, where
    only the thread that wrote it reads it: held in registers and unrolled, as the forward's are, they would leave room
    for too few warps. q [segments, N, rows] holds, if STARTED, what reaches the state after each segment, which is 0
    otherwise. sums [segments, N + 2, rows, LT] gets the shares of each lane in dA, dD and dbias, dBC a slot per
    program, packed as BC is. They are summed elsewhere: nothing depends on the order in which programs run.
    """
    M: tl.constexpr = R * LT
    BLOCK: tl.constexpr = LT * V
    L = L * UNIT
    sequence_group, direction, b, backwards, row, channel, real, lane = locate(
        batch, channels, groups, shared, reverse, R, LT
    )
    lane_RL = tl.broadcast_to(tl.arange(0, LT)[None, :], [R, LT])
    previous = (lane_RL + (LT - 1)) % LT
    following = (lane_RL + 1) % LT
    first = lane == 0
    last = lane == LT - 1
    carries = last & real
    blocks = tl.cdiv(L, BLOCK)
    first_block = tl.program_id(1) * segment
    last_block = tl.minimum(first_block + segment, blocks) - 1
    dy_rows = rows_of(dy_ptr, direction, b, row, dy_r, dy_b, dy_d, UNIT)
    u_rows = rows_of(u_ptr, direction, b, row, u_r, u_b, u_d, UNIT)
    delta_rows = rows_of(delta_ptr, direction, b, row, delta_r, delta_b, delta_d, UNIT)
    du_rows = rows_of(du_ptr, direction, b, row, du_r, du_b, du_d, UNIT)
    ddelta_rows = rows_of(ddelta_ptr, direction, b, row, ddelta_r, ddelta_b, ddelta_d, UNIT)
    if z_ptr is not None:
        z_rows = rows_of(z_ptr, direction, b, channel, z_r, z_b, z_d, UNIT)
    if dz_ptr is not None:
        dz_rows = rows_of(dz_ptr, direction, b, row, dz_r, dz_b, dz_d, UNIT)
    state_row = (direction * batch + b) * channels + row
    state = states_ptr + last_block.to(tl.int64) * N * rows + state_row
    A_rows = A_ptr + channel
    q_rows = q_ptr + tl.program_id(1).to(tl.int64) * N * rows + state_row
    sums_rows = sums_ptr + (tl.program_id(1).to(tl.int64) * (N + 2) * rows + state_row) * LT + lane
    block_packed = packed_block(BC_ptr, sequence_group * blocks + last_block, N, BLOCK)
    slot = tl.program_id(0).to(tl.int64) * blocks + last_block
    block_slots = packed_block(dBC_ptr, slot, N, BLOCK)
    in_tile = tl.arange(0, M) // LT
    place = in_tile % V // 4 * (LT * 4) + lane * 4 + in_tile % V % 4
    summed = in_tile < V
    if D_ptr is not None:
        D = tl.load(D_ptr + channel)
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + channel)
    dD = tl.zeros([M], tl.float32)
    dbias = tl.zeros([M], tl.float32)

    for block in tl.range(last_block, first_block - 1, -1):
        start = block * BLOCK + lane * V
        at = positions(start, L, V, backwards)
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

        packed = block_packed
        slots = block_slots
        next_B = load_packed(packed, lane, M, LT, V)
        next_C = load_packed(packed + BLOCK, lane, M, LT, V)
        later = start < last_block * BLOCK
        carried = carries if STARTED else carries & later
        next_A = tl.load(A_rows)
        next_h = tl.load(state, mask=first, other=0.0)
        next_q = tl.load(q_rows, mask=carried, other=0.0)
        next_dA = tl.load(sums_rows, mask=real & later, other=0.0)
        for n in tl.range(0, N):
            A = next_A
            h_start = next_h
            q = next_q
            n_following = tl.minimum(n + 1, N - 1)
            B = next_B
            C = next_C
            packed += 2 * BLOCK
            next_B = load_packed(packed, lane, M, LT, V)
            next_C = load_packed(packed + BLOCK, lane, M, LT, V)
            next_A = tl.load(A_rows + n_following * shared)
            next_h = tl.load(state + n_following * rows, mask=first, other=0.0)
            next_q = tl.load(q_rows + n_following * rows, mask=carried, other=0.0)
            dA = next_dA
            next_dA = tl.load(sums_rows + n_following * rows * LT, mask=real & later, other=0.0)
            a = ()
            xB = ()
            s = h_start  # 0 but in the first lane
            for i in tl.static_range(V):
                a = a + (tl.exp2(dt[i] * A),)
                xB = xB + (x[i] * B[i],)
                s = tl.fma(a[i], s, xB[i])
            p = tl.exp2(sum_dt * A)
            r = q  # 0 but in the last lane
            for k in tl.static_range(V):
                r = a[V - 1 - k] * tl.fma(g[V - 1 - k], C[V - 1 - k], r)

            # The state each lane starts from, and what reaches the one it ends with. The lane at the other end gets
            # what goes over to the next block.
            _, ends = tl.associative_scan((tl.reshape(p, [R, LT]), tl.reshape(s, [R, LT])), 1, combine_lanes)
            h = tl.where(first, h_start, tl.reshape(tl.gather(ends, previous, 1), [M]))
            starts = scan_from_last_lane(p, r, R, LT)
            after = tl.reshape(tl.gather(starts, following, 1), [M])
            tl.store(q_rows + n * rows, after, mask=carries)
            q = tl.where(last, q, after)

            hs = (h,)
            y_new = ()
            dC = ()
            for i in tl.static_range(V):
                h = tl.fma(a[i], h, xB[i])
                hs = hs + (h,)
                y_new = y_new + (tl.fma(C[i], h, y[i]),)
                dC = dC + (g[i] * h,)
            y = y_new

            dx_new = ()
            ddt_new = ()
            dB = ()
            for k in tl.static_range(V):  # step V - 1 - k: from the last to the first, the tuples filled from behind
                gh = tl.fma(g[V - 1 - k], C[V - 1 - k], q)
                q = a[V - 1 - k] * gh
                w = q * hs[V - 1 - k]  # hs[i] is the state before step i
                dx_new = (tl.fma(gh, B[V - 1 - k], dx[V - 1 - k]),) + dx_new
                ddt_new = (tl.fma(w, A, ddt[V - 1 - k]),) + ddt_new
                dB = (gh * x[V - 1 - k],) + dB
                dA = tl.fma(w, dt[V - 1 - k], dA)
            dx = dx_new
            ddt = ddt_new
            tl.store(sums_rows + n * rows * LT, dA, mask=real)
            tl.store(slots + place, sum_rows(dB, R, LT, V), mask=summed)
            tl.store(slots + BLOCK + place, sum_rows(dC, R, LT, V), mask=summed)
            slots += 2 * BLOCK

        du = ()
        ddelta = ()
        for i in tl.static_range(V):
            du = du + (tl.fma(dx[i], dt[i], D * g[i]) if D_ptr is not None else dx[i] * dt[i],)
            ddelta = ddelta + (tl.fma(ddt[i], 0.6931471805599453, dx[i] * u[i]),)  # A is in units of log2(e)
        du_MV = join_steps(du, 0, M, V, backwards)
        ddelta_MV = join_steps(ddelta, 0, M, V, backwards)
        # The inputs are read again: keeping them in registers over the loop above would cost more.
        if z_ptr is not None:
            z_MV = load_rows(z_rows, at, L, EVEN)
            sig = sigmoid(z_MV)
            y_MV = join_steps(y, 0, M, V, backwards)
            dz_MV = load_rows(dy_rows, at, L, EVEN) * y_MV * sig * (1.0 + z_MV * (1.0 - sig))
            store_rows(dz_rows, at, dz_MV, real, L, EVEN)
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
        state -= N * rows
        block_packed -= 2 * N * BLOCK
        block_slots -= 2 * N * BLOCK

    if D_ptr is not None:
        tl.store(sums_rows + N * rows * LT, dD, mask=real)
    if bias_ptr is not None:
        tl.store(sums_rows + (N + 1) * rows * LT, dbias, mask=real)
