// Reading memory and nothing else: the bandwidth that other kernels are compared with.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lissome {

// Sum of the array's 64-bit words modulo 2^64; what does not fill 256 bytes is left out.
std::uint64_t checksum(const std::byte* data, std::int64_t bytes, int threads);

}  // namespace lissome
