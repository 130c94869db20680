// Weights of a linear layer as kernels read them.
//
// y[M, N] = x[M, K] Wᵀ. W is cut into panels of 32 outputs, a panel into steps of 2 (bf16) or 4 (int8) inputs; a step
// is two rows of 64 bytes (outputs 0-15, outputs 16-31), within a row the inputs of one output side by side. That is
// the order of AMX tiles (16 rows, 128 bytes apart) and of vpdpbf16ps and vpdpbusd. N is padded to whole panels and K
// to whole tiles (32 or 64 inputs), with zeros.
//
// Dense: all rows, one after the other. Sparse: for every step 2 x 32 (bf16) or 2 x 64 (int8) bits, the lowest bit
// first, that say which weights are not zero, and the non-zero weights in the same order. `starts[p]` is the index of
// the first value of panel p, so that any thread can start anywhere.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/types.h"

namespace lissome {

struct Weight {
  Format format = Format::bf16;
  bool sparse = false;
  std::int64_t outputs = 0, inputs = 0;     // N, K
  const std::byte* values = nullptr;        // with kSlack readable bytes behind the last one when sparse
  const std::uint64_t* bitmap = nullptr;    // sparse only
  const std::int64_t* starts = nullptr;     // sparse only, panels + 1
  const float* scales = nullptr;            // int8 only: a weight is scale times its integer; padded to whole panels
  const std::int32_t* sums = nullptr;       // int8 only: sum of the integers of each output; padded likewise

  std::int64_t panels() const { return ceil_div(outputs, kPanel); }
  std::int64_t width() const { return round_up(inputs, kTileSteps * group_of(format)); }  // K, padded
  std::int64_t steps() const { return width() / group_of(format); }
  std::int64_t words() const { return kPanel * width() / 64; }  // of a panel's bitmap
  std::int64_t dense_bytes() const { return panels() * steps() * kStepBytes; }
  // Bytes of everything.
  std::int64_t bytes() const;
  // Bytes that are read for the panels before `panel`: what is split evenly over threads.
  std::int64_t bytes_before(std::int64_t panel) const;
};

// A kernel loads 64 bytes wherever a row's values start.
inline constexpr std::int64_t kSlack = 64;

// Largest K of int8: the sum of K products of two integers up to 127 must fit 32 bits.
inline constexpr std::int64_t kMostInputs = 2147483647 / (127 * 127);
inline constexpr std::int64_t kMostWeights = std::int64_t{1} << 40;

// Throws std::invalid_argument unless sizes are positive and can be computed with.
void check_sizes(const Weight& weight);

// Throws std::invalid_argument unless starts, bitmap and the number of values fit each other, so that no kernel reads
// outside of them whatever a file said. `values` counts numbers; the arrays have the lengths that `weight` implies.
void check_sparse(const Weight& weight, std::int64_t values);

// Panels that part `part` of `parts` computes: contiguous, equal bytes.
struct Range {
  std::int64_t first, last;
};
Range panels_of(const Weight& weight, int parts, int part);

}  // namespace lissome
