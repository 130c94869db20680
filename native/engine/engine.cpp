#include "engine/engine.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <string>

#include "base/numbers.h"
#include "linear/kernels.h"
#include "linear/linear.h"
#include "pool/pool.h"

namespace lissome {
namespace {

constexpr std::int64_t kHeadPad = 16;
constexpr std::int64_t kReadAhead = 64;  // bytes that kernels read after the last frozen row
constexpr std::int64_t kWorthSplitting = 1 << 15;  // numbers: below, waking threads takes longer
// Tokens that go through all layers together: what is computed of them fits the second cache better.
constexpr std::int64_t kAtOnce = 256;

const StepKernels& steps() { return *kernels().steps; }

// Whether who sees `more` sees all cells of `few` first.
bool begins(const std::vector<Run>& few, const std::vector<Run>& more) {
  if (few.empty() || few.size() != more.size()) return false;
  const auto same = [](const Run& a, const Run& b) { return a.first == b.first && a.last == b.last; };
  return std::equal(few.begin(), few.end() - 1, more.begin(), same) && few.back().first == more.back().first &&
         few.back().last <= more.back().last;
}

struct Tokens {
  std::int64_t row, count;
};

}  // namespace

struct Engine::Work {
  const Batch* batch = nullptr;
  std::vector<std::int32_t> cells;
  std::vector<std::vector<Run>> runs;          // of [window][token]
  std::vector<std::int64_t> run_cells;         // likewise
  std::vector<std::vector<Tokens>> together;   // by window: that attend at once
  std::vector<Vector> cosines, sines;          // by rope: [token][pair]
  std::int64_t first = 0, rows = 0;  // that go through the layers now
  float* hidden = nullptr;           // of the first of them
  int threads = 1;

  std::size_t token(std::int64_t row) const { return static_cast<std::size_t>(first + row); }
  std::size_t at(std::size_t window, std::int64_t row) const {
    return window * static_cast<std::size_t>(batch->count) + token(row);
  }
};

Engine::Engine(Decoder model, const Settings& settings)
    : model_(std::move(model)),
      settings_(settings),
      cells_(settings.freezes() ? std::max<std::int64_t>(settings.dense, 1) : std::max<std::int64_t>(settings.cells, 1),
             settings.freezes() ? std::max<std::int64_t>(settings.cells, 1) : 0) {
  const auto known = [](std::int64_t cells) { return cells >= 1 && cells <= (std::int64_t{1} << 24); };
  if (!known(settings.cells) || (settings.freezes() && !known(settings.dense))) {
    throw std::invalid_argument("a cache has 1 to 2^24 cells, got " + std::to_string(settings.cells));
  }
  for (const double zeros : {settings.key_zeros, settings.value_zeros}) {
    if (!(zeros >= 0 && zeros < 1)) throw std::invalid_argument("a share of zeros is 0 to below 1");
  }
  check_decoder(model_);
  for (const Layer& layer : model_.layers) {
    Cache& cache = caches_.emplace_back();
    if (!layer.attention) continue;
    const Attention& part = *layer.attention;
    cache.size = round_up(part.size, kHeadPad), cache.heads = part.kv_heads;
    cache.values.order = Order::values;
    allocate(cache.keys, part, settings.key_zeros);
    allocate(cache.values, part, settings.value_zeros);
    if (std::find(windows_.begin(), windows_.end(), part.window) == windows_.end()) windows_.push_back(part.window);
  }
}

void Engine::allocate(Side& side, const Attention& part, double zeros) {
  const std::int64_t padded = round_up(part.size, kHeadPad), whole = padded * item_of(settings_.kv);
  const std::int64_t scale = settings_.kv == KvType::int8 ? 4 : 0;
  const std::int64_t unit = grouped() ? kGroup : 1, dense = cells_.count() - cells_.frozen();
  side.rows = frozen_rows(settings_.kv, part.size, padded, zeros);
  side.dense = allocate_block<std::byte>(part.kv_heads * round_up(dense, unit) * whole);
  if (scale) side.scales = allocate_block<float>(part.kv_heads * cells_.count());
  if (settings_.freezes()) {
    const std::int64_t bytes = part.kv_heads * round_up(settings_.cells, unit) * side.rows.bytes();
    side.frozen = allocate_block<std::byte>(bytes + kReadAhead);
    for (std::int64_t at = 0; grouped() && side.rows.words() != 0 && at < bytes; at += kGroup * side.rows.bytes()) {
      std::memset(side.frozen.get() + at, 0, static_cast<std::size_t>(8 * group_pieces(padded)));  // no number anywhere
    }
    dense_bytes_ += part.kv_heads * dense * (whole + scale);
  }
  cell_bytes_ += part.kv_heads * ((settings_.freezes() ? side.rows.bytes() : whole) + scale);
}

bool Engine::reads(int precision) const {
  const auto has = [&](const auto& weight) { return weight.has(precision); };
  return (!model_.embedding || has(*model_.embedding)) && (!model_.head || has(model_.head->weight)) &&
         std::all_of(model_.layers.begin(), model_.layers.end(), [&](const Layer& layer) {
           return (!layer.attention || (has(layer.attention->qkv) && has(layer.attention->out))) &&
                  (!layer.mlp || (has(layer.mlp->gate_up) && has(layer.mlp->down)));
         });
}

std::int64_t Engine::weight_bytes(int precision) const {
  std::int64_t bytes = model_.head ? model_.head->weight.bytes(precision) : 0;
  for (const Layer& layer : model_.layers) {
    if (layer.attention) bytes += layer.attention->qkv.bytes(precision) + layer.attention->out.bytes(precision);
    if (layer.mlp) bytes += layer.mlp->gate_up.bytes(precision) + layer.mlp->down.bytes(precision);
  }
  return bytes;
}

std::int64_t Engine::head_size(std::int64_t layer) const {
  const auto& part = model_.layers.at(static_cast<std::size_t>(layer)).attention;
  return part ? part->size : 0;
}

std::int64_t Engine::mean_cache(std::int64_t layer, int sequence, float* keys, float* values) {
  const std::int64_t size = head_size(layer);
  if (size == 0) return 0;
  const Cache& cache = caches_[static_cast<std::size_t>(layer)];
  std::vector<Run> runs;
  cells_.visible(Sequences{1} << sequence, INT32_MAX, 0, runs);
  Vector row(static_cast<std::size_t>(cache.size));
  const auto mean = [&](const Side& side, std::int64_t cell, float* to) {
    std::fill(to, to + size, 0.0f);
    for (std::int64_t head = 0; head < cache.heads; ++head) {
      read(side, head, cell, row.data());
      for (std::int64_t k = 0; k < size; ++k) to[k] += row[static_cast<std::size_t>(k)];
    }
    for (std::int64_t k = 0; k < size; ++k) to[k] /= static_cast<float>(cache.heads);
  };
  std::int64_t count = 0;
  for (const Run& run : runs) {
    for (std::int64_t cell = run.first; cell < run.last; ++cell, ++count) {
      if (!keys || !values) continue;
      mean(cache.keys, cell, keys + count * size);
      mean(cache.values, cell, values + count * size);
    }
  }
  return count;
}

std::byte* Engine::row_of(const Side& side, std::int64_t head, std::int64_t cell) const {
  const std::int64_t frozen = cells_.frozen(), unit = grouped() ? kGroup : 1;
  const bool in_frozen = cell < frozen;
  const std::int64_t region = in_frozen ? frozen : cells_.count() - frozen, index = in_frozen ? cell : cell - frozen;
  const std::int64_t bytes = in_frozen ? side.rows.bytes() : side.rows.size * item_of(settings_.kv);
  return (in_frozen ? side.frozen : side.dense).get() + (head * round_up(region, unit) + index / unit * unit) * bytes;
}

HeldRows Engine::held(const Side& side, std::int64_t head) const {
  const std::byte* frozen = settings_.freezes() ? row_of(side, head, 0) : nullptr;
  const float* scales = settings_.kv == KvType::int8 ? side.scales.get() + head * cells_.count() : nullptr;
  return {frozen, row_of(side, head, cells_.frozen()), scales, side.rows.bytes(), side.rows.words()};
}

void Engine::read(const Side& side, std::int64_t head, std::int64_t cell, float* to) const {
  std::byte whole[4 * 4096];
  const std::byte* row = row_of(side, head, cell);
  if (grouped()) {
    std::vector<std::byte> group(static_cast<std::size_t>(group_bytes(side.rows.size)));
    const bool packed = cell < cells_.frozen() && side.rows.words() != 0;
    if (packed) unpack_group(side.order, side.rows.size, row, group.data());
    get_row(side.order, side.rows.size, lane_of(cell), packed ? group.data() : row, whole);
    row = whole;
  } else if (cell < cells_.frozen()) {
    thaw_row(side.rows, row, whole);
    row = whole;
  }
  const float scale = settings_.kv == KvType::int8 ? side.scales[head * cells_.count() + cell] : 1.0f;
  for (std::int64_t k = 0; k < side.rows.size; ++k) {
    switch (settings_.kv) {
      case KvType::f32: to[k] = load_as<float>(row + 4 * k); break;
      case KvType::f16: to[k] = from_f16(load_as<std::uint16_t>(row + 2 * k)); break;
      case KvType::int8: to[k] = scale * static_cast<float>(load_as<std::int8_t>(row + k)); break;
    }
  }
}

void Engine::check(const Batch& batch, const std::vector<std::int64_t>& wanted) const {
  if (batch.count < 1) throw std::invalid_argument("a batch has at least one token");
  if (!reads(batch.precision)) {
    throw std::invalid_argument("these weights are not read at " + std::to_string(batch.precision) + " bits");
  }
  if ((batch.tokens != nullptr) != model_.embedding.has_value() || (batch.hidden != nullptr) == (batch.tokens != nullptr)) {
    throw std::invalid_argument("a range that begins with the embedding takes tokens, another one hidden states");
  }
  for (std::int64_t i = 0; i < batch.count; ++i) {
    if (batch.tokens && (batch.tokens[i] < 0 || batch.tokens[i] >= model_.embedding->outputs)) {
      throw std::invalid_argument("token " + std::to_string(batch.tokens[i]) + " is not in the vocabulary");
    }
    if (batch.positions[i] < 0) throw std::invalid_argument("positions cannot be negative");
    if (batch.sequences[i] == 0) throw std::invalid_argument("every token belongs to a sequence");
  }
  if (settings_.freezes()) check_blocks(batch);
  for (const std::int64_t row : wanted) {
    if (row < 0 || row >= batch.count) throw std::invalid_argument("a result is wanted of a token that is not there");
  }
}

void Engine::check_blocks(const Batch& batch) const {
  std::int32_t blocks[kMostSequences];
  std::fill(blocks, blocks + kMostSequences, -1);
  for (std::int64_t i = 0; i < batch.count; ++i) {
    const auto block = static_cast<std::int32_t>(batch.positions[i] / kFrozenBlock);
    for (int sequence = 0; sequence < kMostSequences; ++sequence) {
      if (((batch.sequences[i] >> sequence) & 1) == 0) continue;
      if (blocks[sequence] >= 0 && blocks[sequence] != block) {
        throw std::invalid_argument("tokens of a sequence are in several blocks of " + std::to_string(kFrozenBlock) +
                                    " positions; run one after the other");
      }
      blocks[sequence] = block;
    }
    const auto start = static_cast<std::int32_t>(block * kFrozenBlock);
    if (cells_.frozen_from(batch.sequences[i], start)) {
      throw std::invalid_argument("positions from " + std::to_string(start) +
                                  " on are frozen; remove them and run them again");
    }
  }
}

// Freezes what lies in blocks before those of the batch; whether all its tokens have a cell then.
bool Engine::make_room(const Batch& batch) {
  if (!settings_.freezes()) return cells_.count() - cells_.used() >= batch.count;
  if (cells_.used() + batch.count > settings_.cells) return false;
  std::vector<std::int32_t> old;
  for (std::int64_t i = 0; i < batch.count; ++i) {
    const auto start = static_cast<std::int32_t>(batch.positions[i] / kFrozenBlock * kFrozenBlock);
    const auto found = cells_.before(batch.sequences[i], start);
    old.insert(old.end(), found.begin(), found.end());
  }
  std::sort(old.begin(), old.end());
  old.erase(std::unique(old.begin(), old.end()), old.end());
  freeze(old, cells_.take_frozen(std::ssize(old)));
  return !cells_.take(batch.count).empty();
}

void Engine::freeze(const std::vector<std::int32_t>& from, const std::vector<std::int32_t>& to) {
  if (from.empty()) return;
  const auto sides = [&](const Cache& cache, auto&& each) { each(cache.keys), each(cache.values); };
  parallel_ranges(std::ssize(caches_), settings_.threads, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t layer = first; layer < last; ++layer) {
      const Cache& cache = caches_[static_cast<std::size_t>(layer)];
      sides(cache, [&](const Side& side) {
        for (std::int64_t head = 0; head < cache.heads; ++head) {
          freeze(side, head, from, to);
        }
      });
    }
  });
  for (std::size_t i = 0; i < from.size(); ++i) cells_.move(from[i], to[i]);
}

void Engine::freeze(const Side& side, std::int64_t head, const std::vector<std::int32_t>& from,
                    const std::vector<std::int32_t>& to) const {
  if (!grouped()) {
    for (std::size_t i = 0; i < from.size(); ++i) {
      freeze_row(side.rows, row_of(side, head, from[i]), row_of(side, head, to[i]));
    }
    return;
  }
  float* scales = side.scales.get() + head * cells_.count();
  const std::int64_t size = side.rows.size;
  const bool packs = side.rows.words() != 0;
  std::vector<std::byte> row(static_cast<std::size_t>(size)), whole(static_cast<std::size_t>(group_bytes(size)));
  for (std::size_t i = 0; i < from.size();) {  // a group is written once for all of its cells
    std::byte* group = row_of(side, head, to[i]);
    std::byte* open = packs ? whole.data() : group;
    if (packs) unpack_group(side.order, size, group, open);
    for (const std::int32_t own = to[i] / kGroup; i < from.size() && to[i] / kGroup == own; ++i) {
      get_row(side.order, size, lane_of(from[i]), row_of(side, head, from[i]), row.data());
      if (packs) prune_row(side.rows, row.data());
      put_row(side.order, size, lane_of(to[i]), row.data(), open);
      scales[to[i]] = scales[from[i]];
    }
    if (packs) pack_group(side.order, size, open, group);
  }
}

Outcome Engine::forward(const Batch& batch, const std::vector<std::int64_t>& wanted, float* to) {
  check(batch, wanted);
  Work work;
  work.batch = &batch, work.rows = batch.count, work.threads = settings_.threads;
  if (!make_room(batch)) return Outcome::full;
  work.cells = cells_.take(batch.count);
  for (std::int64_t row = 0; row < work.rows; ++row) {
    cells_.set(work.cells[static_cast<std::size_t>(row)], batch.positions[row], batch.sequences[row]);
  }
  work.runs.resize(windows_.size() * static_cast<std::size_t>(work.rows));
  work.run_cells.resize(work.runs.size());
  for (std::size_t window = 0; window < windows_.size(); ++window) {
    for (std::int64_t row = 0; row < work.rows; ++row) {
      auto& runs = work.runs[work.at(window, row)];
      cells_.visible(batch.sequences[row], batch.positions[row], windows_[window], runs);
      for (const Run& run : runs) work.run_cells[work.at(window, row)] += run.last - run.first;
    }
  }
  for (const Rope& rope : model_.ropes) {
    Vector& cosines = work.cosines.emplace_back();
    Vector& sines = work.sines.emplace_back();
    for (std::int64_t row = 0; row < work.rows; ++row) {
      for (const float frequency : rope.frequencies) {
        const float angle = static_cast<float>(batch.positions[row]) * frequency;
        cosines.push_back(std::cos(angle) * rope.scale);
        sines.push_back(std::sin(angle) * rope.scale);
      }
    }
  }
  float* hidden = work.hidden = hidden_.at_least<float>(batch.count * model_.hidden);
  embed(work);
  // Tokens in any other order may see later ones of their batch.
  const auto* positions = batch.positions;
  const auto* end = positions + batch.count;
  const bool in_order = std::adjacent_find(positions, end, std::greater_equal<>()) == end;
  const std::int64_t at_once = in_order ? kAtOnce : batch.count;
  for (; work.first < batch.count; work.first += at_once) {
    work.rows = std::min(at_once, batch.count - work.first);
    work.hidden = hidden + work.first * model_.hidden;
    if (layers(work)) continue;
    for (const std::int32_t cell : work.cells) cells_.free(cell);
    return Outcome::cancelled;
  }
  result(work, hidden, wanted, to);
  return Outcome::done;
}

// Whether nobody cancelled it.
bool Engine::layers(Work& work) {
  work.together.clear();
  for (std::size_t window = 0; window < windows_.size(); ++window) gather(work, window);
  for (std::size_t index = 0; index < model_.layers.size(); ++index) {
    if (cancelled_.exchange(false, std::memory_order_relaxed)) return false;
    if (model_.layers[index].attention) attention(work, *model_.layers[index].attention, caches_[index]);
    if (model_.layers[index].mlp) mlp(work, *model_.layers[index].mlp);
  }
  return true;
}

// Keys and values are read once for kTogether tokens of a prompt, which see the same cells but for their own.
void Engine::gather(Work& work, std::size_t window) const {
  auto& found = work.together.emplace_back();
  for (std::int64_t row = 0; row < work.rows; row += found.back().count) {
    bool all = row + kTogether <= work.rows && settings_.kv != KvType::int8;
    for (std::int64_t i = 1; all && i < kTogether; ++i) {
      all = begins(work.runs[work.at(window, row + i - 1)], work.runs[work.at(window, row + i)]);
    }
    found.push_back({row, all ? kTogether : 1});
  }
}

void Engine::embed(Work& work) const {
  const std::int64_t count = model_.hidden;
  if (!model_.embedding) {
    std::memcpy(work.hidden, work.batch->hidden, static_cast<std::size_t>(work.rows * count) * sizeof(float));
    return;
  }
  parallel_ranges(work.rows, work.rows < 8 ? 1 : work.threads, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t row = first; row < last; ++row) {
      float* to = work.hidden + row * count;
      nested_row(*model_.embedding, work.batch->precision, work.batch->tokens[row], to);
      if (model_.embedding_scale != 1.0f) {
        for (std::int64_t k = 0; k < count; ++k) to[k] *= model_.embedding_scale;
      }
    }
  });
}

void Engine::normed(Work& work, const Vector& norm, const float* x, std::int64_t rows, float* to) {
  const std::int64_t count = model_.hidden;
  parallel_ranges(rows, rows * count < kWorthSplitting ? 1 : work.threads, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t row = first; row < last; ++row) {
      steps().norm(x + row * count, norm.data(), model_.eps, count, to + row * count);
    }
  });
}

void Engine::multiply(Work& work, const Matrix& weight, const float* x, std::int64_t rows, const Vector& bias, float* y,
                      bool add) {
  const float* added = bias.empty() ? nullptr : bias.data();
  if (const Nested* nested = weight.nested()) {
    const Activations mode = settings_.activations;
    const Encoded encoded = encode_rows({x, rows, nested->inputs}, nested->inputs, nested->group, mode, work.threads);
    run_nested_job({nested, work.batch->precision, encoded, added, y, nested->outputs, add}, mode, work.threads);
    return;
  }
  const Weight& packed = *weight.packed();
  float* to = add ? added_.at_least<float>(rows * packed.outputs) : y;
  linear(packed, {Type::f32, reinterpret_cast<const std::byte*>(x), rows, packed.inputs, packed.inputs}, added,
         {Type::f32, reinterpret_cast<std::byte*>(to), packed.outputs}, work.threads);
  if (add) steps().add(to, rows * packed.outputs, y);
}

// Adds what a sub-block gave to the hidden states, after a norm of its own.
void Engine::add_result(Work& work, const Vector& post_norm, float* result) {
  const std::int64_t count = model_.hidden;
  normed(work, post_norm, result, work.rows, result);
  steps().add(result, work.rows * count, work.hidden);
}

void Engine::attention(Work& work, const Attention& part, Cache& cache) {
  const std::int64_t padded = part.heads * cache.size, wide = (part.heads + 2 * part.kv_heads) * part.size;
  float* normal = normed_.at_least<float>(work.rows * model_.hidden);
  float* qkv = wide_.at_least<float>(work.rows * (wide + padded));
  float* queries = qkv + work.rows * wide;
  float* mixed = mixed_.at_least<float>(work.rows * padded);
  normed(work, part.norm, work.hidden, work.rows, normal);
  multiply(work, part.qkv, normal, work.rows, part.qkv_bias, qkv, false);
  const bool few = work.rows * wide < kWorthSplitting;
  parallel_ranges(work.rows, few ? 1 : work.threads, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t row = first; row < last; ++row) {
      heads(work, part, cache, qkv, row);
      for (std::int64_t head = 0; head < part.heads; ++head) {
        float* to = queries + row * padded + head * cache.size;
        std::memcpy(to, qkv + row * wide + head * part.size, static_cast<std::size_t>(part.size) * sizeof(float));
        std::fill(to + part.size, to + cache.size, 0.0f);
      }
    }
  });
  std::int64_t seen = 0;
  const auto window = static_cast<std::size_t>(std::find(windows_.begin(), windows_.end(), part.window) - windows_.begin());
  for (std::int64_t row = 0; row < work.rows; ++row) seen += work.run_cells[work.at(window, row)];
  const bool light = seen * padded < 4 * kWorthSplitting;
  const std::vector<Tokens>& together = work.together[window];
  parallel_ranges(std::ssize(together) * part.kv_heads, light ? 1 : work.threads, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t unit = first; unit < last; ++unit) {
      const auto& [row, count] = together[static_cast<std::size_t>(unit / part.kv_heads)];
      attend(work, part, cache, queries + row * padded, window, row, count, unit % part.kv_heads, mixed + row * padded);
    }
  });
  if (cache.size != part.size) {  // heads side by side again
    for (std::int64_t head = 0; head < work.rows * part.heads; ++head) {
      std::memmove(mixed + head * part.size, mixed + head * cache.size, static_cast<std::size_t>(part.size) * sizeof(float));
    }
  }
  const bool add = part.post_norm.empty();
  multiply(work, part.out, mixed, work.rows, part.out_bias, add ? work.hidden : normal, add);
  if (!add) add_result(work, part.post_norm, normal);
}

// Norms and turns the heads of one token, and puts its keys and values into the cache.
void Engine::heads(Work& work, const Attention& part, Cache& cache, float* qkv, std::int64_t row) const {
  const auto rope = static_cast<std::size_t>(part.rope);
  const auto half = static_cast<std::int64_t>(model_.ropes[rope].frequencies.size());
  const std::int64_t angles = (work.first + row) * half;
  const float *cosines = work.cosines[rope].data() + angles, *sines = work.sines[rope].data() + angles;
  float* head = qkv + row * (part.heads + 2 * part.kv_heads) * part.size;
  for (std::int64_t index = 0; index < part.heads + part.kv_heads; ++index) {
    const Vector& norm = index < part.heads ? part.query_norm : part.key_norm;
    float* at = head + index * part.size;
    if (!norm.empty()) steps().norm(at, norm.data(), model_.eps, part.size, at);
    steps().rotate(at, cosines, sines, half);
  }
  const std::int64_t cell = work.cells[work.token(row)];
  float padded[4096];
  std::fill(padded + part.size, padded + cache.size, 0.0f);
  for (std::int64_t index = 0; index < 2 * part.kv_heads; ++index) {
    Side& side = index < part.kv_heads ? cache.keys : cache.values;
    const std::int64_t kv_head = index % part.kv_heads;
    std::memcpy(padded, head + (part.heads + index) * part.size, static_cast<std::size_t>(part.size) * sizeof(float));
    std::byte* to = row_of(side, kv_head, cell);
    if (!grouped()) {
      steps().keep(padded, cache.size, settings_.kv, to);
      continue;
    }
    std::byte integers[4096];
    side.scales[kv_head * cells_.count() + cell] = steps().keep(padded, cache.size, settings_.kv, integers);
    put_row(side.order, cache.size, lane_of(cell), integers, to);
  }
}

void Engine::attend(Work& work, const Attention& part, const Cache& cache, const float* q, std::size_t window,
                    std::int64_t row, std::int64_t count, std::int64_t head, float* out) const {
  static thread_local Scratch room;
  const std::size_t at = work.at(window, row + count - 1);
  const std::int64_t queries = part.heads / part.kv_heads;
  Attend job;
  job.q = q + head * queries * cache.size, job.out = out + head * queries * cache.size;
  job.queries = queries, job.size = cache.size, job.scale = part.scale, job.cap = part.cap;
  job.type = settings_.kv, job.frozen = cells_.frozen();
  job.keys = held(cache.keys, head), job.values = held(cache.values, head);
  job.runs = work.runs[at].data(), job.run_count = static_cast<std::int64_t>(work.runs[at].size());
  job.cells = work.run_cells[at];
  job.tokens = count, job.stride = part.heads * cache.size;
  for (std::int64_t t = 0; t < count; ++t) job.seen[t] = work.run_cells[work.at(window, row + t)];
  job.room = room.at_least<float>(attend_room(count, queries, job.cells, cache.size));
  steps().attend(job);
}

void Engine::mlp(Work& work, const Mlp& part) {
  float* normal = normed_.at_least<float>(work.rows * model_.hidden);
  float* wide = wide_.at_least<float>(work.rows * 2 * part.width);
  float* gated = gated_.at_least<float>(work.rows * part.width);
  normed(work, part.norm, work.hidden, work.rows, normal);
  multiply(work, part.gate_up, normal, work.rows, part.gate_up_bias, wide, false);
  const bool few = work.rows * part.width < kWorthSplitting;
  parallel_ranges(work.rows, few ? 1 : work.threads, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t row = first; row < last; ++row) {
      steps().gated(wide + row * 2 * part.width, part.gate, part.width, gated + row * part.width);
    }
  });
  const bool add = part.post_norm.empty();
  multiply(work, part.down, gated, work.rows, part.down_bias, add ? work.hidden : normal, add);
  if (!add) add_result(work, part.post_norm, normal);
}

void Engine::result(Work& work, const float* hidden, const std::vector<std::int64_t>& wanted, float* to) {
  const std::int64_t count = model_.hidden, rows = static_cast<std::int64_t>(wanted.size());
  if (rows == 0) return;
  float* kept = wide_.at_least<float>(rows * count);
  for (std::int64_t row = 0; row < rows; ++row) {
    std::memcpy(kept + row * count, hidden + wanted[static_cast<std::size_t>(row)] * count,
                static_cast<std::size_t>(count) * sizeof(float));
  }
  if (!model_.head) {
    std::memcpy(to, kept, static_cast<std::size_t>(rows * count) * sizeof(float));
    return;
  }
  float* normal = normed_.at_least<float>(rows * count);
  normed(work, model_.head->norm, kept, rows, normal);
  multiply(work, model_.head->weight, normal, rows, {}, to, false);
  if (model_.head->cap != 0) steps().soft_cap(to, model_.head->cap, rows * outputs());
}

}  // namespace lissome
