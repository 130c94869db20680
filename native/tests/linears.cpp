// Packing, unpacking and multiplying on every instruction set of this CPU, on random shapes.
#include <cmath>
#include <cstring>

#include "check.h"
#include "pool/pool.h"

namespace lissome::testing {
namespace {

struct Case {
  std::int64_t m, n, k;
  Format format;
  bool sparse;
};

template <class T>
Rows rows_of(const std::vector<T>& x, Type type, std::int64_t m, std::int64_t k) {
  return {.type = type, .data = reinterpret_cast<const std::byte*>(x.data()), .count = m, .width = k, .stride = k};
}

template <class T>
Output output_of(std::vector<T>& y, Type type, std::int64_t n) {
  return {.type = type, .data = reinterpret_cast<std::byte*>(y.data()), .stride = n};
}

void unpacks_to_itself(const Weight& weight, const std::vector<float>& w) {
  std::vector<std::byte> out(w.size() * static_cast<std::size_t>(item_of(weight.format)));
  unpack(weight, out.data(), 2);
  for (std::size_t i = 0; i < w.size(); ++i) {
    if (weight.format == Format::bf16) {
      CHECK(from_bf16(load_as<std::uint16_t>(&out[2 * i])) == w[i]);
    } else {
      const float scale = weight.scales[static_cast<std::int64_t>(i) / weight.inputs];
      CHECK(std::fabs(static_cast<float>(static_cast<std::int8_t>(out[i])) * scale - w[i]) <= 0.501f * scale);
    }
  }
}

// Floats against sums in double: one rounding per product, 2^-23 of the sum of absolute products each.
void multiplies_floats(const Weight& weight, const std::vector<float>& w, const Case& c, Random& random, Type type) {
  const std::vector<float> x = matrix(random, c.m, c.k, 0.1), bias = matrix(random, 1, c.n, 0);
  std::vector<std::uint16_t> halves(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) halves[i] = to_bf16(x[i]);
  const Rows rows = type == Type::f32 ? rows_of(x, type, c.m, c.k) : rows_of(halves, type, c.m, c.k);
  std::vector<float> y(static_cast<std::size_t>(c.m * c.n)), again(y.size());
  linear(weight, rows, bias.data(), output_of(y, Type::f32, c.n), 1);
  for (int threads : {2, 3, 7}) {
    linear(weight, rows, bias.data(), output_of(again, Type::f32, c.n), threads);
    CHECK(std::memcmp(y.data(), again.data(), y.size() * 4) == 0);
  }
  for (std::int64_t m = 0; m < c.m; ++m) {  // alone, a row gives the same bits
    linear(weight, {rows.type, rows.data + m * c.k * item_of(type), 1, c.k, c.k}, bias.data(),
           output_of(again, Type::f32, c.n), 1);
    CHECK(std::memcmp(&y[static_cast<std::size_t>(m * c.n)], again.data(), static_cast<std::size_t>(c.n) * 4) == 0);
    if (weight.format == Format::int8) continue;
    for (std::int64_t n = 0; n < c.n; ++n) {
      double sum = bias[static_cast<std::size_t>(n)], all = std::fabs(sum);
      for (std::int64_t k = 0; k < c.k; ++k) {
        const double product =
            double{x[static_cast<std::size_t>(m * c.k + k)]} * double{w[static_cast<std::size_t>(n * c.k + k)]};
        sum += product, all += std::fabs(product);
      }
      const double bound = std::ldexp(static_cast<double>(c.k + 2) * all, -23) + 1e-30;
      CHECK(std::fabs(y[static_cast<std::size_t>(m * c.n + n)] - sum) <= bound);
    }
  }
}

void multiplies_integers(const Weight& weight, const Case& c, Random& random) {
  std::vector<std::int8_t> x(static_cast<std::size_t>(c.m * c.k)), w(static_cast<std::size_t>(c.n * c.k));
  for (auto& value : x) value = static_cast<std::int8_t>(draw(random, -128, 127));
  unpack(weight, reinterpret_cast<std::byte*>(w.data()), 1);
  std::vector<std::int32_t> y(static_cast<std::size_t>(c.m * c.n));
  linear(weight, rows_of(x, Type::i8, c.m, c.k), nullptr, output_of(y, Type::i32, c.n), 2);
  for (std::int64_t m = 0; m < c.m; ++m) {
    for (std::int64_t n = 0; n < c.n; ++n) {
      std::int32_t sum = 0;
      for (std::int64_t k = 0; k < c.k; ++k) {
        sum += x[static_cast<std::size_t>(m * c.k + k)] * w[static_cast<std::size_t>(n * c.k + k)];
      }
      CHECK(y[static_cast<std::size_t>(m * c.n + n)] == sum);
    }
  }
}

void one(const Case& c, Random& random) {
  const double shares[] = {0, 0.3, 0.5, 0.8, 0.97, 1};
  const std::vector<float> w = matrix(random, c.n, c.k, shares[random() % 6]);
  const Packed packed = pack(source_of(w, c.n, c.k), c.format, c.sparse, 2);
  const Exact weight(packed);
  if (c.sparse) check_sparse(weight.view, weight.view.starts[weight.view.panels()]);
  unpacks_to_itself(weight.view, w);
  multiplies_floats(weight.view, w, c, random, Type::f32);
  multiplies_floats(weight.view, w, c, random, Type::bf16);
  if (c.format == Format::int8) multiplies_integers(weight.view, c, random);
}

}  // namespace
}  // namespace lissome::testing

int main(int count, char** arguments) {
  using namespace lissome;
  using namespace lissome::testing;
  Random random(1);
  const int cases = count > 1 ? std::atoi(arguments[1]) : 40;
  on_every_level([&](const Level& level) {
    for (int i = 0; i < cases; ++i) {
      const std::int64_t rows[] = {1, 2, 3, 5, 6, 7, 16, 17, 33, 200};
      const Case c{rows[random() % (i % 8 ? 9 : 10)], draw(random, 1, 100), draw(random, 1, i % 5 ? 150 : 700),
                   random() % 2 ? Format::bf16 : Format::int8, random() % 4 != 0};
      one(c, random);
    }
    std::printf("%s: %d cases\n", level.name, cases);
  });
  return 0;
}
