// Forward: per task a run of blocks of one batch element; tiles of TILE steps outside, blocks inside; the states of a block
// in registers while its tile lasts.
#pragma once

#include "selective_scan/block.h"

namespace rdfa {
namespace RDFA_ISA {

constexpr int FORWARD_STREAMS = 4;  // u, delta, z, y

// NG states of one block through `count` steps; adds their share to y.
template <int NG, bool CLAMP>
static void recur(const float* decay, float* state, const float* B, const float* C, int64_t row, const float* dt,
                  const float* dtu, float* y, int count, Prefetch& prefetch) {
  const Exponential exponential;
  Vec h[NG];
#pragma GCC unroll 16
  for (int n = 0; n < NG; ++n) h[n] = load(state + n * LANES);
  for (int k = 0; k < count; ++k) {
    prefetch.fetch<FORWARD_STREAMS>();
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
    recur<GROUP, CLAMP>(decay + n * LANES, state + n * LANES, B + n, C + n, row, dt, dtu, y, count, prefetch);
  }
  for (; n < states; n += 4) {
    recur<4, CLAMP>(decay + n * LANES, state + n * LANES, B + n, C + n, row, dt, dtu, y, count, prefetch);
  }
}

// Blocks [first, last) of one group and batch element through the whole sequence.
static void forward_run(const ScanArgs& args, const Partition& part, int64_t b, const Run& run) {
  const int64_t N = args.states, padded = padded_states(args);
  const int64_t block_floats = padded * LANES;
  Scratch scratch(run.blocks * (2 * block_floats + LANES) + 2 * TILE * padded + 6 * TILE_FLOATS);
  float* const decay = scratch.take(run.blocks * block_floats);
  float* const states = scratch.take(run.blocks * block_floats);
  float* const safe_step = scratch.take(run.blocks * LANES);
  float* const B = scratch.take(TILE * padded);
  float* const C = scratch.take(TILE * padded);
  float* const dt = scratch.take(TILE_FLOATS);
  float* const dtu = scratch.take(TILE_FLOATS);
  float* const y = scratch.take(TILE_FLOATS);
  float* const buffers = scratch.take(3 * TILE_FLOATS);
  const Exponential exponential;

  for (int64_t i = 0; i < run.blocks; ++i) {
    const Vec safe = scaled_decay(args, padded, run.channel(i), run.width(i), decay + i * block_floats);
    store(safe_step + i * LANES, safe);
  }
  for (int64_t i = 0; i < run.blocks * block_floats; i += LANES) store(states + i, Vec{});

  for (int64_t t0 = 0; t0 < args.length; t0 += TILE) {
    const int count = args.length - t0 < TILE ? static_cast<int>(args.length - t0) : TILE;
    load_projection(args.B, N, padded, b, run.channel0 / (args.channels / args.B.groups), t0, count, B);
    load_projection(args.C, N, padded, b, run.channel0 / (args.channels / args.C.groups), t0, count, C);
    for (int64_t i = 0; i < run.blocks; ++i) {
      const int64_t channel = run.channel(i);
      const int width = run.width(i);
      float* const h = states + i * block_floats;
      if (args.kept_states != nullptr) {
        float* kept = kept_state(args, part, b, t0 / TILE, run.first + i);
        for (int64_t n = 0; n < N; ++n) store(kept + n * STATE_LANES, load(h + n * LANES));
      }
      const bool more = i + 1 < run.blocks;
      const int64_t next_channel = more ? run.channel(i + 1) : run.channel0, next_t0 = more ? t0 : t0 + TILE;
      Prefetch prefetch;
      prefetch.add(args.u, b, next_channel, next_t0);
      prefetch.add(args.delta, b, next_channel, next_t0);
      prefetch.add(args.y, b, next_channel, next_t0);
      prefetch.add(args.z, b, next_channel, next_t0);
      prefetch.fill(FORWARD_STREAMS);

      const Rows u = load_rows(args.u, b, channel, width, t0, count, buffers);
      const Rows delta = load_rows(args.delta, b, channel, width, t0, count, buffers + TILE_FLOATS);
      const Vec bias = load_channels(args.delta_bias, channel, width), skip = load_channels(args.D, channel, width);
      Vec longest = {};
      for (int k = 0; k < count; ++k) {
        Vec step = delta.get(k) + bias;
        if (args.softplus) step = softplus(exponential, step);
        longest = max(longest, abs(step));
        const Vec x = u.get(k);
        store(dt + k * LANES, step);
        store(dtu + k * LANES, step * x);
        store(y + k * LANES, skip * x);
      }
      const bool clamp = any_above(longest, load(safe_step + i * LANES));
      (clamp ? recur_all<true> : recur_all<false>)(N, decay + i * block_floats, h, B, C, padded, dt, dtu, y, count,
                                                   prefetch);
      Rows out = output_rows(args.y, b, channel, width, t0, y);
      if (args.z.data != nullptr) {
        const Rows z = load_rows(args.z, b, channel, width, t0, count, buffers + 2 * TILE_FLOATS);
        for (int k = 0; k < count; ++k) {
          const Vec gate = z.get(k);
          out.set(k, load(y + k * LANES) * (gate * sigmoid(exponential, gate)));
        }
      } else if (out.data != y) {
        for (int k = 0; k < count; ++k) out.set(k, load(y + k * LANES));
      }
      store_rows(args.y, b, channel, width, t0, count, out);
    }
  }
  for (int64_t i = 0; i < run.blocks; ++i) {
    const int64_t channel = run.channel(i);
    store_states(args.last_state + b * args.channels * N, N, channel, run.width(i), states + i * block_floats);
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
