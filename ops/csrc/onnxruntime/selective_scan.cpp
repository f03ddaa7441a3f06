// Operator library for ONNX Runtime: the CPU kernel of the node rdfa::SelectiveScan (ops/selective_scan/export.py).
//
// Where a session has registered this library, the node runs here; where not, ONNX Runtime inlines the function that
// the model carries. u and y have one type (float32, float16, bfloat16), the other inputs any of the three each.
//
// Built with the header of any ONNX Runtime from 1.21 on and linked with none, the library serves all of them: it asks
// for that version of the C interface. (The C++ wrappers of a newer header would call what an older release lacks.)
//
// Letters: B batch, D channels, N states per channel, L time steps, G groups of channels that share B and C.
#include <algorithm>
#include <climits>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include <onnxruntime_c_api.h>

#include "common/dispatch.h"
#include "common/half.h"
#include "selective_scan/scan.h"

namespace rdfa {
namespace {

// Of the C interface: that of ONNX Runtime 1.21.
constexpr uint32_t API_VERSION = 21;
constexpr int64_t MAX_STATES = 256;
// Work is handed out in so many parts: enough for any number of threads to end together, each of several blocks.
constexpr int64_t PARTS = 64;

constexpr auto FLOAT = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
constexpr auto HALF = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
constexpr auto BFLOAT = ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16;

using Type = ONNXTensorElementDataType;

enum Input : size_t { U, DELTA, A, B, C, D, Z, DELTA_BIAS, INPUTS };
constexpr const char* NAMES[INPUTS] = {"u", "delta", "A", "B", "C", "D", "z", "delta_bias"};

using Shape = std::vector<int64_t>;

std::string text(const Shape& shape) {
  std::string joined;
  for (int64_t size : shape) joined += (joined.empty() ? "[" : ", ") + std::to_string(size);
  return joined + "]";
}

// Throws what a call reported.
void check(const OrtApi& api, OrtStatus* status) {
  if (status == nullptr) return;
  const std::string message = api.GetErrorMessage(status);
  api.ReleaseStatus(status);
  throw std::runtime_error(message);
}

int64_t count(const Shape& shape) {
  int64_t n = 1;
  for (int64_t size : shape) n *= size;
  return n;
}

std::unique_ptr<float[]> uninitialised(int64_t size) { return std::unique_ptr<float[]>(new float[size]); }

float bfloat_to_float(uint16_t value) {
  const uint32_t bits = static_cast<uint32_t>(value) << 16;
  float wide;
  memcpy(&wide, &bits, 4);
  return wide;
}

struct Node {
  const OrtApi& api;
  OrtKernelContext* context;
};

// An input of the node: null where it is absent. The kernels read float32 and bfloat16; the rest is widened first.
class Tensor {
 public:
  Tensor(const Node& node, Input index, const Shape& expected = {}) : name_(NAMES[index]) {
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
    check(api, api.GetTensorElementType(raw, &type_));
    size_t rank = 0;
    check(api, api.GetDimensionsCount(raw, &rank));
    shape.resize(rank);
    check(api, api.GetDimensions(raw, shape.data(), rank));
    if (type_ != FLOAT && type_ != HALF && type_ != BFLOAT) refuse("must be float32, float16 or bfloat16");
    if (!expected.empty() && shape != expected) refuse("has shape " + text(shape) + ", expected " + text(expected));
    void* data = nullptr;
    check(api, api.GetTensorMutableData(const_cast<OrtValue*>(value), &data));
    data_ = data;
    if (type_ == HALF) widen(half_to_float);
  }

  explicit operator bool() const { return data_ != nullptr; }
  [[noreturn]] void refuse(const std::string& why) const { throw std::invalid_argument(name_ + (" " + why)); }

  const float* floats() {
    if (type_ == BFLOAT) widen(bfloat_to_float);
    return static_cast<const float*>(data_);
  }
  Matrix matrix(int64_t stride_b, int64_t stride_r, int64_t stride_t) const {
    return {const_cast<void*>(data_), stride_b, stride_r, stride_t, type_ == BFLOAT};
  }

  Shape shape;

 private:
  template <typename Convert>
  void widen(Convert convert) {
    const int64_t size = count(shape);
    floats_ = uninitialised(size);
    const uint16_t* from = static_cast<const uint16_t*>(data_);
    for (int64_t i = 0; i < size; ++i) floats_[i] = convert(from[i]);
    data_ = floats_.get();
    type_ = FLOAT;
  }

  const char* name_;
  const void* data_ = nullptr;
  Type type_ = FLOAT;
  std::unique_ptr<float[]> floats_;
};

// The same array with time running backwards.
Matrix directed(Matrix m, int64_t length, bool reverse) {
  if (reverse) {
    m.data = static_cast<char*>(m.data) + (length - 1) * m.stride_t * (m.bf16 ? 2 : 4);
    m.stride_t = -m.stride_t;
  }
  return m;
}

Projection projection(const Tensor& t, int64_t batch, int64_t channels, int64_t states, int64_t length, bool reverse) {
  const int64_t groups = t.shape.size() == 4 ? t.shape[1] : 0;
  if (groups < 1 || channels % groups != 0 || t.shape != Shape{batch, groups, states, length}) {
    t.refuse("has shape " + text(t.shape) + ", expected [B, G, N, L] with G a divisor of D, here B = " +
             std::to_string(batch) + ", D = " + std::to_string(channels) + ", N = " + std::to_string(states) +
             ", L = " + std::to_string(length));
  }
  const int64_t group = states * length;
  return {directed(t.matrix(groups * group, length, 1), length, reverse), group, groups, false};
}

// The kernel of one node.
struct Kernel {
  const OrtApi& api;
  Type type;  // of u and y
  bool softplus, reverse;

  void compute(OrtKernelContext* context) const {
    const Node node{api, context};
    const Tensor u(node, U), A_(node, A);
    if (u.shape.size() != 3) u.refuse("has shape " + text(u.shape) + ", expected [B, D, L]");
    const int64_t batch = u.shape[0], channels = u.shape[1], length = u.shape[2];
    if (A_.shape.size() != 2 || A_.shape[0] != channels || A_.shape[1] < 1 || A_.shape[1] > MAX_STATES) {
      A_.refuse("has shape " + text(A_.shape) + ", expected [" + std::to_string(channels) + ", N] with N from 1 to " +
                std::to_string(MAX_STATES));
    }
    const int64_t states = A_.shape[1];
    const Tensor delta(node, DELTA, u.shape), z(node, Z, u.shape), B_(node, B), C_(node, C);
    Tensor D_(node, D, {channels}), bias(node, DELTA_BIAS, {channels});
    const auto sequence = [&](const Tensor& t) {
      return t ? directed(t.matrix(channels * length, length, 1), length, reverse) : Matrix{};
    };

    OrtValue* output = nullptr;
    check(api, api.KernelContext_GetOutput(context, 0, u.shape.data(), u.shape.size(), &output));
    void* y = nullptr;
    check(api, api.GetTensorMutableData(output, &y));
    const int64_t size = count(u.shape);
    if (size == 0) return;
    const std::unique_ptr<float[]> wide = type == HALF ? uninitialised(size) : nullptr;
    const auto last_state = uninitialised(batch * channels * states);

    ScanArgs args{};
    args.batch = batch;
    args.channels = channels;
    args.states = states;
    args.length = length;
    args.softplus = softplus;
    args.reverse = reverse;
    args.u = sequence(u);
    args.delta = sequence(delta);
    args.z = sequence(z);
    args.A = A_.matrix(0, states, 1);
    args.B = projection(B_, batch, channels, states, length, reverse);
    args.C = projection(C_, batch, channels, states, length, reverse);
    if (args.B.groups != args.C.groups && args.B.groups != 1 && args.C.groups != 1) {
      C_.refuse("has " + std::to_string(args.C.groups) + " groups and B has " + std::to_string(args.B.groups) +
                ": expected the same number, or one of them 1");
    }
    args.D = D_.floats();
    args.delta_bias = bias.floats();
    args.y = directed({wide ? wide.get() : y, channels * length, length, 1, type == BFLOAT}, length, reverse);
    args.last_state = last_state.get();
    run(context, args);
    if (wide) {
      uint16_t* const to = static_cast<uint16_t*>(y);
      for (int64_t i = 0; i < size; ++i) to[i] = float_to_half(wide[i]);
    }
  }

 private:
  // On ONNX Runtime's own threads, as many as the session has.
  void run(const OrtKernelContext* context, const ScanArgs& args) const {
    struct Work {
      void (*kernel)(const ScanArgs&, int64_t, int64_t);
      const ScanArgs& args;
      int64_t tasks, parts;
    };
    const int64_t tasks = args.batch * Partition(args, RDFA_DISPATCH(scan_lanes)()).blocks();
    Work work{RDFA_DISPATCH(scan_forward), args, tasks, std::min(tasks, PARTS)};
    const auto part = [](void* data, size_t i) {
      const Work& w = *static_cast<const Work*>(data);
      const int64_t index = static_cast<int64_t>(i);
      w.kernel(w.args, index * w.tasks / w.parts, (index + 1) * w.tasks / w.parts);
    };
    check(api, api.KernelContext_ParallelFor(context, part, static_cast<size_t>(work.parts), 0, &work));
  }
};

// The operator for one type of u and y. Output shapes are left to be seen when a node runs.
struct SelectiveScan : OrtCustomOp {
  explicit SelectiveScan(Type type) : OrtCustomOp{}, type(type) {
    version = API_VERSION;
    GetName = [](const OrtCustomOp*) { return "SelectiveScan"; };
    GetExecutionProviderType = [](const OrtCustomOp*) { return "CPUExecutionProvider"; };
    GetStartVersion = [](const OrtCustomOp*) { return 1; };
    GetEndVersion = [](const OrtCustomOp*) { return INT_MAX; };
    GetInputTypeCount = [](const OrtCustomOp*) -> size_t { return INPUTS; };
    GetInputType = [](const OrtCustomOp* op, size_t index) {
      return index == U ? static_cast<const SelectiveScan*>(op)->type : ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
    };
    GetInputCharacteristic = [](const OrtCustomOp*, size_t index) {
      return index >= D ? INPUT_OUTPUT_OPTIONAL : INPUT_OUTPUT_REQUIRED;
    };
    GetInputMemoryType = [](const OrtCustomOp*, size_t) { return OrtMemTypeDefault; };
    GetOutputTypeCount = [](const OrtCustomOp*) -> size_t { return 1; };
    GetOutputType = [](const OrtCustomOp* op, size_t) { return static_cast<const SelectiveScan*>(op)->type; };
    GetOutputCharacteristic = [](const OrtCustomOp*, size_t) { return INPUT_OUTPUT_REQUIRED; };
    CreateKernelV2 = [](const OrtCustomOp* op, const OrtApi* api, const OrtKernelInfo* info, void** kernel) {
      int64_t softplus = 0, reverse = 0;
      OrtStatus* status = api->KernelInfoGetAttribute_int64(info, "delta_softplus", &softplus);
      if (status == nullptr) status = api->KernelInfoGetAttribute_int64(info, "reverse", &reverse);
      if (status == nullptr) {
        *kernel = new Kernel{*api, static_cast<const SelectiveScan*>(op)->type, softplus != 0, reverse != 0};
      }
      return status;
    };
    KernelComputeV2 = [](void* kernel, OrtKernelContext* context) -> OrtStatus* {
      const Kernel& self = *static_cast<const Kernel*>(kernel);
      try {
        self.compute(context);
        return nullptr;
      } catch (const std::exception& error) {
        const std::string message = std::string("SelectiveScan: ") + error.what();
        return self.api.CreateStatus(ORT_INVALID_ARGUMENT, message.c_str());
      }
    };
    KernelDestroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  }

  Type type;
};

// One domain for all sessions of the process; it is never released, because sessions may outlive static objects.
OrtCustomOpDomain* domain(const OrtApi& api) {
  static OrtCustomOpDomain* const made = [&api] {
    static const SelectiveScan operators[] = {SelectiveScan(FLOAT), SelectiveScan(HALF), SelectiveScan(BFLOAT)};
    OrtCustomOpDomain* domain = nullptr;
    check(api, api.CreateCustomOpDomain("rdfa", &domain));
    for (const SelectiveScan& op : operators) check(api, api.CustomOpDomain_Add(domain, &op));
    return domain;
  }();
  return made;
}

}  // namespace
}  // namespace rdfa

extern "C" __attribute__((visibility("default"))) OrtStatus* ORT_API_CALL
RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  const OrtApi* const api = base->GetApi(rdfa::API_VERSION);
  if (api == nullptr) {
    const std::string message = std::string("needs ONNX Runtime 1.21 or newer, this is ") + base->GetVersionString();
    return base->GetApi(1)->CreateStatus(ORT_FAIL, message.c_str());
  }
  try {
    return api->AddCustomOpDomain(options, rdfa::domain(*api));
  } catch (const std::exception& error) {
    return api->CreateStatus(ORT_FAIL, error.what());
  }
}
