#include <algorithm>
#include <array>

#include "base/numbers.h"
#include "linear/job.h"

namespace lissome {
namespace {

struct Place {
  std::int64_t first, count;
  std::byte* y;
};

Place place_of(const Job& job, std::int64_t row, std::int64_t panel) {
  const std::int64_t first = panel * kPanel;
  return {first, std::min(kPanel, job.weight->outputs - first),
          job.y.data + (row * job.y.stride + first) * item_of(job.y.type)};
}

void write(const Job& job, const Place& place, std::array<float, kPanel> values) {
  if (job.bias) {
    for (std::int64_t n = 0; n < place.count; ++n) values[n] += job.bias[place.first + n];
  }
  if (job.y.type == Type::f32) {
    std::memcpy(place.y, values.data(), place.count * sizeof(float));
    return;
  }
  std::array<std::uint16_t, kPanel> halves;
  for (std::int64_t n = 0; n < kPanel; ++n) halves[n] = to_bf16(values[n]);
  std::memcpy(place.y, halves.data(), place.count * sizeof(std::uint16_t));
}

}  // namespace

void finish(const Job& job, std::int64_t row, std::int64_t panel, const float* sums) {
  std::array<float, kPanel> values;
  std::copy_n(sums, kPanel, values.begin());
  write(job, place_of(job, row, panel), values);
}

void finish(const Job& job, std::int64_t row, std::int64_t panel, const std::int32_t* sums) {
  const Place place = place_of(job, row, panel);
  if (job.y.type == Type::i32) {
    std::memcpy(place.y, sums, place.count * sizeof(std::int32_t));
    return;
  }
  const float scale = job.x_scales[row];
  const float* scales = job.weight->scales + place.first;
  std::array<float, kPanel> values;
  for (std::int64_t n = 0; n < kPanel; ++n) values[n] = static_cast<float>(sums[n]) * (scale * scales[n]);
  write(job, place, values);
}

}  // namespace lissome
