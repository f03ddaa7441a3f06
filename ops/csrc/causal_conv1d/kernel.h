// Causal depthwise convolution, forward and backward, over one tile of a sequence. See kernel.inl.
#pragma once

#include <stdint.h>

namespace rdfa::conv {

constexpr int64_t CHANNELS = 64;
constexpr int MAX_WIDTH = 4;

// Inline functions that code of every instruction set may call must not become symbols of their own.
#define RDFA_CONV_INLINE inline __attribute__((always_inline))

struct Problem {
  int64_t B, D, L;
  int width;
  bool silu, reverse;
  bool bf16;           // element type of x, y, dy, dx; otherwise float32
  bool channels_last;  // memory order of x, y, dy, dx: time step by time step, or channel by channel
  // [MAX_WIDTH + 1][padded_channels()]: row j weighs the step j before (reverse: after), the last row is the bias.
  const float* taps;

  // A tile is `tile_time` steps of CHANNELS channels of one sequence: small enough for its float copy to stay in L1.
  // Tiles are the unit of threading and of the partial sums of d taps, so no result depends on the number of threads.
  RDFA_CONV_INLINE int64_t tile_time() const { return channels_last ? 64 : 512; }
  RDFA_CONV_INLINE int64_t padded_channels() const { return (D + CHANNELS - 1) / CHANNELS * CHANNELS; }
  RDFA_CONV_INLINE int64_t time_tiles() const { return (L + tile_time() - 1) / tile_time(); }
  RDFA_CONV_INLINE int64_t tiles() const { return B * time_tiles() * (padded_channels() / CHANNELS); }
};

// A tensor [B,D,L]: address and strides in elements; the inner stride of its memory order is 1.
struct Sequence {
  void* data;
  int64_t stride_b, stride_d, stride_l;
};

// Partial sums of d taps: [B * time_tiles][MAX_WIDTH + 1][padded_channels], one slot per tile, all written.
#define RDFA_CONV_KERNELS(isa)                                                                                       \
  namespace isa {                                                                                                    \
  void conv_forward(const rdfa::conv::Problem&, const rdfa::conv::Sequence& x, const rdfa::conv::Sequence& y,        \
                    int64_t first_tile, int64_t last_tile);                                                          \
  void conv_backward(const rdfa::conv::Problem&, const rdfa::conv::Sequence& x, const rdfa::conv::Sequence& dy,      \
                     const rdfa::conv::Sequence& dx, float* partial_taps, int64_t first_tile, int64_t last_tile);    \
  }

}  // namespace rdfa::conv

namespace rdfa {
RDFA_CONV_KERNELS(avx512)
RDFA_CONV_KERNELS(avx2)
RDFA_CONV_KERNELS(portable)
}  // namespace rdfa
