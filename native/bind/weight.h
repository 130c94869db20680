// Weights and packing for the Python module.
#pragma once

#include <nanobind/nanobind.h>

namespace lissome::bind {

// Adds `Weight` and `pack` to the module.
void add_weight(nanobind::module_& module);

}  // namespace lissome::bind
