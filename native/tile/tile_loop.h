// The loop for AMX of sparse and dense weights; nested ones have nested/tile_strip.h. Two blocks of 16 rows of
// activations against a panel, that is two tiles of outputs.
//
// Included after LISSOME_TARGET. `Tile` is the machine, real or in software:
//   configure(config), configured()   a palette of 0 takes all shapes away
//   load<T>(p, stride), store<T>(p, stride), zero<T>()
//   dot<Format, C, A, B>()    C += A · B, by TDPBF16PS or TDPBSSD
// `E` makes rows of weights (weight/stream.h); a tile cannot be filled from registers, so that sparse weights pass
// through a buffer in the first cache.
#pragma once

#include <algorithm>

#include "base/memory.h"
#include "linear/job.h"
#include "tile/config.h"
#include "weight/stream.h"

namespace lissome {

inline constexpr std::int64_t kTileRows = 16;
inline constexpr std::int64_t kTileChunk = 8 * kTileSteps;  // steps expanded at a time: 16 KiB
inline constexpr std::int64_t kTileMostRows = 192;          // that use them; their sums are 24 KiB

// Rows [0, first + second) of one block against `steps` steps; sums is [rows, 32].
template <class Tile, Format F>
LISSOME_TARGET void tile_block(const std::byte* x, std::int64_t x_bytes, bool second, const std::byte* weights,
                               std::int64_t steps, std::byte* sums) {
  constexpr std::int64_t kSumBytes = kPanel * 4, kDown = kTileRows * kSumBytes;
  Tile::template load<kSum00>(sums, kSumBytes);
  Tile::template load<kSum01>(sums + kRowBytes, kSumBytes);
  if (second) {
    Tile::template load<kSum10>(sums + kDown, kSumBytes);
    Tile::template load<kSum11>(sums + kDown + kRowBytes, kSumBytes);
  }
  for (std::int64_t step = 0; step < steps; step += kTileSteps) {
    Tile::template load<kW0>(weights, kStepBytes);
    Tile::template load<kW1>(weights + kRowBytes, kStepBytes);
    Tile::template load<kX0>(x, x_bytes);
    Tile::template dot<F, kSum00, kX0, kW0>();
    Tile::template dot<F, kSum01, kX0, kW1>();
    if (second) {
      Tile::template load<kX1>(x + kTileRows * x_bytes, x_bytes);
      Tile::template dot<F, kSum10, kX1, kW0>();
      Tile::template dot<F, kSum11, kX1, kW1>();
    }
    weights += kTileSteps * kStepBytes;
    x += kRowBytes;
  }
  Tile::template store<kSum00>(sums, kSumBytes);
  Tile::template store<kSum01>(sums + kRowBytes, kSumBytes);
  if (second) {
    Tile::template store<kSum10>(sums + kDown, kSumBytes);
    Tile::template store<kSum11>(sums + kDown + kRowBytes, kSumBytes);
  }
}

// All blocks of 32 rows against one chunk of weights.
template <class Tile, Format F>
LISSOME_TARGET void tile_blocks(const Job& job, std::int64_t row, std::int64_t count, std::int64_t step,
                                const std::byte* weights, std::int64_t steps, std::byte* sums) {
  const std::int64_t item = item_of(F), x_bytes = job.x_stride * item;
  std::int64_t shaped = 0;
  for (std::int64_t done = 0; done < count; done += 2 * kTileRows) {
    const std::int64_t rows = std::min(2 * kTileRows, count - done);
    if (rows != shaped) {
      const auto first = static_cast<int>(std::min(kTileRows, rows));
      Tile::configure(config_for(first, static_cast<int>(rows) - first));
      shaped = rows;
    }
    tile_block<Tile, F>(job.x + (row + done) * x_bytes + step * group_of(F) * item, x_bytes, rows > kTileRows,
                        weights, steps, sums + done * kPanel * 4);
  }
}

template <class Tile, class E, class Sum>
LISSOME_TARGET void tile_panel(const Job& job, std::int64_t panel, std::byte* chunk, Sum* sums) {
  const Weight& weight = *job.weight;
  for (std::int64_t row = 0; row < job.rows; row += kTileMostRows) {
    const std::int64_t count = std::min(kTileMostRows, job.rows - row);
    std::fill_n(sums, count * kPanel, Sum{});
    SparseRows<E> sparse{};
    if (weight.sparse) sparse = sparse_rows<E>(weight, panel);
    const std::byte* dense = dense_rows<E>(weight, panel).at;
    for (std::int64_t step = 0; step < weight.steps(); step += kTileChunk) {
      const std::int64_t steps = std::min(kTileChunk, weight.steps() - step);
      if (weight.sparse) expand_steps(sparse, steps, chunk);
      tile_blocks<Tile, E::kFormat>(job, row, count, step, weight.sparse ? chunk : dense + step * kStepBytes, steps,
                                    reinterpret_cast<std::byte*>(sums));
    }
    for (std::int64_t m = 0; m < count; ++m) finish(job, row + m, panel, sums + m * kPanel);
  }
}

// Shapes are left as they were found: llama.cpp gives a thread's tiles theirs once, and faults without them.
template <class Tile, class E, class Sum>
LISSOME_TARGET void tile_panels(const Job& job, std::int64_t first, std::int64_t last) {
  const TileConfig before = Tile::configured();
  static thread_local Scratch chunks, carried;
  auto* chunk = chunks.at_least<std::byte>(kTileChunk * kStepBytes);
  auto* sums = carried.at_least<Sum>(std::min(kTileMostRows, job.rows) * kPanel);
  for (std::int64_t panel = first; panel < last; ++panel) tile_panel<Tile, E>(job, panel, chunk, sums);
  Tile::configure(before);
}

}  // namespace lissome
