// Arrays of other libraries (DLPack, no copies) as the kernels' views of them.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <optional>
#include <string>

#include "linear/job.h"
#include "weight/pack.h"

namespace lissome::bind {

namespace nb = nanobind;

// Any array in the CPU's memory; read-only ones are welcome where nothing is written.
using In = nb::ndarray<nb::ro, nb::device::cpu>;
using Out = nb::ndarray<nb::device::cpu>;

// What its numbers are. Throws std::invalid_argument for a type that nothing here computes with.
Type type_of(const nb::dlpack::dtype& dtype);

Format format_of(const std::string& name);

// A contiguous vector of exactly `count` numbers of type T; `what` is named when it is not one.
template <class T>
const T* vector_of(const In& array, std::int64_t count, const char* what) {
  const bool fits = array.ndim() == 1 && array.dtype() == nb::dtype<T>() &&
                    static_cast<std::int64_t>(array.shape(0)) == count && (count < 2 || array.stride(0) == 1);
  const auto address = reinterpret_cast<std::uintptr_t>(array.data());
  if (!fits || address % alignof(T) != 0) {
    throw std::invalid_argument(std::string(what) + " must be an aligned, contiguous vector of " +
                                std::to_string(count) + " numbers");
  }
  return static_cast<const T*>(array.data());
}

// [M, K] with contiguous rows.
Rows rows_of(const In& x);
Output output_of(const Out& y, std::int64_t rows, std::int64_t width);
Source source_of(const In& matrix);

// A numpy array that owns a buffer.
template <class T>
nb::ndarray<nb::numpy, T, nb::ndim<1>> owning(Block<T> buffer, std::int64_t count) {
  T* data = buffer.release();
  const nb::capsule owner(data, [](void* memory) noexcept { FreeBlock()(memory); });
  return nb::ndarray<nb::numpy, T, nb::ndim<1>>(data, {static_cast<std::size_t>(count)}, owner);
}

}  // namespace lissome::bind
