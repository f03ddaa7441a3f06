#include "onnxruntime/node.h"

#include <memory>

namespace rdfa::ort {
namespace {

constexpr const char* NAMES[INPUTS] = {"u", "delta", "A", "B", "C", "D", "z", "delta_bias"};

int64_t attribute(const OrtApi& api, const OrtKernelInfo* info, const char* name) {
  int64_t value = 0;
  check(api, api.KernelInfoGetAttribute_int64(info, name, &value));
  return value;
}

}  // namespace

void check(const OrtApi& api, OrtStatus* status) {
  if (status == nullptr) return;
  const std::string message = api.GetErrorMessage(status);
  api.ReleaseStatus(status);
  throw std::runtime_error(message);
}

std::string text(const Shape& shape) {
  std::string joined;
  for (int64_t size : shape) joined += (joined.empty() ? "[" : ", ") + std::to_string(size);
  return joined + "]";
}

int64_t count(const Shape& shape) {
  int64_t n = 1;
  for (int64_t size : shape) n *= size;
  return n;
}

void* Node::output(const Shape& shape) const {
  OrtValue* value = nullptr;
  check(api, api.KernelContext_GetOutput(context, 0, shape.data(), shape.size(), &value));
  void* data = nullptr;
  check(api, api.GetTensorMutableData(value, &data));
  return data;
}

Tensor::Tensor(const Node& node, Input index, const Shape& expected) : name_(NAMES[index]) {
  const OrtApi& api = node.api;
  size_t inputs = 0;
  check(api, api.KernelContext_GetInputCount(node.context, &inputs));
  if (index >= inputs) return;
  const OrtValue* value = nullptr;
  check(api, api.KernelContext_GetInput(node.context, index, &value));
  if (value == nullptr) return;
  OrtTensorTypeAndShapeInfo* raw = nullptr;
  check(api, api.GetTensorTypeAndShape(value, &raw));
  const auto release = [&api](OrtTensorTypeAndShapeInfo* p) { api.ReleaseTensorTypeAndShapeInfo(p); };
  const std::unique_ptr<OrtTensorTypeAndShapeInfo, decltype(release)> info(raw, release);
  check(api, api.GetTensorElementType(raw, &type));
  size_t rank = 0;
  check(api, api.GetDimensionsCount(raw, &rank));
  shape.resize(rank);
  check(api, api.GetDimensions(raw, shape.data(), rank));
  if (type != FLOAT && type != HALF && type != BFLOAT) refuse("must be float32, float16 or bfloat16");
  if (!expected.empty() && shape != expected) refuse("has shape " + text(shape) + ", expected " + text(expected));
  void* memory = nullptr;
  check(api, api.GetTensorMutableData(const_cast<OrtValue*>(value), &memory));
  data = memory;
}

void Tensor::refuse(const std::string& why) const { throw std::invalid_argument(name_ + (" " + why)); }

Sizes::Sizes(const Tensor& u, const Tensor& A) {
  if (u.shape.size() != 3) u.refuse("has shape " + text(u.shape) + ", expected [B, D, L]");
  batch = u.shape[0], channels = u.shape[1], length = u.shape[2];
  if (A.shape.size() != 2 || A.shape[0] != channels || A.shape[1] < 1 || A.shape[1] > MAX_STATES) {
    A.refuse("has shape " + text(A.shape) + ", expected [" + std::to_string(channels) + ", N] with N from 1 to " +
             std::to_string(MAX_STATES));
  }
  states = A.shape[1];
}

int64_t groups_of(const Tensor& t, const Sizes& s) {
  const int64_t groups = t.shape.size() == 4 ? t.shape[1] : 0;
  if (groups < 1 || s.channels % groups != 0 || t.shape != Shape{s.batch, groups, s.states, s.length}) {
    t.refuse("has shape " + text(t.shape) + ", expected [B, G, N, L] with G a divisor of D, here B = " +
             std::to_string(s.batch) + ", D = " + std::to_string(s.channels) + ", N = " + std::to_string(s.states) +
             ", L = " + std::to_string(s.length));
  }
  return groups;
}

void check_groups(const Tensor& C, int64_t of_B, int64_t of_C) {
  if (of_B != of_C && of_B != 1 && of_C != 1) {
    C.refuse("has " + std::to_string(of_C) + " groups and B has " + std::to_string(of_B) +
             ": expected the same number, or one of them 1");
  }
}

Kernel::Kernel(const OrtApi& api, const OrtKernelInfo* info, Type type)
    : api(api),
      type(type),
      softplus(attribute(api, info, "delta_softplus") != 0),
      reverse(attribute(api, info, "reverse") != 0) {}

}  // namespace rdfa::ort
