// AMX tiles in software: eight registers of 16 x 64 bytes, and the faults that the real ones raise.
//
// Sums go in the order of the manual: TDPBF16PS keeps even and odd inputs apart and adds the two at the end of each
// instruction, with denormals taken as zero and made zero; TDPBSSD and TDPBSUD wrap.
#pragma once

#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <tuple>

#include "base/numbers.h"
#include "base/types.h"
#include "tile/config.h"

namespace lissome {

// What the CPU answers with #UD or #GP.
struct TileFault : std::logic_error {
  using std::logic_error::logic_error;
};

class SoftTile {
 public:
  static void configure(const TileConfig& config) {
    if (config.palette > 1) fault("palette " + std::to_string(config.palette) + " is not known");
    for (int tile = 0; tile < 16; ++tile) {
      const int rows = config.rows[tile], bytes = config.bytes[tile];
      if (rows > 16) fault("a tile has 16 rows at most, not " + std::to_string(rows));
      if (bytes > 64) fault("a tile has 64 bytes a row at most, not " + std::to_string(bytes));
      if ((rows == 0) != (bytes == 0)) fault("a tile has either rows without bytes or bytes without rows");
      if (tile >= 8 && rows != 0) fault("there are 8 tiles");
    }
    self().config = config;
    self().data = {};
  }

  static TileConfig configured() { return self().config; }

  template <int T>
  static void load(const std::byte* from, std::int64_t stride) {
    State& state = used(T);
    state.data[T] = {};
    for (int row = 0; row < state.config.rows[T]; ++row) {
      std::memcpy(state.data[T][row].data(), from + row * stride, state.config.bytes[T]);
    }
  }

  template <int T>
  static void store(std::byte* to, std::int64_t stride) {
    const State& state = used(T);
    for (int row = 0; row < state.config.rows[T]; ++row) {
      std::memcpy(to + row * stride, state.data[T][row].data(), state.config.bytes[T]);
    }
  }

  template <int T>
  static void zero() {
    used(T).data[T] = {};
  }

  // TDPBSUD: signed by unsigned bytes.
  template <int C, int A, int B>
  static void dot_codes() {
    State& state = product(C, A, B);
    for (int m = 0; m < state.config.rows[A]; ++m) {
      for (int n = 0; n < state.config.bytes[B] / 4; ++n) {
        std::byte* sum = &state.data[C][m][4 * n];
        auto total = load_as<std::uint32_t>(sum);
        for (int k = 0; k < state.config.bytes[A]; ++k) {
          const auto a = load_as<std::int8_t>(&state.data[A][m][k]);
          const auto b = load_as<std::uint8_t>(&state.data[B][k / 4][4 * n + k % 4]);
          total += static_cast<std::uint32_t>(a * b);
        }
        std::memcpy(sum, &total, 4);
      }
    }
  }

  template <Format F, int C, int A, int B>
  static void dot() {
    State& state = product(C, A, B);
    const int rows = state.config.rows[A], groups = state.config.bytes[A] / 4, lanes = state.config.bytes[B] / 4;
    for (int m = 0; m < rows; ++m) {
      for (int n = 0; n < lanes; ++n) {
        std::byte* sum = &state.data[C][m][4 * n];
        if constexpr (F == Format::bf16) {
          float even = 0, odd = 0;
          for (int k = 0; k < groups; ++k) {
            const std::byte *a = &state.data[A][m][4 * k], *b = &state.data[B][k][4 * n];
            even = flushed(std::fma(half(a), half(b), even));
            odd = flushed(std::fma(half(a + 2), half(b + 2), odd));
          }
          const float total = flushed(flushed(load_as<float>(sum)) + flushed(even + odd));
          std::memcpy(sum, &total, 4);
        } else {
          auto total = load_as<std::uint32_t>(sum);
          for (int k = 0; k < 4 * groups; ++k) {
            const auto a = load_as<std::int8_t>(&state.data[A][m][k]);
            const auto b = load_as<std::int8_t>(&state.data[B][k / 4][4 * n + k % 4]);
            total += static_cast<std::uint32_t>(a * b);
          }
          std::memcpy(sum, &total, 4);
        }
      }
    }
  }

 private:
  using Register = std::array<std::array<std::byte, 64>, 16>;
  struct State {
    TileConfig config = no_shapes();
    std::array<Register, 8> data{};
  };

  static State& self() {
    static thread_local State state;
    return state;
  }

  [[noreturn]] static void fault(const std::string& why) { throw TileFault("tile fault: " + why); }

  static State& used(int tile) {
    State& state = self();
    if (state.config.palette == 0) fault("used before it was configured");
    if (state.config.rows[tile] == 0) fault("tile " + std::to_string(tile) + " has no shape");
    return state;
  }

  // C [M, N] += A [M, K] · B [K, N], in bytes: C.rows = A.rows, C.bytes = B.bytes, B.rows = A.bytes / 4.
  static State& product(int c, int a, int b) {
    for (int tile : {c, a, b}) used(tile);
    State& state = self();
    const auto& [rows, bytes] = std::tie(state.config.rows, state.config.bytes);
    if (c == a || c == b || a == b) fault("a product needs three tiles");
    if (rows[c] != rows[a] || bytes[c] != bytes[b] || bytes[a] != 4 * rows[b]) {
      fault("the shapes of a product do not fit");
    }
    return state;
  }

  static float flushed(float value) {
    return std::fabs(value) < std::numeric_limits<float>::min() ? std::copysign(0.0f, value) : value;
  }

  static float half(const std::byte* p) { return flushed(from_bf16(load_as<std::uint16_t>(p))); }
};

}  // namespace lissome
