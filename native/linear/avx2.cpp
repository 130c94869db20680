#include "base/target.h"
#define LISSOME_TARGET LISSOME_AVX2
#include "linear/kernels.h"

#if LISSOME_X86
#include "base/read.h"
#include "linear/avx2_ops.h"
#include "linear/panels.h"

namespace lissome {

const Kernels* avx2_kernels() {
  static const Kernels table = [] {
    Kernels made = *portable_kernels();  // packing is not worth kernels of its own here
    made.isa = Isa::avx2;
    made.bf16_f32 = {encode_floats, run_panels<Bf16Fma>, sizeof(float)};
    made.int8 = {encode_integers<std::int16_t, 0>, run_panels<Int8>, sizeof(std::int16_t)};
    made.read_blocks = read_blocks;
    made.steps = steps_avx2();
    return made;
  }();
  return &table;
}

}  // namespace lissome
#else
const lissome::Kernels* lissome::avx2_kernels() { return nullptr; }
#endif
