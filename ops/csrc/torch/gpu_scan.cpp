// rdfa::selective_scan on a GPU: what `forward` of ops/selective_scan/launch.py does for one direction and one branch.
//
// Letters: B batch, D channels, N states, L time, G groups of channels that share B and C.
#include <algorithm>
#include <array>
#include <vector>

#include "torch/gpu.h"

namespace rdfa::gpu {
namespace {

constexpr double LOG2E = 1.4426950408889634;

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

// B or C as [B,G,N,L], by its strides.
struct Projection {
  Tensor t;
  std::array<int64_t, 4> strides;
};

Projection project(const Tensor& given, const Sizes& sizes, int64_t groups, int64_t states, ScalarType dtype) {
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

const void* at(const Tensor& t, int64_t elements) {
  return static_cast<const char*>(t.const_data_ptr()) + elements * static_cast<int64_t>(t.element_size());
}

// One call, as its launches need it. Each launch takes STATES_PER_LAUNCH states, and has its own share of y.
struct Scan {
  Device& device;
  Sizes sizes;
  int64_t groups, per_launch;
  bool reverse;
  ScalarType dtype;
  void* stream;
  ScanChoice choice;
  Tensor u, delta, A, D, bias;
  std::optional<Tensor> z;
  Projection B, C;
  std::string options;  // of the kernels: "softplus-gated" and so on

  int64_t rows() const { return sizes.batch * sizes.channels; }
  int64_t segments() const { return ceil_div(choice.blocks, choice.segment); }
  std::string tile() const { return std::to_string(choice.tile->rows) + "x" + std::to_string(choice.tile->lanes); }

  Tensor pack(int64_t chunk) const {
    const int64_t blocks = sizes.batch * groups * choice.blocks, first = chunk * per_launch;
    // The kernels ask for one state ahead, behind the last one too.
    const Tensor BC = empty_like(u, {(blocks * per_launch + 1) * 2 * choice.tile->block()}, ScalarType::Float);
    Arguments arguments;
    arguments.set("B_ptr", at(B.t, first * B.strides[2]));
    arguments.set("C_ptr", at(C.t, first * C.strides[2]));
    arguments.set("BC_ptr", BC.const_data_ptr());
    arguments.set("L", sizes.length);
    arguments.set("N", per_launch);
    arguments.set("batch", sizes.batch);
    arguments.set("groups", groups);
    arguments.set("reverse", int64_t{reverse});
    constexpr const char* NAMES[2][4] = {{"B_b", "B_g", "B_n", "B_t"}, {"C_b", "C_g", "C_n", "C_t"}};
    arguments.set("B_r", int64_t{0});
    arguments.set("C_r", int64_t{0});
    for (int i = 0; i < 4; ++i) {
      arguments.set(NAMES[0][i], B.strides[i]);
      arguments.set(NAMES[1][i], C.strides[i]);
    }
    const int64_t at_once = std::clamp<int64_t>(
        device.pack().whole("PACKED_PER_PROGRAM") / choice.tile->block(), 1, per_launch);
    const std::string kernel = "pack-" + dtype_name(B.t.scalar_type()) + "-" + tile();
    device.launch(kernel, {blocks, ceil_div(per_launch, at_once)}, arguments, stream);
    return BC;
  }

  void run(int64_t chunk, const Tensor& y, const Tensor& h) const {
    const Tensor BC = pack(chunk);
    const int64_t access = device.pack().whole("ACCESS_BYTES") / static_cast<int64_t>(u.element_size());
    const bool aligned = multiples_of(access, y);
    const std::string form = !aligned ? "any" : sizes.length % choice.tile->block() ? "access" : "even";
    const int64_t unit = aligned ? access : 1;
    Arguments arguments;
    arguments.set("u_ptr", u.const_data_ptr());
    arguments.set("delta_ptr", delta.const_data_ptr());
    arguments.set("A_ptr", at(A, chunk * per_launch * sizes.channels));
    arguments.set("BC_ptr", BC.const_data_ptr());
    arguments.set("D_ptr", chunk == 0 ? D.const_data_ptr() : at(D, sizes.channels));
    arguments.set("z_ptr", z ? z->const_data_ptr() : nullptr);
    arguments.set("bias_ptr", bias.const_data_ptr());
    arguments.set("y_ptr", at(y, chunk * y_share()));
    arguments.set("h_ptr", at(h, chunk * segments() * per_launch * rows()));
    arguments.set("L", sizes.length / unit);
    arguments.set("ALL", per_launch);
    arguments.set("batch", sizes.batch);
    arguments.set("channels", sizes.channels);
    arguments.set("groups", groups);
    arguments.set("shared", sizes.channels);
    arguments.set("reverse", int64_t{reverse});
    arguments.set("rows", rows());
    arguments.set("segment", choice.segment);
    constexpr const char* NAMES[4][2] = {{"u_b", "u_d"}, {"delta_b", "delta_d"}, {"z_b", "z_d"}, {"y_b", "y_d"}};
    const int64_t last = y.dim() - 1;
    const int64_t strides[4][2] = {{u.stride(0), u.stride(1)},
                                   {delta.stride(0), delta.stride(1)},
                                   {z ? z->stride(0) : 0, z ? z->stride(1) : 0},
                                   {y.stride(last - 2), y.stride(last - 1)}};
    for (const char* name : {"u_r", "delta_r", "z_r", "y_r"}) arguments.set(name, int64_t{0});
    for (int i = 0; i < 4; ++i) {
      for (int k = 0; k < 2; ++k) arguments.set(NAMES[i][k], strides[i][k] / unit);
    }
    const std::string name =
        "scan-" + dtype_name(dtype) + "-" + tile() + "-" + (options == "softplus-gated" ? form : "any") + "-" + options;
    const Grid grid{choice.programs, segments()};
    if (segments() == 1) {
      device.launch(name + "-whole", grid, arguments, stream);
      return;
    }
    const Tensor sums = empty_like(u, {segments(), rows()}, ScalarType::Float);
    arguments.set("sum_ptr", sums.const_data_ptr());
    device.launch(name + "-first", grid, arguments, stream);
    join(at(h, chunk * segments() * per_launch * rows()), sums, at(A, chunk * per_launch * sizes.channels));
    device.launch(name + "-rest", grid, arguments, stream);
  }

  void join(const void* h, const Tensor& sums, const void* A_of_launch) const {
    Arguments arguments;
    arguments.set("h_ptr", h);
    arguments.set("sum_ptr", sums.const_data_ptr());
    arguments.set("A_ptr", A_of_launch);
    arguments.set("N", per_launch);
    arguments.set("h_s", per_launch * rows());
    arguments.set("rows", rows());
    arguments.set("shared", sizes.channels);
    arguments.set("segments", segments());
    const int64_t programs = ceil_div(rows() * per_launch, device.pack().whole("JOINED_PER_PROGRAM"));
    device.launch("join", {programs, 1}, arguments, stream);
  }

  int64_t y_share() const { return rows() * sizes.length; }

  // Whether the length, all strides and all addresses are multiples of one access.
  bool multiples_of(int64_t access, const Tensor& y) const {
    if (options != "softplus-gated" || sizes.length % access) return false;
    const auto fits = [&](const Tensor& t, int64_t dim) {
      return t.stride(dim) % access == 0 && t.stride(dim + 1) % access == 0 &&
             is_aligned(t, access * static_cast<int64_t>(t.element_size()));
    };
    return fits(u, 0) && fits(delta, 0) && (!z || fits(*z, 0)) && fits(y, y.dim() - 3);
  }
};

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
  const int64_t per_launch = device.pack().whole("STATES_PER_LAUNCH"), launches = ceil_div(N, per_launch);
  const int64_t states = launches * per_launch;
  // What the pack has for the dtype of u, else for float32 (ops/aot/variants.py).
  const bool same = delta.scalar_type() == u.scalar_type() && (!z || z->scalar_type() == u.scalar_type());
  const ScalarType dtype = same && softplus && z && launches == 1 ? u.scalar_type() : ScalarType::Float;
  const ScalarType projected = B.scalar_type() == C.scalar_type() ? B.scalar_type() : ScalarType::Float;
  const int64_t bytes = dtype == ScalarType::Float ? 4 : 2;
  const int device_index = u.get_device_index();
  const Tensor skip = per_channel(D, u, channels);
  const Scan scan{
      device,
      sizes,
      groups,
      per_launch,
      reverse,
      dtype,
      current_stream(device_index),
      choose_scan(device.pack(), batch, groups, channels / groups, length, bytes, device.processors()),
      time_contiguous(u, dtype),
      time_contiguous(delta, dtype),
      scaled(A, states),
      launches > 1 ? then_zeros(skip, channels) : skip,
      per_channel(delta_bias, u, channels),
      z ? std::optional(time_contiguous(*z, dtype)) : std::nullopt,
      project(B, sizes, groups, states, projected),
      project(C, sizes, groups, states, projected),
      std::string(softplus ? "softplus" : "linear") + (z ? "-gated" : "-plain"),
  };
  const bool direct = launches == 1 && y.stride(2) == 1 && dtype == u.scalar_type();
  const Tensor parts = direct ? y : empty_like(u, {launches, batch, channels, length}, dtype);
  const Tensor h = empty_like(u, {launches, scan.segments(), per_launch, batch * channels}, ScalarType::Float);
  for (int64_t chunk = 0; chunk < launches; ++chunk) scan.run(chunk, parts, h);
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
