// rdfa::causal_conv1d on a GPU: what `forward` of ops/causal_conv1d/cuda.py does, with one filter.
#include "torch/gpu.h"

namespace rdfa::gpu {
namespace {

// Whether the tile's accesses, of 16 bytes, are there in x's memory.
bool fits(const Tensor& x, int64_t inner, int64_t access, int64_t bytes) {
  if (x.stride(inner) != 1 || x.size(inner) % access || !is_aligned(x, bytes)) return false;
  for (int64_t i = 0; i < 3; ++i) {
    if (i != inner && x.size(i) != 1 && x.stride(i) % access) return false;
  }
  return true;
}

}  // namespace

Tensor causal_conv1d(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, bool silu,
                     bool reverse) {
  check_dtype("x", x);
  check_dtype("weight", weight);
  check_device("weight", weight, x);
  if (bias) check_dtype("bias", *bias);
  if (bias) check_device("bias", *bias, x);
  STD_TORCH_CHECK(x.dim() == 3, "x has shape ", shape_string(x), ", expected [B, D, L]");
  const int64_t B = x.size(0), D = x.size(1), L = x.size(2);
  STD_TORCH_CHECK(weight.dim() == 2 && weight.size(0) == D && weight.size(1) >= 2 && weight.size(1) <= 4,
                  "weight has shape ", shape_string(weight), ", expected [", D, ", 2..4]");
  if (bias) check_shape("bias", *bias, {D});
  const Tensor y = empty_bdl_like(x);
  if (x.numel() == 0) return y;

  Device& device = Device::of(x.get_device_index());
  const Pack& pack = device.pack();
  const bool channels_inner = y.stride(1) < y.stride(2);
  const int64_t size = static_cast<int64_t>(x.element_size()), bytes = pack.whole("ACCESS_BYTES");
  const bool wide = fits(x, channels_inner ? 1 : 2, bytes / size, bytes);
  const std::string tile = std::string(channels_inner ? "channels" : "time") + (wide ? "-wide" : "-narrow");
  const ConvChoice choice =
      choose_conv(pack, pack.conv_tile(tile + (size == 4 ? "-4" : "-2")), B, D, L);

  const Tensor taps = torch::stable::contiguous(in_dtype(weight, ScalarType::Float)), offset = per_channel(bias, x, D);
  Arguments arguments;
  arguments.set("x_ptr", x.const_data_ptr());
  arguments.set("weights", taps.const_data_ptr());
  arguments.set("biases", offset.const_data_ptr());
  arguments.set("y_ptr", y.const_data_ptr());
  arguments.set("x_r", int64_t{0});
  arguments.set("x_s", x.stride(0));
  arguments.set("x_d", x.stride(1));
  arguments.set("x_t", x.stride(2));
  arguments.set("y_r", int64_t{0});
  arguments.set("y_s", y.stride(0));
  arguments.set("y_d", y.stride(1));
  arguments.set("y_t", y.stride(2));
  arguments.set("S", B);
  arguments.set("D", D);
  arguments.set("L", L);
  arguments.set("blocks", choice.blocks);
  const std::string kernel = "conv-" + name_of(dtype_of(x.scalar_type())) + "-" + tile + "-w" +
                             std::to_string(weight.size(1)) + (silu ? "-silu" : "-linear") +
                             (reverse ? "-reverse" : "-forward");
  device.launch(kernel, {choice.columns, choice.rows}, arguments, current_stream(x.get_device_index()));
  return y;
}

}  // namespace rdfa::gpu
