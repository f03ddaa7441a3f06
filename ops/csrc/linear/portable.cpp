// The products for one instruction set; see common/simd.h.
#define RDFA_ISA portable
#define RDFA_LANES 4
#define RDFA_LINEAR_ROWS 4
#define RDFA_LINEAR_VECTORS 2
#include "linear/kernel.inl"
