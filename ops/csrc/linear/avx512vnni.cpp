// The products for one instruction set; see common/simd.h.
#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")
#define RDFA_ISA avx512vnni
#define RDFA_LANES 16
#define RDFA_LINEAR_ROWS 8
#define RDFA_LINEAR_VECTORS 2
#define RDFA_LINEAR_VNNI
#include "linear/kernel.inl"
#endif
