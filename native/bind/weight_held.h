// A packed weight as Python holds it: arrays of whatever library, kept alive here, checked once.
#pragma once

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <optional>
#include <string>

#include "bind/arrays.h"
#include "linear/linear.h"

namespace lissome::bind {

class HeldWeight {
 public:
  // Arrays as `pack` returns them. Throws std::invalid_argument when they do not fit each other.
  HeldWeight(const std::string& format, std::int64_t outputs, std::int64_t inputs, In values, std::optional<In> bitmap,
             std::optional<In> starts, std::optional<In> scales, std::optional<In> sums);

  const Weight& view() const { return view_; }

 private:
  void take_sparse();
  void take_dense();

  In values_;
  std::optional<In> bitmap_, starts_, scales_, sums_;
  Weight view_;
};

}  // namespace lissome::bind
