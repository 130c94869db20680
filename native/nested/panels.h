// Panels of nested weights: one row of activations straight from the planes, more through a buffer of codes.
//
// Included once per instruction set, after LISSOME_TARGET was defined. A policy P has
//   X, Sum, Floats      types of an encoded activation, of 16 sums along a group, of 16 results
//   kRows               rows of activations whose sums stay in registers
//   kDirect             whether one row goes without the buffer: a loop of its own for every number of planes
//   Code                64 codes: of 16 outputs 4 inputs each
//   unpack<B>(lines, codes)        8 rows of codes from the lines of B planes
//   unpack_scaled<B>(lines, codes), join(even, odd, scaled)   where kDirect: even rows sixteenfold, quicker for
//                                  up to 4 planes, and the sum of both rows' sums
//   Table, table<B>(levels), level(table, code)   2^B levels, and those of 64 codes
//   load(p), store(p, code)        codes in a buffer
//   zero, add(sum, code, x)        adds 4 inputs
//   Pairs, pairs(scales)           scales and leasts of 16 outputs
//   finish(sums, pairs, x_scale, x_sum)    16 results of a group: sum · (scale · x_scale) + least · x_sum
//   floats, put, plus              results from and to memory, and their sum
// and what nested/tile_strip.h wants, where whole blocks of 16 rows go through tiles.
// A result is the sum over groups in their order, each a product of its own: it depends neither on rows nor on threads.
#pragma once

#include <algorithm>
#include <type_traits>

#include "base/memory.h"
#include "base/target.h"
#include "nested/kernels.h"
#include "nested/tile_strip.h"

namespace lissome {
namespace {

// Streams of planes and scales are asked for so many blocks ahead: hardware follows each no further than its page. They
// go to the second cache, which can wait for more lines at a time than the first.
inline constexpr std::int64_t kBlocksAhead = 64;
inline constexpr std::int64_t kBufferBlocks = 32;  // 16 KiB of codes: half of the first cache
inline constexpr std::int64_t kWrittenPanels = 8;

struct NoTable {};

// Codes from planes, or their levels.
template <class P, int B, bool kLevels>
struct FromPlanes {
  const std::byte* line[B];
  std::int64_t stride[B];
  [[no_unique_address]] std::conditional_t<kLevels, typename P::Table, NoTable> table;

  LISSOME_TARGET FromPlanes(const Nested& weight, int precision, std::int64_t panel) {
    if constexpr (kLevels) table = P::template table<B>(weight.levels[static_cast<std::size_t>(precision)]);
    for (int p = 0; p < B; ++p) {
      stride[p] = weight.planes[static_cast<std::size_t>(p)].stride;
      line[p] = weight.planes[static_cast<std::size_t>(p)].data + panel * weight.blocks() * stride[p];
    }
  }
  template <bool kScaled = false>
  LISSOME_TARGET LISSOME_INLINE void next(typename P::Code (&codes)[kBlockRows]) {
    if constexpr (kScaled) {
      P::template unpack_scaled<B>(line, codes);
    } else {
      P::template unpack<B>(line, codes);
    }
    if constexpr (kLevels) {
#pragma GCC unroll 8
      for (int row = 0; row < kBlockRows; ++row) codes[row] = P::level(table, codes[row]);
    }
#pragma GCC unroll 8
    for (int p = 0; p < B; ++p) {
      __builtin_prefetch(line[p] + kBlocksAhead * stride[p], 0, 2);
      line[p] += stride[p];
    }
  }
};

// Codes as bytes.
template <class P>
struct FromBuffer {
  const std::byte* at;
  LISSOME_TARGET LISSOME_INLINE void next(typename P::Code (&codes)[kBlockRows]) {
#pragma GCC unroll 8
    for (int row = 0; row < kBlockRows; ++row) codes[row] = P::load(at + row * kLine);
    at += kBlockRows * kLine;
  }
};

template <class P, int M, int Blocks>
LISSOME_TARGET void strip(FromBuffer<P> from, const Strip& s, float* y) {
  constexpr std::int64_t kGroup = Blocks * kBlockInputs;
  typename P::Floats total[M];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) total[m] = P::floats(y + m * kNestedPanel);
  const auto* x = reinterpret_cast<const typename P::X*>(s.x);
  const std::uint16_t* scales = s.w_scales;
  for (std::int64_t g = 0; g < s.groups; ++g, x += kGroup, scales += 2 * kNestedPanel) {
    __builtin_prefetch(scales + kBlocksAhead / Blocks * 2 * kNestedPanel, 0, 2);
    typename P::Sum sum[M];
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) sum[m] = P::zero();
#pragma GCC unroll 2
    for (int block = 0; block < Blocks; ++block) {
      typename P::Code codes[kBlockRows];
      from.next(codes);
#pragma GCC unroll 8
      for (int row = 0; row < kBlockRows; ++row) {
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) P::add(sum[m], codes[row], x + m * s.stride + block * kBlockInputs + 4 * row);
      }
    }
    const typename P::Pairs pairs = P::pairs(scales);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const std::int64_t at = m * s.row_groups + g;
      total[m] = P::plus(total[m], P::finish(sum[m], pairs, s.scales ? s.scales + at : nullptr, s.sums[at]));
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) P::put(y + m * kNestedPanel, total[m]);
}

template <class P, int Blocks, int M = P::kRows>
LISSOME_TARGET void strip_of(std::int64_t rows, FromBuffer<P> from, const Strip& s, float* y) {
  if constexpr (M > 1) {
    if (rows < M) return strip_of<P, Blocks, M - 1>(rows, from, s, y);
  }
  strip<P, M, Blocks>(from, s, y);
}

// Writes 16 results of a row of y, those of outputs from `first` on.
template <class P>
LISSOME_TARGET LISSOME_INLINE void write(const NestedJob& job, std::int64_t first, typename P::Floats total, float* y) {
  if (first + kNestedPanel <= job.weight->outputs) {
    if (job.bias) total = P::plus(total, P::floats(job.bias + first));
    return P::put(y + first, job.add ? P::plus(P::floats(y + first), total) : total);
  }
  float last[kNestedPanel];
  P::put(last, total);
  for (std::int64_t n = first; n < job.weight->outputs; ++n) {
    const float value = job.bias ? last[n - first] + job.bias[n] : last[n - first];
    y[n] = job.add ? y[n] + value : value;
  }
}

LISSOME_TARGET inline Strip strip_at(const NestedJob& job, std::int64_t panel, std::int64_t row, std::int64_t group,
                                     std::int64_t groups, std::int64_t item) {
  const Nested& weight = *job.weight;
  const std::int64_t all = weight.groups(), at = row * all + group;
  return {job.x.x + (row * job.x.stride + group * weight.group) * item,
          job.x.stride,
          job.x.scales ? job.x.scales + at : nullptr,
          job.x.sums + at,
          groups,
          all,
          weight.scales[static_cast<std::size_t>(job.precision)] + (panel * all + group) * 2 * kNestedPanel};
}

// One row of activations. Even and odd rows of codes have sums of their own: neither waits for the other.
template <class P, int B, bool kLevels, int Blocks>
LISSOME_TARGET void panel_one(const NestedJob& job, std::int64_t panel) {
  constexpr bool kScaled = B <= 4 && !kLevels;
  const Strip s = strip_at(job, panel, 0, 0, job.weight->groups(), sizeof(typename P::X));
  FromPlanes<P, B, kLevels> from(*job.weight, job.precision, panel);
  const auto* x = reinterpret_cast<const typename P::X*>(s.x);
  const std::uint16_t* scales = s.w_scales;
  alignas(64) constexpr float kNone[kNestedPanel] = {};
  typename P::Floats total = P::floats(kNone);
  for (std::int64_t g = 0; g < s.groups; ++g, x += Blocks * kBlockInputs, scales += 2 * kNestedPanel) {
    __builtin_prefetch(scales + kBlocksAhead / Blocks * 2 * kNestedPanel, 0, 2);
    typename P::Sum sum[2] = {P::zero(), P::zero()};
#pragma GCC unroll 2
    for (int block = 0; block < Blocks; ++block) {
      typename P::Code codes[kBlockRows];
      from.template next<kScaled>(codes);
#pragma GCC unroll 8
      for (int row = 0; row < kBlockRows; ++row) P::add(sum[row % 2], codes[row], x + block * kBlockInputs + 4 * row);
    }
    total = P::plus(total, P::finish(P::join(sum[0], sum[1], kScaled), P::pairs(scales), s.scales + g, s.sums[g]));
  }
  write<P>(job, panel * kNestedPanel, total, job.y);
}

template <class P, int B, bool kLevels>
LISSOME_TARGET void expand(FromPlanes<P, B, kLevels>& planes, std::int64_t blocks, std::byte* buffer) {
  for (std::int64_t block = 0; block < blocks; ++block) {
    typename P::Code codes[kBlockRows];
    planes.next(codes);
    for (int row = 0; row < kBlockRows; ++row) P::store(buffer + (block * kBlockRows + row) * kLine, codes[row]);
  }
}

template <class P, int B, bool kLevels>
LISSOME_TARGET void panel_many(const NestedJob& job, std::int64_t panel, std::byte* buffer, float* sums) {
  FromPlanes<P, B, kLevels> planes(*job.weight, job.precision, panel);
  std::fill_n(sums, job.x.rows * kNestedPanel, 0.0f);
  const std::int64_t each = job.weight->group / kBlockInputs, most = kBufferBlocks / each;
  for (std::int64_t group = 0; group < job.weight->groups(); group += most) {
    const std::int64_t groups = std::min(most, job.weight->groups() - group);
    expand(planes, groups * each, buffer);
    std::int64_t row = 0;
    if constexpr (Tiled<P>) {
      for (; row + kTiledRows <= job.x.rows; row += kTiledRows) {
        const Strip s = strip_at(job, panel, row, group, groups, sizeof(typename P::X));
        float* y = sums + row * kNestedPanel;
        each == 1 ? tile_strip<P, 1>(buffer, s, y) : tile_strip<P, 2>(buffer, s, y);
      }
    }
    for (; row < job.x.rows; row += P::kRows) {
      const std::int64_t count = std::min<std::int64_t>(P::kRows, job.x.rows - row);
      const Strip s = strip_at(job, panel, row, group, groups, sizeof(typename P::X));
      float* y = sums + row * kNestedPanel;
      each == 1 ? strip_of<P, 1>(count, {buffer}, s, y) : strip_of<P, 2>(count, {buffer}, s, y);
    }
  }
}

// Results of several panels are written together: rows of y are pages apart, and finding a page takes longer than
// fetching a line.
template <class P, int B, bool kLevels>
LISSOME_TARGET void panels_many(const NestedJob& job, std::int64_t first, std::int64_t last) {
  static thread_local Scratch buffers, carried;
  auto* buffer = buffers.at_least<std::byte>(kBufferBlocks * kBlockRows * kLine);
  const std::int64_t each = job.x.rows * kNestedPanel;
  auto* sums = carried.at_least<float>(kWrittenPanels * each);
  for (std::int64_t panel = first; panel < last; panel += kWrittenPanels) {
    const std::int64_t count = std::min(kWrittenPanels, last - panel);
    for (std::int64_t p = 0; p < count; ++p) panel_many<P, B, kLevels>(job, panel + p, buffer, sums + p * each);
    for (std::int64_t row = 0; row < job.x.rows; ++row) {
      for (std::int64_t p = 0; p < count; ++p) {
        write<P>(job, (panel + p) * kNestedPanel, P::floats(sums + p * each + row * kNestedPanel),
                 job.y + row * job.y_stride);
      }
    }
  }
}

template <class P, int B, bool kLevels>
LISSOME_TARGET void panels_at(const NestedJob& job, std::int64_t first, std::int64_t last) {
  if constexpr (P::kDirect) {
    if (job.x.rows == 1) {
      for (std::int64_t panel = first; panel < last; ++panel) {
        job.weight->group == 32 ? panel_one<P, B, kLevels, 1>(job, panel) : panel_one<P, B, kLevels, 2>(job, panel);
      }
      return;
    }
  }
  if constexpr (Tiled<P>) {
    if (job.x.rows >= kTiledRows) {
      const Shapes<P> shapes(job.weight->group);
      return panels_many<P, B, kLevels>(job, first, last);
    }
  }
  panels_many<P, B, kLevels>(job, first, last);
}

template <class P, int B = kMostBits>
LISSOME_TARGET void run_nested(const NestedJob& job, std::int64_t first, std::int64_t last) {
  if constexpr (B > 1) {
    if (job.weight->read[static_cast<std::size_t>(job.precision)] < B) return run_nested<P, B - 1>(job, first, last);
  }
  if constexpr (B <= kMostTableBits) {
    if (job.weight->levels[static_cast<std::size_t>(job.precision)]) return panels_at<P, B, true>(job, first, last);
  }
  panels_at<P, B, false>(job, first, last);
}

}  // namespace
}  // namespace lissome
