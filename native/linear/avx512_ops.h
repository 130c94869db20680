// Policies of AVX-512 with VNNI and VBMI2. Included by the files of both AVX-512 levels and of AMX.
#pragma once

#include <immintrin.h>

#include "base/numbers.h"
#include "linear/encode.h"
#include "linear/strip.h"

namespace lissome {
namespace {  // of each file its own, compiled for its own instruction set

#define LISSOME_OP LISSOME_TARGET static LISSOME_INLINE

struct Zmm {
  using Row = __m512i;
  LISSOME_OP Row dense(const std::byte* p) { return _mm512_loadu_si512(p); }
  LISSOME_OP void put(std::byte* out, Row row) { _mm512_storeu_si512(out, row); }
};

// Expanding works in place, on a register that was loaded just before. With another register as its target, AMD's Zen 5
// waits for that register's old value although all of it is replaced (3.1 cycles a row instead of 1.6), and with memory
// as its source it is microcode there and needs two more operations on Intel.
struct Bits16 : Zmm {
  static constexpr Format kFormat = Format::bf16;

  LISSOME_OP Row expand16(std::uint32_t bits, const std::byte* p) {
    Row row = _mm512_loadu_si512(p);
    __asm__("vpexpandw %0, %0%{%1%}%{z%}" : "+v"(row) : "Yk"(static_cast<__mmask32>(bits)));
    return row;
  }

  LISSOME_OP int compress(Row row, std::byte* out, std::uint64_t& bits) {
    const __mmask32 kept = _mm512_test_epi16_mask(row, row);
    _mm512_storeu_si512(out, _mm512_maskz_compress_epi16(kept, row));
    bits = kept;
    return __builtin_popcount(kept);
  }
};

struct Bits8 : Zmm {
  static constexpr Format kFormat = Format::int8;

  LISSOME_OP Row expand8(std::uint64_t bits, const std::byte* p) {
    Row row = _mm512_loadu_si512(p);
    __asm__("vpexpandb %0, %0%{%1%}%{z%}" : "+v"(row) : "Yk"(static_cast<__mmask64>(bits)));
    return row;
  }

  LISSOME_OP int compress(Row row, std::byte* out, std::uint64_t& bits) {
    const __mmask64 kept = _mm512_test_epi8_mask(row, row);
    _mm512_storeu_si512(out, _mm512_maskz_compress_epi8(kept, row));
    bits = kept;
    return __builtin_popcountll(kept);
  }
};

struct FloatSums {
  static constexpr int kRows = 6, kUnroll = 8;  // 24 registers of sums; 8 are left for weights and activations
  static constexpr std::uint32_t kOffset = 0;
  using Sum = float;
  using Acc = __m512;
  LISSOME_OP Acc load(const float* from) { return _mm512_loadu_ps(from); }
  LISSOME_OP void store(float* to, Acc acc) { _mm512_storeu_ps(to, acc); }
  LISSOME_OP void join(const float* sums, float* out) {
    _mm512_storeu_ps(out, _mm512_add_ps(_mm512_loadu_ps(sums), _mm512_loadu_ps(sums + kLanes)));
  }
};

// Halves of pairs as fp32.
LISSOME_OP __m512 even(__m512i pairs) { return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)); }
LISSOME_OP __m512 odd(__m512i pairs) {
  return _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(static_cast<int>(0xffff0000))));
}

// fp32 activations: both halves of a pair become fp32, and even and odd inputs have a sum each.
struct Bf16Fma : Bits16, FloatSums {
  using X = float;
  struct Step {
    __m512 even, odd;
  };
  LISSOME_OP Step broadcast(const X* x) { return {_mm512_set1_ps(x[0]), _mm512_set1_ps(x[1])}; }
  LISSOME_OP void add(Acc (&acc)[2], Row row, Step x, int) {
    acc[0] = _mm512_fmadd_ps(even(row), x.even, acc[0]);
    acc[1] = _mm512_fmadd_ps(odd(row), x.odd, acc[1]);
  }
};

// vpdpbusd multiplies unsigned by signed: activations get 128 added, and 128 times the sum of the weights is subtracted
// at the end. It does not saturate, so that this is exact.
struct Int8 : Bits8 {
  static constexpr int kRows = 6, kUnroll = 8;
  static constexpr std::uint32_t kOffset = 128;
  using X = std::uint8_t;
  using Sum = std::int32_t;
  using Acc = __m512i;
  using Step = __m512i;
  LISSOME_OP Acc load(const Sum* from) { return _mm512_loadu_si512(from); }
  LISSOME_OP void store(Sum* to, Acc acc) { _mm512_storeu_si512(to, acc); }
  LISSOME_OP void join(const Sum* sums, Sum* out) {
    _mm512_storeu_si512(out, _mm512_add_epi32(_mm512_loadu_si512(sums), _mm512_loadu_si512(sums + kLanes)));
  }
  LISSOME_OP Step broadcast(const X* x) { return _mm512_set1_epi32(load_as<int>(x)); }
  LISSOME_OP void add(Acc (&acc)[2], Row row, Step x, int odd) { acc[odd] = _mm512_dpbusd_epi32(acc[odd], x, row); }
};

}  // namespace
}  // namespace lissome
