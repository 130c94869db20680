// Which instruction sets can be used here, and why not.
#pragma once

#include <string>
#include <vector>

namespace lissome {

// Each level has all that the ones above it in this list have; `tile` is AMX in software, which tests use anywhere.
enum class Isa { portable, avx2, avx512, avx512bf16, amx, tile };

struct Level {
  Isa isa;
  const char* name;
  bool usable;
  std::string why;  // what it has, or what is missing
};

// All levels, the slowest first, `tile` last. Asks the CPU once; AMX also asks the system for permission.
const std::vector<Level>& levels();

// The fastest usable level.
Isa best();

}  // namespace lissome
