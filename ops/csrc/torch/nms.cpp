// rdfa::decode_nms and rdfa::nms for CPU tensors.
#include "nms/nms.h"

#include <tuple>

#include "torch/common.h"

namespace rdfa {
namespace {

using nms::Detections;
using nms::Method;
using nms::NmsSettings;
using Triple = std::tuple<Tensor, Tensor, Tensor>;

template <typename T>
const T* data(const Tensor& contiguous) {
  return static_cast<const T*>(contiguous.const_data_ptr());
}

NmsSettings make_settings(int64_t method, bool multiclass, double iou_threshold, double min_score, int64_t max_seg_num,
                          double sigma, double voting_thresh) {
  STD_TORCH_CHECK(method >= 0 && method <= 2, "method = ", method, ": expected 0 (none), 1 (soft) or 2 (hard)");
  STD_TORCH_CHECK(max_seg_num >= 1, "max_seg_num = ", max_seg_num, ": expected at least 1");
  STD_TORCH_CHECK(sigma > 0, "sigma = ", sigma, ": expected more than 0");
  return {static_cast<Method>(method),   multiclass,  static_cast<float>(iou_threshold),
          static_cast<float>(min_score), max_seg_num, sigma,
          static_cast<float>(voting_thresh)};
}

Triple to_tensors(const Detections& d) {
  const int64_t n = static_cast<int64_t>(d.size());
  const Tensor segments = allocate({n, 2}, ScalarType::Float), scores = allocate({n}, ScalarType::Float);
  const Tensor labels = allocate({n}, ScalarType::Long);
  float* pairs = static_cast<float*>(segments.mutable_data_ptr());
  float* values = static_cast<float*>(scores.mutable_data_ptr());
  int64_t* ids = static_cast<int64_t*>(labels.mutable_data_ptr());
  for (int64_t i = 0; i < n; ++i) {
    pairs[2 * i] = d[i].left;
    pairs[2 * i + 1] = d[i].right;
    values[i] = d[i].score;
    ids[i] = d[i].label;
  }
  return {segments, scores, labels};
}

Triple nms_op(const Tensor& segments, const Tensor& scores, const Tensor& labels, int64_t method, bool multiclass,
              double iou_threshold, double min_score, int64_t max_seg_num, double sigma, double voting_thresh) {
  const NmsSettings settings =
      make_settings(method, multiclass, iou_threshold, min_score, max_seg_num, sigma, voting_thresh);
  STD_TORCH_CHECK(scores.dim() == 1, "scores has shape ", shape_string(scores), ", expected [N]");
  const int64_t n = scores.size(0);
  check_shape("segments", segments, {n, 2});
  check_shape("labels", labels, {n});
  check_dtype("segments", segments, ScalarType::Float);
  check_dtype("scores", scores, ScalarType::Float);
  check_dtype("labels", labels, ScalarType::Long);
  const Tensor s = torch::stable::contiguous(segments), p = torch::stable::contiguous(scores),
               c = torch::stable::contiguous(labels);
  const float *pairs = data<float>(s), *values = data<float>(p);
  const int64_t* ids = data<int64_t>(c);
  Detections candidates;
  candidates.reserve(n);
  for (int64_t i = 0; i < n; ++i) candidates.push_back({pairs[2 * i], pairs[2 * i + 1], values[i], ids[i]});
  return to_tensors(nms::suppress(candidates, settings));
}

Triple decode_nms(const Tensor& cls_logits, const Tensor& offsets, const Tensor& point_mask, const Tensor& points,
                  double pre_nms_thresh, int64_t pre_nms_topk, double duration_thresh, int64_t method, bool multiclass,
                  double iou_threshold, double min_score, int64_t max_seg_num, double sigma, double voting_thresh) {
  const NmsSettings settings =
      make_settings(method, multiclass, iou_threshold, min_score, max_seg_num, sigma, voting_thresh);
  STD_TORCH_CHECK(pre_nms_topk >= 1, "pre_nms_topk = ", pre_nms_topk, ": expected at least 1");
  STD_TORCH_CHECK(cls_logits.dim() == 2, "cls_logits has shape ", shape_string(cls_logits), ", expected [P, C]");
  const int64_t P = cls_logits.size(0), C = cls_logits.size(1);
  STD_TORCH_CHECK(P * C <= INT32_MAX, "cls_logits has ", P * C, " elements: more than 2^31 - 1");
  check_shape("offsets", offsets, {P, 2});
  check_shape("point_mask", point_mask, {P});
  check_shape("points", points, {P, 4});
  check_dtype("cls_logits", cls_logits, ScalarType::Float);
  check_dtype("offsets", offsets, ScalarType::Float);
  check_dtype("point_mask", point_mask, ScalarType::Bool);
  check_dtype("points", points, ScalarType::Float);
  const Tensor l = torch::stable::contiguous(cls_logits), o = torch::stable::contiguous(offsets),
               m = torch::stable::contiguous(point_mask), t = torch::stable::contiguous(points);
  const nms::Outputs outputs{P, C, data<float>(l), data<float>(o), data<uint8_t>(m), data<float>(t)};
  const nms::DecodeSettings decoding{static_cast<float>(pre_nms_thresh), static_cast<float>(duration_thresh),
                                     pre_nms_topk};
  return to_tensors(nms::suppress(nms::decode(outputs, decoding), settings));
}

}  // namespace
}  // namespace rdfa

STABLE_TORCH_LIBRARY_FRAGMENT(rdfa, m) {
  m.def(
      "nms(Tensor segments, Tensor scores, Tensor labels, int method, bool multiclass, float iou_threshold,"
      " float min_score, int max_seg_num, float sigma, float voting_thresh) -> (Tensor, Tensor, Tensor)");
  m.def(
      "decode_nms(Tensor cls_logits, Tensor offsets, Tensor point_mask, Tensor points, float pre_nms_thresh,"
      " int pre_nms_topk, float duration_thresh, int method, bool multiclass, float iou_threshold, float min_score,"
      " int max_seg_num, float sigma, float voting_thresh) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(rdfa, CPU, m) {
  m.impl("nms", TORCH_BOX(&rdfa::nms_op));
  m.impl("decode_nms", TORCH_BOX(&rdfa::decode_nms));
}
