#pragma once

#include "selective_scan/backward.h"
#include "selective_scan/forward.h"

namespace rdfa {
namespace RDFA_ISA {

int scan_lanes() { return LANES; }

}  // namespace RDFA_ISA
}  // namespace rdfa
