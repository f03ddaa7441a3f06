// Operator library for ONNX Runtime: the CPU kernel of the node rdfa::SelectiveScan (ops/selective_scan/export.py).
//
// Where a session has registered this library, the node runs here; where not, ONNX Runtime inlines the function that
// the model carries. u and y have one type (float32, float16, bfloat16), the other inputs any of the three each. Built
// with the headers of any ONNX Runtime from 1.21 on and linked with none, the library serves all of them.
//
// Letters: B batch, D channels, N states per channel, L time steps, G groups of channels that share B and C.
#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#define ORT_API_MANUAL_INIT
#include <onnxruntime_cxx_api.h>

#include "common/dispatch.h"
#include "common/half.h"
#include "selective_scan/scan.h"

namespace rdfa {
namespace {

// What is asked of ONNX Runtime, whatever the version of the headers.
constexpr uint32_t API_VERSION = 21;
constexpr int64_t MAX_STATES = 256;
// Work is handed out in so many parts: enough for any number of threads to end together, each of several blocks.
constexpr int64_t PARTS = 64;

constexpr auto FLOAT = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
constexpr auto HALF = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
constexpr auto BFLOAT = ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16;

enum Input { U, DELTA, A, B, C, D, Z, DELTA_BIAS, INPUTS };
constexpr const char* NAMES[INPUTS] = {"u", "delta", "A", "B", "C", "D", "z", "delta_bias"};

using Shape = std::vector<int64_t>;

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

std::unique_ptr<float[]> uninitialised(int64_t size) { return std::unique_ptr<float[]>(new float[size]); }

float bfloat_to_float(uint16_t value) {
  const uint32_t bits = static_cast<uint32_t>(value) << 16;
  float wide;
  memcpy(&wide, &bits, 4);
  return wide;
}

// An input of the node: null where it is absent. The kernels read float32 and bfloat16; the rest is widened first.
class Tensor {
 public:
  Tensor(Ort::KernelContext& context, Input index, const Shape& expected = {}) : name_(NAMES[index]) {
    if (index >= context.GetInputCount()) return;
    const Ort::ConstValue value = context.GetInput(index);
    if (value == nullptr) return;
    const auto info = value.GetTensorTypeAndShapeInfo();
    shape = info.GetShape();
    type_ = info.GetElementType();
    if (type_ != FLOAT && type_ != HALF && type_ != BFLOAT) refuse("must be float32, float16 or bfloat16");
    if (!expected.empty() && shape != expected) refuse("has shape " + text(shape) + ", expected " + text(expected));
    data_ = value.GetTensorRawData();
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
  ONNXTensorElementDataType type_ = FLOAT;
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

struct Kernel {
  bool softplus, reverse;

  OrtStatusPtr ComputeV2(OrtKernelContext* raw) {
    try {
      compute(raw);
      return nullptr;
    } catch (const std::exception& error) {
      return Ort::GetApi().CreateStatus(ORT_INVALID_ARGUMENT, (std::string("SelectiveScan: ") + error.what()).c_str());
    }
  }

 private:
  void compute(OrtKernelContext* raw) const {
    Ort::KernelContext context(raw);
    const Tensor u(context, U), A_(context, A);
    if (u.shape.size() != 3) u.refuse("has shape " + text(u.shape) + ", expected [B, D, L]");
    const int64_t batch = u.shape[0], channels = u.shape[1], length = u.shape[2];
    if (A_.shape.size() != 2 || A_.shape[0] != channels || A_.shape[1] < 1 || A_.shape[1] > MAX_STATES) {
      A_.refuse("has shape " + text(A_.shape) + ", expected [" + std::to_string(channels) + ", N] with N from 1 to " +
                std::to_string(MAX_STATES));
    }
    const int64_t states = A_.shape[1];
    const Tensor delta(context, DELTA, u.shape), z(context, Z, u.shape), B_(context, B), C_(context, C);
    Tensor D_(context, D, {channels}), bias(context, DELTA_BIAS, {channels});
    const auto sequence = [&](const Tensor& t) {
      return t ? directed(t.matrix(channels * length, length, 1), length, reverse) : Matrix{};
    };

    Ort::UnownedValue output = context.GetOutput(0, u.shape);
    const auto type = output.GetTensorTypeAndShapeInfo().GetElementType();
    void* const y = output.GetTensorMutableRawData();
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

  // On ONNX Runtime's own threads, as many as the session has.
  static void run(const Ort::KernelContext& context, const ScanArgs& args) {
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
    context.ParallelFor(part, static_cast<size_t>(work.parts), 0, &work);
  }
};

// Output shapes are not inferred: Ort::ShapeInferContext fails on an input of unknown rank (seen in 1.32).
template <ONNXTensorElementDataType TYPE>
struct SelectiveScan : Ort::CustomOpBase<SelectiveScan<TYPE>, Kernel, true> {
  SelectiveScan() { OrtCustomOp::version = API_VERSION; }
  const char* GetName() const { return "SelectiveScan"; }
  const char* GetExecutionProviderType() const { return "CPUExecutionProvider"; }
  size_t GetInputTypeCount() const { return INPUTS; }
  ONNXTensorElementDataType GetInputType(size_t index) const {
    return index == U ? TYPE : ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  }
  OrtCustomOpInputOutputCharacteristic GetInputCharacteristic(size_t index) const {
    return index >= D ? INPUT_OUTPUT_OPTIONAL : INPUT_OUTPUT_REQUIRED;
  }
  size_t GetOutputTypeCount() const { return 1; }
  ONNXTensorElementDataType GetOutputType(size_t) const { return TYPE; }

  OrtStatusPtr CreateKernelV2(const OrtApi& api, const OrtKernelInfo* info, void** kernel) const {
    int64_t softplus = 0, reverse = 0;
    for (const auto& [name, value] : {std::pair{"delta_softplus", &softplus}, std::pair{"reverse", &reverse}}) {
      if (OrtStatusPtr status = api.KernelInfoGetAttribute_int64(info, name, value)) return status;
    }
    *kernel = new Kernel{softplus != 0, reverse != 0};
    return nullptr;
  }
};

// One domain for all sessions of the process; it is never released, because sessions may outlive static objects.
OrtCustomOpDomain* domain() {
  static OrtCustomOpDomain* const made = [] {
    static const SelectiveScan<FLOAT> on_float;
    static const SelectiveScan<HALF> on_half;
    static const SelectiveScan<BFLOAT> on_bfloat;
    Ort::CustomOpDomain domain("rdfa");
    domain.Add(&on_float);
    domain.Add(&on_half);
    domain.Add(&on_bfloat);
    return domain.release();
  }();
  return made;
}

}  // namespace
}  // namespace rdfa

extern "C" __attribute__((visibility("default"))) OrtStatus* ORT_API_CALL
RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  const OrtApi* const api = base->GetApi(rdfa::API_VERSION);
  if (api == nullptr) {
    const std::string here = base->GetVersionString();
    return base->GetApi(1)->CreateStatus(
        ORT_FAIL, ("librdfa_ort.so needs ONNX Runtime 1.21 or newer, this is " + here).c_str());
  }
  Ort::InitApi(api);
  try {
    return api->AddCustomOpDomain(options, rdfa::domain());
  } catch (const std::exception& error) {
    return api->CreateStatus(ORT_FAIL, error.what());
  }
}
