// Decompression of zlib streams (RFC 1950 and 1951), so that the library needs no other.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace rdfa::gpu {

uint32_t adler32(std::string_view data);

// The `length` bytes in a zlib stream; throws std::runtime_error unless it is whole and right.
std::string inflate(std::string_view stream, size_t length);

}  // namespace rdfa::gpu
