// Policies of AVX-512 for nested weights. Included by the files of AVX-512 and of AMX.
#pragma once

#include <immintrin.h>

#include "base/numbers.h"
#include "nested/panels.h"

namespace lissome {
namespace {  // of each file its own, compiled for its own instruction set

#ifndef LISSOME_OP
#define LISSOME_OP LISSOME_TARGET static LISSOME_INLINE
#endif

struct Codes {
  using Code = __m512i;
  using Floats = __m512;

  LISSOME_OP __m512i line(const std::byte* p) { return _mm512_loadu_si512(p); }
  // Every 8 bytes are 8 x 8 bits; output byte t has bit t of each, the first byte's highest.
  LISSOME_OP __m512i transpose(__m512i bits) {
    return _mm512_gf2p8affine_epi64_epi8(_mm512_set1_epi64(static_cast<long long>(0x8040201008040201)), bits, 0);
  }

  struct Quads {
    __m512i at[4];
  };
  // Bytes of four lines side by side.
  LISSOME_OP Quads interleave(__m512i a, __m512i b, __m512i c, __m512i d) {
    const __m512i low = _mm512_unpacklo_epi8(a, b), high = _mm512_unpackhi_epi8(a, b);
    const __m512i low2 = _mm512_unpacklo_epi8(c, d), high2 = _mm512_unpackhi_epi8(c, d);
    return {{_mm512_unpacklo_epi16(low, low2), _mm512_unpackhi_epi16(low, low2), _mm512_unpacklo_epi16(high, high2),
             _mm512_unpackhi_epi16(high, high2)}};
  }

  // The plane of value 2^bit, zeros above the highest.
  template <int B>
  LISSOME_OP __m512i plane(const std::byte* const (&lines)[B], int bit) {
    return bit < B ? line(lines[B - 1 - bit]) : _mm512_setzero_si512();
  }

  // Sixteen times the codes in even rows: two bytes hold a code each before they are taken apart.
  template <int B>
  LISSOME_OP void unpack_scaled(const std::byte* const (&lines)[B], Code (&codes)[kBlockRows]) {
    static_assert(B <= 4);
    const Quads low = interleave(plane<B>(lines, 3), plane<B>(lines, 2), plane<B>(lines, 1), plane<B>(lines, 0));
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
      const __m512i both = transpose(low.at[c]);
      codes[2 * c] = _mm512_and_si512(both, _mm512_set1_epi8(static_cast<char>(0xf0)));
      codes[2 * c + 1] = _mm512_and_si512(both, _mm512_set1_epi8(15));
    }
  }

  template <int B>
  LISSOME_OP void unpack(const std::byte* const (&lines)[B], Code (&codes)[kBlockRows]) {
    const Quads low = interleave(plane<B>(lines, 3), plane<B>(lines, 2), plane<B>(lines, 1), plane<B>(lines, 0));
    if constexpr (B <= 4) {
      const __m512i nibble = _mm512_set1_epi8(15);
#pragma GCC unroll 4
      for (int c = 0; c < 4; ++c) {
        const __m512i both = transpose(low.at[c]);
        codes[2 * c] = _mm512_and_si512(_mm512_srli_epi16(both, 4), nibble);
        codes[2 * c + 1] = _mm512_and_si512(both, nibble);
      }
    } else {
      const Quads high = interleave(plane<B>(lines, 7), plane<B>(lines, 6), plane<B>(lines, 5), plane<B>(lines, 4));
#pragma GCC unroll 4
      for (int c = 0; c < 4; ++c) {
        const __m512i first = _mm512_unpacklo_epi32(high.at[c], low.at[c]);
        const __m512i second = _mm512_unpackhi_epi32(high.at[c], low.at[c]);
        codes[2 * c] = transpose(_mm512_unpacklo_epi64(first, second));
        codes[2 * c + 1] = transpose(_mm512_unpackhi_epi64(first, second));
      }
    }
  }

  struct Table {
    __m512i levels;
  };
  template <int B>
  LISSOME_OP Table table(const std::uint8_t* levels) {
    constexpr __mmask64 kMask = B < kMostTableBits ? (__mmask64{1} << (1 << (B % kMostTableBits))) - 1 : ~__mmask64{0};
    return {_mm512_maskz_loadu_epi8(kMask, levels)};
  }
  LISSOME_OP Code level(const Table& table, Code code) { return _mm512_permutexvar_epi8(code, table.levels); }
  LISSOME_OP Code load(const std::byte* p) { return _mm512_loadu_si512(p); }
  LISSOME_OP void store(std::byte* p, Code code) { _mm512_storeu_si512(p, code); }
  LISSOME_OP Floats floats(const float* p) { return _mm512_loadu_ps(p); }
  LISSOME_OP void put(float* p, Floats values) { _mm512_storeu_ps(p, values); }
  LISSOME_OP Floats plus(Floats a, Floats b) { return _mm512_add_ps(a, b); }
  LISSOME_OP __m512 halves(const std::uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  struct Pairs {
    __m512 scale, least;
  };
  LISSOME_OP Pairs pairs(const std::uint16_t* scales) { return {halves(scales), halves(scales + kNestedPanel)}; }
};

// Codes are unsigned and activations signed, as vpdpbusd wants them; it does not saturate, so that sums are exact.
struct Integers : Codes {
  static constexpr int kRows = 8;
  static constexpr bool kDirect = true;
  using X = std::int8_t;
  using Sum = __m512i;
  LISSOME_OP Sum zero() { return _mm512_setzero_si512(); }
  LISSOME_OP void add(Sum& sum, Code code, const X* x) {
    sum = _mm512_dpbusd_epi32(sum, code, _mm512_set1_epi32(load_as<int>(x)));
  }
  LISSOME_OP Sum join(Sum even, Sum odd, bool scaled) {
    return _mm512_add_epi32(scaled ? _mm512_srai_epi32(even, 4) : even, odd);
  }
  LISSOME_OP Sum sums(const std::int32_t* p) { return _mm512_loadu_si512(p); }
  LISSOME_OP Floats finish(Sum sum, Pairs pairs, const float* x_scale, float x_sum) {
    const __m512 scale = _mm512_mul_ps(pairs.scale, _mm512_set1_ps(*x_scale));
    const __m512 least = _mm512_mul_ps(pairs.least, _mm512_set1_ps(x_sum));
    return _mm512_add_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(sum), scale), least);
  }
};

// Products and sums are rounded one by one, as C++ does it everywhere: results are those of the portable kernel.
struct Reals : Codes {
  static constexpr int kRows = 4;
  static constexpr bool kDirect = false;
  using X = float;
  using Sum = __m512;
  LISSOME_OP Sum zero() { return _mm512_setzero_ps(); }
  LISSOME_OP void add(Sum& sum, Code code, const X* x) {
    const __m512i byte = _mm512_set1_epi32(255);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const __m512i one = _mm512_and_si512(_mm512_srli_epi32(code, static_cast<unsigned>(8 * i)), byte);
      sum = _mm512_add_ps(sum, _mm512_mul_ps(_mm512_cvtepi32_ps(one), _mm512_set1_ps(x[i])));
    }
  }
  LISSOME_OP Floats finish(Sum sum, Pairs pairs, const float*, float x_sum) {
    const __m512 least = _mm512_mul_ps(pairs.least, _mm512_set1_ps(x_sum));
    return _mm512_add_ps(_mm512_mul_ps(sum, pairs.scale), least);
  }
};

}  // namespace
}  // namespace lissome
