// Rows before and after a product: copied and normalised on the way in, finished on the way out. Part of kernel.inl.
#pragma once

#include "common/simd.h"
#include "linear/kernel.h"

namespace rdfa {
namespace RDFA_ISA {
namespace {

using linear::CHUNK;
using linear::HALF_PANEL;
using linear::PANEL;
using linear::Panel;
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

}  // namespace
}  // namespace RDFA_ISA
}  // namespace rdfa
