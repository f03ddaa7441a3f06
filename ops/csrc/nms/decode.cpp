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

// The k-th largest of `keys` (k >= 1): a histogram of the leading bits narrows the search to one bucket.
uint32_t kth_largest(const std::vector<uint32_t>& keys, int64_t k, std::vector<uint32_t>& bucket_keys) {
  constexpr int SHIFT = 20;
  std::vector<int32_t> counts(1 << (32 - SHIFT), 0);
  for (uint32_t key : keys) ++counts[key >> SHIFT];
  size_t bucket = counts.size() - 1;
  while (counts[bucket] < k) k -= counts[bucket--];
  bucket_keys.clear();
  for (uint32_t key : keys) {
    if (key >> SHIFT == bucket) bucket_keys.push_back(key);
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
  Detections detections;
  std::vector<uint32_t> keys, bucket_keys;
  std::vector<int32_t> indices;
  std::vector<Candidate> level, scratch;
  for (int64_t first = 0, last; first < out.P; first = last) {
    const float stride = out.points[4 * first + 3];
    for (last = first + 1; last < out.P && out.points[4 * last + 3] == stride;) ++last;

    const float* logits = out.logits + first * out.C;
    size_t count = 0;
    const auto take = [&](int32_t from, uint32_t passing) {
      if (keys.size() < count + BLOCK) {
        keys.resize(2 * count + BLOCK);
        indices.resize(keys.size());
      }
      for (; passing; passing &= passing - 1) {
        const int32_t i = from + std::countr_zero(passing);
        keys[count] = to_key(logits[i]);
        indices[count++] = i;
      }
    };
    for (int64_t p = first, end; p < last; p = end) {  // a run of valid points, whose logits lie together
      for (end = p + 1; end < last && out.mask[end] == out.mask[p];) ++end;
      if (!out.mask[p]) continue;
      int32_t i = static_cast<int32_t>((p - first) * out.C);
      const int32_t to = static_cast<int32_t>((end - first) * out.C);
      for (; i + BLOCK <= to; i += BLOCK) take(i, passing_bits(logits + i, threshold));
      for (; i < to; ++i) take(i, logits[i] >= threshold);
    }
    keys.resize(count);

    // Above `sure` everything is kept; of the candidates that tie with the k-th, the first `ties`.
    float sure = -INFINITY, tied = -INFINITY;
    int64_t ties = 0;
    if (static_cast<int64_t>(count) > settings.topk) {
      const float kth = score_of(from_key(kth_largest(keys, settings.topk, bucket_keys)));
      tied = least_logit([&](float s) { return s >= kth; });
      sure = least_logit([&](float s) { return s > kth; });
      const uint32_t sure_key = to_key(sure);
      ties = settings.topk;
      if (sure == sure) ties -= std::count_if(keys.begin(), keys.end(), [&](uint32_t k) { return k >= sure_key; });
    }
    level.clear();
    for (size_t i = 0; i < count; ++i) {
      const float logit = from_key(keys[i]);
      if (logit >= sure || (logit >= tied && ties-- > 0)) level.push_back({score_of(logit), indices[i]});
    }
    sort_by_score(level, scratch);
    detections.reserve(detections.size() + level.size());

    for (const Candidate& c : level) {
      const int64_t p = first + c.index / out.C;
      const float t = out.points[4 * p];
      const float before = out.offsets[2 * p] * stride, after = out.offsets[2 * p + 1] * stride;
      const float left = t - before, right = t + after;
      if (right - left > settings.duration_threshold) detections.push_back({left, right, c.score, c.index % out.C});
    }
  }
  return detections;
}

}  // namespace rdfa::nms
