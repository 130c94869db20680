#include "base/target.h"
#define LISSOME_TARGET LISSOME_AVX512
#if LISSOME_X86
#include <immintrin.h>
#define LISSOME_512  // there are instructions for halves, bytes, expanding and whole vectors

#include "base/numbers.h"

namespace lissome {
namespace {

// In place, on a register that was loaded just before: see linear/avx512_ops.h.
template <class Number>
LISSOME_TARGET LISSOME_INLINE void expand_512(std::uint64_t bits, const std::byte* from, std::byte* to) {
  constexpr int kNumbers = 64 / sizeof(Number);  // of a register
#pragma GCC unroll 4
  for (int part = 0; part < static_cast<int>(sizeof(Number)); ++part) {
    __m512i row = _mm512_loadu_si512(from);
    if constexpr (sizeof(Number) == 2) {
      __asm__("vpexpandw %0, %0%{%1%}%{z%}" : "+v"(row) : "Yk"(static_cast<__mmask32>(bits)));
    } else {
      __asm__("vpexpandd %0, %0%{%1%}%{z%}" : "+v"(row) : "Yk"(static_cast<__mmask16>(bits)));
    }
    _mm512_storeu_si512(to + 64 * part, row);
    constexpr std::uint64_t kOwn = (std::uint64_t{1} << kNumbers) - 1;
    from += static_cast<std::int64_t>(sizeof(Number)) * __builtin_popcountll(bits & kOwn);
    bits >>= kNumbers;
  }
}

}  // namespace
}  // namespace lissome

#include "engine/steps_loops.h"

const lissome::StepKernels* lissome::steps_avx512() { return &kSteps; }
#else
#include "engine/steps.h"

const lissome::StepKernels* lissome::steps_avx512() { return nullptr; }
#endif
