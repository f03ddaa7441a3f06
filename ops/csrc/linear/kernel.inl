// A task is a block of rows. They stay in the L2 cache while all panels of the weights pass, and what follows the product
// (norm, gate, residual) finds them there. Inputs are taken in chunks, and a chunk of the block's rows is copied first:
// rows then lie a constant distance apart that is no power of two, and zeros beyond the ends, the norm and another layout
// cost nothing more.
#include <stdlib.h>
#include <string.h>

#include "common/simd.h"
#include "linear/kernel.h"

namespace rdfa {
namespace RDFA_ISA {
namespace {

using linear::CHUNK;
using linear::HALF_PANEL;
using linear::PANEL;
using linear::Problem;

// What is multiplied with a row of weights: an input as float, or two in bfloat16 where the processor has the
// instruction.
#if defined(RDFA_LINEAR_DOT)
typedef int32_t Operand;
constexpr int64_t PER_OPERAND = 2;
#else
typedef float Operand;
constexpr int64_t PER_OPERAND = 1;
#endif
constexpr int64_t STRIDE = CHUNK / PER_OPERAND + 16;  // of copied rows, in operands; a vector may be written past CHUNK
constexpr int64_t COLUMNS = 512;                      // outputs finished together, unless a norm needs them all
constexpr int TILE_ROWS = RDFA_LINEAR_ROWS, TILE_VECTORS = RDFA_LINEAR_VECTORS;  // of the sums held in registers
constexpr float EPSILON = 1e-5f;

// ---- elements of any type, and the last few of a row

template <bool BF16>
struct Element {
  typedef float Type;
  RDFA_INLINE Vec load_vec(const void* base, int64_t at) { return load(static_cast<const float*>(base) + at); }
  RDFA_INLINE void store_vec(void* base, int64_t at, Vec v) { store(static_cast<float*>(base) + at, v); }
};
template <>
struct Element<true> {
  typedef uint16_t Type;
  RDFA_INLINE Vec load_vec(const void* base, int64_t at) { return load_bf16(static_cast<const uint16_t*>(base) + at); }
  RDFA_INLINE void store_vec(void* base, int64_t at, Vec v) { store_bf16(static_cast<uint16_t*>(base) + at, v); }
};

// `count` elements, zeros in the lanes beyond.
template <bool BF16>
RDFA_INLINE Vec load_part(const void* base, int64_t at, int64_t count) {
  if (count >= LANES) return Element<BF16>::load_vec(base, at);
  typedef typename Element<BF16>::Type T;
  T line[LANES] = {};
  for (int64_t i = 0; i < count; ++i) line[i] = static_cast<const T*>(base)[at + i];
  return Element<BF16>::load_vec(line, 0);
}
template <bool BF16>
RDFA_INLINE void store_part(void* base, int64_t at, int64_t count, Vec v) {
  if (count >= LANES) return Element<BF16>::store_vec(base, at, v);
  typedef typename Element<BF16>::Type T;
  T line[LANES];
  Element<BF16>::store_vec(line, 0, v);
  for (int64_t i = 0; i < count; ++i) static_cast<T*>(base)[at + i] = line[i];
}

// Mean and 1 / sqrt(variance + epsilon) of `count` floats, which are followed by anything up to a whole vector.
struct Moments {
  float mean, slope;
  Moments(const float* x, int64_t count) {
    const int64_t whole = count / LANES * LANES;
    Vec sum = {};
    for (int64_t i = 0; i < whole; i += LANES) sum = sum + load(x + i);
    mean = sum_lanes(sum);
    for (int64_t i = whole; i < count; ++i) mean += x[i];
    mean /= static_cast<float>(count);
    Vec squares = {};
    for (int64_t i = 0; i < whole; i += LANES) {
      const Vec d = load(x + i) - splat(mean);
      squares = fma(d, d, squares);
    }
    float variance = sum_lanes(squares);
    for (int64_t i = whole; i < count; ++i) variance += (x[i] - mean) * (x[i] - mean);
    slope = 1.0f / __builtin_sqrtf(variance / static_cast<float>(count) + EPSILON);
  }
};

// ---- copying rows

#if defined(RDFA_LINEAR_DOT)
RDFA_INLINE void put(Operand* row, int64_t k, Vec v) { store_bf16(reinterpret_cast<uint16_t*>(row) + k, v); }
RDFA_INLINE Vec get(const Operand* row, int64_t k) { return load_bf16(reinterpret_cast<const uint16_t*>(row) + k); }
#else
RDFA_INLINE void put(Operand* row, int64_t k, Vec v) { store(row + k, v); }
RDFA_INLINE Vec get(const Operand* row, int64_t k) { return load(row + k); }
#endif

// Inputs k0 to k0 + count of the rows from `first` on, zeros outside the sequence.
template <bool BF16>
static void copy_rows(const Problem& p, int64_t s, int64_t first, int64_t rows, int64_t k0, int64_t count, Operand* to) {
  typedef typename Element<BF16>::Type T;
  const T* x = static_cast<const T*>(p.x) + s * p.x_b + k0 * p.x_k;
  const int64_t end = p.end(s);
  for (int64_t i = 0; i < rows;) {
    const int64_t l = first + i;
    Operand* row = to + i * STRIDE;
    if (l < 0 || l >= end) {
      memset(row, 0, STRIDE * sizeof(Operand));
      ++i;
    } else if (p.x_k == 1) {
      for (int64_t k = 0; k < count; k += LANES) put(row, k, load_part<BF16>(x, l * p.x_l + k, count - k));
      ++i;
    } else if (p.x_l == 1 && i + LANES <= rows && l + LANES <= end) {
      for (int64_t k = 0; k < count; k += LANES) {
        Vec square[LANES];
#pragma GCC unroll 16
        for (int j = 0; j < LANES; ++j)
          square[j] = k + j < count ? Element<BF16>::load_vec(x, l + (k + j) * p.x_k) : Vec{};
        transpose(square);
#pragma GCC unroll 16
        for (int j = 0; j < LANES; ++j) put(row + j * STRIDE, k, square[j]);
      }
      i += LANES;
    } else {
      for (int64_t k = 0; k < count; k += LANES) {
        T line[LANES] = {};
        for (int64_t j = 0; j < LANES && k + j < count; ++j) line[j] = x[l * p.x_l + (k + j) * p.x_k];
        put(row, k, Element<BF16>::load_vec(line, 0));
      }
      ++i;
    }
  }
}

// Layer norm of copied rows, in place; all inputs are in one chunk.
static void normalize_rows(const Problem& p, int64_t rows, Operand* to) {
  float line[CHUNK + LANES];
  for (int64_t i = 0; i < rows; ++i) {
    Operand* row = to + i * STRIDE;
    for (int64_t k = 0; k < p.inputs; k += LANES) store(line + k, get(row, k));
    const Moments moments(line, p.inputs);
    for (int64_t k = 0; k < p.inputs; k += LANES) {
      const int64_t left = p.inputs - k;
      const Vec scaled = (load(line + k) - splat(moments.mean)) * splat(moments.slope);
      put(row, k, fma(scaled, load_part<false>(p.in_weight, k, left), load_part<false>(p.in_bias, k, left)));
    }
  }
}

// ---- the product

// ROWS x VECTORS sums in registers.
template <int ROWS, int VECTORS, bool BF16>
struct Tile {
  Vec sum[ROWS][VECTORS];

  RDFA_MEMBER void start(bool add, const float* c, int64_t stride) {
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 4
      for (int j = 0; j < VECTORS; ++j) sum[i][j] = add ? load(c + i * stride + j * LANES) : Vec{};
  }
  RDFA_MEMBER void finish(float* c, int64_t stride) const {
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 4
      for (int j = 0; j < VECTORS; ++j) store(c + i * stride + j * LANES, sum[i][j]);
  }
  RDFA_MEMBER void add(const Operand* x, const Vec (&w)[VECTORS]) {
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; ++i) {
#if defined(RDFA_LINEAR_DOT)
      const __m512bh input = (__m512bh)splat_int(x[i * STRIDE]);
#pragma GCC unroll 4
      for (int j = 0; j < VECTORS; ++j) sum[i][j] = _mm512_dpbf16_ps(sum[i][j], input, (__m512bh)w[j]);
#else
      const Vec input = splat(x[i * STRIDE]);
#pragma GCC unroll 4
      for (int j = 0; j < VECTORS; ++j) sum[i][j] = fma(input, w[j], sum[i][j]);
#endif
    }
  }
  // `steps` rows of weights, `width` outputs each.
  RDFA_MEMBER void multiply(const Operand* x, const float* w, int64_t width, int64_t steps) {
    for (int64_t k = 0; k < steps; ++k, w += width) {
      Vec row[VECTORS];
#pragma GCC unroll 4
      for (int j = 0; j < VECTORS; ++j) row[j] = load(w + j * LANES);
#if !defined(RDFA_LINEAR_DOT)
      if constexpr (BF16) {  // the weights of two inputs, in the lower and upper half of a float's place
        Vec lower[VECTORS];
#pragma GCC unroll 4
        for (int j = 0; j < VECTORS; ++j) lower[j] = from_bits(bits(row[j]) << 16);
        add(x++, lower);
#pragma GCC unroll 4
        for (int j = 0; j < VECTORS; ++j) row[j] = from_bits(bits(row[j]) & static_cast<int32_t>(0xffff0000));
      }
#endif
      add(x++, row);
    }
  }
};

// Weights of one panel and chunk: `taps` parts of `steps` rows, `tap_stride` floats apart.
struct Panel {
  const float* weights;
  int64_t width, steps, tap_stride;
  int taps;
};

template <int ROWS, int VECTORS, bool BF16>
static void multiply_tile(const Operand* x, const Panel& panel, int64_t column, float* c, int64_t stride, bool add) {
  Tile<ROWS, VECTORS, BF16> tile;
  tile.start(add, c, stride);
  for (int tap = 0; tap < panel.taps; ++tap) {
    tile.multiply(x + tap * STRIDE, panel.weights + tap * panel.tap_stride + column, panel.width, panel.steps);
  }
  tile.finish(c, stride);
}

// Some columns of a panel times all rows of a block; tiles of fewer rows at the end.
template <int VECTORS, bool BF16>
static void multiply_columns(const Operand* x, int64_t rows, const Panel& panel, int64_t column, float* c,
                             int64_t stride, bool add) {
  int64_t i = 0;
  const auto run = [&](auto tile, int height) {
    for (; i + height <= rows; i += height) tile(x + i * STRIDE, panel, column, c + i * stride, stride, add);
  };
  run(multiply_tile<TILE_ROWS, VECTORS, BF16>, TILE_ROWS);
  run(multiply_tile<4, VECTORS, BF16>, 4);
  run(multiply_tile<1, VECTORS, BF16>, 1);
}

template <bool BF16>
static void multiply_panel(const Operand* x, int64_t rows, const Panel& panel, float* c, int64_t stride, bool add) {
  int64_t column = 0;
  for (; column + TILE_VECTORS * LANES <= panel.width; column += TILE_VECTORS * LANES)
    multiply_columns<TILE_VECTORS, BF16>(x, rows, panel, column, c + column, stride, add);
  for (; column < panel.width; column += LANES)
    multiply_columns<1, BF16>(x, rows, panel, column, c + column, stride, add);
}

// ---- what follows

// Outputs `first` to `last` of one row, whose sums are in c; a row whose scale is 0 may have none.
template <bool BF16>
static void finish_row(const Problem& p, int64_t s, int64_t l, int64_t first, int64_t last, float* c) {
  const float scale = p.scale ? p.scale[s * p.length + l] : 1.0f, keep = p.keep ? p.keep[l] : 1.0f;
  float mean = 0.0f, slope = 1.0f;
  const auto scaled = [&](int64_t n) __attribute__((always_inline)) {
    if (scale == 0.0f) return Vec{};
    const Vec bias = p.bias ? load_part<false>(p.bias, n, last - n) : Vec{};
    return (load(c + n - first) + bias) * splat(scale);
  };
  if (p.out_weight) {
    for (int64_t n = first; n < last; n += LANES) store(c + n - first, scaled(n));
    const Moments moments(c, last - first);
    mean = moments.mean;
    slope = moments.slope;
  }
  for (int64_t n = first; n < last; n += LANES) {
    const int64_t left = last - n;
    Vec v;
    if (p.out_weight) {
      const Vec weight = load_part<false>(p.out_weight, n, left), bias = load_part<false>(p.out_bias, n, left);
      v = fma((load(c + n - first) - splat(mean)) * splat(slope), weight, bias);
    } else {
      v = scaled(n);
    }
    if (p.relu) v = max(splat(0.0f), v);
    if (p.gate) v = v * load_part<false>(p.gate, s * p.outputs + n, left);
    if (p.residual) v = v + load_part<BF16>(p.residual, s * p.residual_b + l * p.residual_l + n, left);
    store_part<BF16>(p.y, s * p.y_b + l * p.y_l + n, left, v * splat(keep));
  }
}

template <bool BF16>
static void run_block(const Problem& p, int64_t s, int64_t first, int64_t last, Operand* copied, float* scratch) {
  const int64_t inputs = p.padded_inputs(), halo = p.taps / 2, per_row = BF16 ? 2 : 1;
  int64_t rows = last - first;  // to multiply
  while (p.scale && rows > 0 && p.scale[s * p.length + first + rows - 1] == 0.0f) --rows;
  const bool in_place = p.sums_in_place();
  const bool nothing_follows = in_place && !(p.bias || p.scale || p.out_weight || p.relu || p.gate || p.residual || p.keep);
  const int64_t columns = p.out_weight ? p.padded_outputs() : COLUMNS;
  for (int64_t n0 = 0; n0 < p.outputs; n0 += columns) {
    const int64_t n1 = n0 + columns < p.padded_outputs() ? n0 + columns : p.padded_outputs();
    float* c = in_place ? static_cast<float*>(p.y) + s * p.y_b + first * p.y_l + n0 : scratch;
    const int64_t stride = in_place ? p.y_l : columns;
    for (int64_t k0 = 0; rows > 0 && k0 < inputs; k0 += CHUNK) {
      const int64_t count = inputs - k0 < CHUNK ? inputs - k0 : CHUNK;
      if (n0 == 0 || inputs > CHUNK) {
        const int64_t real = p.inputs - k0 < count ? p.inputs - k0 : count;
        copy_rows<BF16>(p, s, first - halo, rows + 2 * halo, k0, real, copied);
        if (p.in_weight) normalize_rows(p, rows, copied);
      }
      for (int64_t n = n0; n < n1; n += PANEL) {
        const int64_t width = p.padded_outputs() - n < PANEL ? HALF_PANEL : PANEL;
        const float* weights = static_cast<const float*>(p.weights) + (n * p.taps * inputs + k0 * width) / per_row;
        const Panel panel = {weights, width, count / per_row, inputs * width / per_row, p.taps};
        multiply_panel<BF16>(copied, rows, panel, c + n - n0, stride, k0 > 0);
      }
    }
    if (nothing_follows) continue;
    const int64_t end = n1 < p.outputs ? n1 : p.outputs;
    for (int64_t l = first; l < last; ++l) finish_row<BF16>(p, s, l, n0, end, c + (l - first) * stride);
  }
}

}  // namespace

void linear_forward(const Problem& p, int64_t first_task, int64_t step) {
  const int64_t columns = p.out_weight && p.padded_outputs() > COLUMNS ? p.padded_outputs() : COLUMNS;
  const size_t copied = (p.rows + p.taps) * STRIDE * sizeof(Operand), sums = p.rows * columns * sizeof(float);
  char* memory = static_cast<char*>(aligned_alloc(64, (copied + sums + 127) / 64 * 64));
  if (memory == nullptr) abort();
  const char* poison = getenv("RDFA_POISON_ALLOCATIONS");  // tests: NaN, as in the bindings
  if (poison != nullptr && poison[0] == '1') memset(memory, 0xff, copied + sums);
  Operand* rows = reinterpret_cast<Operand*>(memory);
  float* scratch = reinterpret_cast<float*>(memory + (copied + 63) / 64 * 64);
  for (int64_t task = first_task; task < p.tasks(); task += step) {
    const int64_t s = task / p.blocks(), first = task % p.blocks() * p.rows;
    const int64_t last = first + p.rows < p.end(s) ? first + p.rows : p.end(s);
    if (first >= last) continue;
#if defined(RDFA_LINEAR_DOT)
    run_block<true>(p, s, first, last, rows, scratch);
#else
    (p.bf16 ? run_block<true> : run_block<false>)(p, s, first, last, rows, scratch);
#endif
  }
  free(memory);
}

}  // namespace RDFA_ISA
}  // namespace rdfa
