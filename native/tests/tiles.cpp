// The faults of software tiles, and that their product is the manual's.
#include "check.h"
#include "tile/soft_tile.h"

namespace lissome::testing {
namespace {

template <class Work>
bool faults(Work&& work) {
  try {
    work();
    return false;
  } catch (const TileFault&) {
    return true;
  }
}

std::byte memory[64 * 64];

void shapes() {
  SoftTile::configure(no_shapes());
  CHECK(faults([] { SoftTile::load<kX0>(memory, 64); }));
  CHECK(faults([] { SoftTile::zero<kSum00>(); }));
  CHECK(faults([] { SoftTile::dot<Format::bf16, kSum00, kX0, kW0>(); }));
  TileConfig many = config_for(16, 16);
  many.rows[0] = 17;
  CHECK(faults([&] { SoftTile::configure(many); }));
  TileConfig wide = config_for(16, 16);
  wide.bytes[3] = 65;
  CHECK(faults([&] { SoftTile::configure(wide); }));
  TileConfig ninth = config_for(1, 0);
  ninth.rows[8] = 1, ninth.bytes[8] = 4;
  CHECK(faults([&] { SoftTile::configure(ninth); }));
  TileConfig palette = config_for(1, 0);
  palette.palette = 2;
  CHECK(faults([&] { SoftTile::configure(palette); }));

  SoftTile::configure(config_for(5, 0));
  SoftTile::dot<Format::bf16, kSum00, kX0, kW0>();
  CHECK(faults([] { SoftTile::load<kX1>(memory, 64); }));
  CHECK(faults([] { SoftTile::dot<Format::int8, kSum10, kX1, kW0>(); }));
  CHECK(faults([] { SoftTile::dot<Format::int8, kSum00, kW0, kX0>(); }));  // 5 rows cannot hold 64 inputs
  CHECK(faults([] { SoftTile::dot<Format::int8, kSum00, kX0, kX0>(); }));
  CHECK(SoftTile::configured().rows[kX0] == 5);
  SoftTile::configure(no_shapes());
  CHECK(faults([] { SoftTile::store<kSum00>(memory, 64); }));
}

void integers() {
  Random random(3);
  std::vector<std::int8_t> a(7 * 64), b(16 * 64);
  for (auto* bytes : {&a, &b}) {
    for (auto& value : *bytes) value = static_cast<std::int8_t>(random());
  }
  std::vector<std::int32_t> c(7 * 16, 5);
  SoftTile::configure(config_for(7, 0));
  SoftTile::load<kSum00>(reinterpret_cast<const std::byte*>(c.data()), 64);
  SoftTile::load<kX0>(reinterpret_cast<const std::byte*>(a.data()), 64);
  SoftTile::load<kW0>(reinterpret_cast<const std::byte*>(b.data()), 64);
  SoftTile::dot<Format::int8, kSum00, kX0, kW0>();
  SoftTile::store<kSum00>(reinterpret_cast<std::byte*>(c.data()), 64);
  for (int m = 0; m < 7; ++m) {
    for (int n = 0; n < 16; ++n) {
      std::int32_t sum = 5;
      for (int k = 0; k < 64; ++k) sum += a[m * 64 + k] * b[(k / 4) * 64 + 4 * n + k % 4];
      CHECK(c[m * 16 + n] == sum);
    }
  }
}

void denormals() {
  std::vector<std::uint16_t> a(32, 0x0001), b(16 * 32, 0x7f00);  // the smallest denormal times a huge number
  std::vector<float> c(16, 1.0f);
  SoftTile::configure(config_for(1, 0));
  SoftTile::load<kSum00>(reinterpret_cast<const std::byte*>(c.data()), 64);
  SoftTile::load<kX0>(reinterpret_cast<const std::byte*>(a.data()), 64);
  SoftTile::load<kW0>(reinterpret_cast<const std::byte*>(b.data()), 64);
  SoftTile::dot<Format::bf16, kSum00, kX0, kW0>();
  SoftTile::store<kSum00>(reinterpret_cast<std::byte*>(c.data()), 64);
  for (const float value : c) CHECK(value == 1.0f);
}

// 2^128 - 3/4 · 2^128: a product is not rounded by itself.
void large_products() {
  std::vector<std::uint16_t> a(32), b(16 * 32);
  a[0] = a[2] = to_bf16(0x1p64f);
  for (int n = 0; n < 16; ++n) b[2 * n] = to_bf16(-0x1.8p63f), b[32 + 2 * n] = to_bf16(0x1p64f);
  std::vector<float> c(16, 0.0f);
  SoftTile::configure(config_for(1, 0));
  SoftTile::load<kSum00>(reinterpret_cast<const std::byte*>(c.data()), 64);
  SoftTile::load<kX0>(reinterpret_cast<const std::byte*>(a.data()), 64);
  SoftTile::load<kW0>(reinterpret_cast<const std::byte*>(b.data()), 64);
  SoftTile::dot<Format::bf16, kSum00, kX0, kW0>();
  SoftTile::store<kSum00>(reinterpret_cast<std::byte*>(c.data()), 64);
  for (const float value : c) CHECK(value == 0x1p126f);
}

}  // namespace
}  // namespace lissome::testing

int main() {
  lissome::testing::shapes();
  lissome::testing::integers();
  lissome::testing::denormals();
  lissome::testing::large_products();
  std::puts("tiles fault and multiply as the manual says");
  return 0;
}
