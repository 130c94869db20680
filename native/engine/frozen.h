// Rows of keys or values of which only the largest numbers are left.
//
// A pruned row is a bitmap, one word for 64 numbers, and the numbers whose bit is set, in order. All rows of a side keep
// as many numbers, so that each is found without an index; where none is pruned, rows lie as they are. Integers lie in
// groups of rows, see groups.h, with as many bytes for each row.
#pragma once

#include <cstddef>
#include <cstdint>

#include "engine/steps.h"

namespace lissome {

inline constexpr std::int64_t kFrozenBlock = 64;  // positions that are frozen together

struct FrozenRows {
  KvType type = KvType::f16;
  std::int64_t size = 0;  // numbers of a row, padded to 16 with zeros
  std::int64_t kept = 0;  // how many of them are left; 0: all, without a bitmap

  std::int64_t words() const { return kept == 0 ? 0 : (size + 63) / 64; }
  // Of a row in the cache: integers' groups have one bit for every number, rows of others whole words.
  std::int64_t bytes() const { return bitmap() + (kept == 0 ? size : kept) * item_of(type); }

 private:
  std::int64_t bitmap() const { return type == KvType::int8 && kept != 0 ? size / 8 : 8 * words(); }
};

// Keeps a share of `size` numbers padded to `padded`, at least one of them; `zeros` is 0 to 1.
FrozenRows frozen_rows(KvType type, std::int64_t size, std::int64_t padded, double zeros);

// Writes a row without all but its largest numbers by magnitude; of equal ones the first are left.
void freeze_row(const FrozenRows& rows, const std::byte* row, std::byte* to);

// Writes it out again, zeros in the place of what was left out.
void thaw_row(const FrozenRows& rows, const std::byte* row, std::byte* to);

// Puts zeros there.
void prune_row(const FrozenRows& rows, std::byte* row);

}  // namespace lissome
