// y = x Wᵀ + b with nested weights.
#pragma once

#include "nested/kernels.h"

namespace lissome {

// How activations are held: as they are, or as integers with a scale per group.
enum class Activations : std::uint8_t { f32, int8 };

// Rows of floats, `stride` numbers apart.
struct FloatRows {
  const float* data = nullptr;
  std::int64_t count = 0, stride = 0;
};

// Encodes rows into memory that the calling thread keeps until it encodes again.
Encoded encode_rows(const FloatRows& x, std::int64_t inputs, std::int64_t group, Activations mode, int threads);

// Throws std::invalid_argument when the weight cannot be read at the job's precision.
void run_nested_job(const NestedJob& job, Activations mode, int threads);

}  // namespace lissome
