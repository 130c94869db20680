#include "base/target.h"
#define LISSOME_TARGET LISSOME_AVX512
#include "nested/kernels.h"

#if LISSOME_X86
#include "nested/avx512_ops.h"
#include "nested/encode.h"

namespace lissome {

const NestedKernels* nested_avx512() {
  static const NestedKernels table{{encode_nested_floats, run_nested<Reals>, sizeof(float)},
                                   {encode_nested_integers, run_nested<Integers>, 1}};
  return &table;
}

}  // namespace lissome
#else
const lissome::NestedKernels* lissome::nested_avx512() { return nullptr; }
#endif
