#include "base/target.h"
#define LISSOME_TARGET LISSOME_AVX2
#if LISSOME_X86
#include <immintrin.h>
#define LISSOME_256  // there are instructions that widen halves and bytes
#include "engine/steps_loops.h"

const lissome::StepKernels* lissome::steps_avx2() { return &kSteps; }
#else
#include "engine/steps.h"

const lissome::StepKernels* lissome::steps_avx2() { return nullptr; }
#endif
