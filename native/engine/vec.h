// Sixteen floats at a time, in the compiler's vectors: the same operations in the same order on every instruction set,
// and so the same bits. Included once per instruction set, after LISSOME_TARGET.
#pragma once

#include <cstdint>
#include <cstring>

#include "base/numbers.h"
#include "base/target.h"

namespace lissome {
namespace {

#define LISSOME_FN LISSOME_TARGET static LISSOME_INLINE

constexpr std::int64_t kWide = 16;

using V16 = float __attribute__((vector_size(64)));
using I16 = std::int32_t __attribute__((vector_size(64)));
using H16 = std::uint16_t __attribute__((vector_size(32)));

template <class V>
LISSOME_FN V load_v(const void* p) {
  V value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

template <class V>
LISSOME_FN void store_v(void* p, V value) {
  std::memcpy(p, &value, sizeof value);
}

LISSOME_FN V16 all(float value) {
  return V16{value, value, value, value, value, value, value, value, value, value, value, value, value, value, value, value};
}

LISSOME_FN V16 larger(V16 a, V16 b) {
#if defined(LISSOME_512)
  return (V16)_mm512_max_ps((__m512)a, (__m512)b);
#else
  return a > b ? a : b;
#endif
}

// a · b + c, rounded once.
LISSOME_FN V16 fused(V16 a, V16 b, V16 c) {
#if defined(LISSOME_512)
  return (V16)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(LISSOME_256)
  __m256 parts[3][2];
  std::memcpy(parts[0], &a, sizeof a), std::memcpy(parts[1], &b, sizeof b), std::memcpy(parts[2], &c, sizeof c);
  for (int i = 0; i < 2; ++i) parts[0][i] = _mm256_fmadd_ps(parts[0][i], parts[1][i], parts[2][i]);
  std::memcpy(&a, parts[0], sizeof a);
  return a;
#else
  for (int i = 0; i < kWide; ++i) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return c;
#endif
}

LISSOME_FN float sum_v(V16 v) {
  using V8 = float __attribute__((vector_size(32)));
  using V4 = float __attribute__((vector_size(16)));
  const V8 eight = __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) +
                   __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
  const V4 four = __builtin_shufflevector(eight, eight, 0, 1, 2, 3) + __builtin_shufflevector(eight, eight, 4, 5, 6, 7);
  return (four[0] + four[2]) + (four[1] + four[3]);
}

// Compilers widen vectors number by number unless they are told how.
#if defined(LISSOME_256)
LISSOME_FN I16 both(__m256i low, __m256i high) {
  I16 found;
  std::memcpy(&found, &low, sizeof low);
  std::memcpy(reinterpret_cast<char*>(&found) + sizeof low, &high, sizeof high);
  return found;
}
#endif

LISSOME_FN I16 integers_of(H16 halves) {
#if defined(LISSOME_256)
  const __m256i given = (__m256i)halves;
  return both(_mm256_cvtepu16_epi32(_mm256_castsi256_si128(given)),
              _mm256_cvtepu16_epi32(_mm256_extracti128_si256(given, 1)));
#else
  return __builtin_convertvector(halves, I16);
#endif
}

// Halves to floats: shifting the exponent by a multiplication makes subnormal halves right too. No infinities or NaN.
LISSOME_FN V16 floats_of(H16 halves) {
#if defined(LISSOME_512)
  return (V16)_mm512_cvtph_ps((__m256i)halves);
#else
  const I16 bits = integers_of(halves);
  const I16 sign = (bits & 0x8000) << 16, rest = (bits & 0x7fff) << 13;
  return (V16)((I16)((V16)rest * 0x1p112f) | sign);
#endif
}

// Floats to halves, to nearest even.
LISSOME_FN H16 halves_of(V16 floats) {
#if defined(LISSOME_512)
  return (H16)_mm512_cvtps_ph((__m512)floats, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  H16 found;
  for (int i = 0; i < kWide; ++i) found[i] = to_f16(floats[i]);
  return found;
#endif
}

// Lane i is the sum of v[i], added up as `sum_v` does.
LISSOME_FN V16 sums_v(const V16 (&v)[16]) {
  V16 found;
#if defined(LISSOME_512)
  V16 eight[8], four[4], two[2];  // sums of 8, 4 and 2 numbers of several vectors, side by side
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    eight[i] = __builtin_shufflevector(v[i], v[i + 8], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
               __builtin_shufflevector(v[i], v[i + 8], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const V16 a = eight[i], b = eight[i + 4];
    four[i] = __builtin_shufflevector(a, b, 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27) +
              __builtin_shufflevector(a, b, 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    const V16 a = four[i], b = four[i + 2];
    two[i] = __builtin_shufflevector(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
             __builtin_shufflevector(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
  }
  found = __builtin_shufflevector(two[0], two[1], 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30) +
          __builtin_shufflevector(two[0], two[1], 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
#else
  for (int i = 0; i < 16; ++i) found[i] = sum_v(v[i]);
#endif
  return found;
}

// e^x within 2 ulp: x = n ln 2 + r, a polynomial of r, and n added to the exponent. Nowhere less than e^-64, which is
// nothing beside 1: products of much less are subnormal, and take a hundred times as long.
LISSOME_FN V16 exp_v(V16 x) {
  x = x < -64.0f ? all(-64.0f) : x;
  x = x > 88.0f ? all(88.0f) : x;
  const V16 magic = all(12582912.0f);
  const V16 shifted = x * 1.44269504f + magic;
  const V16 n = shifted - magic;
  const V16 r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  V16 p = all(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  const V16 value = (p * (r * r) + r) + 1.0f;
  return (V16)((I16)value + (((I16)shifted - (I16)magic) << 23));
}

LISSOME_FN V16 tanh_v(V16 x) { return 1.0f - 2.0f / (exp_v(x * 2.0f) + 1.0f); }

}  // namespace
}  // namespace lissome
