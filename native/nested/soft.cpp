#define LISSOME_TARGET
#include "nested/portable_ops.h"
#include "tile/soft_tile.h"

namespace lissome {
namespace {

struct TiledIntegers : portable::Integers {
  using Tile = SoftTile;
};

}  // namespace

const NestedKernels* nested_tile() {
  static const NestedKernels table{nested_portable()->f32, {nested_portable()->int8.encode, run_nested<TiledIntegers>, 1}};
  return &table;
}

}  // namespace lissome
