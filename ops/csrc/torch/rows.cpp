// What inference does to rows of channels on the CPU: all convolutions and all scans of an FA-Bi-S6 block, and the
// pooling of its gate.
//
// Letters: S sequences, L steps, D channels, N states, K branches, 2 the directions of time.
#include <algorithm>
#include <vector>

#include "causal_conv1d/rows.h"
#include "common/dispatch.h"
#include "selective_scan/scan.h"
#include "torch/common.h"

namespace rdfa {
namespace {

const float* dense(const char* name, const Tensor& t, std::initializer_list<int64_t> shape) {
  check_shape(name, t, shape);
  check_dtype(name, t, ScalarType::Float);
  STD_TORCH_CHECK(t.is_contiguous(), name, " must be contiguous");
  return static_cast<const float*>(t.const_data_ptr());
}

// Rows of adjacent channels [S, L, C].
void check_rows(const char* name, const Tensor& t, int64_t channels) {
  STD_TORCH_CHECK(t.dim() == 3 && t.size(2) == channels && t.stride(2) == 1, name, " has shape ", shape_string(t),
                  ", expected [S, L, ", channels, "] with adjacent channels");
  STD_TORCH_CHECK(is_float_or_bfloat16(t), name, " must be float32 or bfloat16");
}

Tensor conv_rows(const Tensor& xz, const Tensor& taps) {
  STD_TORCH_CHECK(taps.dim() == 3 && taps.size(0) >= 1 && taps.size(0) <= rows::MAX_BRANCHES, "taps has shape ",
                  shape_string(taps), ", expected [1..3, 5, D]");
  const int64_t K = taps.size(0), D = taps.size(2);
  check_rows("xz", xz, 4 * D);
  const int64_t S = xz.size(0), L = xz.size(1);
  rows::Convolution c{S, L, D, K, xz.scalar_type() == ScalarType::BFloat16, xz.const_data_ptr()};
  c.x_s = xz.stride(0);
  c.x_l = xz.stride(1);
  c.x_r = 2 * D;
  c.taps = dense("taps", taps, {K, rows::TAPS + 1, D});
  const Tensor u = allocate({S * 2 * K, L, D}, xz.scalar_type());
  c.u = u.mutable_data_ptr();
  const auto kernel = RDFA_DISPATCH(convolve_rows);
  torch::stable::parallel_for(0, c.tasks(), 2, [&](int64_t first, int64_t last) { kernel(c, first, last); });
  return u;
}

// One direction and branch of one sequence.
ScanArgs scan_args(const Tensor& u, const Tensor& delta, const Tensor& BC, const Tensor& xz, const Tensor& y,
                   int64_t index, int64_t K) {
  const int64_t L = u.size(1), D = u.size(2), N = BC.size(2) / 2;
  const int64_t s = index / (2 * K), direction = index / K % 2, element = static_cast<int64_t>(u.element_size());
  const bool bf16 = u.scalar_type() == ScalarType::BFloat16, reverse = direction == 1;
  const auto rows = [&](const Tensor& t, int64_t offset, int64_t stride) {
    const int64_t first = offset + (reverse ? (L - 1) * stride : 0);
    char* data = static_cast<char*>(const_cast<void*>(t.const_data_ptr())) + first * element;
    return Matrix{data, 0, 1, reverse ? -stride : stride, bf16};
  };
  ScanArgs args{};
  args.batch = 1;
  args.channels = D;
  args.states = N;
  args.length = L;
  args.softplus = true;
  args.reverse = reverse;
  args.u = rows(u, index * L * D, D);
  args.delta = rows(delta, index * L * D, D);
  args.z = rows(xz, s * xz.stride(0) + (2 * direction + 1) * D, xz.stride(1));
  args.B.matrix = rows(BC, (s * 2 + direction) * L * 2 * N, 2 * N);
  args.C.matrix = rows(BC, (s * 2 + direction) * L * 2 * N + N, 2 * N);
  args.y = rows(y, s * L * 2 * K * D + (direction * K + index % K) * D, 2 * K * D);
  return args;
}

Tensor scan_rows(const Tensor& u, const Tensor& delta, const Tensor& A, const Tensor& BC, const Tensor& D_,
                 const Tensor& delta_bias, const Tensor& xz, const std::optional<Tensor>& state) {
  STD_TORCH_CHECK(A.dim() == 2 && A.size(1) >= 1, "A has shape ", shape_string(A), ", expected [D, N]");
  const int64_t D = A.size(0), N = A.size(1);
  check_rows("xz", xz, 4 * D);
  check_rows("u", u, D);
  const int64_t S = xz.size(0), L = xz.size(1), runs = u.size(0);
  STD_TORCH_CHECK(S > 0 && runs % (2 * S) == 0 && runs > 0, "u has shape ", shape_string(u), ", expected [", 2 * S,
                  " K, L, D]");
  const int64_t K = runs / (2 * S);
  check_shape("u", u, {runs, L, D});
  check_shape("delta", delta, {runs, L, D});
  check_shape("BC", BC, {2 * S, L, 2 * N});
  for (const auto& [name, t] : {std::pair{"delta", &delta}, {"BC", &BC}, {"xz", &xz}, {"u", &u}}) {
    check_dtype(name, *t, u.scalar_type());
    STD_TORCH_CHECK(t == &xz || t->is_contiguous(), name, " must be contiguous");
  }
  const Matrix decay = {const_cast<float*>(dense("A", A, {D, N})), 0, N, 1, false};
  const float *skip = dense("D", D_, {D}), *bias = dense("delta_bias", delta_bias, {D});
  const float* start = state ? dense("state", *state, {S, K, D, N}) : nullptr;

  const Tensor y = allocate({S, L, 2 * K * D}, u.scalar_type());
  const Tensor last_state = allocate({runs, D, N}, ScalarType::Float);
  std::vector<ScanArgs> scans;
  for (int64_t i = 0; i < runs; ++i) {
    ScanArgs args = scan_args(u, delta, BC, xz, y, i, K);
    args.A = decay;
    args.D = skip;
    args.delta_bias = bias;
    args.last_state = static_cast<float*>(last_state.mutable_data_ptr()) + i * D * N;
    if (start != nullptr && args.reverse) args.first_state = start + (i / (2 * K) * K + i % K) * D * N;
    scans.push_back(args);
  }
  const int64_t blocks = Partition(scans[0], RDFA_DISPATCH(scan_lanes)()).blocks();
  const auto kernel = RDFA_DISPATCH(scan_forward);
  torch::stable::parallel_for(0, runs * blocks, 1, [&](int64_t begin, int64_t end) {
    while (begin < end) {
      const int64_t i = begin / blocks, stop = std::min(end, (i + 1) * blocks);
      kernel(scans[i], begin - i * blocks, stop - i * blocks);
      begin = stop;
    }
  });
  return y;
}

Tensor average_rows(const Tensor& x, int64_t bins) {
  STD_TORCH_CHECK(x.dim() == 3 && bins >= 1 && x.size(1) >= 1, "x has shape ", shape_string(x), ", expected [S, L, D]");
  check_rows("x", x, x.size(2));
  const Tensor y = allocate({x.size(0), bins, x.size(2)}, x.scalar_type());
  const rows::Average a{x.size(0),         x.size(1),   x.size(2),   bins, x.scalar_type() == ScalarType::BFloat16,
                        x.const_data_ptr(), x.stride(0), x.stride(1), y.mutable_data_ptr()};
  const auto kernel = RDFA_DISPATCH(average_rows);
  torch::stable::parallel_for(0, a.tasks(), 16, [&](int64_t first, int64_t last) { kernel(a, first, last); });
  return y;
}

}  // namespace
}  // namespace rdfa

STABLE_TORCH_LIBRARY_FRAGMENT(rdfa, m) {
  m.def("conv_rows(Tensor xz, Tensor taps) -> Tensor");
  m.def(
      "scan_rows(Tensor u, Tensor delta, Tensor A, Tensor BC, Tensor D, Tensor delta_bias, Tensor xz, Tensor? state)"
      " -> Tensor");
  m.def("average_rows(Tensor x, int bins) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(rdfa, CPU, m) {
  m.impl("conv_rows", TORCH_BOX(&rdfa::conv_rows));
  m.impl("scan_rows", TORCH_BOX(&rdfa::scan_rows));
  m.impl("average_rows", TORCH_BOX(&rdfa::average_rows));
}
