// Nested weights and the engine: every array of exact length, sizes and lengths damaged at random. Damage is refused, or
// harmless: no damage makes a kernel read outside of an array.
#include <algorithm>
#include <memory>
#include <stdexcept>

#include "check.h"
#include "engine/engine.h"

namespace lissome::testing {
namespace {

// A weight of random codes in arrays of their own.
struct Arrays {
  std::int64_t outputs, inputs, group;
  std::vector<std::vector<std::byte>> segments;
  std::vector<std::vector<std::uint16_t>> scales;
  std::vector<int> precisions, planes;
  std::vector<std::vector<std::uint8_t>> levels;  // of each precision, empty where codes are even; or of none

  Arrays(Random& random, std::int64_t n, std::int64_t k, std::int64_t g) : outputs(n), inputs(k), group(g) {
    const std::int64_t lines = ceil_div(n, kNestedPanel) * round_up(k, g) / kBlockInputs;
    const std::int64_t count = ceil_div(n, kNestedPanel) * ceil_div(k, g) * 2 * kNestedPanel;
    int bits = 0;
    for (int segment = 0; segment < 3 && bits < 6; ++segment) {
      const auto more = static_cast<int>(draw(random, 1, 3));
      auto& bytes = segments.emplace_back(static_cast<std::size_t>(lines * kLine * more));
      for (auto& byte : bytes) byte = static_cast<std::byte>(random());
      auto& halves = scales.emplace_back(static_cast<std::size_t>(count));
      for (auto& half : halves) half = to_f16(static_cast<float>(draw(random, -100, 100)) / 4096);
      bits += more, precisions.push_back(bits), planes.push_back(bits);
    }
    for (const int count : planes) {
      if (bits > kMostTableBits || outputs % 2) break;
      auto& table = levels.emplace_back(std::size_t{1} << count);
      for (auto& level : table) level = static_cast<std::uint8_t>(random());
      std::sort(table.begin(), table.end());
    }
  }

  Nested view() const {
    std::vector<SegmentBytes> bytes;
    for (const auto& segment : segments) bytes.push_back({segment.data(), static_cast<std::int64_t>(segment.size())});
    std::vector<ScaleHalves> halves;
    for (std::size_t i = 0; i < scales.size(); ++i) {
      halves.push_back({precisions[i], planes[i], scales[i].data(), static_cast<std::int64_t>(scales[i].size())});
    }
    std::vector<LevelBytes> tables;
    for (std::size_t i = 0; i < levels.size(); ++i) {
      const auto count = static_cast<std::int64_t>(levels[i].size());
      if (count > 0) tables.push_back({precisions[i], levels[i].data(), count});
    }
    return assemble(outputs, inputs, group, bytes, halves, tables);
  }
};

std::int64_t damaged(std::int64_t value, Random& random) {
  value = std::clamp<std::int64_t>(value, -1000, 1000);  // it may have been damaged before
  const std::int64_t other[] = {0, -1, 1, value + 1, value - 1, 2 * value, value + 16, value + 32, value - 32,
                                std::int64_t{1} << 40, std::int64_t{1} << 62, -(std::int64_t{1} << 62)};
  return other[random() % 12];
}

void damage(Arrays& arrays, Random& random) {
  const std::size_t at = random() % arrays.scales.size();
  switch (random() % 8) {
    case 7:
      if (at < arrays.levels.size()) arrays.levels[at].resize(random() % (arrays.levels[at].size() + 9), 255);
      break;
    case 0: arrays.outputs = damaged(arrays.outputs, random); break;
    case 1: arrays.inputs = damaged(arrays.inputs, random); break;
    case 2: arrays.group = damaged(arrays.group, random); break;
    case 3: arrays.planes[at] = static_cast<int>(damaged(arrays.planes[at], random)); break;
    case 4: arrays.precisions[at] = static_cast<int>(damaged(arrays.precisions[at], random)); break;
    case 5: arrays.segments[at].resize(random() % (arrays.segments[at].size() + 65)); break;
    default: arrays.scales[at].resize(random() % (arrays.scales[at].size() + 33)); break;
  }
}

std::vector<float> numbers(Random& random, std::int64_t count) {
  std::vector<float> found(static_cast<std::size_t>(count));
  for (float& value : found) value = static_cast<float>(draw(random, -1000, 1000)) / 500;
  return found;
}

void multiply(const Nested& weight, Random& random) {
  const std::int64_t rows = draw(random, 1, 40);
  const std::vector<float> x = numbers(random, rows * weight.inputs);
  std::vector<float> y(static_cast<std::size_t>(rows * weight.outputs)), row(static_cast<std::size_t>(weight.inputs));
  for (int precision = 1; precision <= kMostBits; ++precision) {
    if (!weight.has(precision)) continue;
    for (const Activations mode : {Activations::f32, Activations::int8}) {
      const Encoded encoded = encode_rows({x.data(), rows, weight.inputs}, weight.inputs, weight.group, mode, 2);
      run_nested_job({&weight, precision, encoded, nullptr, y.data(), weight.outputs, false}, mode, 2);
    }
    nested_row(weight, precision, weight.outputs - 1, row.data());
  }
}

int damaged_weights(int cases, Random& random) {
  int refused = 0;
  for (int i = 0; i < cases; ++i) {
    Arrays arrays(random, draw(random, 1, 50), draw(random, 1, 100), random() % 2 ? 32 : 64);
    for (std::int64_t j = draw(random, 0, 2); j > 0; --j) damage(arrays, random);
    try {
      multiply(arrays.view(), random);
    } catch (const std::invalid_argument&) {
      ++refused;
    }
  }
  return refused;
}

// A decoder of one layer; `wrong` says which of its sizes to damage, -1 for none.
struct Model {
  std::vector<std::unique_ptr<Arrays>> kept;
  Decoder decoder;

  Model(Random& random, int wrong) {
    std::int64_t sizes[] = {2, 1, draw(random, 2, 40), draw(random, 1, 70), draw(random, 1, 60), 0, 0};
    auto& [heads, kv, size, hidden, width, window, rope] = sizes;
    const std::int64_t half = size / 2;
    decoder.hidden = hidden;
    decoder.ropes.push_back({numbers(random, half), 1});
    Attention attention;
    attention.norm = numbers(random, hidden);
    attention.query_norm = numbers(random, size);
    attention.qkv = weight(random, (heads + 2 * kv) * size, hidden), attention.out = weight(random, hidden, heads * size);
    Mlp mlp;
    mlp.norm = mlp.post_norm = numbers(random, hidden);
    mlp.gate_up = weight(random, 2 * width, hidden), mlp.down = weight(random, hidden, width);
    decoder.embedding = weight(random, 37, hidden);
    decoder.head = Head{numbers(random, hidden), 30, weight(random, 37, hidden)};
    if (wrong >= 0) sizes[wrong] = damaged(sizes[wrong], random);
    decoder.hidden = hidden;
    attention.heads = heads, attention.kv_heads = kv, attention.size = size;
    attention.window = static_cast<std::int32_t>(window), attention.rope = static_cast<int>(rope);
    mlp.width = width;
    decoder.layers.push_back({std::move(attention), std::move(mlp)});
  }

  Nested weight(Random& random, std::int64_t n, std::int64_t k) {
    kept.push_back(std::make_unique<Arrays>(random, n, k, 32));
    Arrays& arrays = *kept.back();
    arrays.precisions.assign(arrays.precisions.size(), 1);  // all are read at "1 bit", whatever they have
    arrays.precisions.back() = 4;
    for (std::size_t i = 0; i + 2 < arrays.levels.size(); ++i) arrays.levels[i].clear();  // of which the last but one counts
    return arrays.view();
  }
};

int damaged_models(int cases, Random& random) {
  int refused = 0;
  for (int i = 0; i < cases; ++i) {
    Model model(random, static_cast<int>(draw(random, -1, 6)));
    try {
      const KvType types[] = {KvType::f32, KvType::f16, KvType::int8};
      Settings settings{draw(random, 1, 12), types[random() % 3], random() % 2 ? Activations::f32 : Activations::int8, 2};
      const bool freezes = random() % 2;
      if (freezes) settings.key_zeros = 0.5, settings.value_zeros = 0.3, settings.dense = draw(random, 1, 12);
      Engine engine(std::move(model.decoder), settings);
      std::vector<float> logits(static_cast<std::size_t>(engine.outputs()));
      for (int turn = 0; turn < 4; ++turn) {
        const std::int64_t count = draw(random, 1, 4);
        std::vector<std::int32_t> tokens, positions;
        std::vector<Sequences> sequences;
        for (std::int64_t t = 0; t < count; ++t) {
          tokens.push_back(static_cast<std::int32_t>(random() % 16 ? random() % 37 : random()));
          positions.push_back(static_cast<std::int32_t>(random() % 16 ? (freezes ? 32 : 3) * turn + t : random()));
          sequences.push_back(random() % 16 ? 1 + random() % 3 : random());
        }
        Batch batch{count, tokens.data(), nullptr, positions.data(), sequences.data(), 4};
        engine.forward(batch, {count - 1}, logits.data());
        const int sequence = static_cast<int>(random() % 3);
        const std::int64_t held = engine.mean_cache(0, sequence, nullptr, nullptr), size = engine.head_size(0);
        std::vector<float> keys(static_cast<std::size_t>(held * size)), values(keys.size());
        CHECK(engine.mean_cache(0, sequence, keys.data(), values.data()) == held);
        if (random() % 4 == 0) engine.cells().copy(0, 1, 0, 5);
        if (random() % 4 == 0) engine.cells().remove(static_cast<int>(random() % 3), 1, 4);
      }
    } catch (const std::invalid_argument&) {
      ++refused;
    }
  }
  return refused;
}

}  // namespace
}  // namespace lissome::testing

int main(int count, char** arguments) {
  using namespace lissome;
  using namespace lissome::testing;
  Random random(3);
  const int cases = count > 1 ? std::atoi(arguments[1]) : 10000;
  const int weights = damaged_weights(cases, random), models = damaged_models(cases / 10, random);
  CHECK(weights > cases / 4 && models > cases / 40);
  std::printf("%d of %d weights and %d of %d models refused\n", weights, cases, models, cases / 10);
  return 0;
}
