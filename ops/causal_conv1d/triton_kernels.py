"""The causal depthwise convolution in Triton, forward and backward, for several filters and both directions at once.

x is [directions, S, D, L] (direction, sequence, channel, time) and y [directions, S, K D, L]: each of the K filters has
D channels of y and its own width. "Steps" count time in the order of the recurrence: backwards, step s is at L - 1 - s.

A program has PD x PT threads, neighbours along the axis that is adjacent in memory, and goes through `blocks` tiles
along time. In a tile each thread has T steps of V channels, and reads those around them as well (from the cache). A
step is one register tensor: [PD PT, V], or [PD PT] if V is 1. An access takes U elements, 16 bytes where possible: U
channels of one step (U = V), or, SPLIT, the U steps of one channel (U = T), which are then cut into register tensors.
"""

import triton
import triton.language as tl

from ops.selective_scan.triton_common import join_steps, sigmoid, split_steps

LOG2E = tl.constexpr(1.4426950408889634)  # the hardware's exponential is base 2

# Sizes and strides (of direction, sequence, channel, time) never become constants: one kernel serves all lengths.
SIZES = ["S", "D", "L", "blocks", "slots", *(f"{name}_{axis}" for name in ("x", "y", "dy", "dx") for axis in "rsdt")]


@triton.jit
def locate(S, D, blocks, PD: tl.constexpr, PT: tl.constexpr, T: tl.constexpr, V: tl.constexpr,
           TIME_INNER: tl.constexpr, BOTH: tl.constexpr):  # fmt: skip
    """The program's direction, sequence and first channel, and for each thread its channels, whether they exist, and
    its first step."""
    programs = tl.cdiv(D, PD * V)
    sequence = tl.program_id(0) // programs
    first_d = tl.program_id(0) % programs * (PD * V)
    direction = (sequence >= S).to(tl.int64) if BOTH else 0
    thread = tl.arange(0, PD * PT)
    d = first_d + (thread // PT if TIME_INNER else thread % PD) * V
    step = (tl.program_id(1) * blocks * PT + (thread % PT if TIME_INNER else thread // PD)) * T
    real = d < D
    if V > 1:
        d = d[:, None] + tl.arange(0, V)[None, :]
        real = real[:, None]
        step = step[:, None]
    return direction, sequence - direction * S, first_d, d, real, step


@triton.jit
def start(ptr, strides, direction, sequence, d, U: tl.constexpr, SPLIT: tl.constexpr):
    """Pointers to time 0 of the channels d. Strides are multiples of U: // U * U tells the compiler so."""
    ptr += direction * (strides[0] // U * U) + sequence.to(tl.int64) * (strides[1] // U * U)
    if U > 1 and not SPLIT:
        rows = ptr + d
    else:
        rows = ptr + d.to(tl.int64) * (strides[2] // U * U)
    return rows


@triton.jit
def access(rows, strides, real, step, L, U: tl.constexpr, SPLIT: tl.constexpr, REVERSE: tl.constexpr):
    """Pointers to one step, or to U of them in the order of memory if SPLIT, and whether they exist."""
    inside = real & (step >= 0) & (step < L)
    if SPLIT:
        at = L // U * U - U - step if REVERSE else step
        pointers = (rows + at)[:, None] + tl.arange(0, U)[None, :]
        inside = inside[:, None]
    else:
        at = L - 1 - step if REVERSE else step
        pointers = rows + at.to(tl.int64) * (strides[3] // U * U)
    return pointers, inside


@triton.jit
def load_steps(rows, strides, real, step, L, FIRST: tl.constexpr, COUNT: tl.constexpr, U: tl.constexpr,
               SPLIT: tl.constexpr, REVERSE: tl.constexpr):  # fmt: skip
    """COUNT steps from `step` + FIRST, in float32; zero where there is none."""
    LOW: tl.constexpr = FIRST // U * U if SPLIT else FIRST
    loaded = ()
    for i in tl.static_range(LOW, FIRST + COUNT, U if SPLIT else 1):
        pointers, inside = access(rows, strides, real, step + i, L, U, SPLIT, REVERSE)
        x = tl.load(pointers, mask=inside, other=0.0).to(tl.float32)
        loaded = loaded + (split_steps(x, step.shape[0], U, REVERSE) if SPLIT else (x,))
    steps = ()
    for i in tl.static_range(FIRST - LOW, FIRST - LOW + COUNT):
        steps = steps + (loaded[i],)
    return steps


@triton.jit
def store_steps(rows, strides, real, step, steps, L, T: tl.constexpr, U: tl.constexpr, SPLIT: tl.constexpr,
                REVERSE: tl.constexpr):  # fmt: skip
    for i in tl.static_range(0, T, U if SPLIT else 1):
        pointers, inside = access(rows, strides, real, step + i, L, U, SPLIT, REVERSE)
        y = join_steps(steps, 0, step.shape[0], U, REVERSE) if SPLIT else steps[i]
        tl.store(pointers, y.to(rows.dtype.element_ty), mask=inside)


@triton.jit
def load_filter(weight_ptr, bias_ptr, d, real, W: tl.constexpr):
    """The weights of the lags 0 to W - 1, and the bias."""
    weight = ()
    for lag in tl.static_range(W):
        weight = weight + (tl.load(weight_ptr + d * W + (W - 1 - lag), mask=real, other=0.0).to(tl.float32),)
    if bias_ptr is None:
        bias = tl.zeros(d.shape, tl.float32)
    else:
        bias = tl.load(bias_ptr + d, mask=real, other=0.0).to(tl.float32)
    return weight, bias


@triton.jit
def convolve(x, i: tl.constexpr, weight, bias, W: tl.constexpr):
    y = bias
    for lag in tl.static_range(W):
        y = tl.fma(weight[lag], x[i - lag], y)
    return y


@triton.jit
def forward_tiles(
    x_ptr, weights, biases, y_ptr, x_strides, y_strides, D, L, blocks, direction, sequence, d, real, step,
    WIDTHS: tl.constexpr, BEFORE: tl.constexpr, SILU: tl.constexpr, REVERSE: tl.constexpr,
    PT: tl.constexpr, T: tl.constexpr, U: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    x_rows = start(x_ptr, x_strides, direction, sequence, d, U, SPLIT)
    filters = ()
    y_rows = ()
    for k in tl.static_range(len(WIDTHS)):
        filters = filters + (load_filter(weights[k], biases[k], d, real, WIDTHS[k]),)
        y_rows = y_rows + (start(y_ptr, y_strides, direction, sequence, k * D + d, U, SPLIT),)
    for _ in tl.range(blocks):
        x = load_steps(x_rows, x_strides, real, step, L, -BEFORE, BEFORE + T, U, SPLIT, REVERSE)
        for k in tl.static_range(len(WIDTHS)):
            weight, bias = filters[k]
            y = ()
            for i in tl.static_range(T):
                y_i = convolve(x, BEFORE + i, weight, bias, WIDTHS[k])
                y = y + (y_i * sigmoid(y_i) if SILU else y_i,)
            store_steps(y_rows[k], y_strides, real, step, y, L, T, U, SPLIT, REVERSE)
        step += PT * T


@triton.jit(do_not_specialize=SIZES)
def forward_kernel(
    x_ptr, weights, biases, y_ptr, x_r, x_s, x_d, x_t, y_r, y_s, y_d, y_t, S, D, L, blocks,
    WIDTHS: tl.constexpr, BEFORE: tl.constexpr, SILU: tl.constexpr, REVERSE: tl.constexpr, BOTH: tl.constexpr,
    PD: tl.constexpr, PT: tl.constexpr, T: tl.constexpr, V: tl.constexpr, TIME_INNER: tl.constexpr,
):  # fmt: skip
    """y. WIDTHS are those of the K filters, BEFORE the largest less one. BOTH: direction 0 runs forwards and 1
    backwards, whatever REVERSE says."""
    x_strides = (x_r, x_s, x_d, x_t)
    y_strides = (y_r, y_s, y_d, y_t)
    SPLIT: tl.constexpr = TIME_INNER and T > 1
    U: tl.constexpr = T if SPLIT else V
    direction, sequence, _, d, real, step = locate(S, D, blocks, PD, PT, T, V, TIME_INNER, BOTH)
    backwards = direction if BOTH else REVERSE
    if backwards == 0:
        forward_tiles(
            x_ptr, weights, biases, y_ptr, x_strides, y_strides, D, L, blocks, direction, sequence, d, real, step,
            WIDTHS, BEFORE, SILU, False, PT, T, U, SPLIT,
        )  # fmt: skip
    else:
        forward_tiles(
            x_ptr, weights, biases, y_ptr, x_strides, y_strides, D, L, blocks, direction, sequence, d, real, step,
            WIDTHS, BEFORE, SILU, True, PT, T, U, SPLIT,
        )  # fmt: skip


@triton.jit
def zeros(d, COUNT: tl.constexpr):
    tensors = ()
    for _ in tl.static_range(COUNT):
        tensors = tensors + (tl.zeros(d.shape, tl.float32),)
    return tensors


@triton.jit
def filter_gradients(x, dy, weight, bias, dx, sums, W: tl.constexpr, BEFORE: tl.constexpr, SILU: tl.constexpr,
                     T: tl.constexpr):  # fmt: skip
    """dx and the sums (for the weight of each lag, and the bias) with what T steps of one filter add to them.

    x has a share in W - 1 later outputs, so their gradients are needed too.
    """
    g = ()  # the gradient of what enters the activation
    for i in tl.static_range(T + W - 1):
        g_i = dy[i]
        if SILU:
            y = convolve(x, BEFORE + i, weight, bias, W)
            s = sigmoid(y)
            g_i = g_i * s * tl.fma(y, 1.0 - s, 1.0)
        g = g + (g_i,)
    new_dx = ()
    for i in tl.static_range(T):
        dx_i = dx[i]
        for lag in tl.static_range(W):
            dx_i = tl.fma(weight[lag], g[i + lag], dx_i)
        new_dx = new_dx + (dx_i,)
    new_sums = ()
    for lag in tl.static_range(W + 1):
        total = sums[lag]
        for i in tl.static_range(T):
            total = tl.fma(g[i], x[BEFORE + i - lag], total) if lag < W else total + g[i]
        new_sums = new_sums + (total,)
    return new_dx, new_sums


@triton.jit
def sum_over_time(x, PD: tl.constexpr, PT: tl.constexpr, V: tl.constexpr, TIME_INNER: tl.constexpr):
    """[PD V] from what the threads hold."""
    if TIME_INNER:
        total = tl.sum(tl.reshape(x, [PD, PT]), 1)
    else:
        total = tl.sum(tl.reshape(x, [PT, PD * V]), 0)
    return total


@triton.jit
def backward_tiles(
    dy_ptr, x_ptr, weights, biases, dx_ptr, sums_ptr, dy_strides, x_strides, dx_strides, D, L, blocks,
    direction, sequence, first_d, d, real, step,
    WIDTHS: tl.constexpr, BEFORE: tl.constexpr, SILU: tl.constexpr, REVERSE: tl.constexpr,
    PD: tl.constexpr, PT: tl.constexpr, T: tl.constexpr, V: tl.constexpr, TIME_INNER: tl.constexpr,
    U: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    x_rows = start(x_ptr, x_strides, direction, sequence, d, U, SPLIT)
    dx_rows = start(dx_ptr, dx_strides, direction, sequence, d, U, SPLIT)
    filters = ()
    dy_rows = ()
    sums = ()
    for k in tl.static_range(len(WIDTHS)):
        filters = filters + (load_filter(weights[k], biases[k], d, real, WIDTHS[k]),)
        dy_rows = dy_rows + (start(dy_ptr, dy_strides, direction, sequence, k * D + d, U, SPLIT),)
        sums = sums + (zeros(d, WIDTHS[k] + 1),)
    for _ in tl.range(blocks):
        x = load_steps(x_rows, x_strides, real, step, L, -BEFORE, 2 * BEFORE + T, U, SPLIT, REVERSE)
        dx = zeros(d, T)
        new_sums = ()
        for k in tl.static_range(len(WIDTHS)):
            weight, bias = filters[k]
            dy = load_steps(dy_rows[k], dy_strides, real, step, L, 0, T + WIDTHS[k] - 1, U, SPLIT, REVERSE)
            dx, sums_k = filter_gradients(x, dy, weight, bias, dx, sums[k], WIDTHS[k], BEFORE, SILU, T)
            new_sums = new_sums + (sums_k,)
        sums = new_sums
        store_steps(dx_rows, dx_strides, real, step, dx, L, T, U, SPLIT, REVERSE)
        step += PT * T
    channel = first_d + tl.arange(0, PD * V)
    for k in tl.static_range(len(WIDTHS)):
        for lag in tl.static_range(WIDTHS[k] + 1):
            total = sum_over_time(sums[k][lag], PD, PT, V, TIME_INNER)
            tl.store(sums_ptr + channel, total, mask=channel < D)
            sums_ptr += D


@triton.jit(do_not_specialize=SIZES)
def backward_kernel(
    dy_ptr, x_ptr, weights, biases, dx_ptr, sums_ptr,
    dy_r, dy_s, dy_d, dy_t, x_r, x_s, x_d, x_t, dx_r, dx_s, dx_d, dx_t, S, D, L, blocks,
    ROWS: tl.constexpr,
    WIDTHS: tl.constexpr, BEFORE: tl.constexpr, SILU: tl.constexpr, REVERSE: tl.constexpr, BOTH: tl.constexpr,
    PD: tl.constexpr, PT: tl.constexpr, T: tl.constexpr, V: tl.constexpr, TIME_INNER: tl.constexpr,
):  # fmt: skip
    """dx, and what each program adds to the gradients of the filters, [slots, ROWS, D]: for each filter a row for every
    lag and one for the bias."""
    dy_strides = (dy_r, dy_s, dy_d, dy_t)
    x_strides = (x_r, x_s, x_d, x_t)
    dx_strides = (dx_r, dx_s, dx_d, dx_t)
    SPLIT: tl.constexpr = TIME_INNER and T > 1
    U: tl.constexpr = T if SPLIT else V
    direction, sequence, first_d, d, real, step = locate(S, D, blocks, PD, PT, T, V, TIME_INNER, BOTH)
    slot = (direction * S + sequence).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    sums_ptr += slot * ROWS * D
    backwards = direction if BOTH else REVERSE
    if backwards == 0:
        backward_tiles(
            dy_ptr, x_ptr, weights, biases, dx_ptr, sums_ptr, dy_strides, x_strides, dx_strides, D, L, blocks,
            direction, sequence, first_d, d, real, step,
            WIDTHS, BEFORE, SILU, False, PD, PT, T, V, TIME_INNER, U, SPLIT,
        )  # fmt: skip
    else:
        backward_tiles(
            dy_ptr, x_ptr, weights, biases, dx_ptr, sums_ptr, dy_strides, x_strides, dx_strides, D, L, blocks,
            direction, sequence, first_d, d, real, step,
            WIDTHS, BEFORE, SILU, True, PD, PT, T, V, TIME_INNER, U, SPLIT,
        )  # fmt: skip


@triton.jit
def store_gradient(dweight_ptr, dbias_ptr, total, row, d, D, W: tl.constexpr):
    """Row 0 to W - 1: that of a lag's weights; row W: that of the bias; any other: of another filter."""
    for lag in tl.static_range(W):
        if row == lag:
            tl.store(dweight_ptr + d * W + (W - 1 - lag), total.to(dweight_ptr.dtype.element_ty), mask=d < D)
    if row == W:
        tl.store(dbias_ptr + d, total.to(dbias_ptr.dtype.element_ty), mask=d < D)


@triton.jit(do_not_specialize=SIZES)
def add_up_kernel(
    sums_ptr, dweights, dbiases, slots, D,
    WIDTHS: tl.constexpr, ROWS: tl.constexpr, SLOTS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """The gradients of the filters from the sums [slots, ROWS, D] of `backward_kernel`, always in the same order."""
    d = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    row = tl.program_id(1)
    total = tl.zeros([SLOTS, CHANNELS], tl.float32)
    for first in tl.range(0, slots, SLOTS):
        slot = first + tl.arange(0, SLOTS)
        at = (slot.to(tl.int64) * ROWS + row)[:, None] * D + d[None, :]
        total += tl.load(sums_ptr + at, mask=(slot < slots)[:, None] & (d < D)[None, :], other=0.0)
    total = tl.sum(total, 0)
    for k in tl.static_range(len(WIDTHS)):
        store_gradient(dweights[k], dbiases[k], total, row, d, D, WIDTHS[k])
        row -= WIDTHS[k] + 1
