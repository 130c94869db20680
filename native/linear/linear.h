// y = x Wᵀ + b on the instruction set in use.
#pragma once

#include "linear/job.h"

namespace lissome {

// x: [M, K] of f32 or bf16; for int8 weights they are quantised row by row, unless they are i8 already, which needs y
// of i32 and no bias. y: [M, N] of f32 or bf16 (or i32). `threads` splits panels; results do not depend on it, nor does
// a row's result depend on other rows. Throws std::invalid_argument for types and widths that do not fit.
void linear(const Weight& weight, const Rows& x, const float* bias, const Output& y, int threads);

}  // namespace lissome
