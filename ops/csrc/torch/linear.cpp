// rdfa::linear for CPU tensors: checks, allocation, threads. The kernels are in linear/.
#include <algorithm>

#include "common/dispatch.h"
#include "linear/kernel.h"
#include "torch/common.h"

namespace rdfa {
namespace {

using linear::Problem;
using OptionalTensor = std::optional<Tensor>;

// A contiguous float32 tensor of this shape, or null.
const float* floats(const char* name, const OptionalTensor& t, std::initializer_list<int64_t> shape) {
  if (!t) return nullptr;
  check_shape(name, *t, shape);
  check_dtype(name, *t, ScalarType::Float);
  STD_TORCH_CHECK(t->is_contiguous(), name, " must be contiguous");
  return static_cast<const float*>(t->const_data_ptr());
}

// Rows of a task: few enough for the L2 cache, and as many tasks as make the threads end together. They change nothing
// in the order of the sums.
int64_t rows_of_task(int64_t sequences, int64_t length) {
  constexpr int64_t most = 96, step = 4;
  const int64_t threads = std::max<int64_t>(1, torch::stable::get_num_threads());
  int64_t blocks = (length + most - 1) / most;
  while (sequences * blocks % threads != 0 && blocks * step < length && blocks < 4 * threads) ++blocks;
  const int64_t rows = (length + blocks - 1) / blocks;
  return std::max<int64_t>(1, (rows + step - 1) / step * step);
}

using Kernel = void (*)(const Problem&, int64_t first, int64_t step);

// Products other than of float32 have instructions that only some processors with AVX-512 have. AMD's issue vdpbf16ps as
// often as an FMA; Intel's (measured: Emerald Rapids) issue a quarter as many, half as many products: there bfloat16 is
// widened and multiplied in float32.
Kernel kernel_for(const Problem& p) {
#if defined(__x86_64__)
  static const bool bf16 =
      cpu_has(Isa::avx512) && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_is("amd");
  static const bool vnni = cpu_has(Isa::avx512) && __builtin_cpu_supports("avx512vnni");
  if (cpu_isa() == Isa::avx512 && p.bf16 && bf16) return avx512bf16::linear_forward;
  if (cpu_isa() == Isa::avx512 && p.int8) return vnni ? avx512vnni::linear_forward : avx2::linear_forward;
#endif
  return RDFA_DISPATCH(linear_forward);
}

Tensor linear_forward(const Tensor& x, const Tensor& weight, int64_t outputs, int64_t taps,
                      const OptionalTensor& in_norm, const OptionalTensor& bias, const OptionalTensor& scale,
                      const OptionalTensor& out_norm, bool relu, const OptionalTensor& gate,
                      const OptionalTensor& residual, const OptionalTensor& keep, const OptionalTensor& lengths) {
  STD_TORCH_CHECK(x.dim() == 3, "x has shape ", shape_string(x), ", expected [S, L, K]");
  STD_TORCH_CHECK(is_float_or_bfloat16(x), "x must be float32 or bfloat16");
  STD_TORCH_CHECK(outputs >= 1 && taps >= 1 && taps % 2 == 1, "outputs = ", outputs, ", taps = ", taps,
                  ": expected at least 1, taps odd");
  const int64_t S = x.size(0), L = x.size(1), K = x.size(2);
  Problem p{};
  p.sequences = S;
  p.length = L;
  p.inputs = K;
  p.outputs = outputs;
  p.taps = static_cast<int>(taps);
  p.bf16 = x.scalar_type() == ScalarType::BFloat16;
  p.relu = relu;
  p.int8 = !p.bf16 && weight.scalar_type() == ScalarType::Byte;
  if (!p.int8) check_dtype("weight", weight, x.scalar_type());
  check_shape("weight", weight, {p.padded_outputs() * (taps * p.padded_inputs() + (p.int8 ? sizeof(float) : 0))});
  STD_TORCH_CHECK(weight.is_contiguous(), "weight must be contiguous");
  p.x = x.const_data_ptr();
  p.x_b = x.stride(0);
  p.x_l = x.stride(1);
  p.x_k = x.stride(2);
  p.weights = weight.const_data_ptr();
  p.in_weight = floats("in_norm", in_norm, {2, K});
  p.in_bias = p.in_weight ? p.in_weight + K : nullptr;
  STD_TORCH_CHECK(!in_norm || (K <= linear::CHUNK && taps == 1), "in_norm serves one tap and at most ", linear::CHUNK,
                  " inputs, not ", K);
  p.out_weight = floats("out_norm", out_norm, {2, outputs});
  p.out_bias = p.out_weight ? p.out_weight + outputs : nullptr;
  p.bias = floats("bias", bias, {outputs});
  p.gate = floats("gate", gate, {S, outputs});
  p.scale = floats("scale", scale, {S, L});
  p.keep = floats("keep", keep, {L});
  if (residual) {
    check_shape("residual", *residual, {S, L, outputs});
    check_dtype("residual", *residual, x.scalar_type());
    STD_TORCH_CHECK(residual->stride(2) == 1, "residual must have adjacent channels");
    p.residual = residual->const_data_ptr();
    p.residual_b = residual->stride(0);
    p.residual_l = residual->stride(1);
  }
  p.lengths = lengths ? row_counts(*lengths, S) : nullptr;
  const Tensor y = allocate({S, L, outputs}, x.scalar_type());
  p.y = y.mutable_data_ptr();
  p.y_b = L * outputs;
  p.y_l = outputs;
  if (y.numel() == 0) return y;
  p.rows = rows_of_task(S, L);
  const Kernel kernel = kernel_for(p);
  in_turns(p.tasks(), [&](int64_t first, int64_t step) { kernel(p, first, step); });
  return y;
}

}  // namespace
}  // namespace rdfa

STABLE_TORCH_LIBRARY_FRAGMENT(rdfa, m) {
  m.def(
      "linear(Tensor x, Tensor weight, int outputs, int taps, Tensor? in_norm, Tensor? bias, Tensor? scale, "
      "Tensor? out_norm, bool relu, Tensor? gate, Tensor? residual, Tensor? keep, Tensor? lengths) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(rdfa, CPU, m) { m.impl("linear", TORCH_BOX(&rdfa::linear_forward)); }
