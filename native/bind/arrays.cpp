#include "bind/arrays.h"

#include <stdexcept>

namespace lissome::bind {
namespace {

template <class Array>
std::int64_t extent(const Array& array, std::size_t dim) {
  return static_cast<std::int64_t>(array.shape(dim));
}

template <class Array>
void check_matrix(const Array& array, const char* what) {
  if (array.ndim() != 2) throw std::invalid_argument(std::string(what) + " must have two dimensions");
}

// Rows may lie anywhere, but the numbers of one side by side; one column, or no row, has no stride to speak of.
template <class Array>
void check_rows(const Array& array, const char* what) {
  check_matrix(array, what);
  if (array.shape(0) > 0 && array.shape(1) > 1 && array.stride(1) != 1) {
    throw std::invalid_argument(std::string(what) + " must have contiguous rows");
  }
}

}  // namespace

Type type_of(const nb::dlpack::dtype& dtype) {
  using Code = nb::dlpack::dtype_code;
  const auto is = [&](Code code, int bits) {
    return dtype.code == static_cast<std::uint8_t>(code) && dtype.bits == bits && dtype.lanes == 1;
  };
  if (is(Code::Float, 32)) return Type::f32;
  if (is(Code::Float, 16)) return Type::f16;
  if (is(Code::Bfloat, 16)) return Type::bf16;
  if (is(Code::Int, 8)) return Type::i8;
  if (is(Code::Int, 32)) return Type::i32;
  throw std::invalid_argument("numbers must be float32, float16, bfloat16, int8 or int32");
}

Format format_of(const std::string& name) {
  if (name == "bf16") return Format::bf16;
  if (name == "int8") return Format::int8;
  throw std::invalid_argument("a format is bf16 or int8, got " + name);
}

Rows rows_of(const In& x) {
  check_rows(x, "x");
  return {type_of(x.dtype()), static_cast<const std::byte*>(x.data()), extent(x, 0),
          extent(x, 1), x.stride(0)};
}

Output output_of(const Out& y, std::int64_t rows, std::int64_t width) {
  check_rows(y, "y");
  if (extent(y, 0) != rows || extent(y, 1) != width) {
    throw std::invalid_argument("y must be " + std::to_string(rows) + " x " + std::to_string(width));
  }
  return {type_of(y.dtype()), static_cast<std::byte*>(y.data()), y.stride(0)};
}

Source source_of(const In& matrix) {
  check_matrix(matrix, "a weight");
  const Type type = type_of(matrix.dtype());
  if (type == Type::i8 || type == Type::i32) throw std::invalid_argument("a weight must be of floats");
  return {type, static_cast<const std::byte*>(matrix.data()), extent(matrix, 0),
          extent(matrix, 1), matrix.stride(0), matrix.stride(1)};
}

}  // namespace lissome::bind
