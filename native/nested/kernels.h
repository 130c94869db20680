// What one instruction set offers for nested weights.
#pragma once

#include "nested/nested.h"

namespace lissome {

// Activations as kernels want them, padded with zeros to the weight's width. int8: every group of inputs of a row has
// a scale of its own, so that a row's result depends on nothing but the row; `scales` and `sums` are [row][group].
struct Encoded {
  const std::byte* x = nullptr;    // float or int8
  std::int64_t stride = 0;         // numbers from one row to the next
  const float* scales = nullptr;   // int8 only: what an integer of the group is worth
  const float* sums = nullptr;     // sum of the group's numbers
  std::int64_t rows = 0;
};

struct NestedJob {
  const Nested* weight = nullptr;
  int precision = 0;
  Encoded x;
  const float* bias = nullptr;  // of `outputs` numbers, or null
  float* y = nullptr;           // [rows, outputs]
  std::int64_t y_stride = 0;
  bool add = false;             // to what y has
};

struct NestedLinear {
  // Encodes one row of `inputs` numbers, in groups of `group`.
  void (*encode)(const float* x, std::int64_t inputs, std::int64_t width, std::int64_t group, std::byte* to,
                 float* scales, float* sums) = nullptr;
  // Computes panels [first, last) for all rows.
  void (*run)(const NestedJob& job, std::int64_t first, std::int64_t last) = nullptr;
  std::int64_t item = 0;  // bytes of an encoded number
};

struct NestedKernels {
  NestedLinear f32, int8;
};

const NestedKernels* nested_portable();
const NestedKernels* nested_avx512();  // null when not compiled
const NestedKernels* nested_amx();     // likewise
const NestedKernels* nested_tile();

// Writes one output's weights, [inputs] floats.
void nested_row(const Nested& weight, int precision, std::int64_t output, float* to);

}  // namespace lissome
