// Reading memory and nothing else: the bandwidth that kernels are compared with. Included once per instruction set.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "base/target.h"
#include "base/types.h"

namespace lissome {

// Asked for that early, memory comes faster than CPUs fetch it by themselves: by a quarter where it is in the last cache.
inline constexpr std::size_t kAskAhead = 16384;

// Sum of the 64-bit words of `blocks` times 512 bytes, modulo 2^64.
LISSOME_TARGET static std::uint64_t read_blocks(const std::byte* data, std::int64_t blocks) {
  std::array<std::uint64_t, kReadBlock / 8> sums{};
  for (std::int64_t block = 0; block < blocks; ++block) {
    const std::byte* at = data + block * kReadBlock;
    for (std::size_t line = 0; line < kReadBlock; line += 64) __builtin_prefetch(at + kAskAhead + line, 0, 2);
    for (std::size_t i = 0; i < sums.size(); ++i) {
      std::uint64_t word;
      std::memcpy(&word, at + 8 * i, 8);
      sums[i] += word;
    }
  }
  std::uint64_t sum = 0;
  for (const std::uint64_t value : sums) sum += value;
  return sum;
}

}  // namespace lissome
