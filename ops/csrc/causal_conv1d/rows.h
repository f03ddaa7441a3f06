// What inference on the CPU does to rows of channels, beside products and scans. See rows.inl.
//
// Letters: S sequences, L steps, D channels, K branches.
#pragma once

#include "causal_conv1d/kernel.h"

namespace rdfa::rows {

constexpr int MAX_BRANCHES = 3, TAPS = 4;
constexpr int64_t STEPS = 64, CHANNELS = 64;  // of a task

// u[s, r, k] = silu(bias_k + sum_j taps_kj x_r shifted by TAPS - 1 - j steps), r = 0 reading time forwards, r = 1 from
// the end.
struct Convolution {
  int64_t sequences, length, channels, branches;
  bool bf16;  // element type of x and u
  const void* x;
  int64_t x_s, x_l, x_r;  // strides of sequences, steps and directions, in elements; channels are adjacent
  const float* taps;      // [K, TAPS + 1, D], the last row the bias
  const int64_t* lengths; // [S] or null: where sequences end before L; later steps are not written
  void* u;                // [S, 2, K, L, D]

  RDFA_CONV_INLINE int64_t end(int64_t s) const { return lengths && lengths[s] < length ? lengths[s] : length; }
  RDFA_CONV_INLINE int64_t tasks() const {
    return sequences * 2 * ((length + STEPS - 1) / STEPS) * ((channels + CHANNELS - 1) / CHANNELS);
  }
};

// y[s, g] = mean of the rows floor(g L / G) to ceil((g + 1) L / G).
struct Average {
  int64_t sequences, length, channels, bins;
  bool bf16;  // element type of x and y
  const void* x;
  int64_t x_s, x_l;
  void* y;  // [S, G, D]

  RDFA_CONV_INLINE int64_t tasks() const { return sequences * bins; }
};

}  // namespace rdfa::rows

#define RDFA_DECLARE_ROWS(isa)                                                                 \
  namespace isa {                                                                              \
  void convolve_rows(const rdfa::rows::Convolution&, int64_t first_task, int64_t step);        \
  void average_rows(const rdfa::rows::Average&, int64_t first_task, int64_t last_task);        \
  }
namespace rdfa {
RDFA_DECLARE_ROWS(avx512)
RDFA_DECLARE_ROWS(avx2)
RDFA_DECLARE_ROWS(portable)
}  // namespace rdfa
#undef RDFA_DECLARE_ROWS
