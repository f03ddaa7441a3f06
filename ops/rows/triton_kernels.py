"""What stands between the matrix products of inference on a GPU, in Triton. Arguments as in `ops.rows.gpu`.

A program has ROWS rows of N channels, in a tensor of WIDTH, the next power of two. N and strides are given in multiples
of UNIT, so that the compiler sees how wide accesses may be.
"""

import triton
import triton.language as tl

SIZES = ["rows", "L", "N", "bins", "residual_s", "residual_l", "mask_s", "mask_l", "x_tap"]
SIZES += [f"{name}_{axis}" for name in "xyv" for axis in "sl"]


@triton.jit
def layer_norm(x, norm_ptr, n, N, inside):
    """Over the channels of x, biased variance, eps 1e-5; weight and bias are the rows of norm [2,N]."""
    mean = tl.sum(tl.where(inside, x, 0.0), 1) / N
    centred = tl.where(inside, x - mean[:, None], 0.0)
    slope = tl.rsqrt(tl.sum(centred * centred, 1) / N + 1e-5)
    weight = tl.load(norm_ptr + n, mask=n < N, other=0.0).to(tl.float32)
    bias = tl.load(norm_ptr + N + n, mask=n < N, other=0.0).to(tl.float32)
    return centred * slope[:, None] * weight + bias


@triton.jit
def store_rows(y_ptr, v_ptr, next_norm_ptr, y, s, t, n, N, inside, y_s, y_l, v_s, v_l, UNIT: tl.constexpr):
    """y, and v, its layer norm, where asked for."""
    y = y.to(y_ptr.dtype.element_ty)
    tl.store(y_ptr + (s * y_s + t * y_l)[:, None] * UNIT + n, y, mask=inside)
    if v_ptr is not None:
        v = layer_norm(y.to(tl.float32), next_norm_ptr, n, N, inside)
        tl.store(v_ptr + (s * v_s + t * v_l)[:, None] * UNIT + n, v.to(v_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=SIZES)
def finish_kernel(
    x_ptr, bias_ptr, mask_ptr, norm_ptr, factor_ptr, gate_ptr, residual_ptr, next_norm_ptr, y_ptr, v_ptr,
    rows, L, N, x_s, x_l, x_tap, mask_s, mask_l, residual_s, residual_l, y_s, y_l, v_s, v_l,
    TAPS: tl.constexpr, RELU: tl.constexpr, UNIT: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    N = N * UNIT
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    n = tl.arange(0, WIDTH)[None, :]
    inside = (row < rows)[:, None] & (n < N)
    s, t = row // L, row % L
    x = tl.zeros([ROWS, WIDTH], tl.float32)
    for tap in tl.static_range(TAPS):
        there = t + tap - TAPS // 2
        exists = inside & ((there >= 0) & (there < L))[:, None]
        at = (s * x_s + there * x_l)[:, None] * UNIT + tap * x_tap * UNIT + n
        x += tl.load(x_ptr + at, mask=exists, other=0.0).to(tl.float32)
    if bias_ptr is not None:
        x += tl.load(bias_ptr + n, mask=n < N, other=0.0).to(tl.float32)
    if mask_ptr is not None:
        kept = tl.load(mask_ptr + s * mask_s + t * mask_l, mask=row < rows, other=0)
        x = tl.where(kept[:, None] != 0, x, 0.0)
    if norm_ptr is not None:
        x = layer_norm(x, norm_ptr, n, N, inside)
    if factor_ptr is not None:
        x *= tl.load(factor_ptr + t, mask=row < rows, other=0.0).to(tl.float32)[:, None]
    if RELU:
        x = tl.maximum(x, 0.0)
    if gate_ptr is not None:
        gate = tl.load(gate_ptr + s[:, None] * N + n, mask=inside, other=0.0).to(tl.float32)
        x *= tl.sigmoid(gate)
    if residual_ptr is not None:
        at = (s * residual_s + t * residual_l)[:, None] * UNIT + n
        x += tl.load(residual_ptr + at, mask=inside, other=0.0).to(tl.float32)
    store_rows(y_ptr, v_ptr, next_norm_ptr, x, s, t, n, N, inside, y_s, y_l, v_s, v_l, UNIT)


@triton.jit(do_not_specialize=SIZES)
def halve_kernel(
    x_ptr, mask_ptr, next_norm_ptr, y_ptr, v_ptr,
    rows, L, N, x_s, x_l, mask_s, mask_l, y_s, y_l, v_s, v_l,
    UNIT: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """L counts rows of x, `rows` those of all y."""
    N = N * UNIT
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    n = tl.arange(0, WIDTH)[None, :]
    inside = (row < rows)[:, None] & (n < N)
    half = tl.cdiv(L, 2)
    s, t = row // half, row % half
    x = tl.full([ROWS, WIDTH], float("-inf"), tl.float32)
    for tap in tl.static_range(3):
        there = 2 * t + tap - 1
        exists = inside & ((there >= 0) & (there < L))[:, None]
        at = (s * x_s + there * x_l)[:, None] * UNIT + n
        x = tl.maximum(x, tl.load(x_ptr + at, mask=exists, other=float("-inf")).to(tl.float32))
    kept = tl.load(mask_ptr + s * mask_s + 2 * t * mask_l, mask=row < rows, other=0)
    x = tl.where(kept[:, None] != 0, x, 0.0)
    store_rows(y_ptr, v_ptr, next_norm_ptr, x, s, t, n, N, inside, y_s, y_l, v_s, v_l, UNIT)


@triton.jit(do_not_specialize=SIZES)
def average_kernel(
    x_ptr, y_ptr, L, N, bins, x_s, x_l,
    UNIT: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """One program for a bin of a sequence, which it goes through in ROWS at a time; y is contiguous."""
    N = N * UNIT
    program = tl.program_id(0).to(tl.int64)
    s, bin = program // bins, program % bins
    first = bin * L // bins
    last = ((bin + 1) * L + bins - 1) // bins
    n = tl.arange(0, WIDTH)[None, :]
    total = tl.zeros([ROWS, WIDTH], tl.float32)
    for start in tl.range(first, last, ROWS):
        t = start + tl.arange(0, ROWS)
        inside = (t < last)[:, None] & (n < N)
        total += tl.load(x_ptr + (s * x_s + t * x_l)[:, None] * UNIT + n, mask=inside, other=0.0).to(tl.float32)
    y = tl.sum(total, 0)[None, :] / (last - first)
    tl.store(y_ptr + program * N + n, y.to(y_ptr.dtype.element_ty), mask=n < N)
