// Panels of one job, on vectors: few rows straight from the stream, many through a buffer of expanded weights.
//
// Included once per instruction set, after LISSOME_TARGET; see linear/strip.h for what a policy is. One may have a
// `Guard`, which is there while few rows are added up.
#pragma once

#include <algorithm>

#include "base/memory.h"
#include "linear/job.h"
#include "linear/strip.h"

namespace lissome {

// Weights are expanded 8 tiles at a time (16 KiB, a part of the first cache) and used by up to 192 rows, whose sums
// (48 KiB) stay in the second: expanding is then a small part of the work, and no second copy of the weight exists.
inline constexpr std::int64_t kChunk = 8 * kTileSteps;
inline constexpr std::int64_t kMostRows = 192;

template <class P>
LISSOME_TARGET void finish_rows(const Job& job, std::int64_t row, std::int64_t count, std::int64_t panel,
                                const typename P::Sum* sums) {
  alignas(64) typename P::Sum joined[kPanel];
  for (std::int64_t m = 0; m < count; ++m) {
    P::join(sums + m * kSums, joined);
    P::join(sums + m * kSums + 2 * kLanes, joined + kLanes);
    if constexpr (P::kOffset != 0) {  // activations were moved to be unsigned; modulo 2^32 it comes out exact
      const std::int32_t* correction = job.weight->sums + panel * kPanel;
      for (std::int64_t n = 0; n < kPanel; ++n) {
        joined[n] = static_cast<std::int32_t>(static_cast<std::uint32_t>(joined[n]) -
                                              P::kOffset * static_cast<std::uint32_t>(correction[n]));
      }
    }
    finish(job, row + m, panel, joined);
  }
}

template <class P, class Rows64>
LISSOME_TARGET void few_rows(const Job& job, std::int64_t panel, Rows64 rows) {
  alignas(64) typename P::Sum sums[P::kRows * kSums] = {};
  const auto* x = reinterpret_cast<const typename P::X*>(job.x);
  if constexpr (requires { typename P::Guard; }) {
    const typename P::Guard guard;
    strip_of<P>(job.rows, rows, x, job.x_stride, job.weight->steps(), sums);
  } else {
    strip_of<P>(job.rows, rows, x, job.x_stride, job.weight->steps(), sums);
  }
  finish_rows<P>(job, 0, job.rows, panel, sums);
}

// All row blocks against `steps` steps of dense weights.
template <class P, bool Far>
LISSOME_TARGET void blocks(const Job& job, std::int64_t row, std::int64_t count, const std::byte* weights,
                           std::int64_t first_step, std::int64_t steps, typename P::Sum* sums) {
  const auto* x = reinterpret_cast<const typename P::X*>(job.x) + first_step * group_of(P::kFormat);
  const std::int64_t each = ceil_div(count, ceil_div(count, P::kRows));  // 8 rows as 4 and 4, not as 6 and 2
  for (std::int64_t done = 0; done < count; done += each) {
    strip_of<P>(std::min(each, count - done), DenseRows<P, Far>{weights}, x + (row + done) * job.x_stride, job.x_stride,
                steps, sums + done * kSums);
  }
}

template <class P>
LISSOME_TARGET void many_rows(const Job& job, std::int64_t panel, std::byte* chunk, typename P::Sum* sums) {
  const Weight& weight = *job.weight;
  for (std::int64_t row = 0; row < job.rows; row += kMostRows) {
    const std::int64_t count = std::min(kMostRows, job.rows - row);
    std::fill_n(sums, count * kSums, typename P::Sum{});
    SparseRows<P> sparse{};
    if (weight.sparse) sparse = sparse_rows<P>(weight, panel);
    const std::byte* dense = dense_rows<P>(weight, panel).at;
    for (std::int64_t step = 0; step < weight.steps(); step += kChunk) {
      const std::int64_t steps = std::min(kChunk, weight.steps() - step);
      if (weight.sparse) {
        expand_steps(sparse, steps, chunk);
        blocks<P, false>(job, row, count, chunk, step, steps, sums);
      } else {
        blocks<P, true>(job, row, count, dense + step * kStepBytes, step, steps, sums);
      }
    }
    finish_rows<P>(job, row, count, panel, sums);
  }
}

// Up to P::kRows rows.
template <class P>
LISSOME_TARGET void run_few(const Job& job, std::int64_t first, std::int64_t last) {
  for (std::int64_t panel = first; panel < last; ++panel) {
    if (job.weight->sparse) {
      few_rows<P>(job, panel, sparse_rows<P>(*job.weight, panel));
    } else if (job.rows == 1) {
      few_rows<P>(job, panel, dense_rows<P>(*job.weight, panel));
    } else {
      few_rows<P>(job, panel, DenseRows<P, true>{dense_rows<P>(*job.weight, panel).at});
    }
  }
}

template <class P>
LISSOME_TARGET void run_panels(const Job& job, std::int64_t first, std::int64_t last) {
  if (job.rows <= P::kRows) return run_few<P>(job, first, last);
  static thread_local Scratch chunks, carried;
  auto* chunk = chunks.at_least<std::byte>(kChunk * kStepBytes);
  auto* sums = carried.at_least<typename P::Sum>(std::min(kMostRows, job.rows) * kSums);
  for (std::int64_t panel = first; panel < last; ++panel) many_rows<P>(job, panel, chunk, sums);
}

}  // namespace lissome
