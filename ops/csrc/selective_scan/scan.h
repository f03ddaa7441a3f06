// What the bindings and the kernels of the selective scan agree on. No framework, no standard library.
//
// Letters: B batch, D channels, N states per channel, L time steps, G groups of channels that share B and C.
//   a_t = exp(dt_t A),  h_t = a_t h_{t-1} + dt_t u_t B_t,  y_t = (sum_n C_t h_t + D u_t) silu(z_t)
//   dt_t = softplus(delta_t + delta_bias)
#pragma once

#include <stdint.h>

namespace rdfa {

// Time steps worked on at once; the training forward keeps the state at the start of every tile.
constexpr int TILE = 16;
// Channels that lie together in the kept states, on every instruction set.
constexpr int STATE_LANES = 16;
// Channels whose share of dB and dC one task of the backward sums; fixed, so that no result depends on the threads.
constexpr int SLAB_CHANNELS = 128;

// A [B, rows, L] array of float32 or bfloat16 with any strides (in elements). Time running backwards is a negative
// stride_t and `data` at the last step.
struct Matrix {
  void* data = nullptr;
  int64_t stride_b = 0, stride_r = 0, stride_t = 0;
  bool bf16 = false;
};

// B or C: [B, groups, N, L]; the rows of `matrix` are the N states of one group. A constant matrix [D, N] is one group
// per channel with stride_t = 0, and its gradient is summed over time.
struct Projection {
  Matrix matrix;
  int64_t stride_g = 0, groups = 1;
  bool constant = false;
};

struct ScanArgs {
  int64_t batch, channels, states, length;
  bool softplus, reverse;  // reverse: every stride_t is already negative, only dB and dC need to know
  Matrix u, delta, z;  // z.data is null without a gate
  Projection B, C;
  Matrix A;                     // [D, N] as rows D, time N
  const float *D, *delta_bias;  // [D] or null

  // forward
  Matrix y;
  const float* first_state;  // [B, D, N], or null: zero
  float* last_state;         // [B, D, N]
  float* kept_states;  // [B, tiles, wide blocks, N, STATE_LANES]; the forward writes it unless null

  // backward
  Matrix grad_y, grad_u, grad_delta, grad_z;
  Matrix grad_last_state;  // as A, with a batch; data is null without one
  // Shares of one batch element or of one (batch element, slab), which the caller adds up in a fixed order:
  float *grad_A, *grad_D, *grad_delta_bias;  // [B, D, N], [B, D], [B, D]
  float *grad_B, *grad_C;                    // [B, slabs, L or 1 when constant, N]
};

namespace {  // each instruction set compiles its own copy, and none may serve another

// Channels are cut into blocks of one vector, groups never sharing a block.
struct Partition {
  int64_t groups, group_channels, blocks_per_group;
  int lanes;
  Partition(const ScanArgs& args, int lanes)
      : groups(args.B.groups > args.C.groups ? args.B.groups : args.C.groups),  // at least 1
        group_channels(args.channels / groups),
        blocks_per_group((group_channels + lanes - 1) / lanes),
        lanes(lanes) {}
  int64_t blocks() const { return groups * blocks_per_group; }
  // Kept states are cut alike, into blocks of STATE_LANES channels.
  int64_t wide_blocks_per_group() const { return (group_channels + STATE_LANES - 1) / STATE_LANES; }
  int64_t slabs_per_group() const { return (group_channels + SLAB_CHANNELS - 1) / SLAB_CHANNELS; }
  int64_t slabs() const { return groups * slabs_per_group(); }
  int64_t channel(int64_t block) const {  // the first of a block
    return block / blocks_per_group * group_channels + block % blocks_per_group * lanes;
  }
  int64_t end_of_group(int64_t block) const { return (block / blocks_per_group + 1) * group_channels; }
};

}  // namespace

// Tasks [begin, end): of the forward batch * blocks, of the backward batch * slabs.
#define RDFA_DECLARE_SCAN(isa)                                             \
  namespace isa {                                                          \
  int scan_lanes();                                                        \
  void scan_forward(const ScanArgs& args, int64_t begin, int64_t end);     \
  void scan_backward(const ScanArgs& args, int64_t begin, int64_t end);    \
  }
RDFA_DECLARE_SCAN(avx512)
RDFA_DECLARE_SCAN(avx2)
RDFA_DECLARE_SCAN(portable)
#undef RDFA_DECLARE_SCAN

}  // namespace rdfa
