// Forward: per task a run of blocks of one batch element, tile by tile; the states of a block are in registers while
// its tile lasts.
#pragma once

#include "selective_scan/block.h"

namespace rdfa {
namespace RDFA_ISA {

constexpr int FORWARD_STREAMS = 4;  // u, delta, z, y

// NG states of one block through `count` steps; adds their share to y. One group of states fetches for all of them.
template <int NG, bool CLAMP>
static void recur(const float* decay, float* state, const float* B, const float* C, int64_t row, const float* dt,
                  const float* dtu, float* y, int count, bool fetch, Prefetch& prefetch) {
  const Exponential exponential;
  Vec h[NG];
#pragma GCC unroll 16
  for (int n = 0; n < NG; ++n) h[n] = load(state + n * LANES);
  for (int k = 0; k < count; ++k) {
    if (fetch) prefetch.fetch<FORWARD_STREAMS>();
    const Vec step = load(dt + k * LANES), input = load(dtu + k * LANES);
    Vec sum[2] = {load(y + k * LANES), Vec{}};
#pragma GCC unroll 16
    for (int n = 0; n < NG; ++n) {
      const Vec a = exponential.exp2_steps<CLAMP>(step * load(decay + n * LANES));
      h[n] = fma(a, h[n], input * splat(B[n]));
      sum[n & 1] = fma(h[n], splat(C[n]), sum[n & 1]);
    }
    store(y + k * LANES, sum[0] + sum[1]);
    B += row;
    C += row;
  }
#pragma GCC unroll 16
  for (int n = 0; n < NG; ++n) store(state + n * LANES, h[n]);
}

template <bool CLAMP>
static void recur_all(int64_t states, const float* decay, float* state, const float* B, const float* C, int64_t row,
                      const float* dt, const float* dtu, float* y, int count, Prefetch& prefetch) {
  int64_t n = 0;
  for (; states - n > GROUP - 4; n += GROUP) {
    recur<GROUP, CLAMP>(decay + n * LANES, state + n * LANES, B + n, C + n, row, dt, dtu, y, count, n == 0, prefetch);
  }
  for (; n < states; n += 4) {
    recur<4, CLAMP>(decay + n * LANES, state + n * LANES, B + n, C + n, row, dt, dtu, y, count, n == 0, prefetch);
  }
}

// One tile of one block, [TILE][LANES] each.
struct ForwardBuffers {
  float dt[TILE_FLOATS], dtu[TILE_FLOATS], y[TILE_FLOATS], in[3][TILE_FLOATS];
};

static void forward_tile(const ScanArgs& args, ForwardBuffers& tile, int64_t b, int64_t channel, int width, int64_t t0,
                         int count, const float* decay, Vec safe_step, float* state, const float* B, const float* C,
                         int64_t row, Prefetch& prefetch) {
  const Exponential exponential;
  const Rows u = load_rows(args.u, b, channel, width, t0, count, tile.in[0]);
  const Rows delta = load_rows(args.delta, b, channel, width, t0, count, tile.in[1]);
  const Vec bias = load_channels(args.delta_bias, channel, width), skip = load_channels(args.D, channel, width);
  Vec longest = {};
  for (int k = 0; k < count; ++k) {
    Vec step = delta.get(k) + bias;
    if (args.softplus) step = softplus(exponential, step);
    longest = max(longest, abs(step));
    const Vec x = u.get(k);
    store(tile.dt + k * LANES, step);
    store(tile.dtu + k * LANES, step * x);
    store(tile.y + k * LANES, skip * x);
  }
  (any_above(longest, safe_step) ? recur_all<true> : recur_all<false>)(args.states, decay, state, B, C, row, tile.dt,
                                                                       tile.dtu, tile.y, count, prefetch);
  const Rows out = output_rows(args.y, b, channel, width, t0, tile.y);
  if (args.z.data != nullptr) {
    const Rows z = load_rows(args.z, b, channel, width, t0, count, tile.in[2]);
    for (int k = 0; k < count; ++k) {
      const Vec gate = z.get(k);
      out.set(k, load(tile.y + k * LANES) * gate / (splat(1.0f) + exponential.exp(-gate)));
    }
  } else if (out.data != tile.y) {
    for (int k = 0; k < count; ++k) out.set(k, load(tile.y + k * LANES));
  }
  store_rows(args.y, b, channel, width, t0, count, out);
}

// A run of blocks of one batch element through the whole sequence.
static void forward_run(const ScanArgs& args, const Partition& part, int64_t b, const Run& run) {
  const int64_t padded = padded_states(args), block_floats = padded * LANES;
  constexpr int64_t buffer_floats = sizeof(ForwardBuffers) / sizeof(float);
  Scratch scratch(run.blocks * (2 * block_floats + LANES) + 2 * TILE * padded + buffer_floats);
  float* const decay = scratch.take(run.blocks * block_floats);
  float* const states = scratch.take(run.blocks * block_floats);
  float* const safe_step = scratch.take(run.blocks * LANES);
  float* const B = scratch.take(TILE * padded);
  float* const C = scratch.take(TILE * padded);
  ForwardBuffers& tile = *reinterpret_cast<ForwardBuffers*>(scratch.take(buffer_floats));
  for (int64_t i = 0; i < run.blocks; ++i) {
    const Vec safe = scaled_decay(args, padded, run.channel(i), run.width(i), decay + i * block_floats);
    store(safe_step + i * LANES, safe);
  }
  for (int64_t i = 0; i < run.blocks; ++i) {
    float* const h = states + i * block_floats;
    if (args.first_state == nullptr) {
      memset(h, 0, block_floats * sizeof(float));
    } else {
      const Matrix first = {const_cast<float*>(args.first_state), args.channels * args.states, args.states, 1, false};
      load_states(first, b, args.states, padded, run.channel(i), run.width(i), h);
    }
  }

  const int64_t B_group = run.channel0 / (args.channels / args.B.groups);
  const int64_t C_group = run.channel0 / (args.channels / args.C.groups);
  for (int64_t t0 = 0; t0 < args.length; t0 += TILE) {
    const int count = args.length - t0 < TILE ? static_cast<int>(args.length - t0) : TILE;
    load_projection(args.B, args.states, padded, b, B_group, t0, count, B);
    load_projection(args.C, args.states, padded, b, C_group, t0, count, C);
    for (int64_t i = 0; i < run.blocks; ++i) {
      float* const h = states + i * block_floats;
      if (args.kept_states != nullptr) keep_states(args, part, b, t0 / TILE, run.first + i, h);
      const bool more = i + 1 < run.blocks;
      const int64_t next_channel = run.channel(more ? i + 1 : 0), next_t0 = more ? t0 : t0 + TILE;
      Prefetch prefetch;
      prefetch.add(args.u, b, next_channel, next_t0);
      prefetch.add(args.delta, b, next_channel, next_t0);
      prefetch.add(args.y, b, next_channel, next_t0);
      prefetch.add(args.z, b, next_channel, next_t0);
      prefetch.fill(FORWARD_STREAMS);
      forward_tile(args, tile, b, run.channel(i), run.width(i), t0, count, decay + i * block_floats,
                   load(safe_step + i * LANES), h, B, C, padded, prefetch);
    }
  }
  for (int64_t i = 0; i < run.blocks; ++i) {
    float* const last_state = args.last_state + b * args.channels * args.states;
    store_states(last_state, args.states, run.channel(i), run.width(i), states + i * block_floats);
  }
}

void scan_forward(const ScanArgs& args, int64_t begin, int64_t end) {
  const Partition part(args, LANES);
  while (begin < end) {  // cut the tasks where the batch element or the group changes
    const int64_t stop = (begin / part.blocks_per_group + 1) * part.blocks_per_group;
    const int64_t last = stop < end ? stop : end, b = begin / part.blocks(), offset = b * part.blocks();
    forward_run(args, part, b, Run(part, begin - offset, last - begin));
    begin = last;
  }
}

}  // namespace RDFA_ISA
}  // namespace rdfa
