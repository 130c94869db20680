#include "linear/kernels.h"

#include <atomic>
#include <stdexcept>

namespace lissome {
namespace {

const Kernels* compiled(Isa isa) {
  switch (isa) {
    case Isa::portable: return portable_kernels();
    case Isa::avx2: return avx2_kernels();
    case Isa::avx512: return avx512_kernels();
    case Isa::avx512bf16: return avx512bf16_kernels();
    case Isa::amx: return amx_kernels();
    case Isa::tile: return tile_kernels();
  }
  return nullptr;
}

std::atomic<const Kernels*> in_use{nullptr};

}  // namespace

const Kernels* kernels_of(Isa isa) {
  for (const Level& level : levels()) {
    if (level.isa == isa) return level.usable ? compiled(isa) : nullptr;
  }
  return nullptr;
}

const Kernels& kernels() {
  const Kernels* found = in_use.load(std::memory_order_acquire);
  if (!found) {
    use(best());
    found = in_use.load(std::memory_order_acquire);
  }
  return *found;
}

void use(Isa isa) {
  const Kernels* found = kernels_of(isa);
  if (!found) throw std::invalid_argument("this instruction set cannot be used here");
  in_use.store(found, std::memory_order_release);
}

}  // namespace lissome
