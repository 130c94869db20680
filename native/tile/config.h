// Shapes of the eight tile registers, as LDTILECFG reads them (Intel SDM, palette 1).
#pragma once

#include <cstdint>

namespace lissome {

struct alignas(64) TileConfig {
  std::uint8_t palette = 1;
  std::uint8_t start_row = 0;
  std::uint8_t reserved[14] = {};
  std::uint16_t bytes[16] = {};  // of a row, by register
  std::uint8_t rows[16] = {};    // by register
};
static_assert(sizeof(TileConfig) == 64);

// Registers of the loop: sums of two blocks of activation rows by two tiles of outputs, activations, weights.
inline constexpr int kSum00 = 0, kSum01 = 1, kSum10 = 2, kSum11 = 3, kX0 = 4, kX1 = 5, kW0 = 6, kW1 = 7;

// Of a thread that has not used tiles.
inline TileConfig no_shapes() {
  TileConfig config;
  config.palette = 0;
  return config;
}

// `first` and `second` rows of activations, up to 16 each; `second` may be 0.
inline TileConfig config_for(int first, int second) {
  TileConfig config;
  const auto shape = [&](int tile, int rows) {
    config.rows[tile] = static_cast<std::uint8_t>(rows);
    config.bytes[tile] = rows ? 64 : 0;
  };
  for (int tile : {kSum00, kSum01, kX0}) shape(tile, first);
  for (int tile : {kSum10, kSum11, kX1}) shape(tile, second);
  for (int tile : {kW0, kW1}) shape(tile, 16);
  return config;
}

}  // namespace lissome
