// The functions of steps.h. Included once per instruction set, after LISSOME_TARGET.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "base/numbers.h"
#include "engine/steps.h"
#include "engine/vec.h"

namespace lissome {
namespace {

LISSOME_TARGET void norm(const float* x, const float* weight, float eps, std::int64_t count, float* to) {
  V16 squares{};
  std::int64_t k = 0;
  for (; k + kWide <= count; k += kWide) {
    const V16 v = load_v<V16>(x + k);
    squares += v * v;
  }
  float sum = sum_v(squares);
  for (; k < count; ++k) sum += x[k] * x[k];
  const float inverse = 1.0f / std::sqrt(sum / static_cast<float>(count) + eps);
  for (k = 0; k < count; ++k) to[k] = weight[k] * (x[k] * inverse);
}

LISSOME_TARGET void add(const float* x, std::int64_t count, float* to) {
  for (std::int64_t k = 0; k < count; ++k) to[k] += x[k];
}

LISSOME_FN V16 opened(V16 x, Gate gate) {
  if (gate == Gate::silu) return x / (exp_v(-x) + 1.0f);
  return 0.5f * x * (tanh_v((x + 0.044715f * x * x * x) * 0.7978845608f) + 1.0f);
}

LISSOME_FN V16 some(const float* p, std::int64_t count) {
  if (count == kWide) return load_v<V16>(p);
  V16 found{};
  std::memcpy(&found, p, static_cast<std::size_t>(count) * sizeof(float));
  return found;
}

LISSOME_FN void put_some(float* p, V16 value, std::int64_t count) {
  if (count == kWide) return store_v(p, value);
  std::memcpy(p, &value, static_cast<std::size_t>(count) * sizeof(float));
}

LISSOME_TARGET void gated(const float* x, Gate gate, std::int64_t count, float* to) {
  for (std::int64_t k = 0; k < count; k += kWide) {
    const std::int64_t n = std::min(kWide, count - k);
    put_some(to + k, opened(some(x + k, n), gate) * some(x + count + k, n), n);
  }
}

LISSOME_TARGET void soft_cap(float* x, float cap, std::int64_t count) {
  for (std::int64_t k = 0; k < count; k += kWide) {
    const std::int64_t n = std::min(kWide, count - k);
    put_some(x + k, tanh_v(some(x + k, n) / cap) * cap, n);
  }
}

LISSOME_TARGET void rotate(float* x, const float* cosines, const float* sines, std::int64_t half) {
  for (std::int64_t i = 0; i < half; ++i) {
    const float first = x[i], second = x[i + half];
    x[i] = first * cosines[i] - second * sines[i];
    x[i + half] = second * cosines[i] + first * sines[i];
  }
}

LISSOME_TARGET float keep_integers(const float* x, std::int64_t count, std::int8_t* to) {
  float most = 0;
  for (std::int64_t k = 0; k < count; ++k) most = std::max(most, std::fabs(x[k]));
  const float inverse = most > 1e-30f ? 127.0f / most : 0.0f;
  constexpr float kMagic = 12582912.0f;  // 1.5 · 2^23 rounds to nearest even
  for (std::int64_t k = 0; k < count; ++k) {
    const auto whole = std::bit_cast<std::int32_t>(x[k] * inverse + kMagic) - std::bit_cast<std::int32_t>(kMagic);
    to[k] = static_cast<std::int8_t>(std::clamp(whole, -127, 127));
  }
  return most / 127.0f;
}

LISSOME_TARGET float keep(const float* x, std::int64_t count, KvType type, std::byte* to) {
  if (type == KvType::int8) return keep_integers(x, count, reinterpret_cast<std::int8_t*>(to));
  if (type == KvType::f32) {
    std::memcpy(to, x, static_cast<std::size_t>(count) * sizeof(float));
  } else {
    for (std::int64_t k = 0; k < count; k += kWide) store_v(to + 2 * k, halves_of(load_v<V16>(x + k)));
  }
  return 1.0f;
}

}  // namespace
}  // namespace lissome

#include "engine/attend_integers.h"

namespace lissome {
namespace {

inline constexpr std::int64_t kPiece = 64;       // numbers of a word of a bitmap
inline constexpr std::int64_t kCellsAhead = 16;  // keys and values are asked for that early

// Writes 64 numbers: those whose bit is set are in order at `from`, zeros between them.
template <class Number>
LISSOME_FN void expand(std::uint64_t bits, const std::byte* from, std::byte* to) {
#if defined(LISSOME_512)
  expand_512<Number>(bits, from, to);  // reads up to 64 bytes more than there are numbers
#else
  std::memset(to, 0, kPiece * sizeof(Number));
  for (; bits != 0; bits &= bits - 1, from += sizeof(Number)) {
    std::memcpy(to + static_cast<std::size_t>(std::countr_zero(bits)) * sizeof(Number), from, sizeof(Number));
  }
#endif
}

struct KvFloats {
  using Number = float;
  LISSOME_FN V16 load(const std::byte* p) { return load_v<V16>(p); }
};
struct KvHalves {
  using Number = std::uint16_t;
  LISSOME_FN V16 load(const std::byte* p) { return floats_of(load_v<H16>(p)); }
};
template <class Kv>
constexpr std::int64_t item() {
  return sizeof(typename Kv::Number);
}

// Where the numbers of a row from `k` on lie, up to the next multiple of 64; those of a frozen one are written to `room`.
template <class Kv>
LISSOME_FN const std::byte* piece(const Attend& job, const HeldRows& rows, std::int64_t cell, std::int64_t k,
                                  std::byte* room) {
  if (cell >= job.frozen) return rows.dense + ((cell - job.frozen) * job.size + k) * item<Kv>();
  const std::byte* row = rows.frozen + cell * rows.frozen_bytes;
  if (rows.words == 0) return row + k * item<Kv>();
  const std::byte* numbers = row + 8 * rows.words;
  for (std::int64_t word = 0; word < k / kPiece; ++word) {
    numbers += std::popcount(load_as<std::uint64_t>(row + 8 * word)) * item<Kv>();
  }
  expand<typename Kv::Number>(load_as<std::uint64_t>(row + k / kPiece * 8), numbers, room);
  return room + k % kPiece * item<Kv>();
}

// Asks for the row of a cell further on.
template <class Kv>
LISSOME_FN void ask(const Attend& job, const HeldRows& rows, std::int64_t cell, std::int64_t k) {
  const std::byte* p = cell >= job.frozen ? rows.dense + ((cell - job.frozen + kCellsAhead) * job.size + k) * item<Kv>()
                                          : rows.frozen + (cell + kCellsAhead) * rows.frozen_bytes;
  __builtin_prefetch(p, 0, 3);
  __builtin_prefetch(p + 64, 0, 3);
}

// Calls f(cell, index among all cells) in order, for indices [begin, end).
template <class F>
LISSOME_FN void each_cell(const Attend& job, std::int64_t begin, std::int64_t end, F f) {
  std::int64_t before = 0;
  for (std::int64_t run = 0; run < job.run_count && before < end; ++run) {
    const std::int64_t first = job.runs[run].first, count = job.runs[run].last - first;
    for (std::int64_t at = std::max(begin, before); at < std::min(end, before + count); ++at) f(first + at - before, at);
    before += count;
  }
}

// Where a row of a job's queries or results lies, Q of each token.
template <int Q>
LISSOME_FN std::int64_t row_at(const Attend& job, int row) {
  return row / Q * job.stride + row % Q * job.size;
}

// Adds products of C vectors of a row with those of Q queries of T tokens.
template <class Kv, int Q, int T, int C>
LISSOME_FN void dot(const Attend& job, const float* q, const std::byte* row, V16 (&sums)[T * Q]) {
#pragma GCC unroll 4
  for (int c = 0; c < C; ++c) {
    const V16 v = Kv::load(row + c * kWide * item<Kv>());
#pragma GCC unroll 16
    for (int r = 0; r < T * Q; ++r) sums[r] = fused(load_v<V16>(q + row_at<Q>(job, r) + c * kWide), v, sums[r]);
  }
}

template <class Kv, int Q, int T>
LISSOME_TARGET void score(const Attend& job, const float* q, float* scores, std::int64_t width) {
  alignas(64) std::byte room[kPiece * item<Kv>()];
  V16 rows[T * Q][kWide] = {};  // products of as many cells, added up together
  each_cell(job, 0, job.cells, [&](std::int64_t cell, std::int64_t at) LISSOME_TARGET {
    ask<Kv>(job, job.keys, cell, 0);
    V16 sums[T * Q] = {};
    std::int64_t k = 0;
    for (; k + kPiece <= job.size; k += kPiece) {
      dot<Kv, Q, T, kPiece / kWide>(job, q + k, piece<Kv>(job, job.keys, cell, k, room), sums);
    }
    if (k < job.size) {
      const std::byte* key = piece<Kv>(job, job.keys, cell, k, room);
      for (; k < job.size; k += kWide, key += kWide * item<Kv>()) dot<Kv, Q, T, 1>(job, q + k, key, sums);
    }
    const std::int64_t slot = at % kWide;
#pragma GCC unroll 16
    for (int r = 0; r < T * Q; ++r) rows[r][slot] = sums[r];
    if (slot + 1 < kWide && at + 1 < job.cells) return;
    for (int r = 0; r < T * Q; ++r) store_v(scores + r * width + at - slot, sums_v(rows[r]) * job.scale);
  });
}

// Adds the values of cells [begin, end), in order, to what `out` has of the cells before.
template <class Kv, int Q, int T, int C>
LISSOME_TARGET void mix_columns(const Attend& job, const float* scores, std::int64_t width, std::int64_t begin,
                                std::int64_t end, std::int64_t k, float* out) {
  alignas(64) std::byte room[kPiece * item<Kv>()];
  V16 sums[T * Q][C] = {};
  for (int r = 0; begin > 0 && r < T * Q; ++r) {
    for (int c = 0; c < C; ++c) sums[r][c] = load_v<V16>(out + row_at<Q>(job, r) + k + c * kWide);
  }
  each_cell(job, begin, end, [&](std::int64_t cell, std::int64_t at) LISSOME_TARGET {
    ask<Kv>(job, job.values, cell, k);
    const std::byte* value = piece<Kv>(job, job.values, cell, k, room);
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) {
      const V16 v = Kv::load(value + c * kWide * item<Kv>());
#pragma GCC unroll 16
      for (int r = 0; r < T * Q; ++r) sums[r][c] = fused(v, all(scores[r * width + at]), sums[r][c]);
    }
  });
  for (int r = 0; r < T * Q; ++r) {
    for (int c = 0; c < C; ++c) store_v(out + row_at<Q>(job, r) + k + c * kWide, sums[r][c]);
  }
}

// The cells that all tokens see, then of each token those that it sees besides.
template <class Kv, int Q, int T, int C>
LISSOME_TARGET void mix_all(const Attend& job, const float* scores, std::int64_t width, std::int64_t k, float* out) {
  const std::int64_t common = T > 1 ? job.seen[0] : job.cells;
  mix_columns<Kv, Q, T, C>(job, scores, width, 0, common, k, out);
  for (int t = 1; t < T; ++t) {
    mix_columns<Kv, Q, 1, C>(job, scores + t * Q * width, width, common, job.seen[t], k, out + t * job.stride);
  }
}

template <class Kv, int Q, int T>
LISSOME_TARGET void mix(const Attend& job, const float* scores, std::int64_t width, float* out) {
  constexpr int kColumns = T == 1 ? 4 : T * Q <= 12 ? 2 : 1;  // sums stay in registers
  std::int64_t k = 0;
  for (; k + kColumns * kWide <= job.size; k += kColumns * kWide) mix_all<Kv, Q, T, kColumns>(job, scores, width, k, out);
  for (; k < job.size; k += kWide) mix_all<Kv, Q, T, 1>(job, scores, width, k, out);
}

// Scores of `cells` cells to shares that sum up to 1, zeros after them.
LISSOME_TARGET inline void shares(const Attend& job, std::int64_t cells, float* scores, std::int64_t width) {
  if (job.cap != 0) soft_cap(scores, job.cap, cells);
  std::fill(scores + cells, scores + width, -3e38f);
  V16 most = all(-3e38f);
  for (std::int64_t k = 0; k < width; k += kWide) {
    const V16 v = load_v<V16>(scores + k);
    most = v > most ? v : most;
  }
  const float largest = largest_of(most);
  V16 sums{};
  for (std::int64_t k = 0; k < width; k += kWide) {
    const V16 v = load_v<V16>(scores + k);
    const V16 e = v > -1e38f ? exp_v(v - largest) : V16{};
    store_v(scores + k, e);
    sums += e;
  }
  const float inverse = 1.0f / sum_v(sums);
  for (std::int64_t k = 0; k < cells; ++k) scores[k] *= inverse;
}

template <class Kv, int Q, int T>
LISSOME_TARGET void attend_tokens(const Attend& job, std::int64_t first) {
  const std::int64_t width = (job.cells + kWide - 1) / kWide * kWide;
  score<Kv, Q, T>(job, job.q + first * job.size, job.room, width);
  for (int r = 0; r < T * Q; ++r) shares(job, T > 1 ? job.seen[r / Q] : job.cells, job.room + r * width, width);
  mix<Kv, Q, T>(job, job.room, width, job.out + first * job.size);
}

template <class Kv, int Q>
LISSOME_TARGET void attend_some(const Attend& job, std::int64_t first) {
  job.tokens > 1 ? attend_tokens<Kv, Q, kTogether>(job, first) : attend_tokens<Kv, Q, 1>(job, first);
}

template <class Kv>
LISSOME_TARGET void attend_all(const Attend& job) {
  std::int64_t done = 0;
  for (; done + 4 <= job.queries; done += 4) attend_some<Kv, 4>(job, done);
  switch (job.queries - done) {
    case 3: return attend_some<Kv, 3>(job, done);
    case 2: return attend_some<Kv, 2>(job, done);
    case 1: return attend_some<Kv, 1>(job, done);
    default: return;
  }
}

LISSOME_TARGET void attend(const Attend& job) {
  switch (job.type) {
    case KvType::f32: return attend_all<KvFloats>(job);
    case KvType::f16: return attend_all<KvHalves>(job);
    case KvType::int8: return attend_integers(job);
  }
}

constexpr StepKernels kSteps{norm, add, gated, soft_cap, rotate, keep, attend};

}  // namespace
}  // namespace lissome
