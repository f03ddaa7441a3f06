// torch operators of the selective scan: checks, allocation, threads. The kernels are in selective_scan/.
#include <algorithm>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "common/dispatch.h"
#include "selective_scan/scan.h"
#include "torch/common.h"

namespace rdfa {
namespace {

using OptionalTensor = std::optional<Tensor>;

constexpr int64_t MAX_STATES = 256;

Matrix matrix(const Tensor& t, int64_t stride_b, int64_t stride_r, int64_t stride_t) {
  return {const_cast<void*>(t.const_data_ptr()), stride_b, stride_r, stride_t, t.scalar_type() == ScalarType::BFloat16};
}

// The memory of a large new tensor comes from the system in pages of 4 KB, which can take a third of the time of a
// backward. Asking for large pages is a hint that costs nothing where it is refused.
Tensor with_large_pages(Tensor t) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t page = 4096, large = uintptr_t{1} << 21;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(t.mutable_data_ptr());
  const uintptr_t end = begin + static_cast<uintptr_t>(t.numel()) * t.element_size();
  if (end - begin >= large) {
    const uintptr_t first = (begin + page - 1) / page * page, last = end / page * page;
    madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
  }
#endif
  return t;
}

// The same array with time, its last dimension, running backwards.
Matrix reversed(const Tensor& t, Matrix m) {
  if (t.numel() == 0) return m;
  m.data = static_cast<char*>(m.data) + (t.size(t.dim() - 1) - 1) * m.stride_t * static_cast<int64_t>(t.element_size());
  m.stride_t = -m.stride_t;
  return m;
}

// A [B, D, L] tensor.
Matrix sequence(const Tensor& t, bool reverse) {
  const Matrix m = matrix(t, t.stride(0), t.stride(1), t.stride(2));
  return reverse ? reversed(t, m) : m;
}

Projection projection(const char* name, const Tensor& t, int64_t B, int64_t D, int64_t N, int64_t L, bool reverse) {
  STD_TORCH_CHECK(is_float_or_bfloat16(t), name, " must be float32 or bfloat16");
  Projection p;
  if (t.dim() == 2) {
    check_shape(name, t, {D, N});
    p.matrix = matrix(t, 0, t.stride(1), 0);
    p.stride_g = t.stride(0);
    p.groups = D > 0 ? D : 1;
    p.constant = true;
    return p;
  }
  if (t.dim() == 3) {
    check_shape(name, t, {B, N, L});
    p.matrix = sequence(t, reverse);
    return p;
  }
  STD_TORCH_CHECK(t.dim() == 4 && t.size(1) > 0 && D % t.size(1) == 0, name, " has shape ", shape_string(t),
                  ", expected [D, N], [B, N, L] or [B, G, N, L] with G a divisor of D = ", D);
  check_shape(name, t, {B, t.size(1), N, L});
  p.matrix = matrix(t, t.stride(0), t.stride(2), t.stride(3));
  p.stride_g = t.stride(1);
  p.groups = t.size(1);
  if (reverse) p.matrix = reversed(t, p.matrix);
  return p;
}

std::vector<float> dense(const char* name, const OptionalTensor& t, int64_t D) {
  if (!t) return {};
  check_shape(name, *t, {D});
  check_dtype(name, *t, ScalarType::Float);
  const float* p = static_cast<const float*>(t->const_data_ptr());
  std::vector<float> values(D);
  for (int64_t i = 0; i < D; ++i) values[i] = p[i * t->stride(0)];
  return values;
}

// The checked inputs of a call, in the form that kernels take.
struct Call {
  ScanArgs args{};
  std::vector<float> D, delta_bias;

  Call(const Tensor& u, const Tensor& delta, const Tensor& A, const Tensor& B, const Tensor& C,
       const OptionalTensor& D_, const OptionalTensor& z, const OptionalTensor& bias, bool softplus, bool reverse) {
    STD_TORCH_CHECK(u.dim() == 3, "u has shape ", shape_string(u), ", expected [B, D, L]");
    const int64_t batch = u.size(0), channels = u.size(1), length = u.size(2);
    STD_TORCH_CHECK(A.dim() == 2 && A.size(0) == channels && A.size(1) >= 1 && A.size(1) <= MAX_STATES, "A has shape ",
                    shape_string(A), ", expected [", channels, ", N] with N from 1 to ", MAX_STATES);
    check_dtype("A", A, ScalarType::Float);
    const int64_t states = A.size(1);
    check_sequence("u", u, batch, channels, length);
    check_sequence("delta", delta, batch, channels, length);
    if (z) check_sequence("z", *z, batch, channels, length);
    args.batch = batch;
    args.channels = channels;
    args.states = states;
    args.length = length;
    args.softplus = softplus;
    args.reverse = reverse;
    args.u = sequence(u, reverse);
    args.delta = sequence(delta, reverse);
    if (z) args.z = sequence(*z, reverse);
    args.A = matrix(A, 0, A.stride(0), A.stride(1));
    args.B = projection("B", B, batch, channels, states, length, reverse);
    args.C = projection("C", C, batch, channels, states, length, reverse);
    const int64_t few = std::min(args.B.groups, args.C.groups), many = std::max(args.B.groups, args.C.groups);
    STD_TORCH_CHECK(few == many || few == 1 || args.B.constant || args.C.constant, "B has ", args.B.groups,
                    " groups and C has ", args.C.groups, ": expected the same number, or one of them 1");
    D = dense("D", D_, channels);
    delta_bias = dense("delta_bias", bias, channels);
    args.D = D_ ? D.data() : nullptr;
    args.delta_bias = bias ? delta_bias.data() : nullptr;
  }

  static void check_sequence(const char* name, const Tensor& t, int64_t B, int64_t D, int64_t L) {
    check_shape(name, t, {B, D, L});
    STD_TORCH_CHECK(is_float_or_bfloat16(t), name, " must be float32 or bfloat16");
  }

  // Tasks per thread below which another thread costs more than it brings.
  int64_t grain(int64_t channels_per_task) const {
    const int64_t elements = std::max<int64_t>(1, args.length * args.states * channels_per_task);
    return std::max<int64_t>(1, 65536 / elements);
  }
};

std::tuple<Tensor, Tensor> forward(Call& call, const Tensor& u, Tensor* kept_states) {
  ScanArgs& args = call.args;
  Tensor y = with_large_pages(
      allocate_bdl(args.batch, args.channels, args.length, is_channels_last(u), u.scalar_type()));
  Tensor last_state = allocate({args.batch, args.channels, args.states}, ScalarType::Float);
  args.y = sequence(y, args.reverse);
  args.last_state = static_cast<float*>(last_state.mutable_data_ptr());
  const int lanes = RDFA_DISPATCH(scan_lanes)();
  const Partition part(args, lanes);
  if (kept_states != nullptr) {
    const int64_t tiles = (args.length + TILE - 1) / TILE, wide_blocks = part.groups * part.wide_blocks_per_group();
    *kept_states =
        with_large_pages(allocate({args.batch, tiles, wide_blocks, args.states * STATE_LANES}, ScalarType::Float));
    args.kept_states = static_cast<float*>(kept_states->mutable_data_ptr());
  }
  const auto kernel = RDFA_DISPATCH(scan_forward);
  torch::stable::parallel_for(0, args.batch * part.blocks(), call.grain(lanes),
                              [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
  return {y, last_state};
}

std::tuple<Tensor, Tensor> selective_scan(const Tensor& u, const Tensor& delta, const Tensor& A, const Tensor& B,
                                          const Tensor& C, const OptionalTensor& D, const OptionalTensor& z,
                                          const OptionalTensor& delta_bias, bool softplus, bool reverse) {
  Call call(u, delta, A, B, C, D, z, delta_bias, softplus, reverse);
  return forward(call, u, nullptr);
}

std::tuple<Tensor, Tensor, Tensor> selective_scan_train(const Tensor& u, const Tensor& delta, const Tensor& A,
                                                        const Tensor& B, const Tensor& C, const OptionalTensor& D,
                                                        const OptionalTensor& z, const OptionalTensor& delta_bias,
                                                        bool softplus, bool reverse) {
  Call call(u, delta, A, B, C, D, z, delta_bias, softplus, reverse);
  Tensor states;
  auto [y, last_state] = forward(call, u, &states);
  return {y, last_state, states};
}

void put(void* data, ScalarType dtype, int64_t index, float value) {
  if (dtype == ScalarType::Float) {
    static_cast<float*>(data)[index] = value;
    return;
  }
  uint32_t raw;
  std::memcpy(&raw, &value, 4);
  raw = value == value ? raw + 0x7fff + ((raw >> 16) & 1) : raw | 0x400000;
  static_cast<uint16_t*>(data)[index] = static_cast<uint16_t>(raw >> 16);
}

// A gradient that tasks write in `shares` parts, added up in their order: the result does not depend on the threads.
class SharedGradient {
 public:
  // `result` holds [outer][inner] values in memory, the parts lie as [outer][shares][inner].
  SharedGradient(Tensor result, int64_t outer, int64_t shares, int64_t inner)
      : result_(result), outer_(outer), shares_(shares), inner_(inner) {
    direct_ = shares == 1 && result.scalar_type() == ScalarType::Float;
    if (!direct_) parts_ = allocate({outer * shares * inner}, ScalarType::Float);
  }
  float* data() const { return static_cast<float*>((direct_ ? result_ : *parts_).mutable_data_ptr()); }
  Tensor finish() const {
    if (direct_) return result_;
    const float* parts = data();
    void* out = result_.mutable_data_ptr();
    const ScalarType dtype = result_.scalar_type();
    torch::stable::parallel_for(0, outer_ * inner_, 16384, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const float* p = parts + i / inner_ * shares_ * inner_ + i % inner_;
        float sum = 0;
        for (int64_t s = 0; s < shares_; ++s) sum += p[s * inner_];
        put(out, dtype, i, sum);
      }
    });
    return result_;
  }

 private:
  Tensor result_;
  std::optional<Tensor> parts_;
  int64_t outer_, shares_, inner_;
  bool direct_;
};

// The gradient of B or C: [B, G, L, N] in memory; of a constant one [D, N], shared by the batch.
SharedGradient projection_gradient(const Tensor& like, const Projection& p, const ScanArgs& args, int64_t slabs) {
  const int64_t B = args.batch, G = p.groups, L = args.length, N = args.states;
  const ScalarType dtype = like.scalar_type();
  if (p.constant) return {allocate({args.channels, N}, dtype), 1, B, args.channels * N};
  const int64_t shares = slabs / G;
  if (like.dim() == 3) return {allocate({B, N, L}, {L * N, 1, N}, dtype), B, shares, L * N};
  return {allocate({B, G, N, L}, {G * L * N, L * N, 1, N}, dtype), B * G, shares, L * N};
}

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Gradients selective_scan_backward(const Tensor& grad_y, const OptionalTensor& grad_last_state, const Tensor& u,
                             const Tensor& delta, const Tensor& A, const Tensor& B, const Tensor& C,
                             const OptionalTensor& D, const OptionalTensor& z, const OptionalTensor& delta_bias,
                             const Tensor& states, bool softplus, bool reverse) {
  Call call(u, delta, A, B, C, D, z, delta_bias, softplus, reverse);
  ScanArgs& args = call.args;
  const int64_t batch = args.batch, channels = args.channels, N = args.states, L = args.length;
  const Partition part(args, RDFA_DISPATCH(scan_lanes)());
  Call::check_sequence("grad_y", grad_y, batch, channels, L);
  args.grad_y = sequence(grad_y, reverse);
  if (grad_last_state) {
    const Tensor& g = *grad_last_state;
    check_shape("grad_last_state", g, {batch, channels, N});
    check_dtype("grad_last_state", g, ScalarType::Float);
    args.grad_last_state = matrix(g, g.stride(0), g.stride(1), g.stride(2));
  }
  check_dtype("states", states, ScalarType::Float);
  const int64_t tiles = (L + TILE - 1) / TILE, wide_blocks = part.groups * part.wide_blocks_per_group();
  check_shape("states", states, {batch, tiles, wide_blocks, N * STATE_LANES});
  STD_TORCH_CHECK(states.is_contiguous(), "states must be as selective_scan_train returned them");
  args.kept_states = static_cast<float*>(const_cast<void*>(states.const_data_ptr()));

  const auto like = [&](const Tensor& t) {
    return with_large_pages(allocate_bdl(batch, channels, L, is_channels_last(t), t.scalar_type()));
  };
  const auto absent = [] { return allocate({0}, ScalarType::Float); };
  const Tensor grad_u = like(u), grad_delta = like(delta), grad_z = z ? like(*z) : absent();
  args.grad_u = sequence(grad_u, reverse);
  args.grad_delta = sequence(grad_delta, reverse);
  if (z) args.grad_z = sequence(grad_z, reverse);
  const SharedGradient grad_A(allocate({channels, N}, ScalarType::Float), 1, batch, channels * N);
  const SharedGradient grad_D(allocate({channels}, ScalarType::Float), 1, batch, channels);
  const SharedGradient grad_bias(allocate({channels}, ScalarType::Float), 1, batch, channels);
  const SharedGradient grad_B = projection_gradient(B, args.B, args, part.slabs());
  const SharedGradient grad_C = projection_gradient(C, args.C, args, part.slabs());
  args.grad_A = grad_A.data();
  args.grad_D = grad_D.data();
  args.grad_delta_bias = grad_bias.data();
  args.grad_B = grad_B.data();
  args.grad_C = grad_C.data();

  const auto kernel = RDFA_DISPATCH(scan_backward);
  const int64_t grain = call.grain(std::min<int64_t>(SLAB_CHANNELS, part.group_channels));
  torch::stable::parallel_for(0, batch * part.slabs(), grain,
                              [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
  return {grad_u,          grad_delta,
          grad_A.finish(), grad_B.finish(),
          grad_C.finish(), D ? grad_D.finish() : absent(),
          grad_z,          delta_bias ? grad_bias.finish() : absent()};
}

#define SCAN_INPUTS                                                                                         \
  "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? delta_bias, "
#define SCAN_FLAGS "bool delta_softplus, bool reverse"

STABLE_TORCH_LIBRARY_FRAGMENT(rdfa, m) {
  m.def("selective_scan(" SCAN_INPUTS SCAN_FLAGS ") -> (Tensor y, Tensor last_state)");
  m.def("selective_scan_train(" SCAN_INPUTS SCAN_FLAGS ") -> (Tensor y, Tensor last_state, Tensor states)");
  m.def("selective_scan_backward(Tensor grad_y, Tensor? grad_last_state, " SCAN_INPUTS "Tensor states, " SCAN_FLAGS
        ") -> (Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor D, Tensor z, Tensor delta_bias)");
}

STABLE_TORCH_LIBRARY_IMPL(rdfa, CPU, m) {
  m.impl("selective_scan", TORCH_BOX(&selective_scan));
  m.impl("selective_scan_train", TORCH_BOX(&selective_scan_train));
  m.impl("selective_scan_backward", TORCH_BOX(&selective_scan_backward));
}

}  // namespace
}  // namespace rdfa
