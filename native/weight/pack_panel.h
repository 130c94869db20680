// Packs and unpacks one panel. Included once per instruction set, after LISSOME_TARGET; E16 and E8 are policies with
// `Row`, `dense`, `put`, `compress` and `expand16` or `expand8`.
#pragma once

#include <algorithm>
#include <array>

#include "base/numbers.h"
#include "weight/pack.h"
#include "weight/stream.h"

namespace lissome {

// 32 outputs x `kWide` inputs of a source, as floats; what lies outside of it is zero.
template <int kWide>
using Patch = std::array<std::array<float, kWide>, kPanel>;

LISSOME_TARGET static inline float number_at(const Source& source, const std::byte* p) {
  if (source.type == Type::f32) return load_as<float>(p);
  const auto bits = load_as<std::uint16_t>(p);
  return source.type == Type::bf16 ? from_bf16(bits) : from_f16(bits);
}

template <int kWide>
LISSOME_TARGET static void load_patch(const Source& source, std::int64_t n0, std::int64_t k0, Patch<kWide>& patch) {
  const std::int64_t item = item_of(source.type), rows = std::min(kPanel, source.outputs - n0);
  const std::int64_t wide = std::min<std::int64_t>(kWide, source.inputs - k0);
  if (rows < kPanel || wide < kWide) patch = {};
  for (std::int64_t n = 0; n < rows; ++n) {
    const std::byte* p = source.data + ((n0 + n) * source.stride_n + k0 * source.stride_k) * item;
    if (source.stride_k != 1) {
      for (std::int64_t k = 0; k < wide; ++k) patch[n][k] = number_at(source, p + k * source.stride_k * item);
    } else if (source.type == Type::f32) {
      std::memcpy(patch[n].data(), p, wide * sizeof(float));
    } else if (source.type == Type::bf16) {
      for (std::int64_t k = 0; k < wide; ++k) patch[n][k] = from_bf16(load_as<std::uint16_t>(p + 2 * k));
    } else {
      for (std::int64_t k = 0; k < wide; ++k) patch[n][k] = from_f16(load_as<std::uint16_t>(p + 2 * k));
    }
  }
}

// One group of inputs of one output is 4 bytes in either format; a tile of them, [output][step], is what gets
// transposed to [step][output].
using Groups = std::array<std::array<std::uint32_t, kTileSteps>, kPanel>;

LISSOME_TARGET static inline void groups_of(const Patch<32>& patch, std::int64_t, const Scales*, Groups& groups) {
  for (std::int64_t n = 0; n < kPanel; ++n) {
    std::array<std::uint16_t, 32> halves;
    for (int k = 0; k < 32; ++k) {
      const std::uint16_t half = to_bf16(patch[n][k]);
      halves[k] = static_cast<std::uint16_t>((half & 0x7fff) == 0 ? 0 : half);  // -0 is no weight to keep
    }
    std::memcpy(groups[n].data(), halves.data(), sizeof halves);
  }
}

LISSOME_TARGET static inline void groups_of(const Patch<64>& patch, std::int64_t n0, const Scales* scales,
                                            Groups& groups) {
  constexpr float kMagic = 12582912.0f;  // 1.5 · 2^23 rounds to nearest even
  for (std::int64_t n = 0; n < kPanel; ++n) {
    std::array<std::int8_t, 64> whole;
    const float inverse = scales->inverse[n0 + n];
    std::int32_t sum = 0;
    for (int k = 0; k < 64; ++k) {
      const std::int32_t value =
          std::bit_cast<std::int32_t>(patch[n][k] * inverse + kMagic) - std::bit_cast<std::int32_t>(kMagic);
      const std::int32_t kept = std::clamp(value, -127, 127);
      sum += kept;
      whole[k] = static_cast<std::int8_t>(kept);
    }
    if (scales->sums) scales->sums[n0 + n] += sum;
    std::memcpy(groups[n].data(), whole.data(), sizeof whole);
  }
}

// Writes the tile's rows; `bitmap` null: dense. `values` null: only the bitmap. Returns how many were kept.
template <class E>
LISSOME_TARGET static std::int64_t write_tile(const Groups& groups, std::uint64_t*& bitmap, std::byte*& values) {
  alignas(64) std::array<std::uint32_t, kPanel> step;
  alignas(64) std::array<std::byte, kRowBytes> unused;
  std::int64_t kept = 0;
  for (std::int64_t s = 0; s < kTileSteps; ++s) {
    for (std::int64_t n = 0; n < kPanel; ++n) step[n] = groups[n][s];
    const auto* bytes = reinterpret_cast<const std::byte*>(step.data());
    if (!bitmap) {
      std::memcpy(values, bytes, kStepBytes);
      values += kStepBytes;
      continue;
    }
    std::uint64_t low = 0, high = 0;
    for (int half = 0; half < 2; ++half) {
      std::uint64_t& bits = half ? high : low;
      const int count = E::compress(E::dense(bytes + half * kRowBytes), values ? values : unused.data(), bits);
      if (values) values += count * item_of(E::kFormat);
      kept += count;
    }
    if constexpr (E::kFormat == Format::bf16) {
      *bitmap++ = low | (high << 32);
    } else {
      *bitmap++ = low;
      *bitmap++ = high;
    }
  }
  return kept;
}

template <class E>
LISSOME_TARGET static std::int64_t pack_tiles(const Source& source, const Scales* scales, std::int64_t panel,
                                              std::uint64_t* bitmap, std::byte* values) {
  constexpr int kWide = kTileSteps * group_of(E::kFormat);
  Patch<kWide> patch;
  Groups groups;
  std::int64_t kept = 0;
  for (std::int64_t k = 0; k < source.inputs; k += kWide) {
    load_patch<kWide>(source, panel * kPanel, k, patch);
    groups_of(patch, panel * kPanel, scales, groups);
    kept += write_tile<E>(groups, bitmap, values);
  }
  return kept;
}

template <class E16, class E8>
LISSOME_TARGET static std::int64_t pack_panel(const Source& source, const Scales* scales, std::int64_t panel,
                                              std::uint64_t* bitmap, std::byte* values) {
  return scales ? pack_tiles<E8>(source, scales, panel, bitmap, values)
                : pack_tiles<E16>(source, scales, panel, bitmap, values);
}

template <class E, class Rows64>
LISSOME_TARGET static void unpack_tiles(const Weight& weight, std::int64_t panel, Rows64 rows, std::byte* out) {
  constexpr std::int64_t kItem = item_of(E::kFormat), kWide = kTileSteps * group_of(E::kFormat);
  const std::int64_t n0 = panel * kPanel, outputs = std::min(kPanel, weight.outputs - n0);
  Groups groups;
  alignas(64) std::array<std::uint32_t, kPanel> step;
  for (std::int64_t k = 0; k < weight.inputs; k += kWide) {
    for (std::int64_t s = 0; s < kTileSteps; ++s) {
      typename E::Row low, high;
      rows.next(low, high);
      E::put(reinterpret_cast<std::byte*>(step.data()), low);
      E::put(reinterpret_cast<std::byte*>(step.data()) + kRowBytes, high);
      for (std::int64_t n = 0; n < kPanel; ++n) groups[n][s] = step[n];
    }
    const std::int64_t bytes = std::min(kWide, weight.inputs - k) * kItem;
    for (std::int64_t n = 0; n < outputs; ++n) {
      std::memcpy(out + ((n0 + n) * weight.inputs + k) * kItem, groups[n].data(), bytes);
    }
  }
}

template <class E16, class E8>
LISSOME_TARGET static void unpack_panel(const Weight& weight, std::int64_t panel, std::byte* out) {
  if (weight.format == Format::bf16) {
    weight.sparse ? unpack_tiles<E16>(weight, panel, sparse_rows<E16>(weight, panel), out)
                  : unpack_tiles<E16>(weight, panel, dense_rows<E16>(weight, panel), out);
  } else {
    weight.sparse ? unpack_tiles<E8>(weight, panel, sparse_rows<E8>(weight, panel), out)
                  : unpack_tiles<E8>(weight, panel, dense_rows<E8>(weight, panel), out);
  }
}

}  // namespace lissome
