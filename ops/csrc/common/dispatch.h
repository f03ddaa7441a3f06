// Run-time choice of the instruction set. Every kernel is compiled three times (namespaces avx512, avx2, portable) and
// its binding calls the one that `cpu_isa()` names.
//
// RDFA_CPU_ISA=avx512|avx2|portable overrides the choice (tests, comparisons); a set that this CPU lacks is refused. It
// is read at every call, so that one process can compare all three.
#pragma once

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>

namespace rdfa {

enum class Isa { portable, avx2, avx512 };

inline bool cpu_has(Isa isa) {
#if defined(__x86_64__)
  static const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  static const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (isa == Isa::avx2) return avx2;
  if (isa == Isa::avx512) return avx512;
#endif
  return isa == Isa::portable;
}

inline Isa cpu_isa() {
  static const Isa best = cpu_has(Isa::avx512) ? Isa::avx512 : cpu_has(Isa::avx2) ? Isa::avx2 : Isa::portable;
  const char* wanted = std::getenv("RDFA_CPU_ISA");
  if (wanted == nullptr || *wanted == '\0') return best;
  constexpr std::pair<const char*, Isa> names[] = {
      {"avx512", Isa::avx512}, {"avx2", Isa::avx2}, {"portable", Isa::portable}};
  for (const auto& [name, isa] : names) {
    if (std::strcmp(wanted, name) != 0) continue;
    if (!cpu_has(isa)) {
      throw std::runtime_error("RDFA_CPU_ISA=" + std::string(wanted) + ": this CPU lacks it; unset the variable");
    }
    return isa;
  }
  throw std::runtime_error("RDFA_CPU_ISA=" + std::string(wanted) + " is unknown: use avx512, avx2 or portable");
}

}  // namespace rdfa

// RDFA_DISPATCH(function)(arguments...): `function` of the namespace of the chosen instruction set.
#if defined(__x86_64__)
#define RDFA_DISPATCH(function)                                        \
  (::rdfa::cpu_isa() == ::rdfa::Isa::avx512 ? ::rdfa::avx512::function \
   : ::rdfa::cpu_isa() == ::rdfa::Isa::avx2 ? ::rdfa::avx2::function   \
                                            : ::rdfa::portable::function)
#else
#define RDFA_DISPATCH(function) (::rdfa::cpu_isa(), ::rdfa::portable::function)
#endif
