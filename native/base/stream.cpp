#include "base/stream.h"

#include <array>
#include <atomic>
#include <cstring>

#include "base/types.h"
#include "pool/pool.h"

namespace lissome {

std::uint64_t checksum(const std::byte* data, std::int64_t bytes, int threads) {
  constexpr std::int64_t kBlock = 256;
  std::atomic<std::uint64_t> total{0};
  parallel_ranges(bytes / kBlock, threads, [&](std::int64_t first, std::int64_t last) {
    std::array<std::uint64_t, kBlock / 8> sums{}, words;
    for (std::int64_t block = first; block < last; ++block) {
      std::memcpy(words.data(), data + block * kBlock, kBlock);
      for (std::size_t i = 0; i < sums.size(); ++i) sums[i] += words[i];
    }
    std::uint64_t sum = 0;
    for (const std::uint64_t value : sums) sum += value;
    total.fetch_add(sum, std::memory_order_relaxed);
  });
  return total.load();
}

}  // namespace lissome
