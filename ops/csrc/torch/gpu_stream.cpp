// torch's current stream, without linking with its CUDA library.
#include <dlfcn.h>

#include <stdexcept>

#include "torch/gpu.h"

namespace rdfa::gpu {

void* current_stream(int device) {
  // In the stable ABI since 2.13 only; but it is in the library of every torch that can have made a CUDA tensor.
  using Ask = AOTITorchError (*)(int32_t device, void** stream);
  static const Ask ask = [] {
    void* const torch_cuda = dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_NOLOAD);
    void* const symbol = torch_cuda ? dlsym(torch_cuda, "aoti_torch_get_current_cuda_stream") : nullptr;
    if (symbol == nullptr) throw std::runtime_error("this torch has no CUDA: install one built with it");
    return reinterpret_cast<Ask>(symbol);
  }();
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(ask(device, &stream));
  return stream;
}

}  // namespace rdfa::gpu
