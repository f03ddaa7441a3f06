// Float vectors for one instruction set. A kernel source is compiled three times, each time after
//   #pragma GCC target(...)   #define RDFA_ISA <name>   #define RDFA_LANES 16 | 8 | 4
// Everything lives in namespace rdfa::RDFA_ISA and has internal linkage: an inline function compiled for AVX-512 must
// never be the copy that the linker keeps for everybody. For the same reason no standard C++ header is included.
#pragma once

#include <stddef.h>
#include <stdint.h>

#if RDFA_LANES >= 8
#include <immintrin.h>
#endif

namespace rdfa {
namespace RDFA_ISA {

constexpr int LANES = RDFA_LANES;

typedef float Vec __attribute__((vector_size(LANES * 4), may_alias));
typedef float VecUnaligned __attribute__((vector_size(LANES * 4), may_alias, aligned(4)));
typedef int32_t IntVec __attribute__((vector_size(LANES * 4), may_alias));
typedef uint16_t HalfVec __attribute__((vector_size(LANES * 2), may_alias));
typedef uint16_t HalfVecUnaligned __attribute__((vector_size(LANES * 2), may_alias, aligned(2)));

#define RDFA_MEMBER inline __attribute__((always_inline))
#define RDFA_INLINE static RDFA_MEMBER

RDFA_INLINE Vec load(const float* p) { return *reinterpret_cast<const VecUnaligned*>(p); }
RDFA_INLINE void store(float* p, Vec v) { *reinterpret_cast<VecUnaligned*>(p) = v; }
RDFA_INLINE Vec splat(float x) { return x - Vec{}; }
RDFA_INLINE IntVec splat_int(int32_t x) { return x - IntVec{}; }
RDFA_INLINE IntVec bits(Vec v) { return reinterpret_cast<IntVec>(v); }
RDFA_INLINE Vec from_bits(IntVec v) { return reinterpret_cast<Vec>(v); }

#if RDFA_LANES == 16
RDFA_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
// A NaN in the second operand is returned.
RDFA_INLINE Vec max(Vec bound, Vec x) { return _mm512_maskz_max_ps(0xffff, bound, x); }
RDFA_INLINE Vec min(Vec bound, Vec x) { return _mm512_maskz_min_ps(0xffff, bound, x); }
RDFA_INLINE bool any_above(Vec x, Vec bound) { return _mm512_cmp_ps_mask(x, bound, _CMP_NLE_UQ) != 0; }
RDFA_INLINE IntVec round_to_int(Vec x) { return (IntVec)_mm512_cvtps_epi32(x); }  // to even; as are those below
#elif RDFA_LANES == 8
RDFA_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
RDFA_INLINE Vec max(Vec bound, Vec x) { return _mm256_max_ps(bound, x); }
RDFA_INLINE Vec min(Vec bound, Vec x) { return _mm256_min_ps(bound, x); }
RDFA_INLINE bool any_above(Vec x, Vec bound) { return _mm256_movemask_ps(_mm256_cmp_ps(x, bound, _CMP_NLE_UQ)) != 0; }
RDFA_INLINE IntVec round_to_int(Vec x) { return (IntVec)_mm256_cvtps_epi32(x); }
#else
RDFA_INLINE Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }
RDFA_INLINE Vec max(Vec bound, Vec x) { return bound > x ? bound : x; }
RDFA_INLINE Vec min(Vec bound, Vec x) { return bound < x ? bound : x; }
RDFA_INLINE bool any_above(Vec x, Vec bound) {
  const IntVec above = !(x <= bound);
  return (above[0] | above[1] | above[2] | above[3]) != 0;
}
RDFA_INLINE IntVec round_to_int(Vec x) {
  IntVec y;
  for (int i = 0; i < LANES; ++i) y[i] = static_cast<int32_t>(__builtin_lrintf(x[i]));
  return y;
}
#endif

RDFA_INLINE Vec abs(Vec x) { return from_bits(bits(x) & 0x7fffffff); }
RDFA_INLINE float sum_lanes(Vec v) {
  float partial[LANES];
  store(partial, v);
  for (int width = LANES / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) partial[i] += partial[i + width];
  return partial[0];
}

// bfloat16 is the upper half of a float; rounding to nearest even, NaN kept.
RDFA_INLINE Vec load_bf16(const uint16_t* p) {
  const HalfVec half = *reinterpret_cast<const HalfVecUnaligned*>(p);
  return from_bits(__builtin_convertvector(half, IntVec) << 16);
}
RDFA_INLINE void store_bf16(uint16_t* p, Vec v) {
  const IntVec raw = bits(v);
  const IntVec rounded = raw + 0x7fff + ((raw >> 16) & 1);
  const IntVec kept = v == v ? rounded : (raw | 0x400000);
  *reinterpret_cast<HalfVecUnaligned*>(p) = __builtin_convertvector(kept >> 16, HalfVec);
}

// Lanes of x and y in turn, from the lower or upper half of every 4 lanes; single lanes (1) or pairs of them (2).
template <int WIDTH, bool UPPER>
RDFA_INLINE Vec interleave(Vec x, Vec y) {
  IntVec from;
  for (int i = 0; i < LANES; ++i) {
    const int chunk = i / 4 * 4 + 2 * UPPER, j = i % 4;
    from[i] = WIDTH == 1 ? chunk + j / 2 + j % 2 * LANES : chunk + j % 2 + j / 2 * LANES;
  }
  return __builtin_shuffle(x, y, from);
}
// Every second chunk of 4 lanes of x, then of y.
template <int FIRST>
RDFA_INLINE Vec every_second(Vec x, Vec y) {
  IntVec from;
  for (int i = 0; i < LANES; ++i) from[i] = (i / 4 * 2 + FIRST) * 4 + i % 4;
  return __builtin_shuffle(x, y, from);
}
// In-place transposition of LANES vectors: of 4 x 4 values within chunks, then of the chunks.
RDFA_INLINE void transpose(Vec (&rows)[LANES]) {
#pragma GCC unroll 4
  for (int i = 0; i < LANES; i += 4) {
    const Vec a = interleave<1, false>(rows[i], rows[i + 1]), b = interleave<1, true>(rows[i], rows[i + 1]);
    const Vec c = interleave<1, false>(rows[i + 2], rows[i + 3]), d = interleave<1, true>(rows[i + 2], rows[i + 3]);
    rows[i] = interleave<2, false>(a, c);
    rows[i + 1] = interleave<2, true>(a, c);
    rows[i + 2] = interleave<2, false>(b, d);
    rows[i + 3] = interleave<2, true>(b, d);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
#if RDFA_LANES == 16
    const Vec a = every_second<0>(rows[i], rows[i + 4]), b = every_second<1>(rows[i], rows[i + 4]);
    const Vec c = every_second<0>(rows[i + 8], rows[i + 12]), d = every_second<1>(rows[i + 8], rows[i + 12]);
    rows[i] = every_second<0>(a, c);
    rows[i + 4] = every_second<0>(b, d);
    rows[i + 8] = every_second<1>(a, c);
    rows[i + 12] = every_second<1>(b, d);
#elif RDFA_LANES == 8
    const Vec a = rows[i], b = rows[i + 4];
    rows[i] = every_second<0>(a, b);
    rows[i + 4] = every_second<1>(a, b);
#endif
  }
}

// Sums across lanes of several vectors at once. `add_pairs<WIDTH>(x, y)` with WIDTH = 1, 2, 4 in turn, over a tree of
// vectors, leaves LANES / number parts of each sum in the last one, 4 lanes apart; see `first_part`.
template <int WIDTH>
RDFA_INLINE Vec add_pairs(Vec x, Vec y) {
  if constexpr (WIDTH == 4) {
    return every_second<0>(x, y) + every_second<1>(x, y);
  } else {
    return interleave<WIDTH, false>(x, y) + interleave<WIDTH, true>(x, y);
  }
}

RDFA_INLINE int first_part(int i, int number) { return i / 4 * 4 * (LANES / number) + i % 4; }

// 2^(x / STEPS): the nearest integer to x comes from adding 1.5 * 2^23, the rest r in [-0.5, 0.5] from a polynomial.
// With 32 registers, 2^(j/32) comes from a table in two of them and degree 3 suffices, otherwise degree 5. Degree 2
// with the table is 7 % faster, but its error is the same at every step of a slow decay and adds up to 1e-6.
constexpr float ROUND = 12582912.0f;
#if RDFA_LANES == 16
constexpr int STEPS = 32;
#else
constexpr int STEPS = 1;
#endif
constexpr float EXP_SCALE = 1.44269504088896340736f * STEPS;  // exp(x) = exp2_steps(EXP_SCALE * x)
constexpr float EXP_LOW = -126.0f * STEPS, EXP_HIGH = 128.0f * STEPS;
constexpr float EXP_SAFE = 120.0f * STEPS;  // |x| up to here needs no clamping

#if RDFA_LANES == 16
// bits(2^(j/32)) - (j << 18), so that adding (integer << 18) leaves the whole exponent in place.
alignas(64) static const uint32_t EXP_TABLE[32] = {
  0x3f800000, 0x3f7ecd87, 0x3f7daac3, 0x3f7c980f, 0x3f7b95c2, 0x3f7aa43a, 0x3f79c3d3, 0x3f78f4f0,
  0x3f7837f0, 0x3f778d3a, 0x3f76f532, 0x3f767043, 0x3f75fed7, 0x3f75a15b, 0x3f75583f, 0x3f7523f6,
  0x3f7504f3, 0x3f74fbaf, 0x3f7508a4, 0x3f752c4d, 0x3f75672a, 0x3f75b9be, 0x3f76248c, 0x3f76a81e,
  0x3f7744fd, 0x3f77fbb8, 0x3f78ccdf, 0x3f79b907, 0x3f7ac0c7, 0x3f7be4ba, 0x3f7d257d, 0x3f7e83b3,
};
#endif

struct Exponential {
#if RDFA_LANES == 16
  __m512i table_low, table_high;
  // Written out: an implicit constructor would not be compiled for the instruction set of the pragma.
  RDFA_MEMBER Exponential()
      : table_low(_mm512_load_si512(EXP_TABLE)), table_high(_mm512_load_si512(EXP_TABLE + 16)) {}
#endif

  // polynomial * 2^(integer / STEPS), where `rounded` = integer + ROUND
  RDFA_MEMBER Vec scale(Vec rounded, Vec polynomial) const {
#if RDFA_LANES == 16
    const __m512i entry = _mm512_permutex2var_epi32(table_low, reinterpret_cast<__m512i>(rounded), table_high);
    return from_bits(reinterpret_cast<IntVec>(entry) + (bits(rounded) << 18)) * polynomial;
#else
    return from_bits(bits(polynomial) + (bits(rounded) << 23));
#endif
  }

  // 2^(x / STEPS). Without CLAMP x must lie within +-EXP_SAFE; with it results stop at 2^-126 below and are inf above.
  template <bool CLAMP>
  RDFA_MEMBER Vec exp2_steps(Vec x) const {
    if (CLAMP) x = min(splat(EXP_HIGH), max(splat(EXP_LOW), x));
    const Vec rounded = x + splat(ROUND);
    const Vec r = x - (rounded - splat(ROUND));
#if RDFA_LANES == 16
    Vec p = fma(r, splat(1.69385e-6f), splat(2.3459620e-4f));
    p = fma(r, p, splat(2.16608494e-2f));
    return scale(rounded, fma(r, p, splat(1.0f)));
#else
    Vec p = fma(r, splat(1.32647e-3f), splat(9.67151e-3f));
    p = fma(r, p, splat(5.550734e-2f));
    p = fma(r, p, splat(0.24022242f));
    p = fma(r, p, splat(0.69314698f));
    return scale(rounded, fma(r, p, splat(1.0f)));
#endif
  }

  // e^x for -87 <= x <= 88 and as at these ends beyond. The argument is reduced in two parts: relative error 1e-7 for
  // every x, where EXP_SCALE * x would lose |x| ulps.
  // It stops at 2^-126 and just below 2^128, where a last bit above 1 in the polynomial would turn infinity into NaN.
  RDFA_MEMBER Vec exp(Vec x) const {
    constexpr float HIGH = 0.693359375f / STEPS, LOW = -2.12194440e-4f / STEPS;
    x = min(splat(88.72f), max(splat(EXP_LOW / EXP_SCALE), x));
    const Vec rounded = x * splat(EXP_SCALE) + splat(ROUND);
    const Vec integer = rounded - splat(ROUND);
    const Vec r = fma(integer, splat(-LOW), fma(integer, splat(-HIGH), x));
#if RDFA_LANES == 16
    return scale(rounded, fma(r, fma(r, splat(0.5000046f), splat(1.00001466f)), splat(1.0f)));
#else
    Vec p = fma(r, splat(8.29031317e-3f), splat(4.18979384e-2f));
    p = fma(r, p, splat(0.16667636f));
    p = fma(r, p, splat(0.49999149f));
    p = fma(r, p, splat(0.99999971f));
    return scale(rounded, fma(r, p, splat(1.0f)));
#endif
  }
};

// log(1 + e^x) = max(x, 0) + 2 atanh(e / (2 + e)) with e = exp(-|x|): small results keep their relative accuracy.
struct Softplus {
  Vec value, slope;
};
RDFA_INLINE Vec softplus_from(Vec x, Vec e) {
  const Vec s = e / (e + splat(2.0f)), q = s * s;
  Vec p = fma(q, splat(0.14012232f), splat(0.1399957f));
  p = fma(q, p, splat(0.2001085f));
  p = fma(q, p, splat(0.33333207f));
  p = fma(q, p, splat(1.0f));
  return fma(s + s, p, max(splat(0.0f), x));
}
RDFA_INLINE Vec softplus(const Exponential& e, Vec x) { return softplus_from(x, e.exp(-abs(x))); }
RDFA_INLINE Softplus softplus_with_slope(const Exponential& exponential, Vec x) {
  const Vec e = exponential.exp(-abs(x));
  return {softplus_from(x, e), (x < 0.0f ? e : splat(1.0f)) / (splat(1.0f) + e)};
}
RDFA_INLINE Vec sigmoid(const Exponential& e, Vec x) { return splat(1.0f) / (splat(1.0f) + e.exp(-x)); }

}  // namespace RDFA_ISA
}  // namespace rdfa
