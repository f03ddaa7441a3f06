// Registers the operators for CUDA tensors, unless RDFA_GPU_KERNELS=jit: ops/library.py sets it while it loads the
// library where Triton will register its own.
#include <cstdlib>
#include <cstring>

#include "torch/gpu.h"

STABLE_TORCH_LIBRARY_IMPL(rdfa, CUDA, m) {
  const char* kernels = std::getenv("RDFA_GPU_KERNELS");
  if (kernels != nullptr && std::strcmp(kernels, "jit") == 0) return;
  m.impl("selective_scan", TORCH_BOX(&rdfa::gpu::selective_scan));
  m.impl("causal_conv1d", TORCH_BOX(&rdfa::gpu::causal_conv1d));
}
