// Integers of keys and values lie in groups of sixteen cells, so that one instruction adds up products of four numbers
// for sixteen cells (keys) or of four cells for sixteen numbers (values).
//
// A group consists of pieces of 64 bytes. Of keys: four numbers of each of the cells, piece after piece; they are 128
// more than the number, because such instructions multiply unsigned by signed. Of values: sixteen numbers of each of
// four cells, two such pieces for the same cells side by side, all cells' first 32 numbers before the next. A frozen group has one bitmap for every piece, all of them
// first, and after them the numbers that are not zero.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lissome {

inline constexpr std::int64_t kGroup = 16, kGroupPiece = 64;  // cells; bytes

enum class Order : std::uint8_t { keys, values };

constexpr std::int64_t group_bytes(std::int64_t size) { return kGroup * size; }
constexpr std::int64_t group_pieces(std::int64_t size) { return group_bytes(size) / kGroupPiece; }

// Writes a row of `size` integers, a multiple of 16, as cell `lane` of a group; and reads it.
void put_row(Order order, std::int64_t size, std::int64_t lane, const std::byte* row, std::byte* group);
void get_row(Order order, std::int64_t size, std::int64_t lane, const std::byte* group, std::byte* row);

// Writes a group without its zeros, and with them again.
void pack_group(Order order, std::int64_t size, const std::byte* group, std::byte* to);
void unpack_group(Order order, std::int64_t size, const std::byte* packed, std::byte* to);

}  // namespace lissome
