#include "weight/pack.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>

#include "base/numbers.h"
#include "linear/kernels.h"
#include "pool/pool.h"

namespace lissome {
namespace {

float number_at(const Source& source, std::int64_t n, std::int64_t k) {
  const std::byte* p = source.data + (n * source.stride_n + k * source.stride_k) * item_of(source.type);
  if (source.type == Type::f32) return load_as<float>(p);
  const auto bits = load_as<std::uint16_t>(p);
  return source.type == Type::bf16 ? from_bf16(bits) : from_f16(bits);
}

// Bits of the largest absolute value of an output; those of infinity and NaN are the largest.
std::uint32_t largest_of(const Source& source, std::int64_t n) {
  std::uint32_t most = 0;
  for (std::int64_t k = 0; k < source.inputs; ++k) {
    most = std::max(most, std::bit_cast<std::uint32_t>(number_at(source, n, k)) & 0x7fffffffu);
  }
  return most;
}

// Symmetric, per output: max|w| becomes 127. An output of zeros, or of numbers too small for that, has scale 0.
void make_scales(const Source& source, Packed& packed, float* inverse, int threads) {
  parallel_ranges(source.outputs, threads, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t n = first; n < last; ++n) {
      const std::uint32_t bits = largest_of(source, n);
      if (bits >= 0x7f800000u) {
        throw std::invalid_argument("output " + std::to_string(n) + " has weights that are NaN or infinite");
      }
      const float largest = std::bit_cast<float>(bits), found = 127.0f / largest;
      const bool usable = bits != 0 && found <= std::numeric_limits<float>::max();
      inverse[n] = usable ? found : 0.0f;
      packed.scales[n] = usable ? largest / 127.0f : 0.0f;
    }
  });
}

void pack_sparse(const Source& source, const Scales* scales, Packed& packed, int threads) {
  const std::int64_t panels = packed.view.panels(), words = packed.view.words();
  const std::int64_t item = item_of(packed.view.format);
  const auto pack_panel = kernels().pack_panel;
  packed.bitmap = allocate_block<std::uint64_t>(panels * words);
  packed.starts = allocate_block<std::int64_t>(panels + 1);
  std::int64_t* starts = packed.starts.get();
  parallel_ranges(panels, threads, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t panel = first; panel < last; ++panel) {
      starts[panel + 1] = pack_panel(source, scales, panel, packed.bitmap.get() + panel * words, nullptr);
    }
  });
  starts[0] = 0;
  for (std::int64_t panel = 0; panel < panels; ++panel) starts[panel + 1] += starts[panel];

  packed.value_bytes = starts[panels] * item + kSlack;
  packed.values = allocate_block<std::byte>(packed.value_bytes);
  const Scales again{.inverse = scales ? scales->inverse : nullptr, .sums = nullptr};
  parallel_ranges(panels, threads, [&](std::int64_t first, std::int64_t last) {
    auto bits = allocate<std::uint64_t>(words);
    // A row is written 64 bytes at a time, also where fewer are kept: into a buffer, since the next panel may be done.
    auto rows = allocate<std::byte>(packed.view.steps() * kStepBytes + kSlack);
    for (std::int64_t panel = first; panel < last; ++panel) {
      const std::int64_t kept = pack_panel(source, scales ? &again : nullptr, panel, bits.get(), rows.get());
      std::memcpy(packed.values.get() + starts[panel] * item, rows.get(), static_cast<std::size_t>(kept * item));
    }
  });
  std::memset(packed.values.get() + starts[panels] * item, 0, kSlack);
}

void pack_dense(const Source& source, const Scales* scales, Packed& packed, int threads) {
  const std::int64_t panels = packed.view.panels(), bytes = packed.view.steps() * kStepBytes;
  packed.value_bytes = panels * bytes;
  packed.values = allocate_block<std::byte>(packed.value_bytes);
  parallel_ranges(panels, threads, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t panel = first; panel < last; ++panel) {
      kernels().pack_panel(source, scales, panel, nullptr, packed.values.get() + panel * bytes);
    }
  });
}

}  // namespace

Packed pack(const Source& source, Format format, bool sparse, int threads) {
  Packed packed;
  packed.view.format = format, packed.view.sparse = sparse;
  packed.view.outputs = source.outputs, packed.view.inputs = source.inputs;
  check_sizes(packed.view);
  const std::int64_t padded = packed.view.panels() * kPanel;
  Buffer<float> inverse;
  Scales scales;
  if (format == Format::int8) {
    inverse = allocate<float>(padded);
    packed.scales = allocate_block<float>(padded);
    packed.sums = allocate_block<std::int32_t>(padded);
    std::fill_n(inverse.get(), padded, 0.0f);
    std::fill_n(packed.scales.get(), padded, 0.0f);
    std::fill_n(packed.sums.get(), padded, 0);
    make_scales(source, packed, inverse.get(), threads);
    scales = {.inverse = inverse.get(), .sums = packed.sums.get()};
  }
  const Scales* given = format == Format::int8 ? &scales : nullptr;
  sparse ? pack_sparse(source, given, packed, threads) : pack_dense(source, given, packed, threads);
  packed.view.values = packed.values.get();
  packed.view.bitmap = packed.bitmap.get();
  packed.view.starts = packed.starts.get();
  packed.view.scales = packed.scales.get();
  packed.view.sums = packed.sums.get();
  return packed;
}

void unpack(const Weight& weight, std::byte* out, int threads) {
  parallel_ranges(weight.panels(), threads, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t panel = first; panel < last; ++panel) kernels().unpack_panel(weight, panel, out);
  });
}

}  // namespace lissome
