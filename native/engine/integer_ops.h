// Sixty-four bytes at a time, and sums of products of four of them: exact, so the same numbers on every instruction set.
// Factors on the other side have at most 7 bits and a sign, so that two products fit 16 bits on AVX2.
#pragma once

#include <algorithm>
#include <bit>
#include <cstring>

#include "base/numbers.h"
#include "engine/groups.h"
#include "engine/vec.h"

namespace lissome {
namespace {

LISSOME_FN float largest_of(V16 v) {
  using V8 = float __attribute__((vector_size(32)));
  using V4 = float __attribute__((vector_size(16)));
  const V8 a = __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7);
  const V8 b = __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
  const V8 eight = a > b ? a : b;
  const V4 c = __builtin_shufflevector(eight, eight, 0, 1, 2, 3), d = __builtin_shufflevector(eight, eight, 4, 5, 6, 7);
  const V4 four = c > d ? c : d;
  return std::max(std::max(four[0], four[2]), std::max(four[1], four[3]));
}

#if defined(LISSOME_512)

inline constexpr int kGroupsAtOnce = 2;
using Bytes = __m512i;
using Sums = __m512i;

LISSOME_FN Bytes bytes_at(const std::byte* from) { return _mm512_loadu_si512(from); }
LISSOME_FN Bytes four_at(const std::byte* from) { return _mm512_set1_epi32(load_as<std::int32_t>(from)); }
LISSOME_FN void clear(Sums& sums) { sums = _mm512_setzero_si512(); }
LISSOME_FN I16 integers(const Sums& sums) { return (I16)sums; }
// In place: compilers copy sums before and after, which takes as long as the products.
LISSOME_FN void add_products(Sums& sums, Bytes any, Bytes with_sign) {
  Sums own = sums;
  __asm__("vpdpbusd %2, %1, %0" : "+v"(own) : "v"(any), "v"(with_sign));
  sums = own;
}
LISSOME_FN void store_bytes(std::byte* to, I16 numbers) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8((__m512i)numbers));
}

// Numbers whose bit is set are in order at `from`, zeros between them; all of them 128 more where they are biased. Reads
// 64 bytes. In place, on a register that was loaded just before: see linear/avx512_ops.h.
template <bool kBiased>
LISSOME_FN Bytes expanded(std::uint64_t bits, const std::byte* from) {
  Bytes given = bytes_at(from);
  __asm__("vpexpandb %0, %0%{%1%}%{z%}" : "+v"(given) : "Yk"(static_cast<__mmask64>(bits)));
  return kBiased ? _mm512_xor_si512(given, _mm512_set1_epi8(-128)) : given;
}

#else

template <bool kBiased>
LISSOME_FN void expand_to(std::uint64_t bits, const std::byte* from, std::byte (&to)[kGroupPiece]) {
  std::memset(to, kBiased ? 0x80 : 0, sizeof to);
  for (; bits != 0; bits &= bits - 1) to[std::countr_zero(bits)] ^= *from++;
}

LISSOME_FN void store_bytes(std::byte* to, I16 numbers) {
  std::int32_t wide[kWide];
  std::memcpy(wide, &numbers, sizeof wide);
  for (int i = 0; i < kWide; ++i) to[i] = static_cast<std::byte>(wide[i]);
}

#if defined(LISSOME_256)

inline constexpr int kGroupsAtOnce = 1;
struct Bytes {
  __m256i half[2];
};
using Sums = Bytes;

LISSOME_FN Bytes bytes_at(const void* from) {
  const auto* at = static_cast<const __m256i*>(from);
  return {{_mm256_loadu_si256(at), _mm256_loadu_si256(at + 1)}};
}
LISSOME_FN void clear(Sums& sums) { sums.half[0] = sums.half[1] = _mm256_setzero_si256(); }
LISSOME_FN I16 integers(const Sums& sums) { return both(sums.half[0], sums.half[1]); }
LISSOME_FN __m256i products(__m256i any, __m256i with_sign) {
  return _mm256_madd_epi16(_mm256_maddubs_epi16(any, with_sign), _mm256_set1_epi16(1));
}
LISSOME_FN Bytes four_at(const std::byte* from) {
  const __m256i four = _mm256_set1_epi32(load_as<std::int32_t>(from));
  return {{four, four}};
}
LISSOME_FN void add_products(Sums& sums, const Bytes& any, const Bytes& with_sign) {
  for (int i = 0; i < 2; ++i) sums.half[i] = _mm256_add_epi32(sums.half[i], products(any.half[i], with_sign.half[i]));
}

#else

inline constexpr int kGroupsAtOnce = 1;
struct Bytes {
  std::byte own[kGroupPiece];
};
struct Sums {
  std::int32_t own[kWide];
};

LISSOME_FN Bytes bytes_at(const void* from) {
  Bytes found;
  std::memcpy(found.own, from, sizeof found.own);
  return found;
}
LISSOME_FN void clear(Sums& sums) { sums = {}; }
LISSOME_FN I16 integers(const Sums& sums) { return load_v<I16>(sums.own); }

LISSOME_FN Bytes four_at(const std::byte* from) {
  Bytes found;
  for (int i = 0; i < kWide; ++i) std::memcpy(found.own + 4 * i, from, 4);
  return found;
}
LISSOME_TARGET inline void add_products(Sums& sums, const Bytes& any, const Bytes& with_sign) {
  for (int i = 0; i < kWide; ++i) {
    for (int k = 4 * i; k < 4 * i + 4; ++k) {
      sums.own[i] += std::int32_t{static_cast<std::uint8_t>(any.own[k])} * static_cast<std::int8_t>(with_sign.own[k]);
    }
  }
}

#endif

template <bool kBiased>
LISSOME_FN Bytes expanded(std::uint64_t bits, const std::byte* from) {
  alignas(64) std::byte room[kGroupPiece];
  expand_to<kBiased>(bits, from, room);
  return bytes_at(room);
}

#endif

}  // namespace
}  // namespace lissome
