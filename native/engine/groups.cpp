#include "engine/groups.h"

#include <algorithm>
#include <cstring>

#include "base/numbers.h"

namespace lissome {
namespace {

constexpr std::byte zero_of(Order order) { return order == Order::keys ? std::byte{0x80} : std::byte{0}; }

std::int64_t place(Order order, std::int64_t size, std::int64_t lane, std::int64_t k) {
  if (order == Order::keys) return k / 4 * kGroupPiece + lane * 4 + k % 4;
  const std::int64_t first = k / 32 * 32, wide = std::min<std::int64_t>(2, (size - first) / 16);  // pieces side by side
  return (first / 4 + lane / 4 * wide + (k - first) / 16) * kGroupPiece + k % 16 * 4 + lane % 4;
}

}  // namespace

void put_row(Order order, std::int64_t size, std::int64_t lane, const std::byte* row, std::byte* group) {
  for (std::int64_t k = 0; k < size; ++k) group[place(order, size, lane, k)] = row[k] ^ zero_of(order);
}

void get_row(Order order, std::int64_t size, std::int64_t lane, const std::byte* group, std::byte* row) {
  for (std::int64_t k = 0; k < size; ++k) row[k] = group[place(order, size, lane, k)] ^ zero_of(order);
}

void pack_group(Order order, std::int64_t size, const std::byte* group, std::byte* to) {
  std::byte* next = to + 8 * group_pieces(size);
  for (std::int64_t piece = 0; piece < group_pieces(size); ++piece) {
    std::uint64_t bits = 0;
    for (std::int64_t i = 0; i < kGroupPiece; ++i) {
      const std::byte own = group[piece * kGroupPiece + i];
      if (own == zero_of(order)) continue;
      bits |= std::uint64_t{1} << i;
      *next++ = own ^ zero_of(order);
    }
    std::memcpy(to + 8 * piece, &bits, 8);
  }
}

void unpack_group(Order order, std::int64_t size, const std::byte* packed, std::byte* to) {
  const std::byte* next = packed + 8 * group_pieces(size);
  for (std::int64_t i = 0; i < group_bytes(size); ++i) {
    const auto bits = load_as<std::uint64_t>(packed + i / kGroupPiece * 8);
    to[i] = ((bits >> (i % kGroupPiece)) & 1) != 0 ? *next++ ^ zero_of(order) : zero_of(order);
  }
}

}  // namespace lissome
