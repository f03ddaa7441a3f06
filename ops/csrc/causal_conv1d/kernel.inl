// y_t = act(bias + sum_j taps_j x_{t -+ j}), the sign being that of time's direction; x is zero outside the sequence.
//
// A tile is first copied into a float buffer with zero borders. Whatever the layout and direction, the arithmetic is
// then the same: a line of positions `step` apart, whose neighbours in time lie `shift` floats away. Channel by
// channel, the lanes of a vector are times (step LANES, shift 1); step by step, they are channels (both CHANNELS).
#include "causal_conv1d/kernel.h"
#include "common/simd.h"

namespace rdfa {
namespace RDFA_ISA {
namespace {

using conv::CHANNELS;
using conv::MAX_WIDTH;
using conv::Problem;
using conv::Sequence;

constexpr int64_t HALO = MAX_WIDTH - 1;
// Buffer sizes (see Problem::tile_time): the backward needs x two halos beyond the tile on both sides.
constexpr int64_t ROWS = 64 + 4 * HALO;
constexpr int64_t LINE = 512 + 4 * HALO + 2 * LANES;  // with room for whole vectors at the end

struct Taps {
  Vec weight[MAX_WIDTH], bias;
};

RDFA_INLINE Vec load_any(const void* base, int64_t at, bool bf16) {
  return bf16 ? load_bf16(static_cast<const uint16_t*>(base) + at) : load(static_cast<const float*>(base) + at);
}

RDFA_INLINE void store_any(void* base, int64_t at, Vec v, bool bf16) {
  if (bf16) {
    store_bf16(static_cast<uint16_t*>(base) + at, v);
  } else {
    store(static_cast<float*>(base) + at, v);
  }
}

// `count` elements from base[at...] as floats, then zeros up to `padded`.
template <bool BF16>
void load_line(float* line, const void* base, int64_t at, int64_t count, int64_t padded) {
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) store(line + i, load_any(base, at + i, BF16));
  for (; i < count; ++i) {
    if (BF16) {
      const uint32_t raw = static_cast<uint32_t>(static_cast<const uint16_t*>(base)[at + i]) << 16;
      __builtin_memcpy(line + i, &raw, 4);
    } else {
      line[i] = static_cast<const float*>(base)[at + i];
    }
  }
  for (; i < padded; ++i) line[i] = 0.0f;
}

template <bool BF16>
RDFA_INLINE void store_part(void* base, int64_t at, Vec v, int64_t count) {
  if (count >= LANES) return store_any(base, at, v, BF16);
  uint16_t halves[LANES];
  float floats[LANES];
  if (BF16) {
    store_bf16(halves, v);
    for (int64_t i = 0; i < count; ++i) static_cast<uint16_t*>(base)[at + i] = halves[i];
  } else {
    store(floats, v);
    for (int64_t i = 0; i < count; ++i) static_cast<float*>(base)[at + i] = floats[i];
  }
}

// Where a tile lies.
struct Tile {
  int64_t b, slot, t0, t1, d0, d1;

  Tile(const Problem& p, int64_t index) {
    const int64_t groups = p.padded_channels() / CHANNELS;
    slot = index / groups;
    b = slot / p.time_tiles();
    t0 = slot % p.time_tiles() * p.tile_time();
    t1 = t0 + p.tile_time() < p.L ? t0 + p.tile_time() : p.L;
    d0 = index % groups * CHANNELS;
    d1 = d0 + CHANNELS < p.D ? d0 + CHANNELS : p.D;
  }
};

// Steps [from, to) of one channel (lanes are times); buffer[0] is step `from`, steps outside the sequence are zero.
template <bool BF16>
void load_channel(float* line, const Sequence& s, const Tile& tile, int64_t d, int64_t from, int64_t to, int64_t L) {
  const int64_t first = from < 0 ? 0 : from, last = to > L ? L : to;
  for (int64_t i = 0; i < first - from; ++i) line[i] = 0.0f;
  load_line<BF16>(line + (first - from), s.data, tile.b * s.stride_b + d * s.stride_d + first, last - first,
                  to - first + 2 * LANES);
}

// The same for all channels of the tile (lanes are channels), one row of CHANNELS per step.
template <bool BF16>
void load_rows(float* rows, const Sequence& s, const Tile& tile, int64_t from, int64_t to, int64_t L) {
  for (int64_t t = from; t < to; ++t, rows += CHANNELS) {
    const int64_t count = t < 0 || t >= L ? 0 : tile.d1 - tile.d0;
    load_line<BF16>(rows, s.data, count ? tile.b * s.stride_b + t * s.stride_l + tile.d0 : 0, count, CHANNELS);
  }
}

template <int WIDTH>
RDFA_INLINE Vec convolve(const Taps& taps, const float* x, int64_t shift) {
  Vec sum = taps.bias;
#pragma GCC unroll 4
  for (int j = 0; j < WIDTH; ++j) sum = fma(taps.weight[j], load(x + j * shift), sum);
  return sum;
}

RDFA_INLINE Taps channel_taps(const Problem& p, int64_t d) {  // of one channel in every lane
  Taps taps;
  for (int j = 0; j < MAX_WIDTH; ++j) taps.weight[j] = splat(p.taps[j * p.padded_channels() + d]);
  taps.bias = splat(p.taps[MAX_WIDTH * p.padded_channels() + d]);
  return taps;
}

RDFA_INLINE Taps lane_taps(const Problem& p, int64_t d) {  // of LANES neighbouring channels
  Taps taps;
  for (int j = 0; j < MAX_WIDTH; ++j) taps.weight[j] = load(p.taps + j * p.padded_channels() + d);
  taps.bias = load(p.taps + MAX_WIDTH * p.padded_channels() + d);
  return taps;
}

template <int WIDTH, bool SILU>
RDFA_INLINE Vec forward_vector(const Exponential& exponential, const Taps& taps, const float* x, int64_t shift) {
  const Vec sum = convolve<WIDTH>(taps, x, shift);
  return SILU ? sum * sigmoid(exponential, sum) : sum;
}

template <int WIDTH, bool SILU, bool BF16>
void forward_tile(const Problem& p, const Sequence& x, const Sequence& y, const Tile& tile) {
  const Exponential exponential;
  const int64_t sign = p.reverse ? 1 : -1;
  const int64_t base = tile.b * y.stride_b;
  if (p.channels_last) {
    alignas(64) float rows[ROWS * CHANNELS];
    load_rows<BF16>(rows, x, tile, tile.t0 - HALO, tile.t1 + HALO, p.L);
    for (int64_t d = tile.d0; d < tile.d1; d += LANES) {
      const Taps taps = lane_taps(p, d);
      const float* at = rows + HALO * CHANNELS + (d - tile.d0);
      for (int64_t t = tile.t0; t < tile.t1; ++t, at += CHANNELS) {
        const Vec v = forward_vector<WIDTH, SILU>(exponential, taps, at, sign * CHANNELS);
        store_part<BF16>(y.data, base + t * y.stride_l + d, v, tile.d1 - d);
      }
    }
  } else {
    alignas(64) float line[LINE];
    for (int64_t d = tile.d0; d < tile.d1; ++d) {
      load_channel<BF16>(line, x, tile, d, tile.t0 - HALO, tile.t1 + HALO, p.L);
      const Taps taps = channel_taps(p, d);
      for (int64_t t = tile.t0; t < tile.t1; t += LANES) {
        const Vec v = forward_vector<WIDTH, SILU>(exponential, taps, line + HALO + (t - tile.t0), sign);
        store_part<BF16>(y.data, base + d * y.stride_d + t, v, tile.t1 - t);
      }
    }
  }
}

// d(silu(s))/ds = sigmoid(s) (1 + s (1 - sigmoid(s)))
RDFA_INLINE Vec silu_slope(const Exponential& exponential, Vec s) {
  const Vec gate = sigmoid(exponential, s);
  return gate * fma(s, splat(1.0f) - gate, splat(1.0f));
}

// Turns dy, at g, into the gradient before the activation, at `count` positions.
template <int WIDTH, bool SILU>
RDFA_INLINE void before_activation(const Taps& taps, const float* x, float* g, int64_t shift, int64_t step,
                                   int64_t count) {
  if (!SILU) return;
  const Exponential exponential;
  for (int64_t i = 0; i < count; ++i, x += step, g += step) {
    store(g, load(g) * silu_slope(exponential, convolve<WIDTH>(taps, x, shift)));
  }
}

struct TapSums {
  Vec weight[MAX_WIDTH] = {}, bias = {};

  // Adds the gradient of the taps at one position: g times each x that it saw.
  template <int WIDTH>
  inline __attribute__((always_inline)) void add(Vec g, const float* x, int64_t shift) {
#pragma GCC unroll 4
    for (int j = 0; j < WIDTH; ++j) weight[j] = fma(g, load(x + j * shift), weight[j]);
    bias = bias + g;
  }
};

template <int WIDTH>
RDFA_INLINE Vec input_gradient(const Taps& taps, const float* g, int64_t shift) {
  Vec sum = splat(0.0f);
#pragma GCC unroll 4
  for (int j = 0; j < WIDTH; ++j) sum = fma(taps.weight[j], load(g - j * shift), sum);
  return sum;
}

// x and g start 2 * HALO and HALO steps before the tile: dx of a tile needs g of the steps that its x reached.
template <int WIDTH, bool SILU, bool BF16>
void backward_tile(const Problem& p, const Sequence& x, const Sequence& dy, const Sequence& dx, float* partial,
                   const Tile& tile) {
  const int64_t sign = p.reverse ? 1 : -1, padded = p.padded_channels();
  const int64_t base = tile.b * dx.stride_b, steps = tile.t1 - tile.t0;
  float* sums = partial + tile.slot * (MAX_WIDTH + 1) * padded;
  if (p.channels_last) {
    alignas(64) float x_rows[ROWS * CHANNELS], g_rows[ROWS * CHANNELS];
    load_rows<BF16>(x_rows, x, tile, tile.t0 - 2 * HALO, tile.t1 + 2 * HALO, p.L);
    load_rows<BF16>(g_rows, dy, tile, tile.t0 - HALO, tile.t1 + HALO, p.L);
    const int64_t shift = sign * CHANNELS;
    for (int64_t d = tile.d0; d < tile.d1; d += LANES) {
      const Taps taps = lane_taps(p, d);
      const int64_t column = d - tile.d0;
      const float* at_x = x_rows + 2 * HALO * CHANNELS + column;
      float* at_g = g_rows + HALO * CHANNELS + column;
      before_activation<WIDTH, SILU>(taps, at_x - HALO * CHANNELS, at_g - HALO * CHANNELS, shift, CHANNELS,
                                     steps + 2 * HALO);
      TapSums total;
      for (int64_t t = tile.t0; t < tile.t1; ++t, at_x += CHANNELS, at_g += CHANNELS) {
        total.add<WIDTH>(load(at_g), at_x, shift);
        store_part<BF16>(dx.data, base + t * dx.stride_l + d, input_gradient<WIDTH>(taps, at_g, shift), tile.d1 - d);
      }
      for (int j = 0; j < MAX_WIDTH; ++j) store(sums + j * padded + d, total.weight[j]);
      store(sums + MAX_WIDTH * padded + d, total.bias);
    }
  } else {
    alignas(64) float x_line[LINE], g_line[LINE];
    for (int64_t d = tile.d0; d < tile.d1; ++d) {
      load_channel<BF16>(x_line, x, tile, d, tile.t0 - 2 * HALO, tile.t1 + 2 * HALO, p.L);
      load_channel<BF16>(g_line, dy, tile, d, tile.t0 - HALO, tile.t1 + HALO, p.L);
      const Taps taps = channel_taps(p, d);
      const float* at_x = x_line + 2 * HALO;
      float* at_g = g_line + HALO;
      const int64_t vectors = (steps + 2 * HALO + LANES - 1) / LANES;
      before_activation<WIDTH, SILU>(taps, at_x - HALO, at_g - HALO, sign, LANES, vectors);
      for (int64_t i = 0; i < steps; i += LANES) {
        const Vec v = input_gradient<WIDTH>(taps, at_g + i, sign);
        store_part<BF16>(dx.data, base + d * dx.stride_d + tile.t0 + i, v, steps - i);
      }
      // The taps' gradient counts the steps of this tile only.
      for (int64_t i = steps; i < steps + LANES; ++i) at_g[i] = 0.0f;
      TapSums total;
      for (int64_t i = 0; i < steps; i += LANES) total.add<WIDTH>(load(at_g + i), at_x + i, sign);
      for (int j = 0; j < MAX_WIDTH; ++j) sums[j * padded + d] = sum_lanes(total.weight[j]);
      sums[MAX_WIDTH * padded + d] = sum_lanes(total.bias);
    }
  }
}

}  // namespace

// Calls run<WIDTH, SILU, BF16>() for the values in the problem.
#define RDFA_CONV_SELECT_TYPE(run, WIDTH, SILU) (p.bf16 ? run<WIDTH, SILU, true> : run<WIDTH, SILU, false>)
#define RDFA_CONV_SELECT_SILU(run, WIDTH) \
  (p.silu ? RDFA_CONV_SELECT_TYPE(run, WIDTH, true) : RDFA_CONV_SELECT_TYPE(run, WIDTH, false))
#define RDFA_CONV_SELECT(run)                            \
  (p.width == 2   ? RDFA_CONV_SELECT_SILU(run, 2)        \
   : p.width == 3 ? RDFA_CONV_SELECT_SILU(run, 3)        \
                  : RDFA_CONV_SELECT_SILU(run, 4))

void conv_forward(const Problem& p, const Sequence& x, const Sequence& y, int64_t first_tile, int64_t last_tile) {
  const auto run = RDFA_CONV_SELECT(forward_tile);
  for (int64_t i = first_tile; i < last_tile; ++i) run(p, x, y, Tile(p, i));
}

void conv_backward(const Problem& p, const Sequence& x, const Sequence& dy, const Sequence& dx, float* partial_taps,
                   int64_t first_tile, int64_t last_tile) {
  const auto run = RDFA_CONV_SELECT(backward_tile);
  for (int64_t i = first_tile; i < last_tile; ++i) run(p, x, dy, dx, partial_taps, Tile(p, i));
}

}  // namespace RDFA_ISA
}  // namespace rdfa
