// Only the logits that survive become scores: the score being a monotonous function of the logit, each comparison of
// scores is replaced by one of logits with the least logit that passes it, which bisection finds exactly.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "nms/nms.h"

namespace rdfa::nms {
namespace {

float score_of(float logit) { return static_cast<float>(1.0 / (1.0 + std::exp(-static_cast<double>(logit)))); }

// Floats as unsigned integers of the same order.
uint32_t to_key(float value) {
  uint32_t raw;
  std::memcpy(&raw, &value, 4);
  return raw & 0x80000000u ? ~raw : raw | 0x80000000u;
}

float from_key(uint32_t key) {
  const uint32_t raw = key & 0x80000000u ? key & 0x7fffffffu : ~key;
  float value;
  std::memcpy(&value, &raw, 4);
  return value;
}

// The least logit whose score satisfies a condition that holds for all larger ones; NaN, which compares false with
// everything, when none does.
template <typename Condition>
float least_logit(const Condition& condition) {
  uint32_t low = to_key(-INFINITY), high = to_key(INFINITY);
  if (!condition(score_of(INFINITY))) return NAN;
  while (low < high) {
    const uint32_t middle = low + (high - low) / 2;
    if (condition(score_of(from_key(middle)))) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return from_key(low);
}

// The k-th largest of `keys` (k >= 1): a histogram of the bits in which they differ narrows the search to one bucket.
uint32_t kth_largest(const uint32_t* keys, int64_t count, int64_t k, std::vector<uint32_t>& bucket_keys) {
  constexpr int BITS = 11;
  const auto [least, greatest] = std::minmax_element(keys, keys + count);
  const uint32_t origin = *least;
  const int shift = std::max(static_cast<int>(std::bit_width(*greatest - origin)) - BITS, 0);
  int32_t counts[1 << BITS] = {};
  for (int64_t i = 0; i < count; ++i) ++counts[(keys[i] - origin) >> shift];
  uint32_t bucket = (*greatest - origin) >> shift;
  while (counts[bucket] < k) k -= counts[bucket--];
  bucket_keys.clear();
  for (int64_t i = 0; i < count; ++i) {
    if ((keys[i] - origin) >> shift == bucket) bucket_keys.push_back(keys[i]);
  }
  std::nth_element(bucket_keys.begin(), bucket_keys.begin() + (k - 1), bucket_keys.end(), std::greater<>());
  return bucket_keys[k - 1];
}

constexpr int32_t BLOCK = 32;

typedef float Floats __attribute__((vector_size(16), may_alias, aligned(4)));
typedef uint32_t Bits __attribute__((vector_size(16)));

// Bit k says whether logits[k] passes, for the next BLOCK. Compilers leave the plain loop with a jump per logit.
uint32_t passing_bits(const float* logits, float threshold) {
  Bits passing{};
  for (uint32_t k = 0; k < BLOCK; k += 4) {
    const Bits passes = reinterpret_cast<Bits>(*reinterpret_cast<const Floats*>(logits + k) >= threshold);
    passing |= passes & (Bits{1, 2, 4, 8} << k);
  }
  return passing[0] | passing[1] | passing[2] | passing[3];
}

struct Candidate {
  float score;
  int32_t index;
};

// The `topk` best of the logits offered since `start`, by score, of equal scores the first ones; in the order offered.
// Whenever twice as many have come the rest is dropped, and from then on a logit must beat the worst that is left.
class Shortlist {
 public:
  Shortlist(int64_t topk, int64_t most) : topk_(topk), keys_(std::min(2 * topk, most) + BLOCK), indices_(keys_.size()) {}

  void start(float threshold) {
    threshold_ = threshold;
    count_ = 0;
  }

  // logits[from] to logits[to - 1], which are remembered by their index.
  void offer(const float* logits, int32_t from, int32_t to) {
    for (; from + BLOCK <= to; from += BLOCK) take(logits, from, passing_bits(logits + from, threshold_));
    for (; from < to; ++from) take(logits, from, logits[from] >= threshold_);
  }

  void finish(std::vector<Candidate>& candidates) {
    if (count_ > topk_) prune();
    candidates.clear();
    for (int64_t i = 0; i < count_; ++i) candidates.push_back({score_of(from_key(keys_[i])), indices_[i]});
  }

 private:
  void take(const float* logits, int32_t from, uint32_t passing) {
    for (; passing; passing &= passing - 1) {
      const int32_t i = from + std::countr_zero(passing);
      keys_[count_] = to_key(logits[i]);
      indices_[count_++] = i;
    }
    if (count_ + BLOCK > static_cast<int64_t>(keys_.size())) prune();
  }

  void prune() {
    const float kth = score_of(from_key(kth_largest(keys_.data(), count_, topk_, bucket_keys_)));
    const uint32_t tied = to_key(least_logit([&](float s) { return s >= kth; }));
    threshold_ = least_logit([&](float s) { return s > kth; });
    const uint32_t better = to_key(threshold_);  // greater than all when there is none: that of NaN
    int64_t kept = 0, ties = topk_ - std::count_if(keys_.begin(), keys_.begin() + count_,
                                                   [&](uint32_t key) { return key >= better; });
    for (int64_t i = 0; i < count_; ++i) {
      keys_[kept] = keys_[i];
      indices_[kept] = indices_[i];
      kept += keys_[i] >= better || (keys_[i] >= tied && ties-- > 0);
    }
    count_ = kept;
  }

  const int64_t topk_;
  std::vector<uint32_t> keys_, bucket_keys_;
  std::vector<int32_t> indices_;
  float threshold_ = 0.0f;
  int64_t count_ = 0;
};

// Stable, best first: three counting passes over the score's bits (a score is positive, so they are ordered like it).
void sort_by_score(std::vector<Candidate>& items, std::vector<Candidate>& scratch) {
  scratch.resize(items.size());
  for (int shift = 0; shift < 33; shift += 11) {
    uint32_t start[2048] = {};
    const auto digit = [shift](const Candidate& c) { return (~to_key(c.score) >> shift) & 2047u; };
    for (const Candidate& c : items) ++start[digit(c)];
    uint32_t sum = 0;
    for (uint32_t& s : start) {
      const uint32_t count = s;
      s = sum;
      sum += count;
    }
    for (const Candidate& c : items) scratch[start[digit(c)]++] = c;
    items.swap(scratch);
  }
}

}  // namespace

Detections decode(const Outputs& out, const DecodeSettings& settings) {
  const float threshold = least_logit([&](float s) { return s > settings.score_threshold; });
  const int32_t classes = static_cast<int32_t>(out.C);
  Detections detections;
  Shortlist shortlist(std::min(settings.topk, out.P * out.C), out.P * out.C);
  std::vector<Candidate> level, scratch;
  for (int64_t first = 0, last; first < out.P; first = last) {
    const float stride = out.points[4 * first + 3];
    for (last = first + 1; last < out.P && out.points[4 * last + 3] == stride;) ++last;

    shortlist.start(threshold);
    for (int64_t p = first, end; p < last; p = end) {  // a run of valid points, whose logits lie together
      for (end = p + 1; end < last && out.mask[end] == out.mask[p];) ++end;
      if (!out.mask[p]) continue;
      shortlist.offer(out.logits + first * out.C, static_cast<int32_t>((p - first) * out.C),
                      static_cast<int32_t>((end - first) * out.C));
    }
    shortlist.finish(level);
    sort_by_score(level, scratch);

    for (const Candidate& c : level) {
      const int64_t p = first + c.index / classes;
      const float t = out.points[4 * p];
      const float before = out.offsets[2 * p] * stride, after = out.offsets[2 * p + 1] * stride;
      const float left = t - before, right = t + after;
      if (right - left > settings.duration_threshold) detections.push_back({left, right, c.score, c.index % classes});
    }
  }
  return detections;
}

}  // namespace rdfa::nms
