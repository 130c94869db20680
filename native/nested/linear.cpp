#include "nested/linear.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "base/memory.h"
#include "linear/kernels.h"
#include "pool/pool.h"

namespace lissome {
namespace {

constexpr std::int64_t kWorthSplitting = 1 << 15;  // numbers to encode: below, waking threads takes longer

const NestedLinear& choose(Activations mode) {
  const NestedKernels& table = *kernels().nested;
  return mode == Activations::f32 ? table.f32 : table.int8;
}

}  // namespace

Encoded encode_rows(const FloatRows& x, std::int64_t inputs, std::int64_t group, Activations mode, int threads) {
  static thread_local Scratch encoded, scale_buffer, sum_buffer;
  const NestedLinear& kernel = choose(mode);
  const std::int64_t width = round_up(inputs, group), groups = width / group;
  // One cache line more than the width: rows a power of two apart would share the same few places of a cache.
  const std::int64_t stride = width + kLine / kernel.item;
  auto* to = encoded.at_least<std::byte>(x.count * stride * kernel.item);
  auto* scales = scale_buffer.at_least<float>(x.count * groups);
  auto* sums = sum_buffer.at_least<float>(x.count * groups);
  parallel_ranges(x.count, x.count * width < kWorthSplitting ? 1 : threads,
                  [&](std::int64_t first, std::int64_t last) {
                    for (std::int64_t row = first; row < last; ++row) {
                      kernel.encode(x.data + row * x.stride, inputs, width, group, to + row * stride * kernel.item,
                                    scales + row * groups, sums + row * groups);
                    }
                  });
  return {to, stride, mode == Activations::int8 ? scales : nullptr, sums, x.count};
}

void run_nested_job(const NestedJob& job, Activations mode, int threads) {
  if (!job.weight->has(job.precision)) {
    throw std::invalid_argument("a weight of " + std::to_string(job.weight->bits) + " bits is not read at " +
                                std::to_string(job.precision));
  }
  if (job.x.rows == 0) return;
  const NestedLinear& kernel = choose(mode);
  parallel_ranges(job.weight->panels(), threads,
                  [&](std::int64_t first, std::int64_t last) { kernel.run(job, first, last); });
}

}  // namespace lissome
