// Activations for nested weights. Included once per instruction set, after LISSOME_TARGET.
#pragma once

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>

#include "base/target.h"
#include "nested/kernels.h"

namespace lissome {
namespace {

LISSOME_TARGET float sum_of(const float* x, std::int64_t count) {
  float sum = 0;
  for (std::int64_t k = 0; k < count; ++k) sum += x[k];
  return sum;
}

LISSOME_TARGET void encode_nested_floats(const float* x, std::int64_t inputs, std::int64_t width, std::int64_t group,
                                         std::byte* to, float*, float* sums) {
  auto* out = reinterpret_cast<float*>(to);
  std::memcpy(out, x, static_cast<std::size_t>(inputs) * sizeof(float));
  std::fill(out + inputs, out + width, 0.0f);
  for (std::int64_t g = 0; g < width / group; ++g) sums[g] = sum_of(out + g * group, group);
}

// Integers round(x · 127 / max|x|), scale max|x| / 127; what is not finite makes the scale NaN, and so the results.
LISSOME_TARGET LISSOME_INLINE void encode_group(const float* x, std::int64_t count, std::int8_t* to, float& scale,
                                                 float& sum) {
  std::uint32_t most = 0;  // bits of positive floats are ordered like the floats, infinity and NaN above all
  for (std::int64_t k = 0; k < count; ++k) most = std::max(most, std::bit_cast<std::uint32_t>(x[k]) & 0x7fffffffu);
  const float largest = std::bit_cast<float>(most), inverse = 127.0f / largest;
  if (most >= 0x7f800000u || !(inverse <= std::numeric_limits<float>::max())) {  // NaN, or nothing but (almost) zeros
    std::memset(to, 0, static_cast<std::size_t>(count));
    scale = sum = most >= 0x7f800000u ? std::numeric_limits<float>::quiet_NaN() : 0.0f;
    return;
  }
  constexpr float kMagic = 12582912.0f;  // 1.5 · 2^23: adding it rounds to nearest even into the lowest bits
  std::int32_t total = 0;
  for (std::int64_t k = 0; k < count; ++k) {
    const auto whole = std::bit_cast<std::int32_t>(x[k] * inverse + kMagic) - std::bit_cast<std::int32_t>(kMagic);
    to[k] = static_cast<std::int8_t>(whole);
    total += whole;
  }
  scale = largest / 127.0f;
  sum = scale * static_cast<float>(total);
}

LISSOME_TARGET void encode_nested_integers(const float* x, std::int64_t inputs, std::int64_t width,
                                           std::int64_t group, std::byte* to, float* scales, float* sums) {
  auto* out = reinterpret_cast<std::int8_t*>(to);
  for (std::int64_t g = 0; g < width / group; ++g) {
    const std::int64_t first = g * group, count = std::clamp<std::int64_t>(inputs - first, 0, group);
    std::fill(out + first + count, out + first + group, std::int8_t{0});
    switch (count) {  // whole groups are loops of known length
      case 32: encode_group(x + first, 32, out + first, scales[g], sums[g]); break;
      case 64: encode_group(x + first, 64, out + first, scales[g], sums[g]); break;
      default: encode_group(x + first, count, out + first, scales[g], sums[g]);
    }
  }
}

}  // namespace
}  // namespace lissome
