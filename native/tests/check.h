// What the native tests share. They exist beside the Python tests for the sanitizers' sake: every array has exactly the
// length that it claims, so that one byte too far is seen.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "base/numbers.h"
#include "linear/kernels.h"
#include "linear/linear.h"
#include "weight/pack.h"

namespace lissome::testing {

#define CHECK(what)                                                          \
  do {                                                                       \
    if (!(what)) {                                                           \
      std::fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #what); \
      std::exit(1);                                                          \
    }                                                                        \
  } while (0)

using Random = std::mt19937_64;

inline std::int64_t draw(Random& random, std::int64_t low, std::int64_t high) {
  return low + static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(high - low + 1));
}

// [N, K] with a share of zeros, some of them -0, some rows of zeros only; every number is a bf16.
inline std::vector<float> matrix(Random& random, std::int64_t n, std::int64_t k, double zeros) {
  std::normal_distribution<float> normal;
  std::vector<float> found(static_cast<std::size_t>(n * k));
  for (std::int64_t row = 0; row < n; ++row) {
    const bool empty = random() % 13 == 0;
    for (std::int64_t column = 0; column < k; ++column) {
      const bool zero = empty || static_cast<double>(random() % 1000) < 1000 * zeros;
      const float value = from_bf16(to_bf16(normal(random)));
      found[static_cast<std::size_t>(row * k + column)] = zero ? (random() % 2 ? 0.0f : -0.0f) : value;
    }
  }
  return found;
}

inline Source source_of(const std::vector<float>& numbers, std::int64_t n, std::int64_t k) {
  return {.type = Type::f32, .data = reinterpret_cast<const std::byte*>(numbers.data()), .outputs = n, .inputs = k,
          .stride_n = k, .stride_k = 1};
}

// A packed weight in arrays of exact length, each of which lies somewhere else.
struct Exact {
  std::vector<std::byte> values;
  std::vector<std::uint64_t> bitmap;
  std::vector<std::int64_t> starts;
  std::vector<float> scales;
  std::vector<std::int32_t> sums;
  Weight view;

  explicit Exact(const Packed& packed) : view(packed.view) {
    const std::int64_t panels = view.panels();
    values.assign(packed.values.get(), packed.values.get() + packed.value_bytes);
    view.values = values.data();
    if (view.sparse) {
      bitmap.assign(packed.bitmap.get(), packed.bitmap.get() + panels * view.words());
      starts.assign(packed.starts.get(), packed.starts.get() + panels + 1);
      view.bitmap = bitmap.data(), view.starts = starts.data();
    }
    if (view.format == Format::int8) {
      scales.assign(packed.scales.get(), packed.scales.get() + panels * kPanel);
      sums.assign(packed.sums.get(), packed.sums.get() + panels * kPanel);
      view.scales = scales.data(), view.sums = sums.data();
    }
  }
  Exact(const Exact&) = delete;
};

template <class Test>
void on_every_level(Test&& test) {
  for (const Level& level : levels()) {
    if (!level.usable) continue;
    use(level.isa);
    test(level);
  }
  use(best());
}

}  // namespace lissome::testing
