#include "linear/linear.h"

#include <algorithm>
#include <stdexcept>

#include "base/memory.h"
#include "linear/kernels.h"
#include "pool/pool.h"

namespace lissome {
namespace {

constexpr std::int64_t kWorthSplitting = 1 << 16;  // numbers to encode: below, waking threads takes longer

const Linear& choose(Format format, Type x) {
  const Kernels& table = kernels();
  if (format == Format::int8) return table.int8;
  return x == Type::bf16 && table.bf16_bf16.run ? table.bf16_bf16 : table.bf16_f32;
}

void check(const Weight& weight, const Rows& x, const float* bias, const Output& y) {
  const bool raw = x.type == Type::i8 || y.type == Type::i32;
  if (x.width != weight.inputs) throw std::invalid_argument("x does not have as many columns as the weight");
  if (raw && (weight.format != Format::int8 || x.type != Type::i8 || y.type != Type::i32 || bias)) {
    throw std::invalid_argument("integers in need an int8 weight, integers out and no bias");
  }
  if (!raw && (x.type == Type::f16 || x.type == Type::i32 || y.type == Type::f16 || y.type == Type::i8)) {
    throw std::invalid_argument("x and y must be float32 or bfloat16");
  }
}

}  // namespace

void linear(const Weight& weight, const Rows& x, const float* bias, const Output& y, int threads) {
  check(weight, x, bias, y);
  if (x.count == 0) return;
  const Linear& kernel = choose(weight.format, x.type);
  static thread_local Scratch encoded, scales;
  // One cache line more than the width: rows a power of two apart would share the same few places of a cache.
  const std::int64_t stride = weight.width() + kRowBytes / kernel.item;
  auto* to = encoded.at_least<std::byte>(x.count * stride * kernel.item);
  auto* scale = scales.at_least<float>(x.count);
  parallel_ranges(x.count, x.count * stride < kWorthSplitting ? 1 : threads,
                  [&](std::int64_t first, std::int64_t last) { kernel.encode(x, first, last, to, stride, scale); });
  const Job job{.weight = &weight, .x = to, .x_stride = stride, .x_scales = scale, .rows = x.count, .bias = bias,
                .y = y};
  const int parts = static_cast<int>(std::min<std::int64_t>(threads, weight.panels()));
  parallel(parts, [&](int part) {
    const Range range = panels_of(weight, parts, part);
    kernel.run(job, range.first, range.last);
  });
}

}  // namespace lissome
