// The kernels for GPUs of the operator library for ONNX Runtime as those of a CPU session, for tests: memory and stream
// of the device are the host's.
#include <cstdlib>
#include <cstring>

#include "onnxruntime/operator.h"

namespace {

using rdfa::ort::check;

// What a session without a GPU does not have. Whatever is allocated is NaN first.
OrtApi on_cpu(const OrtApi& real) {
  OrtApi api = real;
  api.KernelContext_GetGPUComputeStream = [](const OrtKernelContext*, void** stream) noexcept -> OrtStatus* {
    *stream = reinterpret_cast<void*>(0x5);
    return nullptr;
  };
  api.KernelContext_GetScratchBuffer = [](const OrtKernelContext*, const OrtMemoryInfo*, size_t bytes,
                                          void** memory) noexcept -> OrtStatus* {
    *memory = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
    std::memset(*memory, 0xFF, bytes);
    return nullptr;
  };
  static OrtAllocator allocator{};
  allocator.Free = [](OrtAllocator*, void* memory) { std::free(memory); };
  api.KernelInfoGetAllocator = [](const OrtKernelInfo*, OrtMemType, OrtAllocator** made) noexcept -> OrtStatus* {
    *made = &allocator;
    return nullptr;
  };
  api.AllocatorGetInfo = [](const OrtAllocator*, const OrtMemoryInfo** info) noexcept -> OrtStatus* {
    *info = nullptr;
    return nullptr;
  };
  api.MemoryInfoGetId = [](const OrtMemoryInfo*, int* id) noexcept -> OrtStatus* {
    *id = 0;
    return nullptr;
  };
  api.ReleaseAllocator = [](OrtAllocator*) {};
  return api;
}

rdfa::ort::Kernel* make(const OrtApi& real, const OrtKernelInfo* info, rdfa::ort::Type type) {
  static const OrtApi api = on_cpu(real);
  return rdfa::ort::make_gpu_kernel(api, info, type);
}

}  // namespace

extern "C" __attribute__((visibility("default"))) OrtStatus* RegisterCustomOps(OrtSessionOptions* options,
                                                                               const OrtApiBase* base) {
  using namespace rdfa::ort;
  const OrtApi& api = *base->GetApi(API_VERSION);
  static const SelectiveScan operators[] = {{"CPUExecutionProvider", make, FLOAT},
                                            {"CPUExecutionProvider", make, HALF},
                                            {"CPUExecutionProvider", make, BFLOAT}};
  OrtCustomOpDomain* domain = nullptr;  // lives as long as the process
  check(api, api.CreateCustomOpDomain("rdfa", &domain));
  for (const SelectiveScan& op : operators) check(api, api.CustomOpDomain_Add(domain, &op));
  return api.AddCustomOpDomain(options, domain);
}
