// Lanes are channels. A convolution walks along time with the last steps in registers, so that each input is read once
// for all branches. Included after kernel.inl.
#include "causal_conv1d/rows.h"

namespace rdfa {
namespace RDFA_ISA {
namespace {

using rows::Average;
using rows::Convolution;
constexpr int STEPS_AHEAD = 8;  // rows lie too far apart for the processor to fetch them by itself

template <bool BF16>
RDFA_INLINE Vec load_channels(const void* base, int64_t at, int64_t count) {
  if (count >= LANES) return load_any(base, at, BF16);
  float line[LANES];
  load_line<BF16>(line, base, at, count, LANES);
  return load(line);
}

// `steps` steps of up to LANES channels from step t on, `sign` being the direction of time.
template <int BRANCHES, bool BF16>
void convolve_columns(const Convolution& c, int64_t s, int64_t direction, int64_t t, int64_t steps, int64_t d) {
  const Exponential exponential;
  constexpr int64_t size = BF16 ? 2 : 4;
  const int64_t sign = direction ? -1 : 1, left = c.channels - d;
  const int64_t base = s * c.x_s + direction * c.x_r + d, branch = c.length * c.channels;
  const int64_t to = (s * 2 + direction) * c.branches * branch + d;
  Vec weight[BRANCHES][rows::TAPS], bias[BRANCHES];
  for (int k = 0; k < BRANCHES; ++k) {
    const float* taps = c.taps + k * (rows::TAPS + 1) * c.channels + d;
    for (int j = 0; j < rows::TAPS; ++j) weight[k][j] = load_channels<false>(taps, j * c.channels, left);
    bias[k] = load_channels<false>(taps, rows::TAPS * c.channels, left);
  }
  Vec x[rows::TAPS];
  for (int j = 1; j < rows::TAPS; ++j) {
    const int64_t before = t - sign * (rows::TAPS - j);
    x[j] = before < 0 || before >= c.end(s) ? Vec{} : load_channels<BF16>(c.x, base + before * c.x_l, left);
  }
  for (int64_t i = 0; i < steps; ++i, t += sign) {
    for (int j = 1; j < rows::TAPS; ++j) x[j - 1] = x[j];
    const int64_t at = base + t * c.x_l;
    __builtin_prefetch(static_cast<const char*>(c.x) + (at + sign * STEPS_AHEAD * c.x_l) * size);
    x[rows::TAPS - 1] = load_channels<BF16>(c.x, at, left);
#pragma GCC unroll 3
    for (int k = 0; k < BRANCHES; ++k) {
      Vec sum = bias[k];
#pragma GCC unroll 4
      for (int j = 0; j < rows::TAPS; ++j) sum = fma(weight[k][j], x[j], sum);
      store_part<BF16>(c.u, to + k * branch + t * c.channels, sum * sigmoid(exponential, sum), left);
    }
  }
}

template <int BRANCHES>
void convolve_task(const Convolution& c, int64_t task) {
  const int64_t groups = (c.channels + rows::CHANNELS - 1) / rows::CHANNELS;
  const int64_t parts = (c.length + rows::STEPS - 1) / rows::STEPS;
  const int64_t d0 = task % groups * rows::CHANNELS, t0 = task / groups % parts * rows::STEPS;
  const int64_t direction = task / groups / parts % 2, s = task / groups / parts / 2;
  const int64_t t1 = t0 + rows::STEPS < c.end(s) ? t0 + rows::STEPS : c.end(s);
  const int64_t d1 = d0 + rows::CHANNELS < c.channels ? d0 + rows::CHANNELS : c.channels;
  for (int64_t d = d0; d < d1; d += LANES) {
    const int64_t t = direction ? t1 - 1 : t0;
    (c.bf16 ? convolve_columns<BRANCHES, true> : convolve_columns<BRANCHES, false>)(c, s, direction, t, t1 - t0, d);
  }
}

template <bool BF16>
void average_bin(const Average& a, int64_t s, int64_t bin) {
  const int64_t first = bin * a.length / a.bins, last = ((bin + 1) * a.length + a.bins - 1) / a.bins;
  const Vec share = splat(1.0f / static_cast<float>(last - first));
  for (int64_t d = 0; d < a.channels; d += LANES) {
    Vec sum = {};
    for (int64_t l = first; l < last; ++l) {
      sum = sum + load_channels<BF16>(a.x, s * a.x_s + l * a.x_l + d, a.channels - d);
    }
    store_part<BF16>(a.y, (s * a.bins + bin) * a.channels + d, sum * share, a.channels - d);
  }
}

}  // namespace

void convolve_rows(const Convolution& c, int64_t first_task, int64_t step) {
  const auto run = c.branches == 1 ? convolve_task<1> : c.branches == 2 ? convolve_task<2> : convolve_task<3>;
  for (int64_t task = first_task; task < c.tasks(); task += step) run(c, task);
}

void average_rows(const Average& a, int64_t first_task, int64_t last_task) {
  for (int64_t task = first_task; task < last_task; ++task) {
    (a.bf16 ? average_bin<true> : average_bin<false>)(a, task / a.bins, task % a.bins);
  }
}

}  // namespace RDFA_ISA
}  // namespace rdfa
