// Backward: per task one slab of channels of one batch element, tiles from the last to the first, all blocks in each. A
// tile is recomputed from its kept state, which leaves a_t and h_t in the first-level cache, and then swept backwards:
//   dh_t = C_t g_t + a_{t+1} dh_{t+1},  dC_t = g_t h_t,  dB_t = dt_t u_t dh_t,  d(dt_t u_t) = B_t dh_t,
//   q_t = a_t dh_t h_{t-1},  dA = sum_t dt_t q_t,  d(dt_t) = A q_t + u_t d(dt_t u_t)        with g the gradient of y
// dB and dC are sums over channels: added across lanes at once, a few states together, so that their memory stays
// small.
#pragma once

#include "selective_scan/block.h"

namespace rdfa {
namespace RDFA_ISA {

constexpr int BACKWARD_STREAMS = 7;  // u, delta, grad_y, z, grad_u, grad_delta, grad_z

// One tile of one block, [TILE][LANES] each.
struct TileBuffers {
  float dt[TILE_FLOATS], slope[TILE_FLOATS], dtu[TILE_FLOATS], g[TILE_FLOATS], gate[TILE_FLOATS], y[TILE_FLOATS];
  float grad_dtu[TILE_FLOATS], grad_step[TILE_FLOATS];
  float decay[TILE * BACKWARD_GROUP * LANES];           // a_t
  float state[(TILE + 1) * BACKWARD_GROUP * LANES];     // h_{t-1}
  float in[4][TILE_FLOATS], out[3][TILE_FLOATS];
};

template <bool CLAMP>
static void recompute(TileBuffers& tile, const float* decay, const float* start, int start_rows, const float* B,
                      const float* C, int64_t row, int count, bool fetch, Prefetch& prefetch) {
  constexpr int NG = BACKWARD_GROUP;
  const Exponential exponential;
  Vec h[NG];
#pragma GCC unroll 16
  for (int n = 0; n < NG; ++n) {
    h[n] = n < start_rows ? load(start + n * STATE_LANES) : Vec{};
    store(tile.state + n * LANES, h[n]);
  }
  for (int k = 0; k < count; ++k) {
    if (fetch) prefetch.fetch<BACKWARD_STREAMS>();
    const Vec step = load(tile.dt + k * LANES), input = load(tile.dtu + k * LANES);
    Vec sum[2] = {load(tile.y + k * LANES), Vec{}};
#pragma GCC unroll 16
    for (int n = 0; n < NG; ++n) {
      const Vec a = exponential.exp2_steps<CLAMP>(step * load(decay + n * LANES));
      h[n] = fma(a, h[n], input * splat(B[n]));
      sum[n & 1] = fma(h[n], splat(C[n]), sum[n & 1]);
      store(tile.decay + (k * NG + n) * LANES, a);
      store(tile.state + ((k + 1) * NG + n) * LANES, h[n]);
    }
    store(tile.y + k * LANES, sum[0] + sum[1]);
    B += row;
    C += row;
  }
}

// grad_B, grad_C: [TILE][groups of states][LANES], this group's vector added to; see `add_pairs`.
static void sweep(TileBuffers& tile, const float* decay, float* adjoint, float* grad_A, const float* B, const float* C,
                  int64_t row, float* grad_B, float* grad_C, int count) {
  constexpr int NG = BACKWARD_GROUP;
  Vec carried[NG], dA[NG];
#pragma GCC unroll 16
  for (int n = 0; n < NG; ++n) {
    carried[n] = load(adjoint + n * LANES);
    dA[n] = Vec{};  // summed by tiles: the rounding of a long sum grows with its number of terms
  }
  for (int k = count - 1; k >= 0; --k) {
    const Vec step = load(tile.dt + k * LANES), input = load(tile.dtu + k * LANES), g = load(tile.g + k * LANES);
    Vec grad_dtu = load(tile.grad_dtu + k * LANES), grad_step = load(tile.grad_step + k * LANES);
    const float *a = tile.decay + k * NG * LANES, *before = tile.state + k * NG * LANES, *after = before + NG * LANES;
    const float *B_k = B + k * row, *C_k = C + k * row;
    Vec to_B[NG], to_C[NG];
#pragma GCC unroll 16
    for (int n = 0; n < NG; ++n) {
      const Vec dh = fma(g, splat(C_k[n]), carried[n]);
      to_C[n] = g * load(after + n * LANES);
      to_B[n] = input * dh;
      grad_dtu = fma(dh, splat(B_k[n]), grad_dtu);
      carried[n] = dh * load(a + n * LANES);
      const Vec q = carried[n] * load(before + n * LANES);
      grad_step = fma(q, load(decay + n * LANES), grad_step);
      dA[n] = fma(q, step, dA[n]);
      if (n % 2 == 1) {
        to_C[n - 1] = add_pairs<1>(to_C[n - 1], to_C[n]);
        to_B[n - 1] = add_pairs<1>(to_B[n - 1], to_B[n]);
      }
      if (n % 4 == 3) {
        to_C[n - 3] = add_pairs<2>(to_C[n - 3], to_C[n - 1]);
        to_B[n - 3] = add_pairs<2>(to_B[n - 3], to_B[n - 1]);
      }
    }
    if constexpr (NG == 8) {
      to_C[0] = add_pairs<4>(to_C[0], to_C[4]);
      to_B[0] = add_pairs<4>(to_B[0], to_B[4]);
    }
    float *sum_C = grad_C + k * row / NG * LANES, *sum_B = grad_B + k * row / NG * LANES;
    store(sum_C, load(sum_C) + to_C[0]);
    store(sum_B, load(sum_B) + to_B[0]);
    store(tile.grad_dtu + k * LANES, grad_dtu);
    store(tile.grad_step + k * LANES, grad_step);
  }
#pragma GCC unroll 16
  for (int n = 0; n < NG; ++n) {
    store(adjoint + n * LANES, carried[n]);
    store(grad_A + n * LANES, load(grad_A + n * LANES) + dA[n]);
  }
}

// Where the gradients of one block are gathered over the tiles.
struct BlockSums {
  float *decay, *adjoint, *grad_A, *grad_D, *grad_bias, *safe_step;
};

static void backward_tile(const ScanArgs& args, TileBuffers& tile, const BlockSums& sums, int64_t b, int64_t channel,
                          int width, int64_t t0, int count, const float* kept, const float* B, const float* C,
                          int64_t row, float* grad_B, float* grad_C, Prefetch& prefetch) {
  const Exponential exponential;
  const bool gated = args.z.data != nullptr;
  const Rows u = load_rows(args.u, b, channel, width, t0, count, tile.in[0]);
  const Rows delta = load_rows(args.delta, b, channel, width, t0, count, tile.in[1]);
  const Rows grad_y = load_rows(args.grad_y, b, channel, width, t0, count, tile.in[2]);
  const Rows z = gated ? load_rows(args.z, b, channel, width, t0, count, tile.in[3]) : Rows{};
  const Vec bias = load_channels(args.delta_bias, channel, width), skip = load_channels(args.D, channel, width);
  Vec longest = {};
  for (int k = 0; k < count; ++k) {
    Softplus step = {delta.get(k) + bias, splat(1.0f)};
    if (args.softplus) step = softplus_with_slope(exponential, step.value);
    longest = max(longest, abs(step.value));
    Vec g = grad_y.get(k);
    if (gated) {
      const Vec gate = sigmoid(exponential, z.get(k));
      store(tile.gate + k * LANES, gate);
      g *= gate * z.get(k);
    }
    store(tile.g + k * LANES, g);
    store(tile.dt + k * LANES, step.value);
    store(tile.slope + k * LANES, step.slope);
    store(tile.dtu + k * LANES, step.value * u.get(k));
    store(tile.y + k * LANES, skip * u.get(k));
    store(tile.grad_dtu + k * LANES, Vec{});
    store(tile.grad_step + k * LANES, Vec{});
  }
  const bool clamp = any_above(longest, load(sums.safe_step));
  for (int64_t n = 0; n < args.states; n += BACKWARD_GROUP) {
    const int64_t at = n * LANES, left = args.states - n;
    const int start_rows = left < BACKWARD_GROUP ? static_cast<int>(left) : BACKWARD_GROUP;
    (clamp ? recompute<true> : recompute<false>)(tile, sums.decay + at, kept + n * STATE_LANES, start_rows, B + n,
                                                 C + n, row, count, n == 0, prefetch);
    const int64_t vector = n / BACKWARD_GROUP * LANES;
    sweep(tile, sums.decay + at, sums.adjoint + at, sums.grad_A + at, B + n, C + n, row, grad_B + vector,
          grad_C + vector, count);
  }

  const Rows grad_u = output_rows(args.grad_u, b, channel, width, t0, tile.out[0]);
  const Rows grad_delta = output_rows(args.grad_delta, b, channel, width, t0, tile.out[1]);
  const Rows grad_z = gated ? output_rows(args.grad_z, b, channel, width, t0, tile.out[2]) : Rows{};
  Vec grad_D = {}, grad_bias = {};
  for (int k = 0; k < count; ++k) {
    const Vec x = u.get(k), g = load(tile.g + k * LANES), grad_dtu = load(tile.grad_dtu + k * LANES);
    const Vec grad_step = fma(grad_dtu, x, load(tile.grad_step + k * LANES) * (1.0f / EXP_SCALE));
    const Vec grad_raw = grad_step * load(tile.slope + k * LANES);
    if (gated) {
      const Vec gate = load(tile.gate + k * LANES);
      const Vec silu_slope = gate * fma(z.get(k), 1.0f - gate, splat(1.0f));
      grad_z.set(k, grad_y.get(k) * load(tile.y + k * LANES) * silu_slope);
    }
    grad_u.set(k, fma(grad_dtu, load(tile.dt + k * LANES), skip * g));
    grad_delta.set(k, grad_raw);
    grad_D = fma(g, x, grad_D);
    grad_bias += grad_raw;
  }
  store(sums.grad_D, load(sums.grad_D) + grad_D);
  store(sums.grad_bias, load(sums.grad_bias) + grad_bias);
  store_rows(args.grad_u, b, channel, width, t0, count, grad_u);
  store_rows(args.grad_delta, b, channel, width, t0, count, grad_delta);
  if (gated) store_rows(args.grad_z, b, channel, width, t0, count, grad_z);
}

// Ends the sums of `sweep`: `vectors` [count][padded / BACKWARD_GROUP][LANES] into rows of N that are `step` apart,
// added to what is there when they are constant.
static void finish_lanes(const float* vectors, int count, int64_t states, int64_t padded, bool constant, float* out,
                         int64_t step) {
  for (int k = 0; k < count; ++k) {
    for (int64_t n = 0; n < states; ++n) {
      const float* parts = vectors + (k * padded + n) / BACKWARD_GROUP * LANES;
      parts += first_part(n % BACKWARD_GROUP, BACKWARD_GROUP);
      float sum = constant ? out[n] : 0.0f;
      for (int i = 0; i < LANES / BACKWARD_GROUP; ++i) sum += parts[4 * i];
      out[k * step + n] = sum;
    }
  }
}

static void backward_slab(const ScanArgs& args, const Partition& part, int64_t b, int64_t slab) {
  const int64_t N = args.states, padded = padded_states(args), block_floats = padded * LANES;
  const int64_t group = slab / part.slabs_per_group(), blocks_per_slab = SLAB_CHANNELS / LANES;
  const int64_t first_in_group = slab % part.slabs_per_group() * blocks_per_slab;
  const int64_t left = part.blocks_per_group - first_in_group;
  const Run run(part, group * part.blocks_per_group + first_in_group, left < blocks_per_slab ? left : blocks_per_slab);
  const int64_t B_length = args.B.constant ? 1 : args.length, C_length = args.C.constant ? 1 : args.length;
  float* const own_B = args.grad_B + (b * part.slabs() + slab) * B_length * N;
  float* const own_C = args.grad_C + (b * part.slabs() + slab) * C_length * N;
  if (args.B.constant) memset(own_B, 0, N * sizeof(float));
  if (args.C.constant) memset(own_C, 0, N * sizeof(float));

  constexpr int64_t buffer_floats = sizeof(TileBuffers) / sizeof(float);
  const int64_t sum_floats = TILE * block_floats / BACKWARD_GROUP, sums_floats = 3 * block_floats + 3 * LANES;
  Scratch scratch(run.blocks * sums_floats + 2 * TILE * padded + 2 * sum_floats + buffer_floats);
  float* const sums_memory = scratch.take(run.blocks * sums_floats);
  float* const B = scratch.take(TILE * padded);
  float* const C = scratch.take(TILE * padded);
  float* const grad_B = scratch.take(sum_floats);
  float* const grad_C = scratch.take(sum_floats);
  TileBuffers& tile = *reinterpret_cast<TileBuffers*>(scratch.take(buffer_floats));
  memset(sums_memory, 0, run.blocks * sums_floats * sizeof(float));
  const auto sums_of = [&](int64_t i) {
    float* const p = sums_memory + i * sums_floats;
    float* const q = p + 3 * block_floats;
    return BlockSums{p, p + block_floats, p + 2 * block_floats, q, q + LANES, q + 2 * LANES};
  };
  for (int64_t i = 0; i < run.blocks; ++i) {
    const BlockSums sums = sums_of(i);
    const int64_t channel = run.channel(i);
    const int width = run.width(i);
    store(sums.safe_step, scaled_decay(args, padded, channel, width, sums.decay));
    if (args.grad_last_state.data != nullptr) {
      load_states(args.grad_last_state, b, N, padded, channel, width, sums.adjoint);
    }
  }

  for (int64_t t0 = (args.length + TILE - 1) / TILE * TILE - TILE; t0 >= 0; t0 -= TILE) {
    const int count = args.length - t0 < TILE ? static_cast<int>(args.length - t0) : TILE;
    load_projection(args.B, N, padded, b, run.channel0 / (args.channels / args.B.groups), t0, count, B);
    load_projection(args.C, N, padded, b, run.channel0 / (args.channels / args.C.groups), t0, count, C);
    memset(grad_B, 0, sum_floats * sizeof(float));
    memset(grad_C, 0, sum_floats * sizeof(float));
    for (int64_t i = 0; i < run.blocks; ++i) {
      const bool more = i + 1 < run.blocks;
      const int64_t next_channel = more ? run.channel(i + 1) : run.channel0, next_t0 = more ? t0 : t0 - TILE;
      Prefetch prefetch;
      const Matrix* const streams[BACKWARD_STREAMS] = {&args.u,      &args.delta,      &args.grad_y, &args.z,
                                                       &args.grad_u, &args.grad_delta, &args.grad_z};
      for (const Matrix* m : streams) {
        prefetch.add(*m, b, next_channel, next_t0);
      }
      prefetch.fill(BACKWARD_STREAMS);
      backward_tile(args, tile, sums_of(i), b, run.channel(i), run.width(i), t0, count,
                    kept_state(args, part, b, t0 / TILE, run.first + i), B, C, padded, grad_B, grad_C, prefetch);
    }
    const int64_t first_row = args.reverse ? args.length - 1 - t0 : t0, step = args.reverse ? -N : N;
    const bool fixed_B = args.B.constant, fixed_C = args.C.constant;
    finish_lanes(grad_B, count, N, padded, fixed_B, own_B + (fixed_B ? 0 : first_row * N), fixed_B ? 0 : step);
    finish_lanes(grad_C, count, N, padded, fixed_C, own_C + (fixed_C ? 0 : first_row * N), fixed_C ? 0 : step);
  }

  for (int64_t i = 0; i < run.blocks; ++i) {
    const BlockSums sums = sums_of(i);
    const int64_t channel = run.channel(i);
    const int width = run.width(i);
    store_states(args.grad_A + b * args.channels * N, N, channel, width, sums.grad_A);
    store_channels(args.grad_D + b * args.channels, channel, width, load(sums.grad_D));
    store_channels(args.grad_delta_bias + b * args.channels, channel, width, load(sums.grad_bias));
  }
}

void scan_backward(const ScanArgs& args, int64_t begin, int64_t end) {
  const Partition part(args, LANES);
  for (int64_t task = begin; task < end; ++task) backward_slab(args, part, task / part.slabs(), task % part.slabs());
}

}  // namespace RDFA_ISA
}  // namespace rdfa
