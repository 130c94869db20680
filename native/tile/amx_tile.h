// The tiles of AMX. Included after LISSOME_TARGET, where it names AMX.
#pragma once

#include <immintrin.h>

#include "base/types.h"
#include "tile/config.h"

namespace lissome {
namespace {

#ifndef LISSOME_OP
#define LISSOME_OP LISSOME_TARGET static LISSOME_INLINE
#endif

// The intrinsics want the number of a register as a literal.
#define LISSOME_EACH_TILE(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7)

// GCC 12 does not know that tiles are filled from memory and emptied into it, and of the shapes it knows 8 bytes; stores
// that nobody else reads are then left out, or come too late.
LISSOME_OP void settle(const void* what) { __asm__ volatile("" : : "r"(what) : "memory"); }

struct AmxTile {
  LISSOME_OP void configure(const TileConfig& config) {
    settle(&config);
    _tile_loadconfig(&config);
  }
  LISSOME_OP TileConfig configured() {
    TileConfig found;
    _tile_storeconfig(&found);
    settle(&found);
    return found;
  }

  template <int T>
  LISSOME_OP void load(const std::byte* from, std::int64_t stride) {
    settle(from);
#define LISSOME_DO(N) \
  if constexpr (T == N) _tile_loadd(N, from, stride);
    LISSOME_EACH_TILE(LISSOME_DO)
#undef LISSOME_DO
  }

  template <int T>
  LISSOME_OP void store(std::byte* to, std::int64_t stride) {
#define LISSOME_DO(N) \
  if constexpr (T == N) _tile_stored(N, to, stride);
    LISSOME_EACH_TILE(LISSOME_DO)
#undef LISSOME_DO
    settle(to);
  }

  template <int T>
  LISSOME_OP void zero() {
#define LISSOME_DO(N) \
  if constexpr (T == N) _tile_zero(N);
    LISSOME_EACH_TILE(LISSOME_DO)
#undef LISSOME_DO
  }

  // The two products of nested weights: signed activations by unsigned codes.
  template <int C, int A, int B>
  LISSOME_OP void dot_codes() {
    if constexpr (C == kSum00) _tile_dpbsud(0, 4, 6);
    if constexpr (C == kSum01) _tile_dpbsud(1, 4, 6);
    static_assert(C <= kSum01 && A == kX0 && B == kW0, "no other product is written above");
  }

  // The four products of the loop.
  template <Format F, int C, int A, int B>
  LISSOME_OP void dot() {
    if constexpr (F == Format::bf16) {
      if constexpr (C == kSum00) _tile_dpbf16ps(0, 4, 6);
      if constexpr (C == kSum01) _tile_dpbf16ps(1, 4, 7);
      if constexpr (C == kSum10) _tile_dpbf16ps(2, 5, 6);
      if constexpr (C == kSum11) _tile_dpbf16ps(3, 5, 7);
    } else {
      if constexpr (C == kSum00) _tile_dpbssd(0, 4, 6);
      if constexpr (C == kSum01) _tile_dpbssd(1, 4, 7);
      if constexpr (C == kSum10) _tile_dpbssd(2, 5, 6);
      if constexpr (C == kSum11) _tile_dpbssd(3, 5, 7);
    }
    static_assert(C == 2 * (A - kX0) + (B - kW0), "no other product is written above");
  }
};

}  // namespace
}  // namespace lissome
