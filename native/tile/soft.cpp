#define LISSOME_TARGET
#include "linear/kernels.h"
#include "linear/portable_ops.h"
#include "tile/soft_tile.h"
#include "tile/tile_loop.h"

namespace lissome {

const Kernels* tile_kernels() {
  static const Kernels table = [] {
    Kernels made = *portable_kernels();
    made.isa = Isa::tile;
    made.bf16_bf16 = {encode_halves, tile_panels<SoftTile, portable::Bits16, float>, sizeof(std::uint16_t)};
    made.int8 = {encode_integers<std::int8_t, 0>, tile_panels<SoftTile, portable::Bits8, std::int32_t>,
                 sizeof(std::int8_t)};
    made.nested = nested_tile();
    return made;
  }();
  return &table;
}

}  // namespace lissome
