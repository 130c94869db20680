#include "base/target.h"
#define LISSOME_TARGET LISSOME_AVX512
#include "linear/kernels.h"

#if LISSOME_X86
#include "base/read.h"
#include "linear/avx512_ops.h"
#include "linear/panels.h"
#include "weight/pack_panel.h"

namespace lissome {

const Kernels* avx512_kernels() {
  static const Kernels table{
      .isa = Isa::avx512,
      .bf16_f32 = {encode_floats, run_panels<Bf16Fma>, sizeof(float)},
      .bf16_bf16 = {},
      .int8 = {encode_integers<std::uint8_t, 128>, run_panels<Int8>, sizeof(std::uint8_t)},
      .pack_panel = pack_panel<Bits16, Bits8>,
      .read_blocks = read_blocks,
      .unpack_panel = unpack_panel<Bits16, Bits8>,
      .nested = nested_avx512(),
      .steps = steps_avx512(),
  };
  return &table;
}

}  // namespace lissome
#else
const lissome::Kernels* lissome::avx512_kernels() { return nullptr; }
#endif
