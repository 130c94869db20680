#define LISSOME_TARGET
#include "nested/encode.h"
#include "nested/portable_ops.h"

namespace lissome {

const NestedKernels* nested_portable() {
  static const NestedKernels table{{encode_nested_floats, run_nested<portable::Reals>, sizeof(float)},
                                   {encode_nested_integers, run_nested<portable::Integers>, 1}};
  return &table;
}

void nested_row(const Nested& weight, int precision, std::int64_t output, float* to) {
  const std::int64_t panel = output / kNestedPanel;
  const auto o = static_cast<int>(output % kNestedPanel);
  const std::uint16_t* scales = weight.scales[static_cast<std::size_t>(precision)];
  const std::uint8_t* levels = weight.levels[static_cast<std::size_t>(precision)];
  for (std::int64_t k = 0; k < weight.inputs; ++k) {
    const Place at = place(o, static_cast<int>(k % kBlockInputs));
    unsigned code = 0;
    for (int p = 0; p < weight.read[static_cast<std::size_t>(precision)]; ++p) {
      const Plane& plane = weight.planes[static_cast<std::size_t>(p)];
      const std::byte* line = plane.data + (panel * weight.blocks() + k / kBlockInputs) * plane.stride;
      code = 2 * code + ((std::to_integer<unsigned>(line[at.byte]) >> at.bit) & 1);
    }
    const std::uint16_t* pair = scales + (panel * weight.groups() + k / weight.group) * 2 * kNestedPanel;
    const unsigned level = levels ? levels[code] : code;
    to[k] = static_cast<float>(level) * from_f16(pair[o]) + from_f16(pair[kNestedPanel + o]);
  }
}

}  // namespace lissome
