// The inner loop: up to `kRows` rows of activations against one panel, along all steps.
//
// Included once per instruction set, after LISSOME_TARGET was defined. A policy P says what one step is there:
//   X, Row, Step, Acc   types of an encoded activation, of 64 bytes of weights, of a step's activations, of 16 sums
//   kFormat, kRows      format of the weights; rows of activations whose sums fit the registers
//   kUnroll             steps per turn of the loop, even, at most 8
//   Sum                 float or int32_t
//   broadcast(x)        a step's activations, in every lane
//   dense(p)            a row of weights as it lies in memory
//   add(acc, row, step, odd)   acc is two Acc; which of them takes what is the policy's
//   load, store         an Acc from and to memory
//   close(acc)          if it is there: called after every whole tile; whoever has it calls `strip` with whole tiles
//   join(sums, out)     two Acc in memory to 16 sums
// Every output has the same two partial sums, each in the order of the inputs, whatever the number of rows, threads or
// chunks: that is why results do not depend on them.
#pragma once

#include "base/target.h"
#include "weight/stream.h"

namespace lissome {

inline constexpr std::int64_t kLanes = 16;
inline constexpr std::int64_t kSums = 2 * 2 * kLanes;  // of one row of activations: two tiles, two partial sums

template <class P, int M, class Rows64>
LISSOME_TARGET void strip(Rows64 rows, const typename P::X* x, std::int64_t stride, std::int64_t steps,
                          typename P::Sum* sums) {
  constexpr std::int64_t kGroup = group_of(P::kFormat);
  constexpr int kUnroll = P::kUnroll;
  typename P::Acc acc[M][2][2];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
    acc[m][0][0] = P::load(sums + m * kSums);
    acc[m][0][1] = P::load(sums + m * kSums + kLanes);
    acc[m][1][0] = P::load(sums + m * kSums + 2 * kLanes);
    acc[m][1][1] = P::load(sums + m * kSums + 3 * kLanes);
  }
  for (std::int64_t step = 0; step < steps; step += kUnroll) {
    rows.ahead();
#pragma GCC unroll 8
    for (int s = 0; s < kUnroll; ++s) {
      typename P::Row low, high;
      rows.next(low, high);
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) {
        const auto b = P::broadcast(x + m * stride + s * kGroup);
        P::add(acc[m][0], low, b, s & 1);
        P::add(acc[m][1], high, b, s & 1);
      }
    }
    x += kUnroll * kGroup;
    if constexpr (requires { P::close(acc[0][0]); }) {
      if ((step + kUnroll) % kTileSteps != 0) continue;
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) P::close(acc[m][0]), P::close(acc[m][1]);
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
    P::store(sums + m * kSums, acc[m][0][0]);
    P::store(sums + m * kSums + kLanes, acc[m][0][1]);
    P::store(sums + m * kSums + 2 * kLanes, acc[m][1][0]);
    P::store(sums + m * kSums + 3 * kLanes, acc[m][1][1]);
  }
}

// The strip for a number of rows that is known only now, 1 to P::kRows.
template <class P, class Rows64, int M = P::kRows>
LISSOME_TARGET void strip_of(std::int64_t m, Rows64 rows, const typename P::X* x, std::int64_t stride,
                             std::int64_t steps, typename P::Sum* sums) {
  if constexpr (M > 1) {
    if (m < M) return strip_of<P, Rows64, M - 1>(m, rows, x, stride, steps, sums);
  }
  strip<P, M>(rows, x, stride, steps, sums);
}

}  // namespace lissome
