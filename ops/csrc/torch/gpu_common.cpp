// What the operators on a GPU share.
#include <limits>

#include "torch/gpu.h"

namespace rdfa::gpu {

void check_dtype(const char* name, const Tensor& t) {
  const ScalarType dtype = t.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Half || dtype == ScalarType::BFloat16, name,
                  " is ", torch::headeronly::toString(dtype), ": expected float32, float16 or bfloat16");
}

void check_device(const char* name, const Tensor& t, const Tensor& like) {
  STD_TORCH_CHECK(t.get_device_index() == like.get_device_index(), name, " is on another device (",
                  t.get_device_index(), ", -1 is the CPU) than the first argument (", like.get_device_index(),
                  "): move them to one");
}

Dtype dtype_of(ScalarType dtype) {
  return dtype == ScalarType::Float ? Dtype::f32 : dtype == ScalarType::Half ? Dtype::f16 : Dtype::bf16;
}

ScalarType scalar_type(Dtype dtype) {
  return dtype == Dtype::f32 ? ScalarType::Float : dtype == Dtype::f16 ? ScalarType::Half : ScalarType::BFloat16;
}

Tensor empty_like(const Tensor& like, std::initializer_list<int64_t> sizes, ScalarType dtype) {
  Tensor t = torch::stable::new_empty(like, sizes, dtype);
  if (poisons_allocations()) torch::stable::fill_(t, std::numeric_limits<double>::quiet_NaN());
  return t;
}

Tensor empty_bdl_like(const Tensor& x) {
  const int64_t B = x.size(0), D = x.size(1), L = x.size(2);
  if (!is_channels_last(x)) return empty_like(x, {B, D, L}, x.scalar_type());
  return torch::stable::transpose(empty_like(x, {B, L, D}, x.scalar_type()), 1, 2);
}

Tensor in_dtype(const Tensor& t, ScalarType dtype) {
  return t.scalar_type() == dtype ? t : torch::stable::to(t, dtype);
}

Tensor per_channel(const std::optional<Tensor>& t, const Tensor& like, int64_t channels) {
  if (!t) return torch::stable::new_zeros(like, {channels}, ScalarType::Float);
  return torch::stable::contiguous(in_dtype(*t, ScalarType::Float));
}

}  // namespace rdfa::gpu
