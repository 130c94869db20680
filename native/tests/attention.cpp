// Attention over frozen rows: the same bits as over rows with zeros in the place of what was left out, and no byte read
// beyond the 64 that kernels may read after the last frozen row.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "check.h"
#include "engine/frozen.h"
#include "engine/groups.h"
#include "engine/steps.h"

namespace lissome::testing {
namespace {

constexpr std::int64_t kAfter = 64;

// Keys or values of one head: `frozen` rows twice, without their zeros and with them.
struct Rows {
  FrozenRows form;
  Order order;
  std::int64_t count;
  std::vector<std::byte> frozen, thawed, dense;
  std::vector<std::vector<std::byte>> plain;  // as they are seen
  std::vector<float> scales;

  Rows(Random& random, KvType type, Order which, std::int64_t size, std::int64_t before, std::int64_t more, double zeros)
      : form(frozen_rows(type, size, round_up(size, 16), zeros)), order(which), count(before) {
    const std::int64_t whole = form.size * item_of(type), unit = grouped() ? kGroup : 1;
    frozen.resize(static_cast<std::size_t>(round_up(count, unit) * form.bytes() + kAfter));
    dense.resize(static_cast<std::size_t>(round_up(more, unit) * whole));
    thawed.resize(static_cast<std::size_t>(round_up(count + more, unit) * whole));
    for (std::vector<std::byte>* one : {&dense, &thawed}) {  // what no cell holds may be anything
      for (std::byte& byte : *one) byte = static_cast<std::byte>(random());
    }
    for (std::int64_t cell = 0; cell < count + more; ++cell) {
      std::vector<std::byte> row = drawn(random, type, size);
      if (cell < count) {
        const std::vector<std::byte> was = row;
        if (form.kept != 0) prune_row(form, row.data());
        check(was, row.data(), size);
      }
      put(thawed, cell, row);
      if (cell >= count) put(dense, cell - count, row);
      plain.push_back(std::move(row));
      scales.push_back(static_cast<float>(draw(random, 1, 50)) / 100);
    }
    for (std::int64_t cell = 0; cell < count; cell += unit) freeze(cell);
  }

  bool grouped() const { return form.type == KvType::int8; }

  void put(std::vector<std::byte>& to, std::int64_t place, const std::vector<std::byte>& row) const {
    const std::int64_t whole = form.size * item_of(form.type);
    if (!grouped()) {
      std::memcpy(to.data() + place * whole, row.data(), row.size());
      return;
    }
    std::byte* group = to.data() + place / kGroup * group_bytes(form.size);
    put_row(order, form.size, place % kGroup, row.data(), group);
    std::vector<std::byte> again(row.size());
    get_row(order, form.size, place % kGroup, group, again.data());
    CHECK(again == row);
  }

  void freeze(std::int64_t cell) {
    std::byte* to = frozen.data() + cell * form.bytes();
    if (!grouped()) {
      freeze_row(form, plain[static_cast<std::size_t>(cell)].data(), to);
      return;
    }
    std::vector<std::byte> group(static_cast<std::size_t>(group_bytes(form.size)),
                                 order == Order::keys ? std::byte{0x80} : std::byte{0});
    for (std::int64_t lane = 0; lane < std::min(kGroup, count - cell); ++lane) {
      put_row(order, form.size, lane, plain[static_cast<std::size_t>(cell + lane)].data(), group.data());
    }
    if (form.kept == 0) {
      std::memcpy(to, group.data(), group.size());
      return;
    }
    pack_group(order, form.size, group.data(), to);
    std::vector<std::byte> again(group.size());
    unpack_group(order, form.size, to, again.data());
    CHECK(again == group);
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

  double number(std::int64_t cell, std::int64_t k) const {
    const std::byte* at = plain[static_cast<std::size_t>(cell)].data() + k * item_of(form.type);
    if (form.type == KvType::f32) return load_as<float>(at);
    if (form.type == KvType::f16) return from_f16(load_as<std::uint16_t>(at));
    return static_cast<double>(load_as<std::int8_t>(at)) * scales[static_cast<std::size_t>(cell)];
  }

  HeldRows held(bool type_has_scales) const {
    return {frozen.data(), dense.data(), type_has_scales ? scales.data() : nullptr, form.bytes(), form.words()};
  }
};

// What attention is, in doubles.
void near(const Rows& keys, const Rows& values, const std::vector<Run>& runs, const std::vector<float>& q,
          const std::vector<float>& out, std::int64_t queries) {
  const std::int64_t size = keys.form.size;
  for (std::int64_t query = 0; query < queries; ++query) {
    std::vector<double> wanted(static_cast<std::size_t>(size)), scores;
    std::vector<std::int32_t> cells;
    for (const Run& run : runs) {
      for (std::int32_t cell = run.first; cell < run.last; ++cell) {
        double score = 0;
        for (std::int64_t k = 0; k < size; ++k) score += q[static_cast<std::size_t>(query * size + k)] * keys.number(cell, k);
        cells.push_back(cell), scores.push_back(0.3 * score);
      }
    }
    const double most = *std::max_element(scores.begin(), scores.end());
    double sum = 0, largest = 0;
    for (std::size_t i = 0; i < cells.size(); ++i) {
      const double share = std::exp(scores[i] - most);
      sum += share;
      for (std::int64_t k = 0; k < size; ++k) {
        const double number = values.number(cells[i], k);
        wanted[static_cast<std::size_t>(k)] += share * number, largest = std::max(largest, std::abs(number));
      }
    }
    // queries are rounded to 1/8128 of the largest of 64 numbers or more, and scores are some hundreds
    const double bound = keys.form.type == KvType::int8 ? 0.05 : 1e-3;
    for (std::int64_t k = 0; k < size; ++k) {
      const double found = out[static_cast<std::size_t>(query * size + k)];
      CHECK(std::abs(found - wanted[static_cast<std::size_t>(k)] / sum) <= bound * largest);
    }
  }
}

// Several tokens at once get what each gets alone.
void together(Attend job, std::vector<Run> runs, Random& random) {
  const std::int64_t all = job.cells, own = runs.back().last - runs.back().first;
  const std::int64_t stride = job.queries * job.size + 16 * draw(random, 0, 2);
  std::vector<float> q(static_cast<std::size_t>(kTogether * stride)), out(q.size()), alone(q.size());
  for (float& one : q) one = static_cast<float>(draw(random, -100, 100)) / 100;
  std::int64_t fewer = draw(random, 0, own - 1);
  for (std::int64_t& seen : job.seen) {
    seen = all - fewer;
    fewer -= std::min<std::int64_t>(fewer, draw(random, 0, 3));
  }
  job.seen[kTogether - 1] = all;
  std::vector<float> room(static_cast<std::size_t>(attend_room(kTogether, job.queries, all, job.size)));
  if (random() % 2) job.cap = 2;
  job.q = q.data(), job.out = out.data(), job.stride = stride, job.tokens = kTogether, job.room = room.data();
  kernels().steps->attend(job);
  for (std::int64_t t = 0; t < kTogether; ++t) {
    Attend one = job;
    one.q = q.data() + t * stride, one.out = alone.data() + t * stride, one.tokens = 1, one.cells = job.seen[t];
    std::vector<Run> own_runs = runs;
    own_runs.back().last -= static_cast<std::int32_t>(all - job.seen[t]);
    one.runs = own_runs.data();
    kernels().steps->attend(one);
  }
  CHECK(std::memcmp(out.data(), alone.data(), out.size() * sizeof(float)) == 0);
}

void same_bits(Random& random) {
  const KvType types[] = {KvType::f32, KvType::f16, KvType::int8};
  const KvType type = types[random() % 3];
  const std::int64_t size = draw(random, 1, 4) == 1 ? draw(random, 2, 300) : 16 * draw(random, 1, 8);
  const std::int64_t count = draw(random, 0, 150), more = draw(random, 1, 90), queries = draw(random, 1, 7);
  const auto share = [&] { return static_cast<double>(draw(random, 0, 10)) / 10.2; };
  const Rows keys(random, type, Order::keys, size, count, more, share());
  const Rows values(random, type, Order::values, size, count, more, share());
  const std::int64_t padded = keys.form.size, cells = count + more;
  std::vector<float> q(static_cast<std::size_t>(queries * padded)), room(static_cast<std::size_t>(attend_room(1, queries, cells, padded)));
  for (float& one : q) one = static_cast<float>(draw(random, -100, 100)) / 100;
  // Runs without some cells at the start, in the middle and at the end.
  std::vector<Run> runs;
  std::int64_t seen = 0;
  for (std::int64_t cell = draw(random, 0, 1) * draw(random, 0, cells / 2); cell < cells;) {
    const std::int64_t last = std::min(cells, cell + draw(random, 1, cells));
    runs.push_back({static_cast<std::int32_t>(cell), static_cast<std::int32_t>(last)});
    seen += last - cell, cell = last + draw(random, 0, 3);
  }
  std::vector<float> first;
  on_every_level([&](const Level&) {
    for (const bool frozen : {true, false}) {
      std::vector<float> out(q.size());
      Attend job;
      job.q = q.data(), job.out = out.data(), job.queries = queries, job.size = padded, job.scale = 0.3f;
      job.type = type, job.runs = runs.data(), job.run_count = std::ssize(runs), job.cells = seen, job.room = room.data();
      job.keys = keys.held(type == KvType::int8), job.values = values.held(type == KvType::int8);
      job.frozen = frozen ? count : 0;
      if (!frozen) job.keys.dense = keys.thawed.data(), job.values.dense = values.thawed.data();
      kernels().steps->attend(job);
      if (type != KvType::int8 && random() % 4 == 0) together(job, runs, random);
      if (first.empty()) first = out;
      CHECK(std::memcmp(out.data(), first.data(), out.size() * sizeof(float)) == 0);
    }
  });
  near(keys, values, runs, q, first, queries);
}

}  // namespace
}  // namespace lissome::testing

int main() {
  using namespace lissome::testing;
  Random random(7);
  for (int i = 0; i < 600; ++i) same_bits(random);
  return 0;
}
