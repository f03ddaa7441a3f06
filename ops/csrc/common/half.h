// float16 as bits, to and from float32; rounds to nearest, ties to even.
#pragma once

#include <stdint.h>
#include <string.h>

namespace rdfa {
namespace {

float half_to_float(uint16_t half) {
  // The exponents of the two formats differ by 112; multiplying also makes subnormal numbers right.
  const uint32_t magnitude = static_cast<uint32_t>(half & 0x7fff) << 13;
  float value;
  memcpy(&value, &magnitude, 4);
  value *= 0x1p112f;
  uint32_t bits;
  memcpy(&bits, &value, 4);
  if ((half & 0x7c00) == 0x7c00) bits |= 0x7f800000;  // infinities and NaN
  bits |= static_cast<uint32_t>(half & 0x8000) << 16;
  memcpy(&value, &bits, 4);
  return value;
}

uint16_t float_to_half(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  const uint32_t sign = bits >> 16 & 0x8000;
  bits &= 0x7fffffff;
  uint32_t half;
  if (bits > 0x7f800000) {
    half = 0x7e00;  // NaN
  } else if (bits >= 0x477ff000) {
    half = 0x7c00;  // 65520 and above round to infinity
  } else if (bits < 0x38800000) {
    // Subnormal: the last place of 0.5 is that of the result, so that the sum rounds as it must.
    float sum;
    memcpy(&sum, &bits, 4);
    sum += 0.5f;
    memcpy(&half, &sum, 4);
    half -= 0x3f000000;
  } else {
    half = (bits - 0x38000000 + 0xfff + (bits >> 13 & 1)) >> 13;
  }
  return static_cast<uint16_t>(sign | half);
}

}  // namespace
}  // namespace rdfa
