// The product of floats, in float32 or bfloat16. Part of kernel.inl.
#include "linear/rows.inl"

namespace rdfa {
namespace RDFA_ISA {
namespace {

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

// See the head of kernel.inl.
template <bool BF16>
struct Floats {
  static constexpr bool HALF = BF16;
  static constexpr int64_t PER_ROW = BF16 ? 2 : 1, HEAD = 0, STRIDE = RDFA_ISA::STRIDE;
  typedef RDFA_ISA::Operand Operand;

  static void copy(const Problem& p, int64_t s, int64_t first, int64_t rows, int64_t k0, int64_t count, Operand* to) {
    copy_rows<BF16>(p, s, first, rows, k0, count, to);
    if (p.in_weight) normalize_rows(p, rows, to);
  }

  template <int ROWS, int VECTORS>
  static void multiply_tile(const Operand* x, const Panel& panel, int64_t column, float* c, int64_t stride, bool add) {
    Tile<ROWS, VECTORS, BF16> tile;
    tile.start(add, c, stride);
    for (int tap = 0; tap < panel.taps; ++tap) {
      tile.multiply(x + tap * STRIDE, panel.weights + tap * panel.tap_stride + column, panel.width, panel.steps);
    }
    tile.finish(c, stride);
  }
};

}  // namespace
}  // namespace RDFA_ISA
}  // namespace rdfa
