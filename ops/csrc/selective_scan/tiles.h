// Between arrays of any layout and rows of LANES float32 channels, one tile of time steps at a time.
#pragma once

#include <stdlib.h>
#include <string.h>

#include "common/simd.h"
#include "selective_scan/scan.h"

namespace rdfa {
namespace RDFA_ISA {

// Row k holds LANES channels at the k-th time step of a tile.
struct Rows {
  float* data;
  int64_t stride;
  RDFA_MEMBER Vec get(int64_t k) const { return load(data + k * stride); }
  RDFA_MEMBER void set(int64_t k, Vec v) const { store(data + k * stride, v); }
};

constexpr int TILE_FLOATS = TILE * LANES;

template <typename T>
RDFA_INLINE Vec load_vec(const T* p) {
  if constexpr (sizeof(T) == 2) {
    return load_bf16(p);
  } else {
    return load(p);
  }
}
template <typename T>
RDFA_INLINE void store_vec(T* p, Vec v) {
  if constexpr (sizeof(T) == 2) {
    store_bf16(p, v);
  } else {
    store(p, v);
  }
}

template <typename T>
static Rows load_rows(const Matrix& m, T* p, int width, int64_t t0, int count, float* buffer) {
  const Rows rows = {buffer, LANES};
  if (m.stride_r == 1 && width == LANES) {  // channels are adjacent
    if constexpr (sizeof(T) == 4) return {p, m.stride_t};
    for (int k = 0; k < count; ++k) rows.set(k, load_vec(p + k * m.stride_t));
    return rows;
  }
  if ((m.stride_t == 1 || m.stride_t == -1) && width == LANES && t0 + count >= TILE) {  // time steps are adjacent
    // The last tile of a sequence reads full vectors too: it starts earlier and returns its last `count` rows.
    const bool forwards = m.stride_t == 1;
    p += forwards ? count - TILE : 1 - count;
    for (int k0 = 0; k0 < TILE; k0 += LANES) {
      Vec square[LANES];
#pragma GCC unroll 16
      for (int i = 0; i < LANES; ++i) square[i] = load_vec(p + i * m.stride_r + k0);
      transpose(square);
#pragma GCC unroll 16
      for (int i = 0; i < LANES; ++i) rows.set(forwards ? k0 + i : TILE - 1 - k0 - i, square[i]);
    }
    return {buffer + (TILE - count) * LANES, LANES};
  }
  for (int k = 0; k < count; ++k) {
    Vec v = {};
    for (int i = 0; i < width; ++i) {
      const T x = p[i * m.stride_r + k * m.stride_t];
      if constexpr (sizeof(T) == 2) {
        v[i] = from_bits(splat_int(static_cast<int32_t>(x) << 16))[0];
      } else {
        v[i] = x;
      }
    }
    rows.set(k, v);
  }
  return rows;
}

// Channels r0 .. r0 + width at steps t0 .. t0 + count, zeros in the lanes beyond. The rows lie in `buffer`
// (TILE_FLOATS), or in the array itself where its layout is that of rows.
static Rows load_rows(const Matrix& m, int64_t b, int64_t r0, int width, int64_t t0, int count, float* buffer) {
  const int64_t offset = b * m.stride_b + r0 * m.stride_r + t0 * m.stride_t;
  return m.bf16 ? load_rows(m, static_cast<uint16_t*>(m.data) + offset, width, t0, count, buffer)
                : load_rows(m, static_cast<float*>(m.data) + offset, width, t0, count, buffer);
}

// Where to write rows that `store_rows` then puts in place: the array itself, or `buffer`.
RDFA_INLINE Rows output_rows(const Matrix& m, int64_t b, int64_t r0, int width, int64_t t0, float* buffer) {
  if (m.stride_r == 1 && width == LANES && !m.bf16) {
    return {static_cast<float*>(m.data) + b * m.stride_b + r0 + t0 * m.stride_t, m.stride_t};
  }
  return {buffer, LANES};
}

template <typename T>
static void store_rows(const Matrix& m, T* p, int width, int count, const Rows& rows) {
  if (m.stride_r == 1 && width == LANES) {
    for (int k = 0; k < count; ++k) store_vec(p + k * m.stride_t, rows.get(k));
    return;
  }
  if ((m.stride_t == 1 || m.stride_t == -1) && width == LANES && count == TILE) {
    const bool forwards = m.stride_t == 1;
    if (!forwards) p -= TILE - 1;
    for (int k0 = 0; k0 < TILE; k0 += LANES) {
      Vec square[LANES];
#pragma GCC unroll 16
      for (int i = 0; i < LANES; ++i) square[i] = rows.get(forwards ? k0 + i : TILE - 1 - k0 - i);
      transpose(square);
#pragma GCC unroll 16
      for (int i = 0; i < LANES; ++i) store_vec(p + i * m.stride_r + k0, square[i]);
    }
    return;
  }
  for (int k = 0; k < count; ++k) {
    T line[LANES];
    store_vec(line, rows.get(k));
    for (int i = 0; i < width; ++i) p[i * m.stride_r + k * m.stride_t] = line[i];
  }
}

RDFA_INLINE void store_rows(const Matrix& m, int64_t b, int64_t r0, int width, int64_t t0, int count,
                            const Rows& rows) {
  const int64_t offset = b * m.stride_b + r0 * m.stride_r + t0 * m.stride_t;
  if (m.bf16) {
    store_rows(m, static_cast<uint16_t*>(m.data) + offset, width, count, rows);
  } else if (rows.data != static_cast<float*>(m.data) + offset) {
    store_rows(m, static_cast<float*>(m.data) + offset, width, count, rows);
  }
}

// One value per channel of a block.
RDFA_INLINE Vec load_channels(const float* values, int64_t channel, int width) {
  Vec v = {};
  if (values == nullptr) return v;
  if (width == LANES) return load(values + channel);
  for (int i = 0; i < width; ++i) v[i] = values[channel + i];
  return v;
}
RDFA_INLINE void store_channels(float* values, int64_t channel, int width, Vec v) {
  for (int i = 0; i < width; ++i) values[channel + i] = v[i];
}

// B or C of one group and tile as [count][padded_states], zeros beyond N.
static void load_projection(const Projection& p, int64_t states, int64_t padded_states, int64_t b, int64_t group,
                            int64_t t0, int count, float* out) {
  Matrix matrix = p.matrix;
  const int64_t offset = group * p.stride_g;
  matrix.data = matrix.bf16 ? static_cast<void*>(static_cast<uint16_t*>(matrix.data) + offset)
                            : static_cast<void*>(static_cast<float*>(matrix.data) + offset);
  float buffer[TILE_FLOATS];
  for (int64_t n = 0; n < padded_states; n += LANES) {
    const int64_t left = states - n;
    const Rows rows = load_rows(matrix, b, n, left < LANES ? static_cast<int>(left) : LANES, t0, count, buffer);
    for (int k = 0; k < count; ++k) store(out + k * padded_states + n, rows.get(k));
  }
}

// A [B, D, N] array with one vector per state for a block: [padded_states][LANES], zeros beyond N and D.
static void load_states(const Matrix& array, int64_t b, int64_t states, int64_t padded_states, int64_t channel,
                        int width, float* out) {
  float buffer[TILE_FLOATS];
  for (int64_t n = 0; n < padded_states; n += TILE) {
    const int64_t left = states - n;
    const int count = left < TILE ? static_cast<int>(left) : TILE;
    const Rows rows = load_rows(array, b, channel, width, n, count, buffer);
    for (int k = 0; k < TILE && n + k < padded_states; ++k) {
      store(out + (n + k) * LANES, k < count ? rows.get(k) : Vec{});
    }
  }
}
static void store_states(float* array, int64_t states, int64_t channel, int width, float* in) {
  const Matrix matrix = {array, 0, states, 1, false};
  for (int64_t n = 0; n < states; n += TILE) {
    const int64_t left = states - n;
    store_rows(matrix, 0, channel, width, n, left < TILE ? static_cast<int>(left) : TILE, {in + n * LANES, LANES});
  }
}

// The state of a block at the start of a tile, inside `kept_states`: rows of STATE_LANES floats.
RDFA_INLINE float* kept_state(const ScanArgs& args, const Partition& part, int64_t b, int64_t tile, int64_t block) {
  const int64_t tiles = (args.length + TILE - 1) / TILE;
  const int64_t wide_per_group = part.wide_blocks_per_group();
  const int64_t group = block / part.blocks_per_group, lane = block % part.blocks_per_group * LANES;
  const int64_t wide_block = group * wide_per_group + lane / STATE_LANES;
  const int64_t row = ((b * tiles + tile) * part.groups * wide_per_group + wide_block) * args.states;
  return args.kept_states + row * STATE_LANES + lane % STATE_LANES;
}

// Keeps the states `h` of a block. The last block of a group also fills the lanes of a row that have no channel: every
// number that is returned is a defined one.
static void keep_states(const ScanArgs& args, const Partition& part, int64_t b, int64_t tile, int64_t block,
                        const float* h) {
  float* const kept = kept_state(args, part, b, tile, block);
  const int64_t block_in_group = block % part.blocks_per_group, lane = block_in_group * LANES % STATE_LANES;
  const int64_t filled = block_in_group + 1 < part.blocks_per_group ? LANES : STATE_LANES - lane;
  for (int64_t n = 0; n < args.states; ++n) {
    store(kept + n * STATE_LANES, load(h + n * LANES));
    for (int64_t empty = LANES; empty < filled; empty += LANES) store(kept + n * STATE_LANES + empty, Vec{});
  }
}

// Scratch memory of one task, aligned to cache lines. Handed out in order, released together. With
// RDFA_POISON_ALLOCATIONS=1 (tests) it is NaN first, as everything that the bindings allocate.
class Scratch {
 public:
  explicit Scratch(int64_t floats) {
    const size_t bytes = (floats * 4 + 1023) / 64 * 64;  // room for the alignment of each part
    data_ = next_ = static_cast<float*>(aligned_alloc(64, bytes));
    if (data_ == nullptr) abort();
    const char* poison = getenv("RDFA_POISON_ALLOCATIONS");
    if (poison != nullptr && poison[0] == '1') memset(data_, 0xff, bytes);
  }
  ~Scratch() { free(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  float* take(int64_t floats) {
    float* p = next_;
    next_ += (floats + 15) / 16 * 16;
    return p;
  }

 private:
  float *data_, *next_;
};

}  // namespace RDFA_ISA
}  // namespace rdfa
