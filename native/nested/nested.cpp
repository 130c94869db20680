#include "nested/nested.h"

#include <stdexcept>
#include <string>

namespace lissome {

void check_nested(const Nested& weight) {
  constexpr std::int64_t kMost = std::int64_t{1} << 40;
  if (weight.group != 32 && weight.group != 64) {
    throw std::invalid_argument("groups have 32 or 64 inputs, got " + std::to_string(weight.group));
  }
  if (weight.bits < 1 || weight.bits > kMostBits) {
    throw std::invalid_argument("codes have 1 to 8 bits, got " + std::to_string(weight.bits));
  }
  const bool whole = weight.outputs >= 1 && weight.inputs >= 1 && weight.outputs <= kMost && weight.inputs <= kMost;
  if (!whole || weight.panels() * kNestedPanel > kMost / weight.width()) {
    throw std::invalid_argument("a weight must have 1 to 2^40 numbers, got " + std::to_string(weight.outputs) +
                                " x " + std::to_string(weight.inputs));
  }
}

}  // namespace lissome
