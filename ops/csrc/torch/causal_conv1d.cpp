// rdfa::causal_conv1d and its backward for CPU tensors.
#include <vector>

#include "causal_conv1d/kernel.h"
#include "common/dispatch.h"
#include "torch/common.h"

namespace rdfa {
namespace {

using conv::CHANNELS;
using conv::MAX_WIDTH;
using conv::Problem;
using conv::Sequence;

// One tile is about 10 microseconds of work: enough for a thread.
constexpr int64_t GRAIN = 2;

Sequence sequence(const Tensor& x) {
  return {const_cast<void*>(x.const_data_ptr()), x.stride(0), x.stride(1), x.stride(2)};
}

// x itself when its memory order is the wanted one with inner stride 1, else a copy.
Tensor in_layout(const Tensor& x, bool channels_last) {
  if (x.stride(channels_last ? 1 : 2) == 1) return x;
  Tensor copy = allocate_bdl(x.size(0), x.size(1), x.size(2), channels_last, x.scalar_type());
  torch::stable::copy_(copy, x);
  return copy;
}

float to_float(float value) { return value; }
float to_float(uint16_t half) {
  const uint32_t raw = static_cast<uint32_t>(half) << 16;
  float value;
  std::memcpy(&value, &raw, 4);
  return value;
}

void assign(float& to, float value) { to = value; }
void assign(uint16_t& to, float value) {
  uint32_t raw;
  std::memcpy(&raw, &value, 4);
  to = static_cast<uint16_t>((value == value ? raw + 0x7fff + ((raw >> 16) & 1) : raw | 0x400000) >> 16);
}

// Calls visit(pointer) with the element type of a float32 or bfloat16 tensor.
template <typename Visitor>
void with_elements(const Tensor& t, const Visitor& visit) {
  void* data = const_cast<void*>(t.const_data_ptr());
  if (t.scalar_type() == ScalarType::Float) {
    visit(static_cast<float*>(data));
  } else {
    visit(static_cast<uint16_t*>(data));
  }
}

// Checks the inputs that both directions share, and packs the taps.
Problem make_problem(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, bool silu, bool reverse,
                     std::vector<float>& taps) {
  STD_TORCH_CHECK(x.dim() == 3, "x has shape ", shape_string(x), ", expected [B, D, L]");
  STD_TORCH_CHECK(is_float_or_bfloat16(x), "x must be float32 or bfloat16");
  STD_TORCH_CHECK(is_float_or_bfloat16(weight), "weight must be float32 or bfloat16");
  STD_TORCH_CHECK(weight.dim() == 2 && weight.size(1) >= 2 && weight.size(1) <= MAX_WIDTH, "weight has shape ",
                  shape_string(weight), ", expected [D, 2..4]");
  const int64_t D = x.size(1), width = weight.size(1);
  check_shape("weight", weight, {D, width});
  Problem p{x.size(0), D, x.size(2), static_cast<int>(width), silu, reverse};
  p.bf16 = x.scalar_type() == ScalarType::BFloat16;
  p.channels_last = is_channels_last(x);
  taps.assign((MAX_WIDTH + 1) * p.padded_channels(), 0.0f);
  const int64_t stride_d = weight.stride(0), stride_w = weight.stride(1);
  with_elements(weight, [&](const auto* from) {
    for (int64_t j = 0; j < width; ++j) {
      float* to = taps.data() + j * p.padded_channels();
      for (int64_t d = 0; d < D; ++d) to[d] = to_float(from[d * stride_d + (width - 1 - j) * stride_w]);
    }
  });
  if (bias) {
    STD_TORCH_CHECK(is_float_or_bfloat16(*bias), "bias must be float32 or bfloat16");
    check_shape("bias", *bias, {D});
    const int64_t stride = bias->stride(0);
    float* to = taps.data() + MAX_WIDTH * p.padded_channels();
    with_elements(*bias, [&](const auto* from) {
      for (int64_t d = 0; d < D; ++d) to[d] = to_float(from[d * stride]);
    });
  }
  p.taps = taps.data();
  return p;
}

Tensor causal_conv1d(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, bool silu,
                     bool reverse) {
  std::vector<float> taps;
  const Problem p = make_problem(x, weight, bias, silu, reverse, taps);
  const Tensor y = allocate_bdl(p.B, p.D, p.L, p.channels_last, x.scalar_type());
  const Tensor source = in_layout(x, p.channels_last);
  const Sequence from = sequence(source), to = sequence(y);
  const auto kernel = RDFA_DISPATCH(conv_forward);
  torch::stable::parallel_for(0, p.tiles(), GRAIN,
                              [&](int64_t first, int64_t last) { kernel(p, from, to, first, last); });
  return y;
}

std::tuple<Tensor, Tensor, Tensor> causal_conv1d_backward(const Tensor& dy, const Tensor& x, const Tensor& weight,
                                                          const std::optional<Tensor>& bias, bool silu, bool reverse) {
  std::vector<float> taps;
  const Problem p = make_problem(x, weight, bias, silu, reverse, taps);
  check_dtype("dy", dy, x.scalar_type());
  check_shape("dy", dy, {p.B, p.D, p.L});
  const Tensor dx = allocate_bdl(p.B, p.D, p.L, p.channels_last, x.scalar_type());
  const Tensor source = in_layout(x, p.channels_last), gradient = in_layout(dy, p.channels_last);
  const int64_t slots = p.B * p.time_tiles(), padded = p.padded_channels(), slot = (MAX_WIDTH + 1) * padded;
  const Tensor partial = allocate({slots, MAX_WIDTH + 1, padded}, ScalarType::Float);
  float* sums = static_cast<float*>(partial.mutable_data_ptr());
  const Sequence from_x = sequence(source), from_dy = sequence(gradient), to = sequence(dx);
  const auto kernel = RDFA_DISPATCH(conv_backward);
  torch::stable::parallel_for(0, p.tiles(), GRAIN, [&](int64_t first, int64_t last) {
    kernel(p, from_x, from_dy, to, sums, first, last);
  });

  const Tensor dweight = allocate({p.D, p.width}, weight.scalar_type());
  const Tensor dbias = allocate({p.D}, bias ? bias->scalar_type() : weight.scalar_type());
  std::vector<double> total(slot, 0.0);
  for (int64_t s = 0; s < slots; ++s) {
    for (int64_t j = 0; j <= MAX_WIDTH; ++j) {
      if (j >= p.width && j < MAX_WIDTH) continue;
      for (int64_t d = 0; d < p.D; ++d) total[j * padded + d] += sums[s * slot + j * padded + d];
    }
  }
  with_elements(dweight, [&](auto* to) {
    for (int64_t d = 0; d < p.D; ++d) {
      for (int64_t j = 0; j < p.width; ++j) {
        assign(to[d * p.width + p.width - 1 - j], static_cast<float>(total[j * padded + d]));
      }
    }
  });
  with_elements(dbias, [&](auto* to) {
    for (int64_t d = 0; d < p.D; ++d) assign(to[d], static_cast<float>(total[MAX_WIDTH * padded + d]));
  });
  return {dx, dweight, dbias};
}

}  // namespace
}  // namespace rdfa

STABLE_TORCH_LIBRARY_FRAGMENT(rdfa, m) {
  m.def("causal_conv1d(Tensor x, Tensor weight, Tensor? bias, bool silu, bool reverse) -> Tensor");
  m.def(
      "causal_conv1d_backward(Tensor dy, Tensor x, Tensor weight, Tensor? bias, bool silu, bool reverse)"
      " -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(rdfa, CPU, m) {
  m.impl("causal_conv1d", TORCH_BOX(&rdfa::causal_conv1d));
  m.impl("causal_conv1d_backward", TORCH_BOX(&rdfa::causal_conv1d_backward));
}
