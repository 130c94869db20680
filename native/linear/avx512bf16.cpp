#include "base/target.h"
#define LISSOME_TARGET LISSOME_AVX512BF16
#include "linear/kernels.h"

#if LISSOME_X86
#include "linear/avx512_ops.h"
#include "linear/panels.h"

namespace lissome {
namespace {

// Two products a lane and instruction; denormal activations and weights count as zero, as the instruction has it.
struct Bf16Dot : Bits16, FloatSums {
  using X = std::uint16_t;
  using Step = __m512i;
  LISSOME_OP Step broadcast(const X* x) { return _mm512_set1_epi32(load_as<int>(x)); }
  LISSOME_OP void add(Acc (&acc)[2], Row row, Step x, int odd) {
    acc[odd] = _mm512_dpbf16_ps(acc[odd], reinterpret_cast<__m512bh>(row), reinterpret_cast<__m512bh>(x));
  }
};

}  // namespace

const Kernels* avx512bf16_kernels() {
  static const Kernels table = [] {
    Kernels made = *avx512_kernels();
    made.isa = Isa::avx512bf16;
    made.bf16_bf16 = {encode_halves, run_panels<Bf16Dot>, sizeof(std::uint16_t)};
    return made;
  }();
  return &table;
}

}  // namespace lissome
#else
const lissome::Kernels* lissome::avx512bf16_kernels() { return nullptr; }
#endif
