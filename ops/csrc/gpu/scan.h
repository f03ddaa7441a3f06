// The selective scan on a GPU, whoever asks for it: what `forward` of ops/selective_scan/launch.py does for one
// direction and one branch.
//
// Letters: B batch, D channels, N states, L time, G groups of channels that share B and C.
#pragma once

#include <array>
#include <string>

#include "gpu/choice.h"
#include "gpu/driver.h"
#include "gpu/dtype.h"

namespace rdfa::gpu {

constexpr double LOG2E = 1.4426950408889634;

// [B,D,L] on the device by its strides in elements, time adjacent; no data: it is not given.
struct Sequence {
  const void* data = nullptr;
  int64_t stride_b = 0, stride_d = 0;
};

// B or C as [B,G,N,L], by its strides in elements.
struct Projection {
  const void* data;
  std::array<int64_t, 4> strides;
};

// Which kernels serve a call: what the pack has (ops/aot/variants.py).
struct Form {
  int64_t launches, states;  // each launch takes STATES_PER_LAUNCH states; all of them together
  Dtype dtype;               // of the sequences; f32 wherever the pack has nothing narrower
};

// same: whether u, delta and the gate z have one dtype, that of u.
inline Form choose_form(const Pack& pack, int64_t states, Dtype u, bool same, bool softplus, bool gated) {
  const int64_t per_launch = pack.whole("STATES_PER_LAUNCH"), launches = ceil_div(states, per_launch);
  return {launches, launches * per_launch, same && softplus && gated && launches == 1 ? u : Dtype::f32};
}

struct ScanProblem {
  int64_t batch, channels, groups, length;
  bool softplus, reverse;
  Dtype dtype, projected;  // of the sequences; of B and C
  Sequence u, delta, z;
  Projection B, C;    // as many states as `Form` says: those beyond N are zeros, stay 0 and add 0 to y
  const float* A;     // [states, D] such that exp(dt A of the model) = exp2(dt A)
  const float* bias;  // [D]
};

class Scan {
 public:
  Scan(Device& device, void* stream, const ScanProblem& problem);

  int64_t rows() const { return p_.batch * p_.channels; }
  int64_t segments() const { return ceil_div(choice_.blocks, choice_.segment); }
  int64_t states_per_launch() const { return per_launch_; }
  // float32 numbers of memory, at a multiple of 16 bytes, that the launches of `run` work in.
  int64_t workspace() const;

  // The launches for one share of the states. D: [D], zeros for all shares but one. y: what this share adds to y, in
  // `dtype`. h: [segments, STATES_PER_LAUNCH, B D] float32; that of the last segment is the last state.
  void run(int64_t index, const float* D, const Sequence& y, float* h, float* workspace) const;

 private:
  Device& device_;
  void* const stream_;
  const ScanProblem p_;
  const int64_t per_launch_;
  const ScanChoice choice_;

  int64_t packed() const;
  void pack(int64_t index, float* BC) const;
  void join(const float* A, float* h, float* sums) const;
  bool multiples_of(int64_t access, const Sequence& y) const;
  bool all_options() const { return p_.softplus && p_.z.data != nullptr; }
  std::string tile() const { return std::to_string(choice_.tile->rows) + "x" + std::to_string(choice_.tile->lanes); }
};

}  // namespace rdfa::gpu
