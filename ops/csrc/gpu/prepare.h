// What torch does around the kernels of the scan, for callers that have no torch (ops/aot/triton_prepare.py). Arrays are
// contiguous and lie on the device.
#pragma once

#include "gpu/driver.h"
#include "gpu/dtype.h"

namespace rdfa::gpu {

// The shape of a conversion: to [rows, wanted] = from [parts, rows, given], summed over the parts, zeros behind each row.
struct Conversion {
  int64_t rows, given, wanted, parts = 1;
};

// One of the two is float32.
void convert(Device& device, void* stream, const void* from, Dtype given, void* to, Dtype wanted,
             const Conversion& shape);

// A [channels, N] -> `ScanProblem::A` [states, channels].
void scale(Device& device, void* stream, const float* A, float* to, int64_t channels, int64_t N, int64_t states);

}  // namespace rdfa::gpu
