// One multiplication, as the kernels of an instruction set get it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/types.h"
#include "weight/weight.h"

namespace lissome {

// Activations or results as a caller has them: rows of contiguous numbers, `stride` numbers apart.
struct Rows {
  Type type = Type::f32;
  const std::byte* data = nullptr;
  std::int64_t count = 0, width = 0, stride = 0;
};

struct Output {
  Type type = Type::f32;
  std::byte* data = nullptr;
  std::int64_t stride = 0;
};

struct Job {
  const Weight* weight = nullptr;
  const std::byte* x = nullptr;         // encoded for the kernel, padded with zeros to the weight's width
  std::int64_t x_stride = 0;            // numbers from one row to the next
  const float* x_scales = nullptr;      // one per row when activations were quantised, else null
  std::int64_t rows = 0;                // M
  const float* bias = nullptr;          // of `outputs` numbers, or null
  Output y;
};

// Writes 32 sums of one row: adds the bias, converts, and leaves out what pads the last panel. Integer sums are scaled,
// or written as they are when y is i32.
void finish(const Job& job, std::int64_t row, std::int64_t panel, const float* sums);
void finish(const Job& job, std::int64_t row, std::int64_t panel, const std::int32_t* sums);

}  // namespace lissome
