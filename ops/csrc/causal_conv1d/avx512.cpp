#if defined(__x86_64__)
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")
#define RDFA_ISA avx512
#define RDFA_LANES 16
#include "causal_conv1d/kernel.inl"
#include "causal_conv1d/rows.inl"
#endif
