// What a decoder does besides multiplying by weights: a table of functions for every instruction set, all of the same
// results bit for bit.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lissome {

enum class KvType : std::uint8_t { f32, f16, int8 };

constexpr std::int64_t item_of(KvType type) { return type == KvType::f32 ? 4 : type == KvType::f16 ? 2 : 1; }

enum class Gate : std::uint8_t { silu, gelu };  // gelu by tanh

struct Run {
  std::int32_t first, last;  // cells [first, last)
};

// Keys or values of one KV head; integers lie in groups of cells, see groups.h.
struct HeldRows {
  const std::byte* frozen = nullptr;  // of cell 0, side by side; see frozen.h
  const std::byte* dense = nullptr;   // of the first cell that is not frozen
  const float* scales = nullptr;      // int8 only, of cell 0
  std::int64_t frozen_bytes = 0, words = 0;  // of a frozen row: all of it, and words of its bitmap, 0 when it has none
};

inline constexpr std::int64_t kTogether = 4;  // tokens

// One query position, or kTogether of them, against the cells of one KV head. `size` is the head's, padded to 16 with
// zeros. Several see the same cells in the same order, those before the last only the first `seen` of them.
struct Attend {
  const float* q = nullptr;  // [token][queries][size], a token's `stride` after the last one's
  float* out = nullptr;      // likewise
  std::int64_t tokens = 1, stride = 0;  // several: not of int8
  std::int64_t seen[kTogether] = {};    // in ascending order; of several only
  std::int64_t queries = 0, size = 0;
  float scale = 1, cap = 0;  // cap: scores become cap · tanh(score / cap); 0 for none
  KvType type = KvType::f16;
  HeldRows keys, values;
  std::int64_t frozen = 0;  // cells before this one are
  const Run* runs = nullptr;
  std::int64_t run_count = 0, cells = 0;  // cells: of all runs
  float* room = nullptr;                  // attend_room numbers, for use while it works
};

// Numbers that attention of so many queries over so many cells needs beside them.
constexpr std::int64_t attend_room(std::int64_t tokens, std::int64_t queries, std::int64_t cells, std::int64_t size) {
  const std::int64_t at_once = tokens * (queries < 4 ? queries : 4), width = (cells + 63) / 64 * 64;
  return at_once * width + width + at_once * (width / 64) + at_once * width / 2 + at_once * size / 2;
}

struct StepKernels {
  // x · weight / sqrt(mean x² + eps)
  void (*norm)(const float* x, const float* weight, float eps, std::int64_t count, float* to) = nullptr;
  // to += x
  void (*add)(const float* x, std::int64_t count, float* to) = nullptr;
  // gate(x[0..count)) · x[count..2 count)
  void (*gated)(const float* x, Gate gate, std::int64_t count, float* to) = nullptr;
  // x = cap · tanh(x / cap)
  void (*soft_cap)(float* x, float cap, std::int64_t count) = nullptr;
  // Turns pairs (x[i], x[i + half]) by angles given as cosines and sines.
  void (*rotate)(float* x, const float* cosines, const float* sines, std::int64_t half) = nullptr;
  // Writes a head's numbers, a multiple of 16, as the cache holds them; returns the scale of int8, else 1.
  float (*keep)(const float* x, std::int64_t count, KvType type, std::byte* to) = nullptr;
  void (*attend)(const Attend& job) = nullptr;
};

const StepKernels* steps_portable();
const StepKernels* steps_avx2();    // null when not compiled
const StepKernels* steps_avx512();  // null when not compiled

}  // namespace lissome
