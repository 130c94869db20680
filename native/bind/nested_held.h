// A nested weight as Python holds it: arrays of whatever library, kept alive here, checked once.
#pragma once

#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <map>
#include <string>
#include <vector>

#include "bind/arrays.h"
#include "nested/linear.h"

namespace lissome::bind {

class HeldNested {
 public:
  // Segments of uint8, the highest planes first, and planes to read with scales of uint16 by precision, and
  // levels of uint8 by precision. Throws std::invalid_argument.
  HeldNested(std::int64_t outputs, std::int64_t inputs, std::int64_t group, std::vector<In> segments,
             std::map<int, std::pair<int, In>> scales, std::map<int, In> levels);

  const Nested& view() const { return view_; }

 private:
  std::vector<In> segments_;
  std::map<int, std::pair<int, In>> scales_;
  std::map<int, In> levels_;
  Nested view_;
};

// "f32" or "int8"; throws std::invalid_argument.
Activations activations_of(const std::string& name);

}  // namespace lissome::bind
