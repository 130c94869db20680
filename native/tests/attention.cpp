// Attention over frozen rows: the same bits as over rows with zeros in the place of what was left out, and no byte read
// beyond the 64 that kernels may read after the last frozen row.
#include <algorithm>
#include <cstring>

#include "check.h"
#include "engine/frozen.h"
#include "engine/steps.h"

namespace lissome::testing {
namespace {

constexpr std::int64_t kAfter = 64;

// Keys or values of one head: `frozen` rows twice, without their zeros and with them.
struct Rows {
  FrozenRows form;
  std::vector<std::byte> frozen, thawed, dense;
  std::vector<float> scales;

  Rows(Random& random, KvType type, std::int64_t size, std::int64_t count, std::int64_t more, double zeros)
      : form(frozen_rows(type, size, round_up(size, 16), zeros)) {
    const std::int64_t whole = form.size * item_of(type);
    frozen.resize(static_cast<std::size_t>(count * form.bytes() + kAfter));
    dense.resize(static_cast<std::size_t>(more * whole));
    thawed.resize(static_cast<std::size_t>((count + more) * whole));
    for (std::int64_t cell = 0; cell < count + more; ++cell) {
      const std::vector<std::byte> row = drawn(random, type, size);
      std::byte* to = thawed.data() + cell * whole;
      if (cell < count) {
        freeze_row(form, row.data(), frozen.data() + cell * form.bytes());
        thaw_row(form, frozen.data() + cell * form.bytes(), to);
        check(row, to, size);
      } else {
        std::memcpy(to, row.data(), row.size());
        std::memcpy(dense.data() + (cell - count) * whole, row.data(), row.size());
      }
      scales.push_back(static_cast<float>(draw(random, 1, 50)) / 100);
    }
  }

  // Many equal magnitudes, both signs of zero.
  std::vector<std::byte> drawn(Random& random, KvType type, std::int64_t size) const {
    std::vector<std::byte> row(static_cast<std::size_t>(form.size * item_of(type)));
    for (std::int64_t k = 0; k < size; ++k) {
      const auto number = static_cast<float>(draw(random, -9, 9));
      const std::uint16_t half = to_f16(number / 8);
      const auto whole = static_cast<std::int8_t>(random() % 2 ? number : random() % 255 - 127.0);
      const void* from = type == KvType::f32 ? static_cast<const void*>(&number)
                         : type == KvType::f16 ? static_cast<const void*>(&half) : &whole;
      std::memcpy(row.data() + k * item_of(type), from, static_cast<std::size_t>(item_of(type)));
    }
    return row;
  }

  // What is left is as it was, as many as there shall be, and nothing that was left out is larger.
  void check(const std::vector<std::byte>& row, const std::byte* thawed_row, std::int64_t size) const {
    const std::int64_t item = item_of(form.type);
    const auto number = [&](const std::byte* at) {
      if (form.type == KvType::f32) return std::abs(load_as<float>(at));
      if (form.type == KvType::f16) return std::abs(from_f16(load_as<std::uint16_t>(at)));
      return std::abs(static_cast<float>(load_as<std::int8_t>(at)));
    };
    float least = 1e9f, out = 0;
    std::int64_t left = 0;
    for (std::int64_t k = 0; k < size; ++k) {
      const std::byte *was = row.data() + k * item, *is = thawed_row + k * item;
      if (std::memcmp(was, is, static_cast<std::size_t>(item)) == 0 && number(was) != 0) {
        least = std::min(least, number(was)), ++left;
      } else {
        CHECK(number(is) == 0);
        out = std::max(out, number(was));
      }
    }
    CHECK(out <= least);
    if (form.kept != 0) CHECK(left <= form.kept && (out == 0 || left == form.kept));
  }

  HeldRows held(bool type_has_scales) const {
    return {frozen.data(), dense.data(), type_has_scales ? scales.data() : nullptr, form.bytes(), form.words()};
  }
};

void same_bits(Random& random) {
  const KvType types[] = {KvType::f32, KvType::f16, KvType::int8};
  const KvType type = types[random() % 3];
  const std::int64_t size = draw(random, 1, 4) == 1 ? draw(random, 2, 300) : 16 * draw(random, 1, 8);
  const std::int64_t count = draw(random, 0, 40), more = draw(random, 1, 30), queries = draw(random, 1, 6);
  const auto share = [&] { return static_cast<double>(draw(random, 0, 10)) / 10.2; };
  const Rows keys(random, type, size, count, more, share()), values(random, type, size, count, more, share());
  const std::int64_t padded = keys.form.size, cells = count + more;
  std::vector<float> q(static_cast<std::size_t>(queries * padded)), scores(static_cast<std::size_t>(queries * round_up(cells, 16)));
  for (float& one : q) one = static_cast<float>(draw(random, -100, 100)) / 100;
  const Run runs[] = {{0, static_cast<std::int32_t>(cells / 2)},
                      {static_cast<std::int32_t>(cells / 2), static_cast<std::int32_t>(cells)}};
  std::vector<float> first;
  on_every_level([&](const Level&) {
    for (const bool frozen : {true, false}) {
      std::vector<float> out(q.size());
      Attend job;
      job.q = q.data(), job.out = out.data(), job.queries = queries, job.size = padded, job.scale = 0.3f;
      job.type = type, job.runs = runs, job.run_count = 2, job.cells = cells, job.scores = scores.data();
      job.keys = keys.held(type == KvType::int8), job.values = values.held(type == KvType::int8);
      job.frozen = frozen ? count : 0;
      if (!frozen) job.keys.dense = keys.thawed.data(), job.values.dense = values.thawed.data();
      kernels().steps->attend(job);
      if (first.empty()) first = out;
      CHECK(std::memcmp(out.data(), first.data(), out.size() * sizeof(float)) == 0);
    }
  });
}

}  // namespace
}  // namespace lissome::testing

int main() {
  using namespace lissome::testing;
  Random random(7);
  for (int i = 0; i < 600; ++i) same_bits(random);
  return 0;
}
