// The decoder engine for the Python module.
#pragma once

#include <nanobind/nanobind.h>

namespace lissome::bind {

// Adds `Engine`, `Attention`, `Mlp` and sampling to the module.
void add_engine(nanobind::module_& module);

}  // namespace lissome::bind
