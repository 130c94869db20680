#include "weight/weight.h"

#include <bit>
#include <stdexcept>
#include <string>

namespace lissome {
namespace {

[[noreturn]] void refuse(const std::string& why) { throw std::invalid_argument(why); }

// The first panel before which at least `bytes` are read.
std::int64_t panel_at(const Weight& weight, std::int64_t bytes) {
  std::int64_t low = 0, high = weight.panels();
  while (low < high) {
    const std::int64_t middle = low + (high - low) / 2;
    if (weight.bytes_before(middle) < bytes) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

}  // namespace

std::int64_t Weight::bytes_before(std::int64_t panel) const {
  if (!sparse) return panel * steps() * kStepBytes;
  return panel * words() * 8 + starts[panel] * item_of(format);
}

std::int64_t Weight::bytes() const {
  const std::int64_t padded = panels() * kPanel;
  return bytes_before(panels()) + (sparse ? 8 * (panels() + 1) : 0) + (format == Format::int8 ? 8 * padded : 0);
}

void check_sizes(const Weight& weight) {
  constexpr std::int64_t kMost = kMostWeights;
  if (weight.outputs < 1 || weight.inputs < 1 || weight.outputs > kMost || weight.inputs > kMost ||
      weight.panels() * kPanel > kMost / weight.width()) {
    refuse("a weight must have 1 to 2^40 numbers, got " + std::to_string(weight.outputs) + " x " +
           std::to_string(weight.inputs));
  }
  if (weight.format == Format::int8 && weight.inputs > kMostInputs) {
    refuse("an int8 weight may have " + std::to_string(kMostInputs) + " inputs, got " +
           std::to_string(weight.inputs) + ": sums could overflow");
  }
}

void check_sparse(const Weight& weight, std::int64_t values) {
  const std::int64_t words = weight.words();
  std::int64_t at = 0;
  for (std::int64_t panel = 0; panel < weight.panels(); ++panel) {
    if (weight.starts[panel] != at) refuse("the starts do not fit the bitmap at panel " + std::to_string(panel));
    for (std::int64_t word = 0; word < words; ++word) at += std::popcount(weight.bitmap[panel * words + word]);
  }
  if (weight.starts[weight.panels()] != at || values != at) {
    refuse("the bitmap has " + std::to_string(at) + " non-zeros, but there are " + std::to_string(values));
  }
}

Range panels_of(const Weight& weight, int parts, int part) {
  const std::int64_t all = weight.bytes_before(weight.panels());
  const std::int64_t each = all / parts, rest = all % parts;
  const auto at = [&](std::int64_t index) {
    return index == parts ? weight.panels() : panel_at(weight, index * each + (index < rest ? index : rest));
  };
  return {at(part), at(part + 1)};
}

}  // namespace lissome
