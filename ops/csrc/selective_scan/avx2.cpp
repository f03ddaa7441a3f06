// The selective scan for one instruction set; see common/simd.h. Contraction is off because the exponential counts on
// its sums being rounded; products that may be fused say so.
#if defined(__x86_64__)
#pragma GCC target("avx2,fma")
#pragma GCC optimize("fp-contract=off")
#define RDFA_ISA avx2
#define RDFA_LANES 8
#define RDFA_SCAN_GROUP 8
#define RDFA_SCAN_BACKWARD_GROUP 4
#include "selective_scan/kernels.h"
#endif
