// Scores within a class only fall while its detections are selected, and of all classes together only `max_detections`
// are wanted. So the classes take turns: a heap holds the best remaining score of each, and every selection touches one
// class. That gives what "each class on its own, then a stable sort, then the cap" gives, for a fraction of the work.
#include <algorithm>
#include <cmath>
#include <queue>

#include "nms/nms.h"

namespace rdfa::nms {
namespace {

// The candidates of one class (or all of them), as parallel arrays; [start, end) remain.
struct Group {
  std::vector<float> left, right, area, score, overlap;
  std::vector<int32_t> candidate;
  size_t start = 0, end = 0, best = 0;

  void resize(size_t n) {
    for (std::vector<float>* array : {&left, &right, &area, &score, &overlap}) array->resize(n);
    candidate.resize(n);
  }

  void add(const Detections& all, int32_t i) {
    left[end] = all[i].left;
    right[end] = all[i].right;
    area[end] = all[i].right - all[i].left + 1e-6f;
    score[end] = all[i].score;
    candidate[end++] = i;
  }

  bool empty() const { return start == end; }

  void move(size_t from, size_t to) {
    left[to] = left[from], right[to] = right[from], area[to] = area[from], score[to] = score[from];
    candidate[to] = candidate[from];
  }

  void swap(size_t i, size_t j) {
    std::swap(left[i], left[j]), std::swap(right[i], right[j]), std::swap(area[i], area[j]);
    std::swap(score[i], score[j]), std::swap(candidate[i], candidate[j]);
  }

  // Sets `best` to the first of the greatest remaining scores.
  void find_best() {
    constexpr size_t LANES = 16;
    float top[LANES];
    std::fill(top, top + LANES, -INFINITY);
    size_t i = start;
    for (; i + LANES <= end; i += LANES) {
      for (size_t k = 0; k < LANES; ++k) top[k] = score[i + k] > top[k] ? score[i + k] : top[k];
    }
    for (; i < end; ++i) top[0] = std::max(top[0], score[i]);
    const float greatest = *std::max_element(top, top + LANES);
    for (best = start; best < end && score[best] != greatest;) ++best;
  }

  // Intersection over union of segment i with all that remain.
  void find_overlaps(size_t i) {
    const float l = left[i], r = right[i], a = area[i];
    for (size_t j = start; j < end; ++j) {
      const float shared = std::min(r, right[j]) - std::max(l, left[j]);
      const float inter = shared > 0.0f ? shared : 0.0f;
      overlap[j] = inter / (a + area[j] - inter);
    }
  }

  // Gaussian soft NMS. Selected and dropped candidates change places with the first and the last one as published:
  // among equal scores, later selections depend on it.
  void select_soft(const NmsSettings& settings) {
    swap(start, best);
    const size_t selected = start++;
    find_overlaps(selected);
    bool drop = selected == 0;  // later on, only what falls can have become too low
    for (size_t j = start; j < end; ++j) {
      if (overlap[j] != 0.0f) {
        const double iou = overlap[j];
        score[j] *= static_cast<float>(std::exp(-(iou * iou) / settings.sigma));
        drop |= score[j] < settings.min_score;
      }
    }
    for (size_t j = start; drop && j < end;) {
      if (score[j] < settings.min_score) {
        move(--end, j);
      } else {
        ++j;
      }
    }
    find_best();
  }

  void select_hard(const NmsSettings& settings) {
    find_overlaps(best);
    size_t kept = start;
    for (size_t j = start; j < end; ++j) {
      if (j == best || overlap[j] >= settings.iou_threshold) continue;
      if (kept != j) move(j, kept);
      ++kept;
    }
    end = kept;
    find_best();
  }
};

bool usable(const Detections& all, size_t i) {
  const float length = all[i].right - all[i].left;
  return std::isfinite(all[i].score) && std::isfinite(all[i].left) && std::isfinite(length) && length >= 0.0f;
}

// Replaces every label by its rank among the labels that occur; returns how many do.
size_t rank_labels(std::vector<int64_t>& labels) {
  const auto [least, greatest] = std::minmax_element(labels.begin(), labels.end());
  const uint64_t origin = *least, span = static_cast<uint64_t>(*greatest) - origin;
  if (span < 65536) {
    std::vector<int32_t> rank(span + 1, 0);
    for (int64_t label : labels) rank[label - origin] = 1;
    int32_t count = 0;
    for (int32_t& r : rank) {
      const int32_t occurs = r;
      r = count;
      count += occurs;
    }
    for (int64_t& label : labels) label = rank[label - origin];
    return count;
  }
  std::vector<int64_t> sorted = labels;
  std::sort(sorted.begin(), sorted.end());
  sorted.erase(std::unique(sorted.begin(), sorted.end()), sorted.end());
  for (int64_t& label : labels) label = std::lower_bound(sorted.begin(), sorted.end(), label) - sorted.begin();
  return sorted.size();
}

std::vector<Group> make_groups(const Detections& all, const std::vector<int32_t>& used, const NmsSettings& settings) {
  if (used.empty()) return {};
  std::vector<int64_t> group(used.size(), 0);
  if (settings.multiclass) {
    for (size_t k = 0; k < used.size(); ++k) group[k] = all[used[k]].label;
  }
  std::vector<Group> groups(rank_labels(group));
  std::vector<size_t> sizes(groups.size(), 0);
  for (int64_t g : group) ++sizes[g];
  for (size_t g = 0; g < groups.size(); ++g) groups[g].resize(sizes[g]);
  const bool above_min_only = settings.method == Method::hard && settings.min_score > 0.0f;
  for (size_t k = 0; k < used.size(); ++k) {
    if (above_min_only && !(all[used[k]].score > settings.min_score)) continue;
    groups[group[k]].add(all, used[k]);
  }
  return groups;
}

// Replaces each detection by the average of the candidates that overlap it enough, weighted with their scores.
void vote(Detections& detections, const Detections& all, const std::vector<int32_t>& used, float threshold) {
  for (size_t i = 0; i < detections.size(); ++i) {
    const float l = detections[i].left, r = detections[i].right;
    double weight = 0.0, left = 0.0, right = 0.0;
    for (int32_t j : used) {
      const float shared = std::min(r, all[j].right) - std::max(l, all[j].left);
      const float inter = shared > 0.0f ? shared : 0.0f;
      if (inter / ((r - l) + (all[j].right - all[j].left) - inter) >= threshold) {
        weight += all[j].score;
        left += static_cast<double>(all[j].score) * all[j].left;
        right += static_cast<double>(all[j].score) * all[j].right;
      }
    }
    if (weight > 0.0) {
      detections[i].left = static_cast<float>(left / weight);
      detections[i].right = static_cast<float>(right / weight);
    }
  }
}

}  // namespace

Detections suppress(const Detections& all, const NmsSettings& settings) {
  std::vector<int32_t> used;
  used.reserve(all.size());
  for (size_t i = 0; i < all.size(); ++i) {
    if (usable(all, i)) used.push_back(static_cast<int32_t>(i));
  }
  Detections result;
  if (settings.method == Method::none) {
    result.reserve(used.size());
    for (int32_t i : used) result.push_back(all[i]);
    return result;
  }

  std::vector<Group> groups = make_groups(all, used, settings);
  struct Turn {
    float score;
    size_t group;
    bool operator<(const Turn& other) const {
      return score < other.score || (score == other.score && group > other.group);
    }
  };
  std::priority_queue<Turn> turns;
  const auto enter = [&](size_t g) {
    if (!groups[g].empty()) turns.push({groups[g].score[groups[g].best], g});
  };
  for (size_t g = 0; g < groups.size(); ++g) {
    groups[g].find_best();
    enter(g);
  }
  while (!turns.empty() && static_cast<int64_t>(result.size()) < settings.max_detections) {
    const Turn turn = turns.top();
    turns.pop();
    Group& group = groups[turn.group];
    const int32_t i = group.candidate[group.best];
    result.push_back({all[i].left, all[i].right, turn.score, all[i].label});
    if (settings.method == Method::soft) {
      group.select_soft(settings);
    } else {
      group.select_hard(settings);
    }
    enter(turn.group);
  }
  if (!settings.multiclass && settings.voting_threshold > 0.0f) vote(result, all, used, settings.voting_threshold);
  return result;
}

}  // namespace rdfa::nms
