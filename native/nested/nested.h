// Weights of which several precisions are read: each bit of the codes lies in a plane of its own.
//
// y[M, N] = x[M, K] Wᵀ. A weight is scale · q + least, its code q of p bits the same for all precisions: precision b
// reads the b highest bits, q >> (p - b), and has scales and leasts of its own, refitted to these coarser codes, one
// pair for every output and group of 32 or 64 inputs.
//
// A precision may have a table of levels: a weight is scale · level[code] + least, levels whole numbers from 0 to 255 in
// ascending order, so that unsigned by signed products serve them as they serve codes.
//
// W is cut into panels of 16 outputs, a panel into blocks of 32 inputs; N is padded to whole panels, K to whole groups.
// One bit of the 512 codes of a block is a line of 64 bytes. Where the bit of output o and input k lies in it follows
// from what unpacking does: interleaving the bytes of four or eight lines leaves, in every 8 bytes, bits that one
// gf2p8affineqb turns into codes. See `place`.
//
// Planes come in segments, the highest first (3 + 1: one of three planes, one of one). A segment is [panel][block]
// [plane of the segment][64 bytes], and lies apart from the others: bits that are not wanted are never fetched.
// Scales of one precision are [panel][group][2][16] halves: 16 scales, 16 leasts.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/types.h"

namespace lissome {

inline constexpr std::int64_t kNestedPanel = 16, kBlockInputs = 32, kLine = 64;
inline constexpr std::int64_t kBlockRows = 8;  // of 64 codes: 16 outputs x 4 inputs
inline constexpr int kMostBits = 8;
inline constexpr int kMostTableBits = 6;  // a table is a register: 64 levels

struct Place {
  int byte, bit;  // in a line
};

// Where the bit of output o, 0 to 15, and input k, 0 to 31, of a block lies.
constexpr Place place(int o, int k) {
  const int lane = o / 4, half = (o / 2) % 2, pair = k / 8, odd = (k / 4) % 2;
  return {16 * lane + 4 * pair + 2 * half + odd, 4 * (o % 2) + k % 4};
}

// A number of plane, as a kernel follows it through a panel's blocks.
struct Plane {
  const std::byte* data = nullptr;  // of the first panel and block
  std::int64_t stride = 0;          // bytes from one block to the next
};

struct Nested {
  std::int64_t outputs = 0, inputs = 0;  // N, K
  std::int64_t group = 32;
  int bits = 0;                                             // p, of all planes
  std::array<Plane, kMostBits> planes{};                    // the highest bit first
  // By precision: null where it cannot be read, and how many planes are. Precisions are those of the whole file, whose
  // head may have more bits than its blocks at each of them.
  std::array<const std::uint16_t*, kMostBits + 1> scales{};
  std::array<int, kMostBits + 1> read{};
  std::array<const std::uint8_t*, kMostBits + 1> levels{};  // by precision; null where a code is its own level

  std::int64_t panels() const { return ceil_div(outputs, kNestedPanel); }
  std::int64_t width() const { return round_up(inputs, group); }
  std::int64_t groups() const { return width() / group; }
  std::int64_t blocks() const { return width() / kBlockInputs; }
  std::int64_t lines() const { return panels() * blocks(); }                       // of one plane
  std::int64_t scale_count() const { return panels() * groups() * 2 * kNestedPanel; }  // of one precision
  // Bytes that are read at a precision.
  std::int64_t bytes(int precision) const {
    const auto at = static_cast<std::size_t>(precision);
    return lines() * kLine * read[at] + 2 * scale_count() + (levels[at] ? 1 << read[at] : 0);
  }
  bool has(int precision) const {
    return precision >= 1 && precision <= kMostBits && scales[static_cast<std::size_t>(precision)] != nullptr;
  }
};

// Arrays of a file, of which nothing is believed.
struct SegmentBytes {
  const std::byte* data = nullptr;
  std::int64_t bytes = 0;
};
struct ScaleHalves {
  int precision = 0, planes = 0;  // planes: that are read at it
  const std::uint16_t* data = nullptr;
  std::int64_t count = 0;
};
struct LevelBytes {
  int precision = 0;
  const std::uint8_t* data = nullptr;
  std::int64_t count = 0;
};

// Throws std::invalid_argument unless sizes can be computed with and arrays have the lengths that they imply, so that no
// kernel reads outside of them.
Nested assemble(std::int64_t outputs, std::int64_t inputs, std::int64_t group,
                const std::vector<SegmentBytes>& segments, const std::vector<ScaleHalves>& scales,
                const std::vector<LevelBytes>& levels = {});

}  // namespace lissome
