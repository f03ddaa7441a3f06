// The library's GPU operators as operators for CPU tensors, and parts of it by themselves, for tests.
#include <cstring>

#include "torch/gpu.h"

namespace rdfa::gpu {

void* current_stream(int) { return reinterpret_cast<void*>(0x5); }

}  // namespace rdfa::gpu

STABLE_TORCH_LIBRARY(rdfa_on_cpu, m) {
  m.def(
      "selective_scan(Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? delta_bias,"
      " bool delta_softplus, bool reverse) -> (Tensor, Tensor)");
  m.def("causal_conv1d(Tensor x, Tensor weight, Tensor? bias, bool silu, bool reverse) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(rdfa_on_cpu, CPU, m) {
  m.impl("selective_scan", TORCH_BOX(&rdfa::gpu::selective_scan));
  m.impl("causal_conv1d", TORCH_BOX(&rdfa::gpu::causal_conv1d));
}

#define EXPORTED extern "C" __attribute__((visibility("default")))

// The binary that a GPU of that capability gets, into `out`; returns its bytes, or -1 and the message in `out`.
EXPORTED int64_t content(const char* path, const char* kernel, int capability, char* out, int64_t room) {
  try {
    const rdfa::gpu::Pack pack(path);
    const std::string bytes = pack.content(pack.binary(pack.kernel(kernel), capability));
    std::memcpy(out, bytes.data(), std::min<size_t>(bytes.size(), static_cast<size_t>(room)));
    return static_cast<int64_t>(bytes.size());
  } catch (const std::runtime_error& error) {
    std::strncpy(out, error.what(), static_cast<size_t>(room));
    return -1;
  }
}

// Rows and lanes of the tile, programs, blocks, blocks of a segment, for each of `count` problems of six numbers.
EXPORTED void choose_scan(const char* path, int64_t count, const int64_t* problems, int64_t* choices) {
  const rdfa::gpu::Pack pack(path);
  for (int64_t i = 0; i < count; ++i, problems += 6, choices += 5) {
    const auto c = rdfa::gpu::choose_scan(pack, problems[0], problems[1], problems[2], problems[3], problems[4],
                                          problems[5]);
    const int64_t values[] = {c.tile->rows, c.tile->lanes, c.programs, c.blocks, c.segment};
    std::copy(values, values + 5, choices);
  }
}

// Columns and rows of the grid, and blocks, for a tile by name.
EXPORTED void choose_conv(const char* path, const char* tile, int64_t batch, int64_t channels, int64_t length,
                          int64_t* choice) {
  const rdfa::gpu::Pack pack(path);
  const auto c = rdfa::gpu::choose_conv(pack, pack.conv_tile(tile), batch, channels, length);
  const int64_t values[] = {c.columns, c.rows, c.blocks};
  std::copy(values, values + 3, choice);
}
