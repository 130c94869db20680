#define LISSOME_TARGET
#include "base/read.h"
#include "linear/kernels.h"
#include "linear/panels.h"
#include "linear/portable_ops.h"
#include "weight/pack_panel.h"

namespace lissome {

const Kernels* portable_kernels() {
  static const Kernels table{
      .isa = Isa::portable,
      .bf16_f32 = {encode_floats, run_panels<portable::Bf16>, sizeof(float)},
      .bf16_bf16 = {},
      .int8 = {encode_integers<std::int8_t, 0>, run_panels<portable::Int8>, sizeof(std::int8_t)},
      .pack_panel = pack_panel<portable::Bits16, portable::Bits8>,
      .read_blocks = read_blocks,
      .unpack_panel = unpack_panel<portable::Bits16, portable::Bits8>,
      .nested = nested_portable(),
      .steps = steps_portable(),
  };
  return &table;
}

}  // namespace lissome
