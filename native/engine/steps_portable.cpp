#include "base/target.h"
#define LISSOME_TARGET
#include "engine/steps_loops.h"

const lissome::StepKernels* lissome::steps_portable() { return &kSteps; }
