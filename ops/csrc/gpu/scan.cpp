#include "gpu/scan.h"

#include <algorithm>

namespace rdfa::gpu {
namespace {

const void* at(const void* data, int64_t elements, Dtype dtype) {
  return static_cast<const char*>(data) + elements * bytes_of(dtype);
}

}  // namespace

Scan::Scan(Device& device, void* stream, const ScanProblem& problem)
    : device_(device),
      stream_(stream),
      p_(problem),
      per_launch_(device.pack().whole("STATES_PER_LAUNCH")),
      choice_(choose_scan(device.pack(), problem.batch, problem.groups, problem.channels / problem.groups,
                          problem.length, bytes_of(problem.dtype), device.processors())) {}

// Of B and C in the order in which lanes read them. The kernels ask for one state ahead, behind the last one too.
int64_t Scan::packed() const {
  return (p_.batch * p_.groups * choice_.blocks * per_launch_ + 1) * 2 * choice_.tile->block();
}

int64_t Scan::workspace() const { return packed() + (segments() > 1 ? segments() * rows() : 0); }

void Scan::pack(int64_t index, float* BC) const {
  const int64_t first = index * per_launch_;
  Arguments arguments;
  arguments.set("B_ptr", at(p_.B.data, first * p_.B.strides[2], p_.projected));
  arguments.set("C_ptr", at(p_.C.data, first * p_.C.strides[2], p_.projected));
  arguments.set("BC_ptr", BC);
  arguments.set("L", p_.length);
  arguments.set("N", per_launch_);
  arguments.set("batch", p_.batch);
  arguments.set("groups", p_.groups);
  arguments.set("reverse", int64_t{p_.reverse});
  constexpr const char* NAMES[2][4] = {{"B_b", "B_g", "B_n", "B_t"}, {"C_b", "C_g", "C_n", "C_t"}};
  arguments.set("B_r", int64_t{0});
  arguments.set("C_r", int64_t{0});
  for (size_t i = 0; i < 4; ++i) {
    arguments.set(NAMES[0][i], p_.B.strides[i]);
    arguments.set(NAMES[1][i], p_.C.strides[i]);
  }
  const int64_t at_once = std::clamp<int64_t>(
      device_.pack().whole("PACKED_PER_PROGRAM") / choice_.tile->block(), 1, per_launch_);
  const Grid grid{p_.batch * p_.groups * choice_.blocks, ceil_div(per_launch_, at_once)};
  device_.launch("pack-" + name_of(p_.projected) + "-" + tile(), grid, arguments, stream_);
}

void Scan::run(int64_t index, const float* D, const Sequence& y, float* h, float* workspace) const {
  const float* const A = p_.A + index * per_launch_ * p_.channels;
  pack(index, workspace);
  const int64_t access = device_.pack().whole("ACCESS_BYTES") / bytes_of(p_.dtype);
  const bool aligned = multiples_of(access, y);
  const std::string form = !aligned ? "any" : p_.length % choice_.tile->block() ? "access" : "even";
  const int64_t unit = aligned ? access : 1;
  Arguments arguments;
  arguments.set("u_ptr", p_.u.data);
  arguments.set("delta_ptr", p_.delta.data);
  arguments.set("A_ptr", A);
  arguments.set("BC_ptr", workspace);
  arguments.set("D_ptr", D);
  arguments.set("z_ptr", p_.z.data);
  arguments.set("bias_ptr", p_.bias);
  arguments.set("y_ptr", y.data);
  arguments.set("h_ptr", h);
  arguments.set("L", p_.length / unit);
  arguments.set("ALL", per_launch_);
  arguments.set("batch", p_.batch);
  arguments.set("channels", p_.channels);
  arguments.set("groups", p_.groups);
  arguments.set("shared", p_.channels);
  arguments.set("reverse", int64_t{p_.reverse});
  arguments.set("rows", rows());
  arguments.set("segment", choice_.segment);
  constexpr const char* NAMES[4][3] = {
      {"u_r", "u_b", "u_d"}, {"delta_r", "delta_b", "delta_d"}, {"z_r", "z_b", "z_d"}, {"y_r", "y_b", "y_d"}};
  const Sequence* const sequences[] = {&p_.u, &p_.delta, &p_.z, &y};
  for (int i = 0; i < 4; ++i) {
    arguments.set(NAMES[i][0], int64_t{0});
    arguments.set(NAMES[i][1], sequences[i]->stride_b / unit);
    arguments.set(NAMES[i][2], sequences[i]->stride_d / unit);
  }
  const std::string options = std::string(p_.softplus ? "softplus" : "linear") + (p_.z.data ? "-gated" : "-plain");
  const std::string name =
      "scan-" + name_of(p_.dtype) + "-" + tile() + "-" + (all_options() ? form : "any") + "-" + options;
  const Grid grid{choice_.programs, segments()};
  if (segments() == 1) {
    device_.launch(name + "-whole", grid, arguments, stream_);
    return;
  }
  float* const sums = workspace + packed();
  arguments.set("sum_ptr", sums);
  device_.launch(name + "-first", grid, arguments, stream_);
  join(A, h, sums);
  device_.launch(name + "-rest", grid, arguments, stream_);
}

void Scan::join(const float* A, float* h, float* sums) const {
  Arguments arguments;
  arguments.set("h_ptr", h);
  arguments.set("sum_ptr", sums);
  arguments.set("A_ptr", A);
  arguments.set("N", per_launch_);
  arguments.set("h_s", per_launch_ * rows());
  arguments.set("rows", rows());
  arguments.set("shared", p_.channels);
  arguments.set("segments", segments());
  const int64_t programs = ceil_div(rows() * per_launch_, device_.pack().whole("JOINED_PER_PROGRAM"));
  device_.launch("join", {programs, 1}, arguments, stream_);
}

// Whether the length, all strides and all addresses are multiples of one access.
bool Scan::multiples_of(int64_t access, const Sequence& y) const {
  if (!all_options() || p_.length % access) return false;
  const auto fits = [&](const Sequence& s) {
    const auto address = reinterpret_cast<uintptr_t>(s.data);
    return s.stride_b % access == 0 && s.stride_d % access == 0 &&
           address % static_cast<uintptr_t>(access * bytes_of(p_.dtype)) == 0;
  };
  return fits(p_.u) && fits(p_.delta) && fits(p_.z) && fits(y);
}

}  // namespace rdfa::gpu
