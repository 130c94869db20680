// Weights as Python holds them: arrays of whatever library, kept alive here, checked once.
#include "bind/weight.h"

#include <nanobind/stl/tuple.h>

#include <tuple>

#include "bind/weight_held.h"
#include "pool/pool.h"

namespace lissome::bind {

HeldWeight::HeldWeight(const std::string& format, std::int64_t outputs, std::int64_t inputs, In values,
                       std::optional<In> bitmap, std::optional<In> starts, std::optional<In> scales,
                       std::optional<In> sums)
    : values_(std::move(values)), bitmap_(std::move(bitmap)), starts_(std::move(starts)), scales_(std::move(scales)),
      sums_(std::move(sums)) {
  view_.format = format_of(format);
  view_.outputs = outputs, view_.inputs = inputs;
  view_.sparse = bitmap_.has_value();
  check_sizes(view_);
  if (bitmap_.has_value() != starts_.has_value()) throw std::invalid_argument("bitmap and starts belong together");
  const bool int8 = view_.format == Format::int8;
  if (scales_.has_value() != int8 || sums_.has_value() != int8) {
    throw std::invalid_argument("an int8 weight has scales and sums, a bf16 weight has neither");
  }
  const std::int64_t padded = view_.panels() * kPanel;
  if (int8) {
    view_.scales = vector_of<float>(*scales_, padded, "scales");
    view_.sums = vector_of<std::int32_t>(*sums_, padded, "sums");
  }
  view_.sparse ? take_sparse() : take_dense();
}

void HeldWeight::take_sparse() {
  view_.bitmap = reinterpret_cast<const std::uint64_t*>(
      vector_of<std::int64_t>(*bitmap_, view_.panels() * view_.words(), "bitmap"));
  view_.starts = vector_of<std::int64_t>(*starts_, view_.panels() + 1, "starts");
  const std::int64_t count = view_.starts[view_.panels()], item = item_of(view_.format);
  if (count < 0 || count > kMostWeights) throw std::invalid_argument("the last start is not a number of weights");
  view_.values = reinterpret_cast<const std::byte*>(
      vector_of<std::uint8_t>(values_, count * item + kSlack, "values"));
  check_sparse(view_, count);
}

void HeldWeight::take_dense() {
  view_.values =
      reinterpret_cast<const std::byte*>(vector_of<std::uint8_t>(values_, view_.dense_bytes(), "values"));
}

namespace {

using Maybe = std::optional<In>;

void multiply(const HeldWeight& held, const In& x, const Out& y, const Maybe& bias, int threads) {
  const Weight& weight = held.view();
  const Rows rows = rows_of(x);
  const Output output = output_of(y, rows.count, weight.outputs);
  const float* added = bias ? vector_of<float>(*bias, weight.outputs, "bias") : nullptr;
  const nb::gil_scoped_release released;
  linear(weight, rows, added, output, threads_or(threads));
}

void write(const HeldWeight& held, const Out& out, int threads) {
  const Weight& weight = held.view();
  const auto bits = static_cast<int>(8 * item_of(weight.format));
  const bool fits = out.ndim() == 2 && static_cast<std::int64_t>(out.shape(0)) == weight.outputs &&
                    static_cast<std::int64_t>(out.shape(1)) == weight.inputs && out.dtype().bits == bits &&
                    (weight.outputs < 2 || out.stride(0) == weight.inputs) &&
                    (weight.inputs < 2 || out.stride(1) == 1);
  if (!fits) throw std::invalid_argument("out must be contiguous, of the weight's shape and of its item's size");
  const nb::gil_scoped_release released;
  unpack(weight, static_cast<std::byte*>(out.data()), threads_or(threads));
}

std::int64_t nonzeros(const HeldWeight& held) {
  const Weight& weight = held.view();
  return weight.sparse ? weight.starts[weight.panels()] : weight.outputs * weight.inputs;
}

using Bytes = nb::ndarray<nb::numpy, std::uint8_t, nb::ndim<1>>;
using Words = nb::ndarray<nb::numpy, std::int64_t, nb::ndim<1>>;
using Floats = nb::ndarray<nb::numpy, float, nb::ndim<1>>;
using Integers = nb::ndarray<nb::numpy, std::int32_t, nb::ndim<1>>;
using Arrays = std::tuple<Bytes, std::optional<Words>, std::optional<Words>, std::optional<Floats>,
                          std::optional<Integers>>;

template <class To, class From>
Block<To> as(Block<From>& buffer) {
  return Block<To>(reinterpret_cast<To*>(buffer.release()));
}

Arrays pack_arrays(const In& matrix, const std::string& format, bool sparse, int threads) {
  Packed packed;
  {
    const Source source = source_of(matrix);
    const Format wanted_format = format_of(format);
    const nb::gil_scoped_release released;
    packed = pack(source, wanted_format, sparse, threads_or(threads));
  }
  const std::int64_t panels = packed.view.panels();
  Arrays arrays;
  std::get<0>(arrays) = owning<std::uint8_t>(as<std::uint8_t>(packed.values), packed.value_bytes);
  if (sparse) {
    std::get<1>(arrays) = owning<std::int64_t>(as<std::int64_t>(packed.bitmap), panels * packed.view.words());
    std::get<2>(arrays) = owning<std::int64_t>(std::move(packed.starts), panels + 1);
  }
  if (packed.view.format == Format::int8) {
    std::get<3>(arrays) = owning<float>(std::move(packed.scales), panels * kPanel);
    std::get<4>(arrays) = owning<std::int32_t>(std::move(packed.sums), panels * kPanel);
  }
  return arrays;
}

}  // namespace

void add_weight(nb::module_& module) {
  using namespace nb::literals;
  nb::class_<HeldWeight>(module, "Weight", "Weights of a linear layer; see native/weight/weight.h for the layout.")
      .def(nb::init<const std::string&, std::int64_t, std::int64_t, In, Maybe, Maybe, Maybe, Maybe>(), "format"_a,
           "outputs"_a, "inputs"_a, "values"_a, "bitmap"_a = nb::none(), "starts"_a = nb::none(),
           "scales"_a = nb::none(), "sums"_a = nb::none(),
           "Takes arrays as `pack` returns them, without a copy. ValueError when they do not fit each other.")
      .def("linear", &multiply, "x"_a, "y"_a, "bias"_a = nb::none(), "threads"_a = 0,
           "y[M, N] = x[M, K] Wᵀ + bias; float32 or bfloat16, or int8 in and int32 out.")
      .def("unpack", &write, "out"_a, "threads"_a = 0, "Writes W[N, K]: bits of bfloat16, or int8.")
      .def_prop_ro("nonzeros", &nonzeros);
  module.def("pack", &pack_arrays, "matrix"_a, "format"_a, "sparse"_a, "threads"_a = 0,
             "values, bitmap, starts, scales, sums of a matrix [N, K]; None for what the format does not have.");
}

}  // namespace lissome::bind
