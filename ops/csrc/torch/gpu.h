// The operators for CUDA tensors, on the kernels compiled ahead of time. gpu_register.cpp tells torch of them.
#pragma once

#include <optional>
#include <string>
#include <tuple>

#include "gpu/choice.h"
#include "gpu/driver.h"
#include "gpu/dtype.h"
#include "torch/common.h"

namespace rdfa::gpu {

// rdfa::selective_scan: y and the last state.
std::tuple<Tensor, Tensor> selective_scan(const Tensor& u, const Tensor& delta, const Tensor& A, const Tensor& B,
                                          const Tensor& C, const std::optional<Tensor>& D,
                                          const std::optional<Tensor>& z, const std::optional<Tensor>& delta_bias,
                                          bool softplus, bool reverse);

// rdfa::causal_conv1d.
Tensor causal_conv1d(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, bool silu, bool reverse);

// Throws unless t has one of the kernels' dtypes, and lies on the device of `like`.
void check_dtype(const char* name, const Tensor& t);
void check_device(const char* name, const Tensor& t, const Tensor& like);

// A dtype as the kernels' names have it, and back.
Dtype dtype_of(ScalarType dtype);
ScalarType scalar_type(Dtype dtype);

// Uninitialised memory on the device of `like` (NaN with RDFA_POISON_ALLOCATIONS=1, as `allocate`).
Tensor empty_like(const Tensor& like, std::initializer_list<int64_t> sizes, ScalarType dtype);

// Memory for a result shaped like x [B,D,L], by the layout rule of torch/common.h.
Tensor empty_bdl_like(const Tensor& x_BDL);

// `t` in that dtype, itself if it has it.
Tensor in_dtype(const Tensor& t, ScalarType dtype);

// A per-channel argument as contiguous float32, 0 where it is not given: the kernels were compiled with all of them.
Tensor per_channel(const std::optional<Tensor>& t, const Tensor& like, int64_t channels);

// Whether the elements lie at a multiple of `bytes`.
inline bool is_aligned(const Tensor& t, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(t.const_data_ptr()) % static_cast<uintptr_t>(bytes) == 0;
}

// torch's current stream on the device.
void* current_stream(int device);

}  // namespace rdfa::gpu
