// What inference does to rows of channels on the CPU: all convolutions and all scans of an FA-Bi-S6 block, and the
// pooling of its gate.
//
// Letters: S sequences, L steps, D channels, N states, K branches, 2 the directions of time.
#include <algorithm>
#include <cmath>
#include <utility>

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

Tensor conv_rows(const Tensor& xz, const Tensor& taps, const std::optional<Tensor>& lengths) {
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
  c.lengths = lengths ? row_counts(*lengths, S) : nullptr;
  const Tensor u = allocate({S * 2 * K, L, D}, xz.scalar_type());
  c.u = u.mutable_data_ptr();
  const auto kernel = RDFA_DISPATCH(convolve_rows);
  in_turns(c.tasks(), [&](int64_t first, int64_t step) { kernel(c, first, step); });
  return u;
}

// Steps of a backward scan that see the end of the sequence through the convolution: all but the first of its taps.
constexpr int64_t EDGE = rows::TAPS - 1;

// The tensors of a scan, and the arguments of its runs: one direction and branch of one sequence each.
struct Runs {
  const Tensor &u, &delta, &BC, &xz, &y;
  ScanArgs common;  // what all runs share
  int64_t branches;

  // Steps `first` to `last` of run i.
  ScanArgs run(int64_t i, int64_t first, int64_t last) const {
    const int64_t L = u.size(1), D = common.channels, N = common.states, K = branches;
    const int64_t s = i / (2 * K), direction = i / K % 2, element = static_cast<int64_t>(u.element_size());
    ScanArgs args = common;
    args.length = last - first;
    args.reverse = direction == 1;
    const auto rows = [&](const Tensor& t, int64_t offset, int64_t stride) {
      const int64_t start = offset + (args.reverse ? last - 1 : first) * stride;
      char* data = static_cast<char*>(const_cast<void*>(t.const_data_ptr())) + start * element;
      return Matrix{data, 0, 1, args.reverse ? -stride : stride, u.scalar_type() == ScalarType::BFloat16};
    };
    args.u = rows(u, i * L * D, D);
    args.delta = rows(delta, i * L * D, D);
    args.z = rows(xz, s * xz.stride(0) + (2 * direction + 1) * D, xz.stride(1));
    args.B.matrix = rows(BC, (s * 2 + direction) * L * 2 * N, 2 * N);
    args.C.matrix = rows(BC, (s * 2 + direction) * L * 2 * N + N, 2 * N);
    args.y = rows(y, s * L * 2 * K * D + (direction * K + i % K) * D, 2 * K * D);
    args.last_state += i * D * N;
    return args;
  }
};

float value(const Matrix& m, int64_t i) {
  if (!m.bf16) return static_cast<const float*>(m.data)[i];
  const uint32_t raw = static_cast<uint32_t>(static_cast<const uint16_t*>(m.data)[i]) << 16;
  float x;
  std::memcpy(&x, &raw, 4);
  return x;
}

// The states of channels `first` to `last` after `steps` more steps that are all like the first one of `args`:
// h <- a^m h + dt u B (1 - a^m) / (1 - a), a = exp(dt A).
void repeat_step(const ScanArgs& args, int64_t steps, int64_t first, int64_t last, float* state) {
  for (int64_t d = first; d < last; ++d) {
    const double x = value(args.delta, d) + args.delta_bias[d], dt = x > 20 ? x : std::log1p(std::exp(x));
    const double dtu = dt * value(args.u, d);
    for (int64_t n = 0; n < args.states; ++n) {
      const double decay = dt * static_cast<const float*>(args.A.data)[d * args.states + n];
      const double all = std::expm1(decay * static_cast<double>(steps)), one = std::expm1(decay);
      float& h = state[d * args.states + n];
      const double sum = one == 0 ? static_cast<double>(steps) : all / one;
      h = static_cast<float>((all + 1) * h + dtu * value(args.B.matrix, n) * sum);
    }
  }
}

// Blocks [begin, end) of a run. Where the sequence goes on for `skipped` steps beyond the rows that are there, they lie
// before the last EDGE rows and are like the row before those; only backward scans have come past them.
void scan_run(const Runs& runs, int64_t i, int64_t length, int64_t skipped, int64_t begin, int64_t end) {
  const auto kernel = RDFA_DISPATCH(scan_forward);
  if (skipped == 0 || i / runs.branches % 2 == 0) return kernel(runs.run(i, 0, length), begin, end);
  const int lanes = RDFA_DISPATCH(scan_lanes)();
  const ScanArgs edge = runs.run(i, length - EDGE, length);
  kernel(edge, begin, end);
  ScanArgs rest = runs.run(i, 0, length - EDGE);
  repeat_step(rest, skipped, begin * lanes, std::min(end * lanes, rest.channels), edge.last_state);
  rest.first_state = edge.last_state;
  kernel(rest, begin, end);
}

Tensor scan_rows(const Tensor& u, const Tensor& delta, const Tensor& A, const Tensor& BC, const Tensor& D_,
                 const Tensor& delta_bias, const Tensor& xz, const std::optional<Tensor>& lengths) {
  STD_TORCH_CHECK(A.dim() == 2 && A.size(1) >= 1, "A has shape ", shape_string(A), ", expected [D, N]");
  const int64_t D = A.size(0), N = A.size(1);
  check_rows("xz", xz, 4 * D);
  check_rows("u", u, D);
  const int64_t S = xz.size(0), L = xz.size(1), number = u.size(0);
  STD_TORCH_CHECK(S > 0 && number % (2 * S) == 0 && number > 0, "u has shape ", shape_string(u), ", expected [", 2 * S,
                  " K, L, D]");
  const int64_t K = number / (2 * S);
  check_shape("u", u, {number, L, D});
  check_shape("delta", delta, {number, L, D});
  check_shape("BC", BC, {2 * S, L, 2 * N});
  for (const auto& [name, t] : {std::pair{"delta", &delta}, {"BC", &BC}, {"xz", &xz}, {"u", &u}}) {
    check_dtype(name, *t, u.scalar_type());
    STD_TORCH_CHECK(t == &xz || t->is_contiguous(), name, " must be contiguous");
  }
  const int64_t* counts = lengths ? row_counts(*lengths, S) : nullptr;
  for (int64_t s = 0; counts && s < S; ++s) {
    STD_TORCH_CHECK(counts[s] > EDGE || counts[s] >= L, "lengths holds ", counts[s], ": expected at least ", EDGE + 1);
  }
  const Tensor y = allocate({S, L, 2 * K * D}, u.scalar_type());
  const Tensor last_state = allocate({number, D, N}, ScalarType::Float);
  Runs runs{u, delta, BC, xz, y, {}, K};
  runs.common.batch = 1;
  runs.common.channels = D;
  runs.common.states = N;
  runs.common.softplus = true;
  runs.common.A = {const_cast<float*>(dense("A", A, {D, N})), 0, N, 1, false};
  runs.common.D = dense("D", D_, {D});
  runs.common.delta_bias = dense("delta_bias", delta_bias, {D});
  runs.common.last_state = static_cast<float*>(last_state.mutable_data_ptr());
  if (y.numel() == 0) return y;
  const int64_t blocks = Partition(runs.common, RDFA_DISPATCH(scan_lanes)()).blocks();
  torch::stable::parallel_for(0, number * blocks, 1, [&](int64_t begin, int64_t end) {
    while (begin < end) {
      const int64_t i = begin / blocks, stop = std::min(end, (i + 1) * blocks), s = i / (2 * K);
      const int64_t length = counts ? std::min(counts[s], L) : L;
      scan_run(runs, i, length, L - length, begin - i * blocks, stop - i * blocks);
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
  m.def("conv_rows(Tensor xz, Tensor taps, Tensor? lengths) -> Tensor");
  m.def(
      "scan_rows(Tensor u, Tensor delta, Tensor A, Tensor BC, Tensor D, Tensor delta_bias, Tensor xz, Tensor? lengths)"
      " -> Tensor");
  m.def("average_rows(Tensor x, int bins) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(rdfa, CPU, m) {
  m.impl("conv_rows", TORCH_BOX(&rdfa::conv_rows));
  m.impl("scan_rows", TORCH_BOX(&rdfa::scan_rows));
  m.impl("average_rows", TORCH_BOX(&rdfa::average_rows));
}
