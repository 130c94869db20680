// Damaged arrays are refused, or harmless: no damage makes a kernel read outside of them.
#include <stdexcept>

#include "check.h"

namespace lissome::testing {
namespace {

bool accepted(const Weight& weight, std::int64_t values) {
  try {
    check_sizes(weight);
    check_sparse(weight, values);
    return true;
  } catch (const std::invalid_argument&) {
    return false;
  }
}

void damage(Exact& weight, Random& random) {
  if (random() % 2) {
    weight.bitmap[random() % weight.bitmap.size()] ^= std::uint64_t{1} << (random() % 64);
  } else {
    const std::int64_t change[] = {1, -1, 1 << 20, -(std::int64_t{1} << 62), std::int64_t{1} << 62};
    std::int64_t& start = weight.starts[random() % weight.starts.size()];
    start = static_cast<std::int64_t>(static_cast<std::uint64_t>(start) +
                                      static_cast<std::uint64_t>(change[random() % 5]));
  }
}

}  // namespace
}  // namespace lissome::testing

int main(int count, char** arguments) {
  using namespace lissome;
  using namespace lissome::testing;
  Random random(2);
  const int cases = count > 1 ? std::atoi(arguments[1]) : 10000;
  int refused = 0;
  for (int i = 0; i < cases; ++i) {
    const std::int64_t n = draw(random, 1, 70), k = draw(random, 1, 70);
    const Packed packed = pack(source_of(matrix(random, n, k, 0.5), n, k),
                               random() % 2 ? Format::bf16 : Format::int8, true, 1);
    Exact weight(packed);
    const std::int64_t values = packed.view.starts[packed.view.panels()];
    for (std::int64_t j = draw(random, 1, 3); j > 0; --j) damage(weight, random);
    if (!accepted(weight.view, values)) {
      ++refused;
      continue;
    }
    std::vector<float> x(static_cast<std::size_t>(k), 1.0f), y(static_cast<std::size_t>(n));
    linear(weight.view,
           {Type::f32, reinterpret_cast<const std::byte*>(x.data()), 1, k, k}, nullptr,
           {Type::f32, reinterpret_cast<std::byte*>(y.data()), n}, 1);
  }
  CHECK(refused > cases / 2);
  for (const std::int64_t huge : {std::int64_t{0}, std::int64_t{-1}, std::int64_t{1} << 41, std::int64_t{1} << 62}) {
    Weight weight;
    weight.outputs = huge, weight.inputs = 64;
    CHECK(!accepted(weight, 0));
    weight.outputs = 64, weight.inputs = huge;
    CHECK(!accepted(weight, 0));
  }
  std::printf("%d of %d damaged weights refused\n", refused, cases);
  return 0;
}
