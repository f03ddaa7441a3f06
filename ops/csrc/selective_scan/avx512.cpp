// The selective scan for one instruction set; see common/simd.h. Contraction is off because the exponential counts on
// its sums being rounded; products that may be fused say so.
#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#pragma GCC optimize("fp-contract=off")
#define RDFA_ISA avx512
#define RDFA_LANES 16
#define RDFA_SCAN_GROUP 8  // 16 would fit into the registers, and leave too few for the exponentials to overlap
#define RDFA_SCAN_BACKWARD_GROUP 8
#include "selective_scan/kernels.h"
#endif
