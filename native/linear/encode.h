// Activations as kernels want them: converted, quantised, padded. Included once per instruction set; all
// functions are static, because each file has them for its own.
#pragma once

#include <algorithm>
#include <bit>
#include <limits>

#include "base/memory.h"
#include "base/numbers.h"
#include "linear/job.h"

namespace lissome {

template <class X>
LISSOME_TARGET static inline void set(X* to, std::int64_t count, X value) {
  for (std::int64_t k = 0; k < count; ++k) to[k] = value;
}

// One row as fp32, padded with zeros.
LISSOME_TARGET static inline void row_as_floats(const Rows& x, std::int64_t row, float* to, std::int64_t width) {
  const std::byte* from = x.data + row * x.stride * item_of(x.type);
  if (x.type == Type::f32) {
    std::memcpy(to, from, x.width * sizeof(float));
  } else {
    for (std::int64_t k = 0; k < x.width; ++k) to[k] = from_bf16(load_as<std::uint16_t>(from + 2 * k));
  }
  set(to + x.width, width - x.width, 0.0f);
}

LISSOME_TARGET static inline void encode_floats(const Rows& x, std::int64_t first, std::int64_t last, std::byte* to,
                                         std::int64_t stride, float*) {
  auto* out = reinterpret_cast<float*>(to);
  for (std::int64_t row = first; row < last; ++row) row_as_floats(x, row, out + row * stride, stride);
}

LISSOME_TARGET static inline void encode_halves(const Rows& x, std::int64_t first, std::int64_t last, std::byte* to,
                                                std::int64_t stride, float*) {
  for (std::int64_t row = first; row < last; ++row) {
    auto* out = reinterpret_cast<std::uint16_t*>(to) + row * stride;
    const std::byte* from = x.data + row * x.stride * item_of(x.type);
    if (x.type == Type::bf16) {
      std::memcpy(out, from, x.width * 2);
    } else {
      for (std::int64_t k = 0; k < x.width; ++k) out[k] = to_bf16(load_as<float>(from + 4 * k));
    }
    set(out + x.width, stride - x.width, std::uint16_t{0});
  }
}

// Quantises one row: integers round(x · 127 / max|x|), scale max|x| / 127; a row with NaN or infinity gets a NaN scale,
// so that its results are NaN. `Offset` is added to every integer.
template <class X, int Offset>
LISSOME_TARGET static float quantise_row(const float* x, X* to, std::int64_t width) {
  std::uint32_t most = 0;  // bits of positive floats are ordered like the floats, infinity and NaN above all
  for (std::int64_t k = 0; k < width; ++k) most = std::max(most, std::bit_cast<std::uint32_t>(x[k]) & 0x7fffffffu);
  if (most == 0 || most >= 0x7f800000u) {
    set(to, width, static_cast<X>(Offset));
    return most == 0 ? 0.0f : std::numeric_limits<float>::quiet_NaN();
  }
  const float largest = std::bit_cast<float>(most), inverse = 127.0f / largest;
  if (!(inverse <= std::numeric_limits<float>::max())) {  // so small that 127 / max|x| is no number any more
    set(to, width, static_cast<X>(Offset));
    return 0.0f;
  }
  constexpr float kMagic = 12582912.0f;  // 1.5 · 2^23: adding it rounds to nearest even into the lowest bits
  for (std::int64_t k = 0; k < width; ++k) {
    const auto whole = std::bit_cast<std::int32_t>(x[k] * inverse + kMagic) - std::bit_cast<std::int32_t>(kMagic);
    to[k] = static_cast<X>(std::clamp(whole, -127, 127) + Offset);
  }
  return largest / 127.0f;
}

template <class X, int Offset>
LISSOME_TARGET static void encode_integers(const Rows& x, std::int64_t first, std::int64_t last, std::byte* to,
                                    std::int64_t stride, float* scales) {
  static thread_local Scratch scratch;
  auto* floats = scratch.at_least<float>(stride);
  for (std::int64_t row = first; row < last; ++row) {
    X* out = reinterpret_cast<X*>(to) + row * stride;
    if (x.type != Type::i8) {
      row_as_floats(x, row, floats, stride);
      scales[row] = quantise_row<X, Offset>(floats, out, stride);
      continue;
    }
    const auto* from = reinterpret_cast<const std::int8_t*>(x.data) + row * x.stride;
    for (std::int64_t k = 0; k < x.width; ++k) out[k] = static_cast<X>(from[k] + Offset);
    set(out + x.width, stride - x.width, static_cast<X>(Offset));
  }
}

}  // namespace lissome
