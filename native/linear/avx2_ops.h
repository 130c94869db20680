// Policies of AVX2 with FMA. There is no expand instruction: 8 weights at a time are shuffled by a table.
#pragma once

#include <immintrin.h>

#include <array>

#include "base/numbers.h"
#include "linear/encode.h"
#include "linear/strip.h"

namespace lissome {
namespace {

#define LISSOME_OP LISSOME_TARGET static LISSOME_INLINE

// For every 8 bits: where the bytes of 8 numbers come from; 0x80 makes a zero.
template <int Bytes>
constexpr auto shuffles() {
  std::array<std::array<std::uint8_t, 8 * Bytes>, 256> table{};
  for (int bits = 0; bits < 256; ++bits) {
    int next = 0;
    for (int j = 0; j < 8; ++j) {
      const bool kept = (bits >> j) & 1;
      for (int b = 0; b < Bytes; ++b) {
        table[bits][Bytes * j + b] = static_cast<std::uint8_t>(kept ? Bytes * next + b : 0x80);
      }
      next += kept;
    }
  }
  return table;
}

alignas(64) constexpr auto kShuffle16 = shuffles<2>();
alignas(64) constexpr auto kShuffle8 = shuffles<1>();

struct Ymm {
  struct Row {
    __m256i low, high;
  };
  LISSOME_OP __m256i load256(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
  LISSOME_OP __m128i load128(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
  LISSOME_OP Row dense(const std::byte* p) { return {load256(p), load256(p + 32)}; }
  LISSOME_OP void put(std::byte* out, Row row) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), row.low);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + 32), row.high);
  }
};

struct Bits16 : Ymm {
  static constexpr Format kFormat = Format::bf16;

  LISSOME_OP __m128i eight(std::uint32_t bits, const std::byte*& p) {
    const __m128i found = _mm_shuffle_epi8(load128(p), load128(kShuffle16[bits & 0xff].data()));
    p += 2 * __builtin_popcount(bits & 0xff);
    return found;
  }
  LISSOME_OP __m256i half(std::uint32_t bits, const std::byte*& p) {
    const __m128i first = eight(bits, p), second = eight(bits >> 8, p);
    return _mm256_set_m128i(second, first);
  }
  LISSOME_OP Row expand16(std::uint32_t bits, const std::byte* p) {
    const __m256i low = half(bits, p), high = half(bits >> 16, p);
    return {low, high};
  }
};

struct Bits8 : Ymm {
  static constexpr Format kFormat = Format::int8;

  LISSOME_OP std::int64_t eight(std::uint64_t bits, const std::byte*& p) {
    const auto* table = reinterpret_cast<const __m128i*>(kShuffle8[bits & 0xff].data());
    const __m128i from = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    p += __builtin_popcountll(bits & 0xff);
    return _mm_cvtsi128_si64(_mm_shuffle_epi8(from, _mm_loadl_epi64(table)));
  }
  LISSOME_OP __m256i half(std::uint64_t bits, const std::byte*& p) {
    const std::int64_t a = eight(bits, p), b = eight(bits >> 8, p), c = eight(bits >> 16, p), d = eight(bits >> 24, p);
    return _mm256_set_epi64x(d, c, b, a);
  }
  LISSOME_OP Row expand8(std::uint64_t bits, const std::byte* p) {
    const __m256i low = half(bits, p), high = half(bits >> 32, p);
    return {low, high};
  }
};

// Two rows of activations: the sums of one tile then fill 8 of 16 registers, and those of the other are not in use.
inline constexpr int kYmmRows = 2;

struct Bf16Fma : Bits16 {
  static constexpr int kRows = kYmmRows, kUnroll = 4;
  static constexpr std::uint32_t kOffset = 0;
  using X = float;
  using Sum = float;
  struct Acc {
    __m256 low, high;
  };
  struct Step {
    __m256 even, odd;
  };
  LISSOME_OP Acc load(const Sum* from) { return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }
  LISSOME_OP void store(Sum* to, Acc acc) {
    _mm256_storeu_ps(to, acc.low);
    _mm256_storeu_ps(to + 8, acc.high);
  }
  LISSOME_OP void join(const Sum* sums, Sum* out) {
    for (int n = 0; n < kLanes; ++n) out[n] = sums[n] + sums[kLanes + n];
  }
  LISSOME_OP Step broadcast(const X* x) { return {_mm256_broadcast_ss(x), _mm256_broadcast_ss(x + 1)}; }
  LISSOME_OP __m256 even(__m256i row) { return _mm256_castsi256_ps(_mm256_slli_epi32(row, 16)); }
  LISSOME_OP __m256 odd(__m256i row) {
    return _mm256_castsi256_ps(_mm256_and_si256(row, _mm256_set1_epi32(static_cast<int>(0xffff0000))));
  }
  LISSOME_OP void add(Acc (&acc)[2], Row row, Step x, int) {
    acc[0].low = _mm256_fmadd_ps(even(row.low), x.even, acc[0].low);
    acc[0].high = _mm256_fmadd_ps(even(row.high), x.even, acc[0].high);
    acc[1].low = _mm256_fmadd_ps(odd(row.low), x.odd, acc[1].low);
    acc[1].high = _mm256_fmadd_ps(odd(row.high), x.odd, acc[1].high);
  }
};

// vpmaddubsw would saturate; bytes become 16-bit numbers instead, whose products vpmaddwd adds in pairs exactly. An
// output then has two sums side by side: acc[0] holds those of outputs 0-7, acc[1] those of outputs 8-15.
struct Int8 : Bits8 {
  static constexpr int kRows = kYmmRows, kUnroll = 4;
  static constexpr std::uint32_t kOffset = 0;
  using X = std::int16_t;
  using Sum = std::int32_t;
  struct Acc {
    __m256i low, high;
  };
  using Step = __m256i;
  LISSOME_OP Acc load(const Sum* from) { return {load256(from), load256(from + 8)}; }
  LISSOME_OP void store(Sum* to, Acc acc) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), acc.low);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + 8), acc.high);
  }
  LISSOME_OP void join(const Sum* sums, Sum* out) {
    for (int n = 0; n < kLanes; ++n) out[n] = sums[2 * n] + sums[2 * n + 1];
  }
  LISSOME_OP Step broadcast(const X* x) { return _mm256_set1_epi64x(load_as<long long>(x)); }
  LISSOME_OP __m256i dot(__m256i sum, __m128i weights, Step x) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_cvtepi8_epi16(weights), x));
  }
  LISSOME_OP void add(Acc (&acc)[2], Row row, Step x, int) {
    acc[0].low = dot(acc[0].low, _mm256_castsi256_si128(row.low), x);
    acc[0].high = dot(acc[0].high, _mm256_extracti128_si256(row.low, 1), x);
    acc[1].low = dot(acc[1].low, _mm256_castsi256_si128(row.high), x);
    acc[1].high = dot(acc[1].high, _mm256_extracti128_si256(row.high, 1), x);
  }
};

}  // namespace
}  // namespace lissome
