// Attention over integers, in integers: queries are rounded to 13 bits for each head, shares to 14 bits of the largest
// one in each block of 64 cells a token sees, and products are added up exactly. Included by steps_loops.h.
#pragma once

#include <algorithm>
#include <bit>
#include <cstring>

#include "base/numbers.h"
#include "engine/groups.h"
#include "engine/integer_ops.h"
#include "engine/steps.h"
#include "engine/vec.h"

namespace lissome {
namespace {

inline constexpr std::int64_t kBlock = 64;        // cells with one scale of shares
inline constexpr float kMostQuery = 4064;         // 127 · 4064 · 4096 numbers fit 32 bits
inline constexpr float kMostShare = 16383;        // two parts of 7 bits
inline constexpr float kRounding = 12582912.0f;   // 1.5 · 2^23 rounds to nearest even
inline constexpr std::int64_t kSoon = 1024, kLater = 8192;  // bytes ahead that are asked for: to the first cache, the second

// The pieces of a group one after the other.
struct Stream {
  const std::byte *bits, *at;

  template <bool kPacked, bool kBiased>
  LISSOME_TARGET LISSOME_INLINE Bytes next() {
    __builtin_prefetch(at + kSoon, 0, 3);
    __builtin_prefetch(at + kLater, 0, 2);
    if constexpr (!kPacked) {
      const Bytes found = bytes_at(at);
      at += kGroupPiece;
      return found;
    } else {
      const auto own = load_as<std::uint64_t>(bits);
      const Bytes found = expanded<kBiased>(own, at);
      bits += 8, at += std::popcount(own);
      return found;
    }
  }
};

// Cells of one group: they are `count` ones from `lane` on, the first of them the token's `at`-th.
struct Part {
  const std::byte* group;
  std::int64_t lane, count, at;
  bool packed;

  LISSOME_TARGET LISSOME_INLINE Stream stream(std::int64_t size) const {
    return {group, packed ? group + 8 * group_pieces(size) : group};
  }
};

// Calls f(parts, count) for every block of cells in order.
template <class F>
LISSOME_FN void each_block(const Attend& job, const HeldRows& rows, F f) {
  Part parts[kBlock];
  std::int64_t at = 0, found = 0;
  for (std::int64_t run = 0; run < job.run_count; ++run) {
    for (std::int64_t cell = job.runs[run].first; cell < job.runs[run].last;) {
      const bool frozen = cell < job.frozen;
      const std::int64_t index = frozen ? cell : cell - job.frozen, lane = index % kGroup;
      std::int64_t count = std::min({kGroup - lane, job.runs[run].last - cell, kBlock - at % kBlock});
      if (frozen) count = std::min(count, job.frozen - cell);
      const std::byte* base = frozen ? rows.frozen : rows.dense;
      const std::int64_t bytes = frozen ? kGroup * rows.frozen_bytes : group_bytes(job.size);
      parts[found++] = {base + index / kGroup * bytes, lane, count, at, frozen && rows.words != 0};
      cell += count, at += count;
      if (at % kBlock != 0 && at != job.cells) continue;
      f(parts, found);
      found = 0;
    }
  }
}

// Scales in the order of cells.
LISSOME_FN void ordered(const Attend& job, const float* scales, std::int64_t width, float* to) {
  std::int64_t at = 0;
  for (std::int64_t run = 0; run < job.run_count; ++run) {
    const std::int64_t count = job.runs[run].last - job.runs[run].first;
    std::memcpy(to + at, scales + job.runs[run].first, static_cast<std::size_t>(count) * sizeof(float));
    at += count;
  }
  std::fill(to + at, to + width, 0.0f);
}

// A head's query as integers, `high` · 128 + `low`, at every fourth number one word of each of Q heads.
struct Query {
  float scale;
  std::int32_t offset;  // what 128 more than every number of a key adds to the sum
};

template <int Q>
LISSOME_TARGET Query round_query(const float* q, std::int64_t size, int head, std::byte* to) {
  float most = 0;
  for (std::int64_t k = 0; k < size; ++k) most = std::max(most, std::fabs(q[k]));
  const float inverse = most > 1e-30f ? kMostQuery / most : 0.0f;
  std::int32_t sum = 0;
  for (std::int64_t k = 0; k < size; ++k) {
    const float moved = q[k] * inverse + kRounding;
    const std::int32_t rounded = std::bit_cast<std::int32_t>(moved) - std::bit_cast<std::int32_t>(kRounding);
    const std::int32_t whole = std::clamp(rounded, -4064, 4064), high = (whole + 64) >> 7;
    std::byte* word = to + (k / 4 * Q + head) * 8 + k % 4;
    word[0] = static_cast<std::byte>(high), word[4] = static_cast<std::byte>(whole - 128 * high);
    sum += whole;
  }
  return {most / kMostQuery, static_cast<std::int32_t>(128u * static_cast<std::uint32_t>(sum))};
}

template <int Q, int G, bool kPacked>
LISSOME_FN void score_groups(const Part* parts, std::int64_t size, const std::byte* q, I16 (&found)[G][Q]) {
  Sums high[G][Q], low[G][Q];
  Stream pieces[G];
#pragma GCC unroll 2
  for (int g = 0; g < G; ++g) {
    pieces[g] = parts[g].stream(size);
#pragma GCC unroll 4
    for (int h = 0; h < Q; ++h) clear(high[g][h]), clear(low[g][h]);
  }
  for (std::int64_t k = 0; k < size; k += 4, q += 8 * Q) {
    Bytes keys[G];
#pragma GCC unroll 2
    for (int g = 0; g < G; ++g) keys[g] = pieces[g].template next<kPacked, true>();
#pragma GCC unroll 4
    for (int h = 0; h < Q; ++h) {
      const Bytes more = four_at(q + 8 * h), less = four_at(q + 8 * h + 4);
#pragma GCC unroll 2
      for (int g = 0; g < G; ++g) add_products(high[g][h], keys[g], more);
#pragma GCC unroll 2
      for (int g = 0; g < G; ++g) add_products(low[g][h], keys[g], less);
    }
  }
#pragma GCC unroll 2
  for (int g = 0; g < G; ++g) {
#pragma GCC unroll 4
    for (int h = 0; h < Q; ++h) found[g][h] = (integers(high[g][h]) << 7) + integers(low[g][h]);
  }
}

// Where scores of Q heads go, and what makes numbers of them.
template <int Q>
struct Scores {
  Query queries[Q];
  const float* scales;
  float* to;
  std::int64_t width;
};

template <int Q, int G, bool kPacked>
LISSOME_TARGET void score_parts(const Attend& job, const Part* parts, const std::byte* words, const Scores<Q>& scores) {
  I16 found[G][Q];
  score_groups<Q, G, kPacked>(parts, job.size, words, found);
  for (int g = 0; g < G; ++g) {
    const Part& part = parts[g];
    const float* scales = scores.scales + part.at;
    for (int h = 0; h < Q; ++h) {
      const Query& query = scores.queries[h];
      const V16 sums = __builtin_convertvector(found[g][h] - query.offset, V16) * (job.scale * query.scale);
      float* to = scores.to + h * scores.width + part.at;
      if (part.count == kGroup) {
        store_v(to, sums * load_v<V16>(scales));
      } else {
        alignas(64) float lanes[kGroup];
        store_v(lanes, sums);
        for (std::int64_t i = 0; i < part.count; ++i) to[i] = lanes[part.lane + i] * scales[i];
      }
    }
  }
}

template <int Q>
LISSOME_TARGET void score_integers(const Attend& job, const float* q, const float* scales, std::int64_t width,
                                   std::byte* words, float* to) {
  Scores<Q> scores;
  for (int h = 0; h < Q; ++h) scores.queries[h] = round_query<Q>(q + h * job.size, job.size, h, words);
  scores.scales = scales, scores.to = to, scores.width = width;
  each_block(job, job.keys, [&](const Part* parts, std::int64_t count) LISSOME_TARGET {
    for (std::int64_t i = 0; i < count;) {
      const bool two = kGroupsAtOnce >= 2 && i + 1 < count && parts[i].packed == parts[i + 1].packed;
      if (two && parts[i].packed) {
        score_parts<Q, kGroupsAtOnce, true>(job, parts + i, words, scores);
      } else if (two) {
        score_parts<Q, kGroupsAtOnce, false>(job, parts + i, words, scores);
      } else if (parts[i].packed) {
        score_parts<Q, 1, true>(job, parts + i, words, scores);
      } else {
        score_parts<Q, 1, false>(job, parts + i, words, scores);
      }
      i += two ? 2 : 1;
    }
  });
}

// e^x of what is at most 0, within 8e-6: shares have no more than 14 bits. See exp_v.
LISSOME_FN V16 share_v(V16 x) {
  x = larger(x, all(-64.0f));
  const V16 magic = all(12582912.0f), shifted = x * 1.44269504f + magic, n = shifted - magic, r = x - n * 0.69314718f;
  const V16 value = ((0.041277748f * r + 0.16753514f) * r + 0.50005114f) * (r * r) + r + 1.0f;
  return (V16)((I16)value + (((I16)shifted - (I16)magic) << 23));
}

// Scores of one head to shares of their largest, times the values' scales, in two parts of 7 bits and a scale for every
// block; the inverse of their sum.
LISSOME_TARGET inline float round_shares(const Attend& job, float* scores, const float* scales, std::int64_t width,
                                         std::byte* high, std::byte* low, float* blocks) {
  if (job.cap != 0) soft_cap(scores, job.cap, job.cells);
  std::fill(scores + job.cells, scores + width, -3e38f);
  V16 most[kBlock / kWide], sums{};
  for (V16& one : most) one = all(-3e38f);
  for (std::int64_t first = 0; first < width; first += kBlock) {
#pragma GCC unroll 4
    for (int i = 0; i < kBlock / kWide; ++i) most[i] = larger(most[i], load_v<V16>(scores + first + i * kWide));
  }
  const float largest = largest_of(larger(larger(most[0], most[1]), larger(most[2], most[3])));
  for (std::int64_t first = 0; first < width; first += kBlock) {
    V16 top{};
#pragma GCC unroll 4
    for (int i = 0; i < kBlock / kWide; ++i) {
      const std::int64_t k = first + i * kWide;
      const V16 e = share_v(load_v<V16>(scores + k) - largest), share = e * load_v<V16>(scales + k);
      sums += e;  // e^-64 of what is no cell changes nothing: the largest is 1
      store_v(scores + k, share);
      top = larger(top, share);
    }
    blocks[first / kBlock] = largest_of(top) * (1 / kMostShare);
  }
  for (std::int64_t first = 0; first < width; first += kBlock) {  // apart, so that no block waits for the one before
    const float block = blocks[first / kBlock], inverse = block > 1e-30f ? 1.0f / block : 0.0f;
#pragma GCC unroll 4
    for (int i = 0; i < kBlock / kWide; ++i) {
      const V16 share = load_v<V16>(scores + first + i * kWide);
      const I16 whole = (I16)(share * inverse + kRounding) - (I16)all(kRounding);
      store_bytes(high + first + i * kWide, whole >> 7);
      store_bytes(low + first + i * kWide, whole & 127);
    }
  }
  return 1.0f / sum_v(sums);
}

// Where the shares of all heads lie: [head][cell] each.
struct Shares {
  const std::byte *high, *low;
  const float* blocks;
  std::int64_t width;
};

// The cells of a part, whose shares of head h are at `high + h * width` and `low + h * width`.
struct Mixed {
  Stream pieces;
  const std::byte *high, *low;
  std::int64_t width;
  bool packed;
};

// Adds products of the next C times 16 numbers with the shares of their cells, for the parts that are packed, or for
// those that are not.
template <int Q, int C, bool kPacked>
LISSOME_TARGET void mix_columns(Mixed* parts, std::int64_t count, I16 (&found)[Q][C]) {
  Sums above[Q][C], below[Q][C];
#pragma GCC unroll 4
  for (int h = 0; h < Q; ++h) {
#pragma GCC unroll 2
    for (int c = 0; c < C; ++c) clear(above[h][c]), clear(below[h][c]);
  }
  for (std::int64_t i = 0; i < count; ++i) {
    if (parts[i].packed != kPacked) continue;
    Stream pieces = parts[i].pieces;
    const std::byte *high = parts[i].high, *low = parts[i].low;
    const std::int64_t width = parts[i].width;
#pragma GCC unroll 4
    for (int four = 0; four < 4; ++four) {
      Bytes values[C];
#pragma GCC unroll 2
      for (int c = 0; c < C; ++c) values[c] = pieces.template next<kPacked, false>();
#pragma GCC unroll 4
      for (int h = 0; h < Q; ++h) {
        const Bytes more = four_at(high + h * width + 4 * four), less = four_at(low + h * width + 4 * four);
#pragma GCC unroll 2
        for (int c = 0; c < C; ++c) add_products(above[h][c], more, values[c]);
#pragma GCC unroll 2
        for (int c = 0; c < C; ++c) add_products(below[h][c], less, values[c]);
      }
    }
    parts[i].pieces = pieces;
  }
#pragma GCC unroll 4
  for (int h = 0; h < Q; ++h) {
#pragma GCC unroll 2
    for (int c = 0; c < C; ++c) found[h][c] += (integers(above[h][c]) << 7) + integers(below[h][c]);
  }
}

// Adds what the next C times 16 numbers, from `k` on, of a block give.
template <int Q, int C>
LISSOME_FN void mix_block(Mixed* parts, std::int64_t count, bool packed, bool dense, const float (&scales)[Q],
                          std::int64_t size, float* out) {
  I16 found[Q][C] = {};
  if (packed) mix_columns<Q, C, true>(parts, count, found);
  if (dense) mix_columns<Q, C, false>(parts, count, found);
  for (int h = 0; h < Q; ++h) {
    for (int c = 0; c < C; ++c) {
      float* to = out + h * size + c * kWide;
      store_v(to, load_v<V16>(to) + __builtin_convertvector(found[h][c], V16) * scales[h]);
    }
  }
}

template <int Q>
LISSOME_TARGET void mix_integers(const Attend& job, const Shares& shares, float* out) {
  std::fill(out, out + Q * job.size, 0.0f);
  each_block(job, job.values, [&](const Part* parts, std::int64_t count) LISSOME_TARGET {
    Mixed mixed[kBlock];
    alignas(16) std::byte room[kBlock][2][Q][kGroup];  // shares of parts of groups, between zeros
    bool packed = false, dense = false;
    for (std::int64_t i = 0; i < count; ++i) {
      const Part& part = parts[i];
      mixed[i] = {part.stream(job.size), shares.high + part.at, shares.low + part.at, shares.width, part.packed};
      packed |= part.packed, dense |= !part.packed;
      if (part.count == kGroup) continue;
      std::memset(room[i], 0, sizeof room[i]);
      for (int h = 0; h < Q; ++h) {
        std::memcpy(room[i][0][h] + part.lane, mixed[i].high + h * shares.width, static_cast<std::size_t>(part.count));
        std::memcpy(room[i][1][h] + part.lane, mixed[i].low + h * shares.width, static_cast<std::size_t>(part.count));
      }
      mixed[i].high = room[i][0][0], mixed[i].low = room[i][1][0], mixed[i].width = kGroup;
    }
    float scales[Q];
    for (int h = 0; h < Q; ++h) scales[h] = shares.blocks[h * (shares.width / kBlock) + parts[0].at / kBlock];
    std::int64_t k = 0;
    for (; k + 2 * kWide <= job.size; k += 2 * kWide) mix_block<Q, 2>(mixed, count, packed, dense, scales, job.size, out + k);
    if (k < job.size) mix_block<Q, 1>(mixed, count, packed, dense, scales, job.size, out + k);
  });
}

template <int Q>
LISSOME_TARGET void attend_some_integers(const Attend& job, std::int64_t first) {
  const std::int64_t width = (job.cells + kBlock - 1) / kBlock * kBlock;
  float *scores = job.room, *scales = scores + Q * width, *blocks = scales + width;
  float* out = job.out + first * job.size;
  auto* high = reinterpret_cast<std::byte*>(blocks + Q * width / kBlock);
  std::byte *low = high + Q * width, *words = low + Q * width;
  ordered(job, job.keys.scales, width, scales);
  score_integers<Q>(job, job.q + first * job.size, scales, width, words, scores);
  ordered(job, job.values.scales, width, scales);
  float inverse[Q];
  for (int h = 0; h < Q; ++h) {
    inverse[h] = round_shares(job, scores + h * width, scales, width, high + h * width, low + h * width,
                              blocks + h * (width / kBlock));
  }
  mix_integers<Q>(job, {high, low, blocks, width}, out);
  for (int h = 0; h < Q; ++h) {
    for (std::int64_t i = 0; i < job.size; ++i) out[h * job.size + i] *= inverse[h];
  }
}

LISSOME_TARGET void attend_integers(const Attend& job) {
  std::int64_t done = 0;
  for (; done + 4 <= job.queries && job.queries - done != 6; done += 4) attend_some_integers<4>(job, done);
  for (; done + 3 <= job.queries; done += 3) attend_some_integers<3>(job, done);
  switch (job.queries - done) {
    case 2: return attend_some_integers<2>(job, done);
    case 1: return attend_some_integers<1>(job, done);
    default: return;
  }
}

}  // namespace
}  // namespace lissome
