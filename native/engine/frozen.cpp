#include "engine/frozen.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <vector>

#include "base/numbers.h"

namespace lissome {
namespace {

// Numbers that are ordered like the magnitudes.
std::uint32_t magnitude(KvType type, const std::byte* at) {
  switch (type) {
    case KvType::int8: return static_cast<std::uint32_t>(std::abs(int{load_as<std::int8_t>(at)}));
    case KvType::f16: return load_as<std::uint16_t>(at) & 0x7fffu;
    case KvType::f32: return load_as<std::uint32_t>(at) & 0x7fffffffu;
  }
  return 0;
}

}  // namespace

FrozenRows frozen_rows(KvType type, std::int64_t size, std::int64_t padded, double zeros) {
  const auto kept = std::max<std::int64_t>(1, std::llround(static_cast<double>(size) * (1 - zeros)));
  FrozenRows rows;
  rows.type = type, rows.size = padded, rows.kept = kept >= size ? 0 : kept;
  return rows;
}

void freeze_row(const FrozenRows& rows, const std::byte* row, std::byte* to) {
  const std::int64_t item = item_of(rows.type);
  if (rows.kept == 0) {
    std::memcpy(to, row, static_cast<std::size_t>(rows.bytes()));
    return;
  }
  static thread_local std::vector<std::uint32_t> all, sorted;
  all.clear();
  for (std::int64_t k = 0; k < rows.size; ++k) all.push_back(magnitude(rows.type, row + k * item));
  sorted = all;
  std::nth_element(sorted.begin(), sorted.begin() + (rows.kept - 1), sorted.end(), std::greater<>());
  const std::uint32_t least = sorted[static_cast<std::size_t>(rows.kept - 1)];
  std::int64_t ties = rows.kept - std::count_if(all.begin(), all.end(), [&](std::uint32_t one) { return one > least; });
  std::byte* next = to + 8 * rows.words();
  for (std::int64_t word = 0; word < rows.words(); ++word) {
    std::uint64_t bits = 0;
    for (std::int64_t k = 64 * word; k < std::min(rows.size, 64 * word + 64); ++k) {
      const std::uint32_t own = all[static_cast<std::size_t>(k)];
      if (own < least || (own == least && ties-- <= 0)) continue;
      bits |= std::uint64_t{1} << (k % 64);
      std::memcpy(next, row + k * item, static_cast<std::size_t>(item));
      next += item;
    }
    std::memcpy(to + 8 * word, &bits, 8);
  }
}

void thaw_row(const FrozenRows& rows, const std::byte* row, std::byte* to) {
  const std::int64_t item = item_of(rows.type);
  if (rows.kept == 0) {
    std::memcpy(to, row, static_cast<std::size_t>(rows.bytes()));
    return;
  }
  std::memset(to, 0, static_cast<std::size_t>(rows.size * item));
  const std::byte* next = row + 8 * rows.words();
  for (std::int64_t k = 0; k < rows.size; ++k) {
    if (((load_as<std::uint64_t>(row + k / 64 * 8) >> (k % 64)) & 1) == 0) continue;
    std::memcpy(to + k * item, next, static_cast<std::size_t>(item));
    next += item;
  }
}

void prune_row(const FrozenRows& rows, std::byte* row) {
  static thread_local std::vector<std::byte> left;
  left.resize(static_cast<std::size_t>(8 * rows.words() + rows.size * item_of(rows.type)));
  freeze_row(rows, row, left.data());
  thaw_row(rows, left.data(), row);
}

}  // namespace lissome
