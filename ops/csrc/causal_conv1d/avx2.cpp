#if defined(__x86_64__)
#pragma GCC target("avx2,fma")
#define RDFA_ISA avx2
#define RDFA_LANES 8
#include "causal_conv1d/kernel.inl"
#include "causal_conv1d/rows.inl"
#endif
