// What one instruction set offers: a table of functions.
#pragma once

#include "cpu/features.h"
#include "engine/steps.h"
#include "linear/job.h"
#include "nested/kernels.h"
#include "weight/pack.h"

namespace lissome {

// Multiplication by weights of one format with activations of one kind.
struct Linear {
  // Converts rows [first, last) of x: to the kernel's type, padded with zeros to `stride`; notes its scales if any.
  void (*encode)(const Rows& x, std::int64_t first, std::int64_t last, std::byte* to, std::int64_t stride,
                 float* scales) = nullptr;
  // Computes panels [first, last) for all rows.
  void (*run)(const Job& job, std::int64_t first, std::int64_t last) = nullptr;
  std::int64_t item = 0;  // bytes of an encoded number
};

struct Kernels {
  Isa isa = Isa::portable;
  Linear bf16_f32;   // bf16 weights, fp32 activations
  Linear bf16_bf16;  // bf16 weights, bf16 activations; `run` is null where the CPU cannot multiply two bf16
  Linear int8;       // int8 weights, activations quantised per row
  // Packs one panel; see weight/pack.h.
  std::int64_t (*pack_panel)(const Source& source, const Scales* scales, std::int64_t panel, std::uint64_t* bitmap,
                             std::byte* values) = nullptr;
  // Sum of 64-bit words of `blocks` times kReadBlock bytes: memory's speed.
  std::uint64_t (*read_blocks)(const std::byte* data, std::int64_t blocks) = nullptr;
  // Writes the rows of one panel out as a dense matrix.
  void (*unpack_panel)(const Weight& weight, std::int64_t panel, std::byte* out) = nullptr;
  const NestedKernels* nested = nullptr;
  const StepKernels* steps = nullptr;
};

// One file per instruction set; null when it was not compiled.
const Kernels* portable_kernels();
const Kernels* avx2_kernels();
const Kernels* avx512_kernels();
const Kernels* avx512bf16_kernels();
const Kernels* amx_kernels();
const Kernels* tile_kernels();

// Null when the level cannot be used here.
const Kernels* kernels_of(Isa isa);

// The level in use; at first the best.
const Kernels& kernels();

// Throws std::invalid_argument when it cannot be used here.
void use(Isa isa);

}  // namespace lissome
