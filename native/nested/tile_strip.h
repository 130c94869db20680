// Sixteen rows of activations against a panel of nested weights, by tiles of AMX, real or in software.
//
// Included after LISSOME_TARGET, by nested/panels.h. A policy that has tiles adds to what that file says
//   Tile          the machine, see tile/tile_loop.h, with dot_codes<C, A, B>: C += A · B by TDPBSUD
//   sums(p)       sums that a tile left in memory
#pragma once

#include "base/target.h"
#include "nested/kernels.h"
#include "tile/config.h"

namespace lissome {
namespace {

struct Strip {
  const std::byte* x;      // at the first group
  std::int64_t stride;     // numbers
  const float *scales, *sums;
  std::int64_t groups;     // how many groups to add
  std::int64_t row_groups;  // from one row's scales to the next one's
  const std::uint16_t* w_scales;
};

// Whole blocks of rows, and whether a policy has tiles for them.
inline constexpr std::int64_t kTiledRows = 16;
template <class P>
concept Tiled = requires { typename P::Tile; };

// Activations are 16 rows of a group's bytes, codes rows of 4 inputs for 16 outputs as they lie in the buffer.
inline TileConfig nested_shapes(std::int64_t group) {
  TileConfig config;
  const auto shape = [&](int tile, std::int64_t rows, std::int64_t bytes) {
    config.rows[tile] = static_cast<std::uint8_t>(rows);
    config.bytes[tile] = static_cast<std::uint16_t>(bytes);
  };
  for (int tile : {kSum00, kSum01}) shape(tile, kTiledRows, 4 * kNestedPanel);
  shape(kX0, kTiledRows, group);
  shape(kW0, group / 4, kLine);
  return config;
}

// Shapes are left as they were found: llama.cpp gives a thread's tiles theirs once, and faults without them.
template <class P>
class Shapes {
 public:
  LISSOME_TARGET explicit Shapes(std::int64_t group) : before_(P::Tile::configured()) {
    P::Tile::configure(nested_shapes(group));
  }
  LISSOME_TARGET ~Shapes() { P::Tile::configure(before_); }
  Shapes(const Shapes&) = delete;

 private:
  TileConfig before_;
};

using TileSums = std::int32_t[kTiledRows * kNestedPanel];

template <class P, int Blocks, int Sum>
LISSOME_TARGET LISSOME_INLINE void tile_group(const std::byte* codes, const Strip& s, std::int64_t g) {
  constexpr std::int64_t kGroup = Blocks * kBlockInputs, kCodes = Blocks * kBlockRows * kLine;
  P::Tile::template zero<Sum>();
  P::Tile::template load<kX0>(s.x + g * kGroup, s.stride);
  P::Tile::template load<kW0>(codes + g * kCodes, kLine);
  P::Tile::template dot_codes<Sum, kX0, kW0>();
}

template <class P>
LISSOME_TARGET LISSOME_INLINE void add_group(const Strip& s, std::int64_t g, const TileSums& sums, float* y) {
  const typename P::Pairs pairs = P::pairs(s.w_scales + g * 2 * kNestedPanel);
  const float *scales = s.scales + g, *x_sums = s.sums + g;
  const std::int64_t down = s.row_groups;
#pragma GCC unroll 16
  for (std::int64_t m = 0; m < kTiledRows; ++m, y += kNestedPanel) {
    const auto found = P::finish(P::sums(sums + m * kNestedPanel), pairs, scales + m * down, x_sums[m * down]);
    P::put(y, P::plus(P::floats(y), found));
  }
}

// The next group is multiplied, this one's sums leave their tile, and the sums of the one before are taken up: nothing
// is waited for.
template <class P, int Blocks, int Now>
LISSOME_TARGET LISSOME_INLINE void tile_step(const std::byte* codes, const Strip& s, std::int64_t g,
                                             TileSums (&sums)[2], float* y) {
  if (g + 1 < s.groups) tile_group<P, Blocks, 1 - Now>(codes, s, g + 1);
  P::Tile::template store<Now>(reinterpret_cast<std::byte*>(sums[Now]), 4 * kNestedPanel);
  if (g > 0) add_group<P>(s, g - 1, sums[1 - Now], y);
}

// What `strip` does, for kTiledRows rows.
template <class P, int Blocks>
LISSOME_TARGET void tile_strip(const std::byte* codes, const Strip& s, float* y) {
  static_assert(kSum00 == 0 && kSum01 == 1);
  alignas(64) TileSums sums[2];
  tile_group<P, Blocks, 0>(codes, s, 0);
  for (std::int64_t g = 0; g < s.groups; g += 2) {
    tile_step<P, Blocks, 0>(codes, s, g, sums, y);
    if (g + 1 < s.groups) tile_step<P, Blocks, 1>(codes, s, g + 1, sums, y);
  }
  add_group<P>(s, s.groups - 1, sums[(s.groups - 1) % 2], y);
}

}  // namespace
}  // namespace lissome
