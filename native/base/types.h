// Words that all parts share.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lissome {

// How weights are held.
enum class Format : std::uint8_t { bf16, int8 };

// What the numbers of a caller's array are.
enum class Type : std::uint8_t { f32, f16, bf16, i8, i32 };

// A panel is 32 outputs: two AMX tiles of 16. Along the inputs it goes in steps; a step is two rows of 64 bytes, of
// outputs 0-15 and of outputs 16-31, each with 2 (bf16) or 4 (int8) neighbouring inputs per output. 16 steps make a
// pair of tiles, and inputs are padded to whole tiles.
inline constexpr std::int64_t kPanel = 32;
inline constexpr std::int64_t kTileSteps = 16;
inline constexpr std::int64_t kRowBytes = 64;
inline constexpr std::int64_t kStepBytes = 2 * kRowBytes;

inline constexpr std::int64_t kReadBlock = 512;  // bytes that the bandwidth probe reads at a time

constexpr std::int64_t group_of(Format format) { return format == Format::bf16 ? 2 : 4; }
constexpr std::int64_t item_of(Format format) { return format == Format::bf16 ? 2 : 1; }

constexpr std::int64_t item_of(Type type) {
  return type == Type::i8 ? 1 : type == Type::f32 || type == Type::i32 ? 4 : 2;
}

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }
constexpr std::int64_t round_up(std::int64_t a, std::int64_t b) { return ceil_div(a, b) * b; }

}  // namespace lissome
