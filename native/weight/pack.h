// From a dense matrix to panels and back.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/memory.h"
#include "weight/weight.h"

namespace lissome {

// A matrix of a caller: number (n, k) lies at data + (n · stride_n + k · stride_k) numbers.
struct Source {
  Type type = Type::f32;  // f32, f16 or bf16
  const std::byte* data = nullptr;
  std::int64_t outputs = 0, inputs = 0;
  std::int64_t stride_n = 0, stride_k = 1;
};

// Of int8, per output and padded to whole panels: a weight w becomes round(w · inverse); zeros stay zeros.
struct Scales {
  const float* inverse = nullptr;
  std::int32_t* sums = nullptr;  // written by the pass that counts
};

// A weight that owns its memory. Two passes over the source, panel by panel: the first counts, so that values are
// allocated once, to the byte. What is not zero is kept; -0 is a zero.
struct Packed {
  Weight view;
  Block<std::byte> values;
  std::int64_t value_bytes = 0;  // with kSlack
  Block<std::uint64_t> bitmap;
  Block<std::int64_t> starts;
  Block<float> scales;
  Block<std::int32_t> sums;
};

// Throws std::invalid_argument for sizes that cannot be, and for int8 when an output has NaN or infinity.
Packed pack(const Source& source, Format format, bool sparse, int threads);

// Writes W, as bf16 bits or as int8, to out[N, K].
void unpack(const Weight& weight, std::byte* out, int threads);

}  // namespace lissome
