// rdfa::selective_scan on a GPU: tensors as the launches of gpu/scan.h need them.
//
// Letters: B batch, D channels, N states, L time, G groups of channels that share B and C.
#include <algorithm>
#include <array>
#include <vector>

#include "gpu/scan.h"
#include "torch/gpu.h"

namespace rdfa::gpu {
namespace {

struct Sizes {
  int64_t batch, channels, states, length;
};

void check_sequence(const char* name, const Tensor& t, const Sizes& sizes) {
  check_dtype(name, t);
  check_shape(name, t, {sizes.batch, sizes.channels, sizes.length});
}

// Checks B or C, and returns its groups.
int64_t check_projection(const char* name, const Tensor& t, const Sizes& s) {
  check_dtype(name, t);
  if (t.dim() == 2) {
    check_shape(name, t, {s.channels, s.states});
    return s.channels;
  }
  if (t.dim() == 3) {
    check_shape(name, t, {s.batch, s.states, s.length});
    return 1;
  }
  STD_TORCH_CHECK(t.dim() == 4 && t.size(1) > 0 && s.channels % t.size(1) == 0, name, " has shape ", shape_string(t),
                  ", expected [D, N], [B, N, L] or [B, G, N, L] with G a divisor of D = ", s.channels);
  check_shape(name, t, {s.batch, t.size(1), s.states, s.length});
  return t.size(1);
}

Sizes check(const Tensor& u, const Tensor& delta, const Tensor& A, const std::optional<Tensor>& D,
            const std::optional<Tensor>& z, const std::optional<Tensor>& delta_bias) {
  STD_TORCH_CHECK(u.dim() == 3, "u has shape ", shape_string(u), ", expected [B, D, L]");
  STD_TORCH_CHECK(A.dim() == 2 && A.size(0) == u.size(1) && A.size(1) >= 1 && A.size(1) <= 256, "A has shape ",
                  shape_string(A), ", expected [", u.size(1), ", N] with N from 1 to 256");
  const Sizes sizes{u.size(0), u.size(1), A.size(1), u.size(2)};
  rdfa::check_dtype("A", A, ScalarType::Float);
  check_sequence("u", u, sizes);
  check_sequence("delta", delta, sizes);
  if (z) check_sequence("z", *z, sizes);
  if (D) check_shape("D", *D, {sizes.channels});
  if (delta_bias) check_shape("delta_bias", *delta_bias, {sizes.channels});
  return sizes;
}

// t with zeros behind the states, its dimension `dim`, up to `states` of them: they stay 0 and add 0 to y.
Tensor with_states(const Tensor& t, int64_t dim, int64_t states) {
  if (t.size(dim) == states) return t;
  std::vector<int64_t> sizes;
  for (int64_t i = 0; i < t.dim(); ++i) sizes.push_back(i == dim ? states : t.size(i));
  Tensor wider = torch::stable::new_zeros(t, sizes);
  Tensor part = torch::stable::narrow(wider, dim, 0, t.size(dim));
  torch::stable::copy_(part, t);
  return wider;
}

// B or C as [B,G,N,L], with the tensor that holds it.
struct Held {
  Tensor t;
  std::array<int64_t, 4> strides;
  Projection projection() const { return {t.const_data_ptr(), strides}; }
};

Held project(const Tensor& given, const Sizes& sizes, int64_t groups, int64_t states, ScalarType dtype) {
  const Tensor t = with_states(in_dtype(given, dtype), given.dim() == 2 ? 1 : given.dim() - 2, states);
  if (t.dim() == 2) return {t, {0, t.stride(0), t.stride(1), 0}};
  if (t.dim() == 3) return {t, {t.stride(0), 0, t.stride(1), t.stride(2)}};
  const int64_t own = t.size(1);
  if (own == 1 || own == groups) return {t, {t.stride(0), own == 1 ? 0 : t.stride(1), t.stride(2), t.stride(3)}};
  Tensor repeated = empty_like(t, {sizes.batch, own, groups / own, states, sizes.length}, dtype);
  torch::stable::copy_(repeated, torch::stable::unsqueeze(t, 2));
  return {repeated, {repeated.stride(0), repeated.stride(2), repeated.stride(3), repeated.stride(4)}};
}

// [D,N] -> [states,D] such that exp(dt A) = exp2(dt scaled), 0 beyond N.
Tensor scaled(const Tensor& A, int64_t states) {
  const int64_t D = A.size(0), N = A.size(1);
  Tensor all = N == states ? empty_like(A, {N, D}, ScalarType::Float)
                           : torch::stable::new_zeros(A, {states, D}, ScalarType::Float);
  const Tensor log2e = allocate({}, {}, ScalarType::Float);  // a number on the CPU, which torch takes as one
  *static_cast<float*>(log2e.mutable_data_ptr()) = static_cast<float>(LOG2E);
  using torch::stable::detail::from;
  std::array<StableIValue, 3> stack{from(torch::stable::transpose(A, 0, 1)), from(log2e),
                                    from(torch::stable::narrow(all, 0, 0, N))};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mul", "out", stack.data(), TORCH_ABI_VERSION));
  torch::stable::detail::to<Tensor>(stack[0]);  // ours to release
  return all;
}

Tensor time_contiguous(const Tensor& t, ScalarType dtype) {
  const Tensor converted = in_dtype(t, dtype);
  return converted.stride(2) == 1 ? converted : torch::stable::contiguous(converted);
}

Sequence sequence(const Tensor& t) { return {t.const_data_ptr(), t.stride(t.dim() - 3), t.stride(t.dim() - 2)}; }

const float* floats(const Tensor& t) { return static_cast<const float*>(t.const_data_ptr()); }
float* mutable_floats(const Tensor& t) { return static_cast<float*>(t.mutable_data_ptr()); }

// The skip D for the first of several launches, and zeros for the others.
Tensor then_zeros(const Tensor& D, int64_t channels) {
  const Tensor both = torch::stable::new_zeros(D, {2, channels}, ScalarType::Float);
  Tensor first = torch::stable::select(both, 0, 0);
  torch::stable::copy_(first, D);
  return both;
}

}  // namespace

std::tuple<Tensor, Tensor> selective_scan(const Tensor& u, const Tensor& delta, const Tensor& A, const Tensor& B,
                                          const Tensor& C, const std::optional<Tensor>& D,
                                          const std::optional<Tensor>& z, const std::optional<Tensor>& delta_bias,
                                          bool softplus, bool reverse) {
  const Sizes sizes = check(u, delta, A, D, z, delta_bias);
  for (const auto& [name, t] : {std::pair("delta", &delta), {"A", &A}, {"B", &B}, {"C", &C}}) {
    check_device(name, *t, u);
  }
  for (const auto& [name, t] : {std::pair("D", &D), {"z", &z}, {"delta_bias", &delta_bias}}) {
    if (*t) check_device(name, **t, u);
  }
  const int64_t B_groups = check_projection("B", B, sizes), C_groups = check_projection("C", C, sizes);
  const int64_t few = std::min(B_groups, C_groups), groups = std::max(B_groups, C_groups);
  STD_TORCH_CHECK(few == groups || few == 1 || B.dim() == 2 || C.dim() == 2, "B has ", B_groups, " groups and C has ",
                  C_groups, ": expected the same number, or one of them 1");
  const Tensor y = empty_bdl_like(u);
  const auto [batch, channels, N, length] = sizes;
  if (u.numel() == 0) return {y, torch::stable::new_zeros(u, {batch, channels, N}, ScalarType::Float)};

  Device& device = Device::of(u.get_device_index());
  const bool same = delta.scalar_type() == u.scalar_type() && (!z || z->scalar_type() == u.scalar_type());
  const Form form = choose_form(device.pack(), N, dtype_of(u.scalar_type()), same, softplus, z.has_value());
  const auto [launches, states, dtype] = form;
  const ScalarType type = scalar_type(dtype);
  const ScalarType projected = B.scalar_type() == C.scalar_type() ? B.scalar_type() : ScalarType::Float;
  const Tensor sequences[] = {time_contiguous(u, type), time_contiguous(delta, type)};
  const std::optional<Tensor> gate = z ? std::optional(time_contiguous(*z, type)) : std::nullopt;
  const Tensor A_of_states = scaled(A, states), bias = per_channel(delta_bias, u, channels);
  const Held B_held = project(B, sizes, groups, states, projected);
  const Held C_held = project(C, sizes, groups, states, projected);
  const Tensor given_skip = per_channel(D, u, channels);
  const Tensor skip = launches > 1 ? then_zeros(given_skip, channels) : given_skip;
  const Scan scan(device, current_stream(u.get_device_index()),
                  {batch, channels, groups, length, softplus, reverse, dtype, dtype_of(projected),
                   sequence(sequences[0]), sequence(sequences[1]), gate ? sequence(*gate) : Sequence{},
                   B_held.projection(), C_held.projection(), floats(A_of_states), floats(bias)});
  const bool direct = launches == 1 && y.stride(2) == 1 && type == u.scalar_type();
  const Tensor parts = direct ? y : empty_like(u, {launches, batch, channels, length}, type);
  const Tensor h = empty_like(u, {launches, scan.segments(), scan.states_per_launch(), batch * channels},
                              ScalarType::Float);
  for (int64_t i = 0; i < launches; ++i) {
    const Tensor workspace = empty_like(u, {scan.workspace()}, ScalarType::Float);
    const Tensor part = direct ? y : torch::stable::select(parts, 0, i);
    scan.run(i, floats(skip) + (i == 0 ? 0 : channels), sequence(part),
             mutable_floats(torch::stable::select(h, 0, i)), mutable_floats(workspace));
  }
  if (!direct) {
    Tensor result = y;
    const std::array<int64_t, 1> launch_axis{0};
    torch::stable::copy_(result, launches > 1 ? torch::stable::sum(parts, launch_axis)
                                              : torch::stable::select(parts, 0, 0));
  }
  const Tensor ends = torch::stable::select(h, 1, scan.segments() - 1);  // [launches, per_launch, B D]
  Tensor rows_last = torch::stable::transpose(torch::stable::reshape(ends, {states, batch * channels}), 0, 1);
  const Tensor last = torch::stable::contiguous(torch::stable::narrow(rows_last, 1, 0, N));
  return {y, torch::stable::reshape(last, {batch, channels, N})};
}

}  // namespace rdfa::gpu
