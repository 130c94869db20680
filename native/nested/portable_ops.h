// Policies in plain C++ for nested weights. Included by the files of the portable kernels and of software tiles.
#pragma once

#include <array>

#include "base/numbers.h"
#include "nested/panels.h"

namespace lissome {
namespace portable {

inline constexpr int kLanes = kNestedPanel;

struct Codes {
  using Code = std::array<std::uint8_t, kLine>;
  using Floats = std::array<float, kLanes>;

  template <int B>
  static void unpack(const std::byte* const (&lines)[B], Code (&codes)[kBlockRows]) {
    unpack_lines(lines, B, codes);
  }
  static void unpack_lines(const std::byte* const* lines, int bits, Code (&codes)[kBlockRows]) {
    for (int row = 0; row < kBlockRows; ++row) {
      for (int j = 0; j < kLine; ++j) {
        const Place at = place(j / 4, 4 * row + j % 4);
        unsigned code = 0;
        for (int p = 0; p < bits; ++p) code = 2 * code + ((std::to_integer<unsigned>(lines[p][at.byte]) >> at.bit) & 1);
        codes[row][static_cast<std::size_t>(j)] = static_cast<std::uint8_t>(code);
      }
    }
  }
  struct Table {
    const std::uint8_t* levels = nullptr;
  };
  template <int B>
  static Table table(const std::uint8_t* levels) {
    return {levels};
  }
  static Code level(const Table& table, Code code) {
    for (std::uint8_t& one : code) one = table.levels[one];
    return code;
  }
  static Code load(const std::byte* p) { return load_as<Code>(p); }
  static void store(std::byte* p, const Code& code) { std::memcpy(p, code.data(), kLine); }
  static Floats floats(const float* p) { return load_as<Floats>(p); }
  static void put(float* p, const Floats& values) { std::memcpy(p, values.data(), sizeof values); }
  struct Pairs {
    Floats scale, least;
  };
  static Pairs pairs(const std::uint16_t* scales) {
    Pairs found;
    for (std::size_t n = 0; n < kLanes; ++n) {
      found.scale[n] = from_f16(scales[n]), found.least[n] = from_f16(scales[kLanes + n]);
    }
    return found;
  }
  static Floats plus(Floats a, const Floats& b) {
    for (std::size_t n = 0; n < a.size(); ++n) a[n] += b[n];
    return a;
  }
};

struct Integers : Codes {
  static constexpr int kRows = 1;
  static constexpr bool kDirect = false;
  using X = std::int8_t;
  using Sum = std::array<std::int32_t, kLanes>;
  static Sum zero() { return {}; }
  static void add(Sum& sum, const Code& code, const X* x) {
    for (std::size_t n = 0; n < sum.size(); ++n) {
      sum[n] += code[4 * n] * x[0] + code[4 * n + 1] * x[1] + code[4 * n + 2] * x[2] + code[4 * n + 3] * x[3];
    }
  }
  static Sum sums(const std::int32_t* p) { return load_as<Sum>(p); }
  static Floats finish(const Sum& sum, const Pairs& pairs, const float* x_scale, float x_sum) {
    Floats found;
    for (std::size_t n = 0; n < sum.size(); ++n) {
      found[n] = static_cast<float>(sum[n]) * (pairs.scale[n] * *x_scale) + pairs.least[n] * x_sum;
    }
    return found;
  }
};

struct Reals : Codes {
  static constexpr int kRows = 1;
  static constexpr bool kDirect = false;
  using X = float;
  using Sum = std::array<float, kLanes>;
  static Sum zero() { return {}; }
  static void add(Sum& sum, const Code& code, const X* x) {
    for (std::size_t i = 0; i < 4; ++i) {
      for (std::size_t n = 0; n < sum.size(); ++n) sum[n] += static_cast<float>(code[4 * n + i]) * x[i];
    }
  }
  static Floats finish(const Sum& sum, const Pairs& pairs, const float*, float x_sum) {
    Floats found;
    for (std::size_t n = 0; n < sum.size(); ++n) found[n] = sum[n] * pairs.scale[n] + pairs.least[n] * x_sum;
    return found;
  }
};

}  // namespace portable
}  // namespace lissome
