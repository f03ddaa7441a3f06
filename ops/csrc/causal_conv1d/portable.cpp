#define RDFA_ISA portable
#define RDFA_LANES 4
#include "causal_conv1d/kernel.inl"
#include "causal_conv1d/rows.inl"
