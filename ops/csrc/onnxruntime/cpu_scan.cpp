// The node on a CPU.
#include <algorithm>
#include <cstring>
#include <memory>

#include "common/dispatch.h"
#include "common/half.h"
#include "onnxruntime/node.h"
#include "selective_scan/scan.h"

namespace rdfa::ort {
namespace {

// Work is handed out in so many parts: enough for any number of threads to end together, each of several blocks.
constexpr int64_t PARTS = 64;

std::unique_ptr<float[]> uninitialised(int64_t size) { return std::unique_ptr<float[]>(new float[size]); }

float bfloat_to_float(uint16_t value) {
  const uint32_t bits = static_cast<uint32_t>(value) << 16;
  float wide;
  memcpy(&wide, &bits, 4);
  return wide;
}

// The kernels read float32 and bfloat16; the rest is widened first.
class HostTensor : public Tensor {
 public:
  HostTensor(const Node& node, Input index, const Shape& expected = {}) : Tensor(node, index, expected) {
    if (data != nullptr && type == HALF) widen(half_to_float);
  }

  const float* floats() {
    if (type == BFLOAT) widen(bfloat_to_float);
    return static_cast<const float*>(data);
  }
  Matrix matrix(int64_t stride_b, int64_t stride_r, int64_t stride_t) const {
    return {const_cast<void*>(data), stride_b, stride_r, stride_t, type == BFLOAT};
  }

 private:
  template <typename Convert>
  void widen(Convert convert) {
    const int64_t size = count(shape);
    floats_ = uninitialised(size);
    const uint16_t* from = static_cast<const uint16_t*>(data);
    for (int64_t i = 0; i < size; ++i) floats_[i] = convert(from[i]);
    data = floats_.get();
    type = FLOAT;
  }

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

Projection projection(const HostTensor& t, const Sizes& s, bool reverse) {
  const int64_t groups = groups_of(t, s), group = s.states * s.length;
  return {directed(t.matrix(groups * group, s.length, 1), s.length, reverse), group, groups, false};
}

class CpuKernel : public Kernel {
 public:
  using Kernel::Kernel;

  void compute(OrtKernelContext* context) const override {
    const Node node{api, context};
    const HostTensor u(node, U), A_(node, A);
    const Sizes s(u, A_);
    const int64_t row = s.length;
    const HostTensor delta(node, DELTA, u.shape), z(node, Z, u.shape), B_(node, B), C_(node, C);
    HostTensor D_(node, D, s.per_channel()), bias(node, DELTA_BIAS, s.per_channel());
    const auto sequence = [&](const HostTensor& t) {
      return t ? directed(t.matrix(s.channels * row, row, 1), row, reverse) : Matrix{};
    };
    void* const y = node.output(u.shape);
    const int64_t size = count(u.shape);
    if (size == 0) return;
    const std::unique_ptr<float[]> wide = type == HALF ? uninitialised(size) : nullptr;
    const auto last_state = uninitialised(s.batch * s.channels * s.states);

    ScanArgs args{};
    args.batch = s.batch;
    args.channels = s.channels;
    args.states = s.states;
    args.length = s.length;
    args.softplus = softplus;
    args.reverse = reverse;
    args.u = sequence(u);
    args.delta = sequence(delta);
    args.z = sequence(z);
    args.A = A_.matrix(0, s.states, 1);
    args.B = projection(B_, s, reverse);
    args.C = projection(C_, s, reverse);
    check_groups(C_, args.B.groups, args.C.groups);
    args.D = D_.floats();
    args.delta_bias = bias.floats();
    args.y = directed({wide ? wide.get() : y, s.channels * row, row, 1, type == BFLOAT}, row, reverse);
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

}  // namespace

Kernel* make_cpu_kernel(const OrtApi& api, const OrtKernelInfo* info, Type type) {
  return new CpuKernel(api, info, type);
}

}  // namespace rdfa::ort
