// A node rdfa::SelectiveScan as ONNX Runtime hands it to a kernel: inputs, attributes, the sizes and their checks.
//
// Letters: B batch, D channels, N states per channel, L time steps, G groups of channels that share B and C.
#pragma once

#include <onnxruntime_c_api.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace rdfa::ort {

// Of the C interface: that of ONNX Runtime 1.21.
constexpr uint32_t API_VERSION = 21;
constexpr int64_t MAX_STATES = 256;

constexpr auto FLOAT = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
constexpr auto HALF = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
constexpr auto BFLOAT = ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16;

using Type = ONNXTensorElementDataType;
using Shape = std::vector<int64_t>;

enum Input : size_t { U, DELTA, A, B, C, D, Z, DELTA_BIAS, INPUTS };

// Throws what a call reported.
void check(const OrtApi& api, OrtStatus* status);

std::string text(const Shape& shape);
int64_t count(const Shape& shape);

struct Node {
  const OrtApi& api;
  OrtKernelContext* context;

  // The memory of the output y, of u's shape.
  void* output(const Shape& shape) const;
};

// An input of the node, wherever it lies: without data where it is absent.
struct Tensor {
  Tensor(const Node& node, Input index, const Shape& expected = {});

  explicit operator bool() const { return data != nullptr; }
  [[noreturn]] void refuse(const std::string& why) const;

  Shape shape;
  const void* data = nullptr;
  Type type = FLOAT;

 private:
  const char* name_;
};

// Checks u and A.
struct Sizes {
  Sizes(const Tensor& u, const Tensor& A);
  int64_t batch, channels, length, states;

  Shape per_channel() const { return {channels}; }
};

// The groups of B or C [B,G,N,L], checked.
int64_t groups_of(const Tensor& projection, const Sizes& sizes);

// Refuses B and C of different numbers of groups, unless one has a single group.
void check_groups(const Tensor& C, int64_t groups_of_B, int64_t groups_of_C);

// The kernel of one node on one kind of device; `compute` is called for each run.
class Kernel {
 public:
  Kernel(const OrtApi& api, const OrtKernelInfo* info, Type type);
  virtual ~Kernel() = default;
  virtual void compute(OrtKernelContext* context) const = 0;

  const OrtApi& api;
  const Type type;  // of u and y
  bool softplus, reverse;
};

Kernel* make_cpu_kernel(const OrtApi& api, const OrtKernelInfo* info, Type type);
Kernel* make_gpu_kernel(const OrtApi& api, const OrtKernelInfo* info, Type type);

}  // namespace rdfa::ort
