#include "nested/nested.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace lissome {
namespace {

void check_sizes_of(const Nested& weight) {
  constexpr std::int64_t kMost = std::int64_t{1} << 40;
  if (weight.group != 32 && weight.group != 64) {
    throw std::invalid_argument("groups have 32 or 64 inputs, got " + std::to_string(weight.group));
  }
  const bool whole = weight.outputs >= 1 && weight.inputs >= 1 && weight.outputs <= kMost && weight.inputs <= kMost;
  if (!whole || weight.panels() * kNestedPanel > kMost / weight.width()) {
    throw std::invalid_argument("a weight must have 1 to 2^40 numbers, got " + std::to_string(weight.outputs) +
                                " x " + std::to_string(weight.inputs));
  }
}

// A code that was read must have a level, or the table would be read beyond its end.
void check_levels(const Nested& weight, const LevelBytes& one) {
  const int planes = weight.has(one.precision) ? weight.read[static_cast<std::size_t>(one.precision)] : 0;
  if (planes < 1 || planes > kMostTableBits || one.count != std::int64_t{1} << planes) {
    throw std::invalid_argument("a precision of at most 6 planes has a level for every code, got " +
                                std::to_string(one.count) + " levels of " + std::to_string(planes) + " planes");
  }
  if (!std::is_sorted(one.data, one.data + one.count)) throw std::invalid_argument("levels must ascend");
}

}  // namespace

Nested assemble(std::int64_t outputs, std::int64_t inputs, std::int64_t group,
                const std::vector<SegmentBytes>& segments, const std::vector<ScaleHalves>& scales,
                const std::vector<LevelBytes>& levels) {
  Nested weight;
  weight.outputs = outputs, weight.inputs = inputs, weight.group = group;
  check_sizes_of(weight);
  const std::int64_t plane = weight.lines() * kLine;
  for (const SegmentBytes& segment : segments) {
    const std::int64_t planes = segment.bytes / plane;
    if (planes < 1 || planes > kMostBits - weight.bits || segment.bytes != planes * plane) {
      throw std::invalid_argument("a segment has " + std::to_string(segment.bytes) + " bytes, a plane " +
                                  std::to_string(plane) + ", and a weight 1 to 8 whole planes");
    }
    for (std::int64_t p = 0; p < planes; ++p) {
      weight.planes[static_cast<std::size_t>(weight.bits++)] = {segment.data + p * kLine, planes * kLine};
    }
  }
  if (weight.bits == 0 || scales.empty()) throw std::invalid_argument("a weight has planes and scales");
  for (const ScaleHalves& one : scales) {
    const bool known = one.precision >= 1 && one.precision <= kMostBits && one.planes >= 1 && one.planes <= weight.bits;
    if (!known || one.count != weight.scale_count()) {
      throw std::invalid_argument("a precision has " + std::to_string(weight.scale_count()) +
                                  " scales and at most as many planes as there are, got " + std::to_string(one.count) +
                                  " and " + std::to_string(one.planes));
    }
    weight.scales[static_cast<std::size_t>(one.precision)] = one.data;
    weight.read[static_cast<std::size_t>(one.precision)] = one.planes;
  }
  for (const LevelBytes& one : levels) {
    check_levels(weight, one);
    weight.levels[static_cast<std::size_t>(one.precision)] = one.data;
  }
  return weight;
}

}  // namespace lissome
