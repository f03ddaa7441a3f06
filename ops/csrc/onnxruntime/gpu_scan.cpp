// The node on a GPU, by the kernels that were compiled ahead of time, on the session's stream. Nothing here waits.
#include <algorithm>
#include <memory>
#include <vector>

#include "gpu/prepare.h"
#include "gpu/scan.h"
#include "onnxruntime/node.h"

namespace rdfa::ort {
namespace {

using gpu::Dtype;

Dtype dtype_of(Type type) { return type == FLOAT ? Dtype::f32 : type == HALF ? Dtype::f16 : Dtype::bf16; }

// Memory of the device for one run of a node. It goes back when the launches are in the stream, which is early enough:
// ONNX Runtime gives it to work of the same stream, or waits for this one.
class Scratch {
 public:
  Scratch(const Node& node, OrtAllocator* allocator) : node_(node), allocator_(allocator) {}
  Scratch(const Scratch&) = delete;
  ~Scratch() {
    for (void* memory : held_) allocator_->Free(allocator_, memory);
  }

  float* floats(int64_t size) {
    const OrtMemoryInfo* where = nullptr;
    check(node_.api, node_.api.AllocatorGetInfo(allocator_, &where));
    void* memory = nullptr;
    const size_t bytes = static_cast<size_t>(size) * sizeof(float);
    check(node_.api, node_.api.KernelContext_GetScratchBuffer(node_.context, where, bytes, &memory));
    held_.push_back(memory);
    return static_cast<float*>(memory);
  }

 private:
  const Node node_;
  OrtAllocator* const allocator_;
  std::vector<void*> held_;
};

// One run of a node: its inputs in the form that the kernels take.
struct Run {
  gpu::Device& device;
  void* stream;
  Scratch scratch;

  // t [rows, given] as float32 [rows, wanted], with zeros behind each row.
  const float* widened(const Tensor& t, int64_t rows, int64_t given, int64_t wanted) {
    float* const to = scratch.floats(rows * wanted);
    gpu::convert(device, stream, t.data, dtype_of(t.type), to, Dtype::f32, {rows, given, wanted});
    return to;
  }

  const void* as(Dtype wanted, const Tensor& t, int64_t rows, int64_t columns) {
    return dtype_of(t.type) == wanted ? t.data : widened(t, rows, columns, columns);
  }

  gpu::Sequence sequence(const Tensor& t, Dtype dtype, const Sizes& s) {
    if (!t) return {};
    return {as(dtype, t, s.batch * s.channels, s.length), s.channels * s.length, s.length};
  }

  gpu::Projection projection(const Tensor& t, Dtype dtype, const Sizes& s, int64_t states) {
    const int64_t groups = t.shape[1], rows = s.batch * groups, group = states * s.length;
    const bool whole = states == s.states;
    const void* const data = whole ? as(dtype, t, rows, group) : widened(t, rows, s.states * s.length, group);
    return {data, {groups * group, groups == 1 ? 0 : group, s.length, 1}};
  }

  const float* zeros(int64_t size) {
    float* const to = scratch.floats(size);
    gpu::convert(device, stream, to, Dtype::f32, to, Dtype::f32, {1, size, size, 0});
    return to;
  }

  const float* per_channel(const Tensor& t, const Sizes& s) {
    return t ? static_cast<const float*>(as(Dtype::f32, t, 1, s.channels)) : zeros(s.channels);
  }

  const float* scaled(const Tensor& A, const Sizes& s, int64_t states) {
    const void* const given = as(Dtype::f32, A, s.channels, s.states);
    float* const to = scratch.floats(states * s.channels);
    gpu::scale(device, stream, static_cast<const float*>(given), to, s.channels, s.states, states);
    return to;
  }
};

class GpuKernel : public Kernel {
 public:
  // Throws where the driver or the pack is missing: a session then does not start.
  GpuKernel(const OrtApi& api, const OrtKernelInfo* info, Type type) : Kernel(api, info, type) {
    OrtAllocator* allocator = nullptr;
    check(api, api.KernelInfoGetAllocator(info, OrtMemTypeDefault, &allocator));
    allocator_ = {allocator, api.ReleaseAllocator};
    const OrtMemoryInfo* where = nullptr;
    check(api, api.AllocatorGetInfo(allocator, &where));
    int index = 0;
    check(api, api.MemoryInfoGetId(where, &index));
    device_ = &gpu::Device::of(index);
  }

  void compute(OrtKernelContext* context) const override {
    const Node node{api, context};
    const Tensor u(node, U), A_(node, A);
    const Sizes s(u, A_);
    const Tensor delta(node, DELTA, u.shape), z(node, Z, u.shape), B_(node, B), C_(node, C);
    const Tensor D_(node, D, s.per_channel()), bias(node, DELTA_BIAS, s.per_channel());
    const int64_t B_groups = groups_of(B_, s), C_groups = groups_of(C_, s);
    check_groups(C_, B_groups, C_groups);
    void* const y = node.output(u.shape);
    if (count(u.shape) == 0) return;

    void* stream = nullptr;
    check(api, api.KernelContext_GetGPUComputeStream(context, &stream));
    Run run{*device_, stream, {node, allocator_.get()}};
    const bool same = delta.type == type && (!z || z.type == type);
    const auto [launches, states, dtype] =
        gpu::choose_form(device_->pack(), s.states, dtype_of(type), same, softplus, bool{z});
    const bool narrow = B_.type == C_.type && states == s.states;
    const Dtype projected = narrow ? dtype_of(B_.type) : Dtype::f32;
    const gpu::Scan scan(*device_, stream,
                         {s.batch, s.channels, std::max(B_groups, C_groups), s.length, softplus, reverse, dtype,
                          projected, run.sequence(u, dtype, s), run.sequence(delta, dtype, s),
                          run.sequence(z, dtype, s), run.projection(B_, projected, s, states),
                          run.projection(C_, projected, s, states), run.scaled(A_, s, states),
                          run.per_channel(bias, s)});
    const float* const skip = run.per_channel(D_, s);
    const float* const no_skip = launches > 1 ? run.zeros(s.channels) : nullptr;
    const bool direct = launches == 1 && dtype == dtype_of(type);
    const int64_t size = count(u.shape);
    float* const parts = direct ? nullptr : run.scratch.floats(launches * size);
    float* const h = run.scratch.floats(scan.segments() * scan.states_per_launch() * scan.rows());
    float* const workspace = run.scratch.floats(scan.workspace());
    for (int64_t i = 0; i < launches; ++i) {
      void* const part = direct ? y : parts + i * size;
      scan.run(i, i == 0 ? skip : no_skip, {part, s.channels * s.length, s.length}, h, workspace);
    }
    if (!direct) {
      gpu::convert(*device_, stream, parts, Dtype::f32, y, dtype_of(type),
                   {s.batch * s.channels, s.length, s.length, launches});
    }
  }

 private:
  std::unique_ptr<OrtAllocator, void (*)(OrtAllocator*)> allocator_{nullptr, nullptr};
  gpu::Device* device_ = nullptr;
};

}  // namespace

Kernel* make_gpu_kernel(const OrtApi& api, const OrtKernelInfo* info, Type type) {
  return new GpuKernel(api, info, type);
}

}  // namespace rdfa::ort
