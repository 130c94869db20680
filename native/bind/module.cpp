// The Python module.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <atomic>
#include <cstring>

#include "bind/arrays.h"
#include "bind/engine.h"
#include "bind/nested.h"
#include "bind/weight.h"
#include "linear/kernels.h"
#include "pool/pool.h"
#include "tile/config.h"

namespace lissome::bind {
namespace {

std::vector<std::tuple<std::string, bool, std::string>> level_list() {
  std::vector<std::tuple<std::string, bool, std::string>> found;
  for (const Level& level : levels()) found.emplace_back(level.name, level.usable, level.why);
  return found;
}

std::string in_use() {
  for (const Level& level : levels()) {
    if (level.isa == kernels().isa) return level.name;
  }
  return "";
}

void use_named(const std::string& name) {
  for (const Level& level : levels()) {
    if (level.name == name) return use(level.isa);
  }
  throw std::invalid_argument("no instruction set is called " + name);
}

std::uint64_t read_all(const In& array, int count) {
  const auto* data = static_cast<const std::byte*>(array.data());
  const std::int64_t blocks = static_cast<std::int64_t>(array.nbytes()) / kReadBlock;
  const nb::gil_scoped_release released;
  std::atomic<std::uint64_t> total{0};
  parallel_ranges(blocks, threads_or(count), [&](std::int64_t first, std::int64_t last) {
    total.fetch_add(kernels().read_blocks(data + first * kReadBlock, last - first), std::memory_order_relaxed);
  });
  return total.load();
}

nb::ndarray<nb::numpy, std::uint8_t, nb::ndim<1>> block(std::int64_t bytes) {
  if (bytes < 1 || bytes > kMostWeights) throw std::invalid_argument("a block has 1 to 2^40 bytes");
  Block<std::uint8_t> memory = allocate_block<std::uint8_t>(bytes);
  std::memset(memory.get(), 1, static_cast<std::size_t>(bytes));  // pages that were never written read as one
  return owning<std::uint8_t>(std::move(memory), bytes);
}

}  // namespace
}  // namespace lissome::bind

NB_MODULE(_native, module) {
  using namespace lissome;
  using namespace nanobind::literals;
  module.doc() = "Compiled kernels; lissome.ops.kernels is the way in.";
  module.def("levels", &bind::level_list, "(name, usable, why) of every instruction set, the slowest first.");
  module.def("isa", &bind::in_use, "The instruction set in use.");
  module.def("use", &bind::use_named, "name"_a, "Uses another one. ValueError when it is not usable here.");
  module.def("processors", &processors);
  module.def("threads", &threads);
  module.def("set_threads", &set_threads, "count"_a);
  module.def("checksum", &bind::read_all, "array"_a, "threads"_a = 0,
             "Sum of the 64-bit words of a contiguous array (whole 512 bytes): reads it once, and does nothing else.");
  module.def("block", &bind::block, "bytes"_a, "Ones in the kind of memory that packed weights lie in.");
  bind::add_weight(module);
  bind::add_nested(module);
  bind::add_engine(module);
}
