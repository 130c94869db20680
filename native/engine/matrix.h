// A weight of the engine: nested, or packed with or without its zeros.
#pragma once

#include <variant>

#include "nested/nested.h"
#include "weight/weight.h"

namespace lissome {

class Matrix {
 public:
  Matrix() = default;
  Matrix(Nested nested) : held_(std::move(nested)) {}        // NOLINT: a kind of matrix
  Matrix(const Weight& packed) : held_(packed) {}            // NOLINT: likewise

  const Nested* nested() const { return std::get_if<Nested>(&held_); }
  const Weight* packed() const { return std::get_if<Weight>(&held_); }

  std::int64_t outputs() const { return nested() ? nested()->outputs : packed()->outputs; }
  std::int64_t inputs() const { return nested() ? nested()->inputs : packed()->inputs; }
  // A packed weight is the same at every precision.
  bool has(int precision) const { return packed() || nested()->has(precision); }
  // Bytes that are read at a precision.
  std::int64_t bytes(int precision) const { return packed() ? packed()->bytes() : nested()->bytes(precision); }

 private:
  std::variant<Nested, Weight> held_;
};

}  // namespace lissome
