#include "base/target.h"
#define LISSOME_TARGET LISSOME_AVX512
#if LISSOME_X86
#include <immintrin.h>
#define LISSOME_HALVES  // there is an instruction for them
#include "engine/steps_loops.h"

const lissome::StepKernels* lissome::steps_avx512() { return &kSteps; }
#else
#include "engine/steps.h"

const lissome::StepKernels* lissome::steps_avx512() { return nullptr; }
#endif
