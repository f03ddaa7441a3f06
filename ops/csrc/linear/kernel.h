// The matrix products of inference, over rows of channels, with what precedes and follows them. See kernel.inl.
//
// Letters: S sequences, L rows of a sequence, K inputs, N outputs.
#pragma once

#include <stdint.h>

namespace rdfa::linear {

// Packed weights: panels of PANEL outputs, the last one of half of that where it is enough, zeros beyond N. Within a
// panel the K inputs of each tap follow each other, a row of outputs each; in bfloat16 two inputs share a row, output by
// output, and in int8 four, after a row with the factor of each output in float32. ops/rows/linear.py makes them.
constexpr int64_t PANEL = 32, HALF_PANEL = 16;
// Inputs that are multiplied before the next are fetched; a layer norm of x reaches over no more.
constexpr int64_t CHUNK = 768;

// Code of every instruction set calls these, so they must not become symbols.
#define RDFA_LINEAR_INLINE inline __attribute__((always_inline))

// y = keep (gate relu(norm(scale (sum_taps W_tap norm(x_l+tap) + bias))) + residual), each part only where it is given
struct Problem {
  int64_t sequences, length, inputs, outputs;
  int taps;   // odd: the row itself and as many on either side, zero outside the sequence
  bool bf16;  // element type of x, weights, residual and y; otherwise float32. Everything else is float32.
  bool int8;  // weights, with x in float32
  bool relu;
  const void *x, *weights, *residual;  // [S, L, K], packed, [S, L, N] or null
  void* y;                             // [S, L, N]
  int64_t x_b, x_l, x_k, residual_b, residual_l, y_b, y_l;  // strides in elements; those not named are 1
  const float *in_weight, *in_bias;    // [K], layer norm of x, or null
  const float *out_weight, *out_bias;  // [N], layer norm of the outputs, or null
  const float *bias, *gate;            // [N], [S, N], or null
  const float *scale, *keep;           // [S, L], [L], or null; rows whose scale is 0 are not multiplied
  const int64_t* lengths;              // [S] or null: where sequences end before L; later rows are not written
  int64_t rows;                        // of a task

  RDFA_LINEAR_INLINE int64_t padded_inputs() const {
    const int64_t shared = int8 ? 4 : bf16 ? 2 : 1;  // inputs in a row of weights
    return (inputs + shared - 1) / shared * shared;
  }
  RDFA_LINEAR_INLINE int64_t padded_outputs() const { return (outputs + HALF_PANEL - 1) / HALF_PANEL * HALF_PANEL; }
  RDFA_LINEAR_INLINE bool sums_in_place() const { return !bf16 && outputs == padded_outputs(); }
  RDFA_LINEAR_INLINE int64_t end(int64_t s) const { return lengths && lengths[s] < length ? lengths[s] : length; }
  RDFA_LINEAR_INLINE int64_t blocks() const { return (length + rows - 1) / rows; }
  RDFA_LINEAR_INLINE int64_t tasks() const { return sequences * blocks(); }
};

// Weights of one panel and chunk: `taps` parts of `steps` rows, `tap_stride` floats apart.
struct Panel {
  const float *head, *weights;  // head: what stands before the weights of all chunks
  int64_t width, steps, tap_stride;
  int taps;
};

}  // namespace rdfa::linear

// Tasks first, first + step, ...: blocks of rows. Those at the end of a sequence may have nothing to do, so threads take
// them in turns.
#define RDFA_DECLARE_LINEAR(isa)                                                  \
  namespace isa {                                                                 \
  void linear_forward(const rdfa::linear::Problem&, int64_t first, int64_t step); \
  }
namespace rdfa {
RDFA_DECLARE_LINEAR(avx512bf16)
RDFA_DECLARE_LINEAR(avx512vnni)
RDFA_DECLARE_LINEAR(avx512)
RDFA_DECLARE_LINEAR(avx2)
RDFA_DECLARE_LINEAR(portable)
}  // namespace rdfa
#undef RDFA_DECLARE_LINEAR
