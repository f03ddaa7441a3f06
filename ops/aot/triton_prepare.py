"""What torch does around the kernels of the scan, as kernels, for callers that have no torch (csrc/onnxruntime).

Arrays are contiguous. Sizes are 32-bit numbers, offsets 64-bit ones.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def convert_kernel(from_ptr, to_ptr, rows, given, wanted, parts, BLOCK: tl.constexpr):
    """to [rows, wanted] = from [parts, rows, given], summed over the parts, with zeros behind each row.

    Without parts, zeros alone; from_ptr is not read then. Sums are float32.
    """
    tiles = tl.cdiv(wanted, BLOCK)
    row = (tl.program_id(0) // tiles).to(tl.int64)
    column = tl.program_id(0) % tiles * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for part in range(parts):
        source = from_ptr + (part * rows.to(tl.int64) + row) * given + column
        total += tl.load(source, mask=column < given, other=0.0).to(tl.float32)
    tl.store(to_ptr + row * wanted + column, total.to(to_ptr.dtype.element_ty), mask=column < wanted)


@triton.jit
def scale_kernel(A_ptr, to_ptr, D, N, states, BLOCK: tl.constexpr):
    """A [D, N] -> log2(e) A transposed, [states, D], with zeros beyond N; float32."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    n, d = index // D, index % D
    A = tl.load(A_ptr + d * N + n, mask=n < N, other=0.0)
    tl.store(to_ptr + index, A * LOG2E, mask=index < states * D)
