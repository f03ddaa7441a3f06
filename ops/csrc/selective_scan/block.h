// What the forward and the backward share: walking over the blocks of a task, and step sizes.
#pragma once

#include "selective_scan/tiles.h"

namespace rdfa {
namespace RDFA_ISA {

constexpr int GROUP = RDFA_SCAN_GROUP;                    // states kept in registers by the forward
constexpr int BACKWARD_GROUP = RDFA_SCAN_BACKWARD_GROUP;  // and by the backward, which needs two vectors for each

RDFA_INLINE int64_t padded_states(const ScanArgs& args) {
  constexpr int64_t multiple = LANES > GROUP ? LANES : GROUP;
  return (args.states + multiple - 1) / multiple * multiple;
}

// Consecutive blocks of one group.
struct Run {
  int64_t first, blocks, channel0, end;
  Run(const Partition& part, int64_t first, int64_t blocks)
      : first(first), blocks(blocks), channel0(part.channel(first)), end(part.end_of_group(first)) {}
  int64_t channel(int64_t i) const { return channel0 + i * LANES; }
  int width(int64_t i) const { return end - channel(i) < LANES ? static_cast<int>(end - channel(i)) : LANES; }
};

// exp(dt A) is computed as 2^(dt A' / STEPS), A' = EXP_SCALE A. Fills A' of a block and returns the |dt| up to which no
// clamping is needed.
RDFA_INLINE Vec scaled_decay(const ScanArgs& args, int64_t padded, int64_t channel, int width, float* scaled) {
  load_states(args.A, 0, args.states, padded, channel, width, scaled);
  Vec largest = {};
  for (int64_t n = 0; n < padded; ++n) {
    const Vec a = load(scaled + n * LANES) * EXP_SCALE;
    store(scaled + n * LANES, a);
    largest = max(largest, abs(a));
  }
  return EXP_SAFE / largest;
}

// Fetches, one line per step of the recurrence, the rows that the next block will read or write. Columns of one vector
// whose rows lie kilobytes apart are invisible to the hardware's prefetchers.
class Prefetch {
 public:
  void add(const Matrix& m, int64_t b, int64_t channel, int64_t t0) {
    if (m.data == nullptr) return;
    const int64_t size = m.bf16 ? 2 : 4;
    const int64_t across = m.stride_r == 1 ? m.stride_t : m.stride_r;
    const int64_t backwards = m.stride_t < 0 && m.stride_r != 1 ? m.stride_t * (TILE - 1) : 0;
    line_[used_] =
        static_cast<const char*>(m.data) + size * (b * m.stride_b + channel * m.stride_r + t0 * m.stride_t + backwards);
    step_[used_++] = size * across;
  }
  template <int COUNT>
  RDFA_MEMBER void fetch() {
#pragma GCC unroll 8
    for (int i = 0; i < COUNT; ++i) {
      __builtin_prefetch(line_[i]);
      line_[i] += step_[i];
    }
  }
  void fill(int count) {  // a missing array repeats the first one
    for (; used_ < count; ++used_) {
      line_[used_] = line_[0];
      step_[used_] = step_[0];
    }
  }

 private:
  const char* line_[8];
  int64_t step_[8];
  int used_ = 0;
};

}  // namespace RDFA_ISA
}  // namespace rdfa
