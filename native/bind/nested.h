// Nested weights for the Python module.
#pragma once

#include <nanobind/nanobind.h>

namespace lissome::bind {

// Adds `Nested` to the module.
void add_nested(nanobind::module_& module);

}  // namespace lissome::bind
