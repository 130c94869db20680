#include "base/target.h"
#define LISSOME_TARGET LISSOME_AMX
#include "nested/kernels.h"

#if LISSOME_X86
#include "nested/avx512_ops.h"
#include "tile/amx_tile.h"

namespace lissome {
namespace {

struct TiledIntegers : Integers {
  using Tile = AmxTile;
};

}  // namespace

const NestedKernels* nested_amx() {
  static const NestedKernels table{nested_avx512()->f32, {nested_avx512()->int8.encode, run_nested<TiledIntegers>, 1}};
  return &table;
}

}  // namespace lissome
#else
const lissome::NestedKernels* lissome::nested_amx() { return nullptr; }
#endif
