// Sixteen floats at a time, in the compiler's vectors: the same operations in the same order on every instruction set,
// and so the same bits. Included once per instruction set, after LISSOME_TARGET.
#pragma once

#include <cstdint>
#include <cstring>

#include "base/target.h"

namespace lissome {
namespace {

#define LISSOME_FN LISSOME_TARGET static LISSOME_INLINE

constexpr std::int64_t kWide = 16;

using V16 = float __attribute__((vector_size(64)));
using I16 = std::int32_t __attribute__((vector_size(64)));
using H16 = std::uint16_t __attribute__((vector_size(32)));
using C16 = std::int8_t __attribute__((vector_size(16)));

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

LISSOME_FN V16 all(float value) { return V16{} + value; }

LISSOME_FN float sum_v(V16 v) {
  using V8 = float __attribute__((vector_size(32)));
  using V4 = float __attribute__((vector_size(16)));
  const V8 eight = __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) +
                   __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
  const V4 four = __builtin_shufflevector(eight, eight, 0, 1, 2, 3) + __builtin_shufflevector(eight, eight, 4, 5, 6, 7);
  return (four[0] + four[2]) + (four[1] + four[3]);
}

// Halves to floats: shifting the exponent by a multiplication makes subnormal halves right too. No infinities or NaN.
LISSOME_FN V16 floats_of(H16 halves) {
#if defined(LISSOME_HALVES)
  return (V16)_mm512_cvtph_ps((__m256i)halves);
#else
  const I16 bits = __builtin_convertvector(halves, I16);
  const I16 sign = (bits & 0x8000) << 16, rest = (bits & 0x7fff) << 13;
  return (V16)((I16)((V16)rest * 0x1p112f) | sign);
#endif
}

// e^x within 2 ulp: x = n ln 2 + r, a polynomial of r, and n added to the exponent.
LISSOME_FN V16 exp_v(V16 x) {
  x = x < -87.0f ? all(-87.0f) : x;
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
