// The products for one instruction set; see common/simd.h.
#if defined(__x86_64__)
#pragma GCC target("avx2,fma")
#define RDFA_ISA avx2
#define RDFA_LANES 8
#define RDFA_LINEAR_ROWS 6
#define RDFA_LINEAR_VECTORS 2
#include "linear/kernel.inl"
#endif
