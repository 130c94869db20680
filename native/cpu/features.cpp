#include "cpu/features.h"

#include <array>
#include <cstdint>

#include "base/target.h"

#if LISSOME_X86
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace lissome {
namespace {

#if LISSOME_X86

struct Registers {
  std::uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Registers cpuid(std::uint32_t leaf, std::uint32_t part) {
  Registers found;
  __get_cpuid_count(leaf, part, &found.eax, &found.ebx, &found.ecx, &found.edx);
  return found;
}

// Which registers the system saves when it switches threads.
std::uint64_t saved_state() {
  constexpr std::uint32_t kOsxsave = 1u << 27;
  if ((cpuid(1, 0).ecx & kOsxsave) == 0) return 0;
  std::uint32_t low = 0, high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<std::uint64_t>(high) << 32) | low;
}

bool tile_permission() {
#if defined(__linux__)
  constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
#else
  return false;
#endif
}

struct Bit {
  const char* name;
  bool set;
};

std::string missing(std::initializer_list<Bit> bits) {
  std::string names;
  for (const Bit& bit : bits) {
    if (!bit.set) names += (names.empty() ? "" : ", ") + std::string(bit.name);
  }
  return names;
}

constexpr bool bit(std::uint32_t value, int position) { return ((value >> position) & 1) != 0; }

Level judge(Isa isa, const char* name, const char* has, const std::string& lacks) {
  return {isa, name, lacks.empty(), lacks.empty() ? has : "missing here: " + lacks};
}

std::vector<Level> detect() {
  const Registers one = cpuid(1, 0), seven = cpuid(7, 0), more = cpuid(7, 1);
  const std::uint64_t state = saved_state();
  const bool ymm = (state & 0x6) == 0x6, zmm = (state & 0xe6) == 0xe6, tiles = ((state >> 17) & 3) == 3;

  const std::string avx2 = missing({{"AVX2", bit(seven.ebx, 5)}, {"FMA", bit(one.ecx, 12)},
                                    {"POPCNT", bit(one.ecx, 23)}, {"BMI1", bit(seven.ebx, 3)},
                                    {"BMI2", bit(seven.ebx, 8)}, {"YMM state saved by the system", ymm}});
  const std::string avx512 = missing(
      {{"AVX2", avx2.empty()}, {"AVX512F", bit(seven.ebx, 16)}, {"AVX512DQ", bit(seven.ebx, 17)},
       {"AVX512BW", bit(seven.ebx, 30)}, {"AVX512VL", bit(seven.ebx, 31)}, {"AVX512_VBMI", bit(seven.ecx, 1)},
       {"AVX512_VBMI2", bit(seven.ecx, 6)}, {"GFNI", bit(seven.ecx, 8)}, {"AVX512_VNNI", bit(seven.ecx, 11)},
       {"ZMM state saved by the system", zmm}});
  const std::string bf16 = missing({{"AVX-512 as above", avx512.empty()}, {"AVX512_BF16", bit(more.eax, 5)}});
  std::string amx = missing({{"AVX512_BF16 as above", bf16.empty()}, {"AMX_TILE", bit(seven.edx, 24)},
                             {"AMX_BF16", bit(seven.edx, 22)}, {"AMX_INT8", bit(seven.edx, 25)},
                             {"tile state saved by the system", tiles}});
  if (amx.empty() && !tile_permission()) amx = "the system's permission to use tiles (arch_prctl)";
  return {judge(Isa::avx2, "avx2", "AVX2, FMA", avx2),
          judge(Isa::avx512, "avx512", "AVX-512 F/BW/VL/DQ, VNNI, VBMI, VBMI2, GFNI", avx512),
          judge(Isa::avx512bf16, "avx512bf16", "AVX-512 with BF16", bf16),
          judge(Isa::amx, "amx", "AMX TILE, BF16, INT8", amx)};
}

#else

std::vector<Level> detect() {
  const char* why = "missing here: an x86-64 CPU";
  return {{Isa::avx2, "avx2", false, why},
          {Isa::avx512, "avx512", false, why},
          {Isa::avx512bf16, "avx512bf16", false, why},
          {Isa::amx, "amx", false, why}};
}

#endif

std::vector<Level> all() {
  std::vector<Level> found{{Isa::portable, "portable", true, "C++ for any CPU"}};
  for (Level& level : detect()) found.push_back(std::move(level));
  found.push_back({Isa::tile, "tile", true, "AMX tiles in software, for tests"});
  return found;
}

}  // namespace

const std::vector<Level>& levels() {
  static const std::vector<Level> found = all();
  return found;
}

Isa best() {
  Isa found = Isa::portable;
  for (const Level& level : levels()) {
    if (level.usable && level.isa != Isa::tile) found = level.isa;
  }
  return found;
}

}  // namespace lissome
