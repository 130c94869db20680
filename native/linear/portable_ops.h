// Policies in plain C++, which compilers turn into whatever vectors the oldest CPU of an architecture has.
#pragma once

#include <array>

#include "base/numbers.h"
#include "linear/encode.h"
#include "linear/strip.h"

namespace lissome::portable {

struct Bits16 {
  static constexpr Format kFormat = Format::bf16;
  struct Row {
    std::array<std::uint16_t, 32> w;
  };

  static Row dense(const std::byte* p) { return load_as<Row>(p); }

  // Every step takes the next value, and moves on only when it was wanted: no branch to mispredict.
  static Row expand16(std::uint32_t bits, const std::byte* p) {
    Row row;
    for (int j = 0; j < 32; ++j, bits >>= 1) {
      const auto value = load_as<std::uint16_t>(p);
      row.w[j] = static_cast<std::uint16_t>((bits & 1) ? value : 0);
      p += 2 * (bits & 1);
    }
    return row;
  }

  static void put(std::byte* out, const Row& row) { std::memcpy(out, row.w.data(), kRowBytes); }

  static int compress(const Row& row, std::byte* out, std::uint64_t& bits) {
    int count = 0;
    std::uint64_t found = 0;
    for (int j = 0; j < 32; ++j) {
      const std::uint16_t value = row.w[j];
      std::memcpy(out + 2 * count, &value, 2);
      found |= static_cast<std::uint64_t>(value != 0) << j;
      count += value != 0;
    }
    bits = found;
    return count;
  }
};

struct Bits8 {
  static constexpr Format kFormat = Format::int8;
  struct Row {
    std::array<std::int8_t, 64> w;
  };

  static Row dense(const std::byte* p) { return load_as<Row>(p); }

  static Row expand8(std::uint64_t bits, const std::byte* p) {
    Row row;
    for (int j = 0; j < 64; ++j, bits >>= 1) {
      row.w[j] = static_cast<std::int8_t>((bits & 1) ? load_as<std::int8_t>(p) : 0);
      p += bits & 1;
    }
    return row;
  }

  static void put(std::byte* out, const Row& row) { std::memcpy(out, row.w.data(), kRowBytes); }

  static int compress(const Row& row, std::byte* out, std::uint64_t& bits) {
    int count = 0;
    std::uint64_t found = 0;
    for (int j = 0; j < 64; ++j) {
      const std::int8_t value = row.w[j];
      std::memcpy(out + count, &value, 1);
      found |= static_cast<std::uint64_t>(value != 0) << j;
      count += value != 0;
    }
    bits = found;
    return count;
  }
};

template <class T>
struct Sums {
  static constexpr int kRows = 1, kUnroll = 2;
  static constexpr std::uint32_t kOffset = 0;
  using Sum = T;
  using Acc = std::array<T, kLanes>;

  static Acc load(const T* from) { return load_as<Acc>(from); }
  static void store(T* to, const Acc& acc) { std::memcpy(to, acc.data(), sizeof acc); }
  static void join(const T* sums, T* out) {
    for (int n = 0; n < kLanes; ++n) out[n] = sums[n] + sums[kLanes + n];
  }
};

// Even and odd inputs have a sum each.
struct Bf16 : Bits16, Sums<float> {
  using X = float;
  using Step = std::array<float, 2>;
  static Step broadcast(const X* x) { return {x[0], x[1]}; }
  static void add(Acc (&acc)[2], const Row& row, Step x, int) {
    for (int n = 0; n < kLanes; ++n) {
      const auto pair = load_as<std::uint32_t>(&row.w[2 * n]);  // the first of two is the low half: little-endian
      acc[0][n] += std::bit_cast<float>(pair << 16) * x[0];
      acc[1][n] += std::bit_cast<float>(pair & 0xffff0000u) * x[1];
    }
  }
};

struct Int8 : Bits8, Sums<std::int32_t> {
  using X = std::int8_t;
  using Step = std::array<std::int32_t, 4>;
  static Step broadcast(const X* x) { return {x[0], x[1], x[2], x[3]}; }
  static void add(Acc (&acc)[2], const Row& row, Step x, int odd) {
    for (int n = 0; n < kLanes; ++n) {
      const std::int8_t* w = &row.w[4 * n];
      acc[odd][n] += w[0] * x[0] + w[1] * x[1] + w[2] * x[2] + w[3] * x[3];
    }
  }
};

}  // namespace lissome::portable
