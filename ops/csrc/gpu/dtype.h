// Number formats of the kernels.
#pragma once

#include <cstdint>
#include <string>

namespace rdfa::gpu {

enum class Dtype { f32, f16, bf16 };

// As the names of kernels have it.
inline std::string name_of(Dtype dtype) {
  return dtype == Dtype::f32 ? "f32" : dtype == Dtype::f16 ? "f16" : "bf16";
}

inline int64_t bytes_of(Dtype dtype) { return dtype == Dtype::f32 ? 4 : 2; }

}  // namespace rdfa::gpu
