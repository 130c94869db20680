#include "base/target.h"
#define LISSOME_TARGET LISSOME_AMX
#include "linear/kernels.h"

#if LISSOME_X86
#include "linear/avx512_ops.h"
#include "tile/tile_loop.h"

namespace lissome {
namespace {

// The intrinsics want the number of a register as a literal.
#define LISSOME_EACH_TILE(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7)

struct AmxTile {
  LISSOME_OP void configure(const TileConfig& config) { _tile_loadconfig(&config); }
  LISSOME_OP void release() { _tile_release(); }

  template <int T>
  LISSOME_OP void load(const std::byte* from, std::int64_t stride) {
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

const Kernels* amx_kernels() {
  static const Kernels table = [] {
    Kernels made = *avx512bf16_kernels();
    made.isa = Isa::amx;
    made.bf16_bf16 = {encode_halves, tile_panels<AmxTile, Bits16, float>, sizeof(std::uint16_t)};
    made.int8 = {encode_integers<std::int8_t, 0>, tile_panels<AmxTile, Bits8, std::int32_t>, sizeof(std::int8_t)};
    return made;
  }();
  return &table;
}

}  // namespace lissome
#else
const lissome::Kernels* lissome::amx_kernels() { return nullptr; }
#endif
