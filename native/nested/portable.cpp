#define LISSOME_TARGET
#include <array>

#include "base/numbers.h"
#include "nested/encode.h"
#include "nested/panels.h"

namespace lissome {
namespace {

constexpr int kLanes = kNestedPanel;

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
  static Floats finish(const Sum& sum, const std::uint16_t* scales, const float* x_scale, float x_sum) {
    Floats found;
    for (std::size_t n = 0; n < sum.size(); ++n) {
      const float scaled = static_cast<float>(sum[n]) * (from_f16(scales[n]) * *x_scale);
      found[n] = scaled + from_f16(scales[kLanes + n]) * x_sum;
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
  static Floats finish(const Sum& sum, const std::uint16_t* scales, const float*, float x_sum) {
    Floats found;
    for (std::size_t n = 0; n < sum.size(); ++n) {
      found[n] = sum[n] * from_f16(scales[n]) + from_f16(scales[kLanes + n]) * x_sum;
    }
    return found;
  }
};

}  // namespace

const NestedKernels* nested_portable() {
  static const NestedKernels table{{encode_nested_floats, run_nested<Reals>, sizeof(float)},
                                   {encode_nested_integers, run_nested<Integers>, 1}};
  return &table;
}

void nested_row(const Nested& weight, int precision, std::int64_t output, float* to) {
  const std::int64_t panel = output / kNestedPanel;
  const auto o = static_cast<int>(output % kNestedPanel);
  const std::uint16_t* scales = weight.scales[static_cast<std::size_t>(precision)];
  const std::uint8_t* levels = weight.levels[static_cast<std::size_t>(precision)];
  for (std::int64_t k = 0; k < weight.inputs; ++k) {
    const Place at = place(o, static_cast<int>(k % kBlockInputs));
    unsigned code = 0;
    for (int p = 0; p < weight.read[static_cast<std::size_t>(precision)]; ++p) {
      const Plane& plane = weight.planes[static_cast<std::size_t>(p)];
      const std::byte* line = plane.data + (panel * weight.blocks() + k / kBlockInputs) * plane.stride;
      code = 2 * code + ((std::to_integer<unsigned>(line[at.byte]) >> at.bit) & 1);
    }
    const std::uint16_t* pair = scales + (panel * weight.groups() + k / weight.group) * 2 * kNestedPanel;
    const unsigned level = levels ? levels[code] : code;
    to[k] = static_cast<float>(level) * from_f16(pair[o]) + from_f16(pair[kNestedPanel + o]);
  }
}

}  // namespace lissome
