// Decoding of a detector's outputs and one-dimensional non-maximum suppression, all classes at once. No framework.
// The meaning of everything here is that of ops/nms/reference.py, which the tests compare with.
#pragma once

#include <cstdint>
#include <vector>

namespace rdfa::nms {

struct Detection {
  float left, right, score;
  int64_t label;
};
using Detections = std::vector<Detection>;

// One video's outputs over P points and C classes, contiguous.
struct Outputs {
  int64_t P, C;
  const float* logits;    // [P][C]
  const float* offsets;   // [P][2], in strides
  const uint8_t* mask;    // [P]
  const float* points;    // [P][4]: t, range low, range high, stride
};

struct DecodeSettings {
  float score_threshold, duration_threshold;
  int64_t topk;
};

enum class Method : int64_t { none = 0, soft = 1, hard = 2 };

struct NmsSettings {
  Method method;
  bool multiclass;
  float iou_threshold, min_score;
  int64_t max_detections;
  double sigma;
  float voting_threshold;
};

// Candidates on the feature grid: level by level, the best first, equal scores in the order of their index.
Detections decode(const Outputs&, const DecodeSettings&);

// Candidates that are not finite or end before they start are left out, whatever the method.
Detections suppress(const Detections& candidates, const NmsSettings&);

}  // namespace rdfa::nms
