// What the torch bindings share: checks, layout and allocation. Stable ABI only; nothing here computes.
//
// Letters: B batch, D channels, L time.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <optional>
#include <string>

namespace rdfa {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline std::string shape_string(const Tensor& t) {
  std::string text = "[";
  for (int64_t i = 0; i < t.dim(); ++i) text += (i ? ", " : "") + std::to_string(t.size(i));
  return text + "]";
}

inline bool has_shape(const Tensor& t, std::initializer_list<int64_t> shape) {
  if (t.dim() != static_cast<int64_t>(shape.size())) return false;
  int64_t i = 0;
  for (int64_t size : shape) {
    if (t.size(i++) != size) return false;
  }
  return true;
}

inline void check_shape(const char* name, const Tensor& t, std::initializer_list<int64_t> shape) {
  if (has_shape(t, shape)) return;
  std::string expected;
  for (int64_t size : shape) expected += (expected.empty() ? "[" : ", ") + std::to_string(size);
  STD_TORCH_CHECK(false, name, " has shape ", shape_string(t), ", expected ", expected, "]");
}

inline void check_dtype(const char* name, const Tensor& t, ScalarType dtype) {
  STD_TORCH_CHECK(t.scalar_type() == dtype, name, " has dtype ", torch::headeronly::toString(t.scalar_type()),
                  ", expected ", torch::headeronly::toString(dtype));
}

inline bool is_float_or_bfloat16(const Tensor& t) {
  return t.scalar_type() == ScalarType::Float || t.scalar_type() == ScalarType::BFloat16;
}

inline bool poisons_allocations() {
  const char* poison = std::getenv("RDFA_POISON_ALLOCATIONS");
  return poison != nullptr && std::strcmp(poison, "1") == 0;
}

// An uninitialised CPU tensor. RDFA_POISON_ALLOCATIONS=1 (tests) fills it with NaN (-1 in integers), so that an element
// that a kernel forgets to write cannot pass for a right one.
inline Tensor allocate(std::initializer_list<int64_t> sizes, std::initializer_list<int64_t> strides, ScalarType dtype) {
  const int32_t code = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.begin(),
                                                         strides.begin(), code, aoti_torch_device_type_cpu(), 0,
                                                         &handle));
  Tensor t(handle);
  if (poisons_allocations() && t.numel() > 0) {
    std::memset(t.mutable_data_ptr(), 0xFF, static_cast<size_t>(t.numel()) * t.element_size());
  }
  return t;
}

inline Tensor allocate(std::initializer_list<int64_t> sizes, ScalarType dtype) {  // contiguous, at most 4 dimensions
  int64_t strides[4], step = 1;
  const int n = static_cast<int>(sizes.size());
  for (int i = n - 1; i >= 0; --i) {
    strides[i] = step;
    step *= sizes.begin()[i] > 1 ? sizes.begin()[i] : 1;
  }
  switch (n) {
    case 1: return allocate(sizes, {strides[0]}, dtype);
    case 2: return allocate(sizes, {strides[0], strides[1]}, dtype);
    case 3: return allocate(sizes, {strides[0], strides[1], strides[2]}, dtype);
    default: return allocate(sizes, {strides[0], strides[1], strides[2], strides[3]}, dtype);
  }
}

// The layout rule of the operators: a result [B,D,L] lies in memory as [B,L,D] when its input's channels lie closer
// together than its time steps, else as [B,D,L]. ops/library.py (`empty_bdl`) repeats it for fake tensors.
inline bool is_channels_last(const Tensor& x_BDL) { return x_BDL.stride(1) < x_BDL.stride(2); }

inline Tensor allocate_bdl(int64_t B, int64_t D, int64_t L, bool channels_last, ScalarType dtype) {
  return channels_last ? allocate({B, D, L}, {L * D, 1, D}, dtype) : allocate({B, D, L}, {D * L, L, 1}, dtype);
}

// Rows of each of S sequences that count: int64 [S], at least 0.
inline const int64_t* row_counts(const Tensor& lengths, int64_t S) {
  check_shape("lengths", lengths, {S});
  check_dtype("lengths", lengths, ScalarType::Long);
  STD_TORCH_CHECK(lengths.is_contiguous(), "lengths must be contiguous");
  const int64_t* p = static_cast<const int64_t*>(lengths.const_data_ptr());
  for (int64_t s = 0; s < S; ++s) STD_TORCH_CHECK(p[s] >= 0, "lengths holds ", p[s], ": expected at least 0");
  return p;
}

// Calls run(first, step) on each thread: it does tasks first, first + step, ... of `tasks`.
template <typename Run>
void in_turns(int64_t tasks, const Run& run) {
  const int64_t threads = torch::stable::get_num_threads(), slots = tasks < threads ? tasks : threads;
  torch::stable::parallel_for(0, slots, 1, [&](int64_t first, int64_t last) {
    for (int64_t slot = first; slot < last; ++slot) run(slot, slots);
  });
}

}  // namespace rdfa
