// The selective scan for one instruction set; see common/simd.h. Contraction is off because the exponential counts on
// its sums being rounded; products that may be fused say so.
#pragma GCC optimize("fp-contract=off")
#define RDFA_ISA portable
#define RDFA_LANES 4
#define RDFA_SCAN_GROUP 4
#define RDFA_SCAN_BACKWARD_GROUP 4
#include "selective_scan/kernels.h"
