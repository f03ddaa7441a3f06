// The product of integers: x rounded to -127 ... 127 times a factor of each row and chunk, weights with a factor of each
// output. Sums are exact until a chunk ends. Part of kernel.inl.
//
// Weights have 128 added, because the instruction (vpdpbusd) wants one operand without a sign: what that adds to a sum is
// the same for all outputs, 128 times the sum of the row. Without the instruction pairs of 16 bits are multiplied, whose
// sums don't saturate as those of pmaddubsw do.
#include "linear/rows.inl"

namespace rdfa {
namespace RDFA_ISA {
namespace {

struct Int8 {
  static constexpr bool HALF = false;
  static constexpr int64_t PER_ROW = 4, HEAD = 1;
  typedef int32_t Operand;
#if defined(RDFA_LINEAR_VNNI)
  static constexpr int64_t PER_OPERAND = 4;
  typedef int8_t Narrow;
#else
  static constexpr int64_t PER_OPERAND = 2;  // inputs 0, 2 and 1, 3 of every four
  typedef int16_t Narrow;
#endif
  // Behind the operands of a row lie what its sums start from, and its factor.
  static constexpr int64_t STRIDE = CHUNK / PER_OPERAND + 16, START = STRIDE - 2, FACTOR = STRIDE - 1;
  static constexpr float LARGEST = 127.0f, LEAST = 1e-30f;  // rows of less than LEAST are zeros

  typedef Narrow NarrowVec __attribute__((vector_size(LANES * sizeof(Narrow)), may_alias, aligned(1)));

  // A row with NaN or infinity has a factor that makes all its sums NaN.
  static void quantize(const float* x, int64_t count, Operand* row) {
    IntVec most = {};  // compared as integers, in which NaN is the largest
    for (int64_t k = 0; k < count; k += LANES) {
      const IntVec size = bits(abs(load(x + k)));
      most = size > most ? size : most;
    }
    for (int i = 1; i < LANES; ++i) most[0] = most[i] > most[0] ? most[i] : most[0];
    const float largest = from_bits(most)[0];
    const Vec inverse = splat(largest < LEAST ? 0.0f : LARGEST / largest);
    IntVec sum = {};
    for (int64_t k = 0; k < count; k += LANES) {
      IntVec q = round_to_int(load(x + k) * inverse);
      sum += q;
#if !defined(RDFA_LINEAR_VNNI)
      IntVec order;
      for (int i = 0; i < LANES; ++i) order[i] = i / 4 * 4 + i % 2 * 2 + i / 2 % 2;
      q = __builtin_shuffle(q, order);
#endif
      *reinterpret_cast<NarrowVec*>(reinterpret_cast<Narrow*>(row) + k) = __builtin_convertvector(q, NarrowVec);
    }
    uint32_t total = 0;
    for (int i = 0; i < LANES; ++i) total += static_cast<uint32_t>(sum[i]);
    row[START] = static_cast<int32_t>(-128u * total);
    const float factor = largest / LARGEST;
    memcpy(row + FACTOR, &factor, sizeof factor);
  }

  // As floats a few rows at a time, which stay in the cache.
  static void copy(const Problem& p, int64_t s, int64_t first, int64_t rows, int64_t k0, int64_t count, Operand* to) {
    float lines[LANES * RDFA_ISA::STRIDE];
    for (int64_t i = 0; i < rows; i += LANES) {
      const int64_t group = rows - i < LANES ? rows - i : LANES;
      copy_rows<false>(p, s, first + i, group, k0, count, lines);
      if (p.in_weight) normalize_rows(p, group, lines);
      for (int64_t j = 0; j < group; ++j) quantize(lines + j * RDFA_ISA::STRIDE, count, to + (i + j) * STRIDE);
    }
  }

  // sum + the products of four inputs, whose weights are the bytes of each lane of w.
  static RDFA_MEMBER IntVec dot(IntVec sum, const Operand* x, IntVec w) {
#if defined(RDFA_LINEAR_VNNI)
    return (IntVec)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)w, (__m512i)splat_int(*x));
#else
    return sum + pairs(w & 0x00ff00ff, x[0]) + pairs((w >> 8) & 0x00ff00ff, x[1]);
#endif
  }
#if !defined(RDFA_LINEAR_VNNI)
  static RDFA_MEMBER IntVec pairs(IntVec w, int32_t x) {
#if RDFA_LANES == 8
    return (IntVec)_mm256_madd_epi16((__m256i)w, (__m256i)splat_int(x));
#else
    return (w & 0xffff) * splat_int(static_cast<int16_t>(x)) + (w >> 16) * splat_int(x >> 16);
#endif
  }
#endif

  template <int ROWS, int VECTORS>
  static void multiply_tile(const Operand* x, const Panel& panel, int64_t column, float* c, int64_t stride, bool add) {
    for (int tap = 0; tap < panel.taps; ++tap, x += STRIDE) {
      IntVec sum[ROWS][VECTORS];
#pragma GCC unroll 16
      for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < VECTORS; ++j) sum[i][j] = splat_int(x[i * STRIDE + START]);
      const float* w = panel.weights + tap * panel.tap_stride + column;
      const Operand* inputs = x;
      for (int64_t k = 0; k < panel.steps; ++k, w += panel.width, inputs += PER_ROW / PER_OPERAND) {
        IntVec row[VECTORS];
#pragma GCC unroll 4
        for (int j = 0; j < VECTORS; ++j) row[j] = bits(load(w + j * LANES));
#pragma GCC unroll 16
        for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 4
          for (int j = 0; j < VECTORS; ++j) sum[i][j] = dot(sum[i][j], inputs + i * STRIDE, row[j]);
      }
#pragma GCC unroll 16
      for (int i = 0; i < ROWS; ++i) {
        float factor;
        memcpy(&factor, x + i * STRIDE + FACTOR, sizeof factor);
#pragma GCC unroll 4
        for (int j = 0; j < VECTORS; ++j) {
          float* to = c + i * stride + j * LANES;
          const Vec both = splat(factor) * load(panel.head + column + j * LANES);
          const Vec before = add || tap > 0 ? load(to) : Vec{};
          store(to, fma(__builtin_convertvector(sum[i][j], Vec), both, before));
        }
      }
    }
  }
};

}  // namespace
}  // namespace RDFA_ISA
}  // namespace rdfa
