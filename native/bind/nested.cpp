#include "bind/nested.h"

#include <string>

#include "bind/nested_held.h"
#include "linear/kernels.h"
#include "pool/pool.h"

namespace lissome::bind {

Activations activations_of(const std::string& name) {
  if (name == "f32") return Activations::f32;
  if (name == "int8") return Activations::int8;
  throw std::invalid_argument("activations are f32 or int8, got " + name);
}

HeldNested::HeldNested(std::int64_t outputs, std::int64_t inputs, std::int64_t group, std::vector<In> segments,
                       std::map<int, std::pair<int, In>> scales, std::map<int, In> levels)
    : segments_(std::move(segments)), scales_(std::move(scales)), levels_(std::move(levels)) {
  std::vector<SegmentBytes> bytes;
  for (const In& segment : segments_) {
    const auto count = static_cast<std::int64_t>(segment.nbytes());
    bytes.push_back({reinterpret_cast<const std::byte*>(vector_of<std::uint8_t>(segment, count, "a segment")), count});
  }
  std::vector<ScaleHalves> halves;
  for (const auto& [precision, pair] : scales_) {
    const auto count = static_cast<std::int64_t>(pair.second.size());
    halves.push_back({precision, pair.first, vector_of<std::uint16_t>(pair.second, count, "scales"), count});
  }
  std::vector<LevelBytes> tables;
  for (const auto& [precision, table] : levels_) {
    const auto count = static_cast<std::int64_t>(table.size());
    tables.push_back({precision, vector_of<std::uint8_t>(table, count, "levels"), count});
  }
  view_ = assemble(outputs, inputs, group, bytes, halves, tables);
}

namespace {

using Maybe = std::optional<In>;

template <class Array>
void check_floats(const Array& x, std::int64_t width, const char* what) {
  const bool fits = x.ndim() == 2 && type_of(x.dtype()) == Type::f32 &&
                    static_cast<std::int64_t>(x.shape(1)) == width &&
                    (x.shape(0) < 2 || x.stride(0) == width) && (width < 2 || x.stride(1) == 1);
  if (!fits) throw std::invalid_argument(std::string(what) + " must be contiguous float32 rows of " +
                                         std::to_string(width));
}

void multiply(const HeldNested& held, const In& x, const Out& y, int precision, const std::string& activations,
              const Maybe& bias, int threads) {
  const Nested& weight = held.view();
  const Activations mode = activations_of(activations);
  check_floats(x, weight.inputs, "x");
  check_floats(y, weight.outputs, "y");
  if (x.shape(0) != y.shape(0)) throw std::invalid_argument("x and y must have as many rows");
  const float* added = bias ? vector_of<float>(*bias, weight.outputs, "bias") : nullptr;
  const auto rows = static_cast<std::int64_t>(x.shape(0));
  const nb::gil_scoped_release released;
  const int count = threads_or(threads);
  const Encoded encoded = encode_rows({static_cast<const float*>(x.data()), rows, weight.inputs}, weight.inputs,
                                      weight.group, mode, count);
  run_nested_job({&weight, precision, encoded, added, static_cast<float*>(y.data()), weight.outputs, false}, mode,
                 count);
}

void write_rows(const HeldNested& held, const Out& out, int precision, std::int64_t first) {
  const Nested& weight = held.view();
  check_floats(out, weight.inputs, "out");
  const auto count = static_cast<std::int64_t>(out.shape(0));
  if (!weight.has(precision)) throw std::invalid_argument("this precision cannot be read");
  if (first < 0 || count > weight.outputs || first > weight.outputs - count) {
    throw std::invalid_argument("no such rows");
  }
  const nb::gil_scoped_release released;
  for (std::int64_t row = 0; row < count; ++row) {
    nested_row(weight, precision, first + row, static_cast<float*>(out.data()) + row * weight.inputs);
  }
}

}  // namespace

void add_nested(nb::module_& module) {
  using namespace nb::literals;
  nb::class_<HeldNested>(module, "Nested", "Weights by planes of bits; see native/nested/nested.h for the layout.")
      .def(nb::init<std::int64_t, std::int64_t, std::int64_t, std::vector<In>, std::map<int, std::pair<int, In>>,
                    std::map<int, In>>(), "outputs"_a,
           "inputs"_a, "group"_a, "segments"_a, "scales"_a, "levels"_a = std::map<int, In>{},
           "Takes uint8 segments, (planes, uint16 scales) and uint8 levels by precision, without a copy. ValueError when "
           "they do not fit.")
      .def("linear", &multiply, "x"_a, "y"_a, "precision"_a, "activations"_a, "bias"_a = nb::none(), "threads"_a = 0,
           "y[M, N] = x[M, K] Wᵀ + bias, all float32.")
      .def("rows", &write_rows, "out"_a, "precision"_a, "first"_a = 0, "Writes rows of W, float32.")
      .def_prop_ro("bits", [](const HeldNested& held) { return held.view().bits; });
}

}  // namespace lissome::bind
