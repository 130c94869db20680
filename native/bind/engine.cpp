#include "bind/engine.h"

#include <mutex>
#include <stdexcept>

#include "bind/nested_held.h"
#include "bind/weight_held.h"
#include "engine/engine.h"
#include "engine/sample.h"
#include "pool/pool.h"

namespace lissome::bind {
namespace {

using Maybe = std::optional<In>;

Vector copied(const Maybe& array, const char* what) {
  if (!array) return {};
  const auto count = static_cast<std::int64_t>(array->size());
  const float* data = vector_of<float>(*array, count, what);
  return Vector(data, data + count);
}

const Nested& nested_of(nb::handle held) { return nb::cast<const HeldNested&>(held).view(); }

Matrix matrix_of(nb::handle held) {
  if (nb::isinstance<HeldWeight>(held)) return nb::cast<const HeldWeight&>(held).view();
  return nested_of(held);
}

KvType kv_of(const std::string& name) {
  if (name == "f32") return KvType::f32;
  if (name == "f16") return KvType::f16;
  if (name == "int8") return KvType::int8;
  throw std::invalid_argument("keys and values are held as f32, f16 or int8, got " + name);
}

Gate gate_of(const std::string& name) {
  if (name == "silu") return Gate::silu;
  if (name == "gelu") return Gate::gelu;
  throw std::invalid_argument("a gate is silu or gelu, got " + name);
}

// Parts keep the weights that they view alive; whoever takes a part takes that on.
struct HeldAttention {
  Attention part;
  std::vector<nb::object> weights;
};

struct HeldMlp {
  Mlp part;
  std::vector<nb::object> weights;
};

void make_attention(HeldAttention* to, nb::object qkv, nb::object out, std::int64_t heads, std::int64_t kv_heads,
                    std::int64_t size, float scale, In norm, std::int32_t window, int rope, float cap,
                    Maybe post_norm, Maybe query_norm, Maybe key_norm, Maybe qkv_bias, Maybe out_bias) {
  Attention part;
  part.heads = heads, part.kv_heads = kv_heads, part.size = size, part.window = window, part.rope = rope;
  part.scale = scale, part.cap = cap;
  part.norm = copied(norm, "norm"), part.post_norm = copied(post_norm, "post_norm");
  part.query_norm = copied(query_norm, "query_norm"), part.key_norm = copied(key_norm, "key_norm");
  part.qkv_bias = copied(qkv_bias, "qkv_bias"), part.out_bias = copied(out_bias, "out_bias");
  part.qkv = matrix_of(qkv), part.out = matrix_of(out);
  new (to) HeldAttention{std::move(part), {qkv, out}};
}

void make_mlp(HeldMlp* to, nb::object gate_up, nb::object down, std::int64_t width, const std::string& gate, In norm,
              Maybe post_norm, Maybe gate_up_bias, Maybe down_bias) {
  Mlp part;
  part.width = width, part.gate = gate_of(gate);
  part.norm = copied(norm, "norm"), part.post_norm = copied(post_norm, "post_norm");
  part.gate_up_bias = copied(gate_up_bias, "gate_up_bias"), part.down_bias = copied(down_bias, "down_bias");
  part.gate_up = matrix_of(gate_up), part.down = matrix_of(down);
  new (to) HeldMlp{std::move(part), {gate_up, down}};
}

class HeldEngine {
 public:
  HeldEngine(std::int64_t hidden, float eps, const std::vector<std::pair<In, float>>& ropes,
             const nb::list& layers, nb::object embedding, float embedding_scale, nb::object head,
             const Maybe& head_norm, float head_cap, std::int64_t cells, const std::string& kv,
             const std::string& activations, int threads, double key_zeros, double value_zeros, std::int64_t dense) {
    Decoder model;
    model.hidden = hidden, model.eps = eps, model.embedding_scale = embedding_scale;
    for (const auto& [frequencies, scale] : ropes) model.ropes.push_back({copied(frequencies, "frequencies"), scale});
    for (const nb::handle pair : layers) {
      const nb::object attention = pair[0], mlp = pair[1];
      Layer layer;
      if (!attention.is_none()) layer.attention = nb::cast<const HeldAttention&>(attention).part;
      if (!mlp.is_none()) layer.mlp = nb::cast<const HeldMlp&>(mlp).part;
      model.layers.push_back(std::move(layer));
    }
    if (!embedding.is_none()) model.embedding = nested_of(embedding);
    if (!head.is_none()) model.head = Head{copied(head_norm, "head_norm"), head_cap, matrix_of(head)};
    kept_ = nb::make_tuple(nb::tuple(layers), embedding, head);  // what the views above look at
    engine_.emplace(std::move(model), Settings{cells, kv_of(kv), activations_of(activations), threads_or(threads),
                                               key_zeros, value_zeros, dense});
  }

  Engine& engine() { return *engine_; }

  // "done", "cancelled" or "full".
  std::string forward(const In& input, const In& positions, const In& sequences, int precision,
                      const std::vector<std::int64_t>& wanted, const Out& out) {
    const auto count = static_cast<std::int64_t>(positions.size());
    Batch batch;
    batch.count = count, batch.precision = precision;
    batch.positions = vector_of<std::int32_t>(positions, count, "positions");
    batch.sequences = vector_of<std::uint64_t>(sequences, count, "sequences");
    if (input.ndim() == 1) {
      batch.tokens = vector_of<std::int32_t>(input, count, "tokens");
    } else {
      const Rows rows = rows_of(input);
      const bool fits = rows.type == Type::f32 && rows.count == count && rows.width == engine_->model().hidden &&
                        (count < 2 || rows.stride == rows.width);
      if (!fits) throw std::invalid_argument("hidden states must be contiguous float32 rows, one for each position");
      batch.hidden = reinterpret_cast<const float*>(rows.data);
    }
    const Output to = output_of(out, static_cast<std::int64_t>(wanted.size()), engine_->outputs());
    if (to.type != Type::f32 || (wanted.size() > 1 && to.stride != engine_->outputs())) {
      throw std::invalid_argument("results must be contiguous float32 rows");
    }
    const nb::gil_scoped_release released;
    const std::lock_guard lock(busy_);
    switch (engine_->forward(batch, wanted, reinterpret_cast<float*>(to.data))) {
      case Outcome::done: return "done";
      case Outcome::cancelled: return "cancelled";
      case Outcome::full: return "full";
    }
    return "";
  }

  void copy(int from, int to, std::int32_t first, std::int32_t last) {
    check_sequence(from), check_sequence(to);
    const std::lock_guard lock(busy_);
    engine_->cells().copy(from, to, first, last);
  }

  void remove(int sequence, std::int32_t first, std::int32_t last) {
    if (sequence != -1) check_sequence(sequence);
    const std::lock_guard lock(busy_);
    engine_->cells().remove(sequence, first, last);
  }

  // Float32 [count, size] each.
  nb::tuple mean_cache(std::int64_t layer, int sequence) {
    check_sequence(sequence);
    if (layer < 0 || layer >= static_cast<std::int64_t>(engine_->model().layers.size())) {
      throw std::invalid_argument("there is no such layer");
    }
    const std::lock_guard lock(busy_);
    const std::int64_t size = engine_->head_size(layer), count = engine_->mean_cache(layer, sequence, nullptr, nullptr);
    auto keys = allocate_block<float>(std::max<std::int64_t>(1, count * size));
    auto values = allocate_block<float>(std::max<std::int64_t>(1, count * size));
    engine_->mean_cache(layer, sequence, keys.get(), values.get());
    return nb::make_tuple(count, owning(std::move(keys), count * size), owning(std::move(values), count * size));
  }

  std::int32_t first(int sequence, std::int32_t start) {
    check_sequence(sequence);
    const std::lock_guard lock(busy_);
    return engine_->cells().first(sequence, start);
  }

  std::int32_t last(int sequence) {
    check_sequence(sequence);
    const std::lock_guard lock(busy_);
    return engine_->cells().last(sequence);
  }

 private:
  static void check_sequence(int sequence) {
    if (sequence < 0 || sequence >= kMostSequences) throw std::invalid_argument("sequences are 0 to 63");
  }

  nb::object kept_;
  std::optional<Engine> engine_;
  std::mutex busy_;
};

const float* logits_of(const In& logits) {
  return vector_of<float>(logits, static_cast<std::int64_t>(logits.size()), "logits");
}

}  // namespace

void add_engine(nb::module_& module) {
  using namespace nb::literals;
  constexpr std::int32_t kEnd = 2147483647;
  nb::class_<HeldAttention>(module, "Attention", "An attention of the engine.")
      .def("__init__", &make_attention, nb::kw_only(), "qkv"_a, "out"_a, "heads"_a, "kv_heads"_a, "size"_a, "scale"_a,
           "norm"_a, "window"_a = 0, "rope"_a = 0, "cap"_a = 0.0f, "post_norm"_a = nb::none(),
           "query_norm"_a = nb::none(), "key_norm"_a = nb::none(), "qkv_bias"_a = nb::none(),
           "out_bias"_a = nb::none());
  nb::class_<HeldMlp>(module, "Mlp", "A gated MLP of the engine.")
      .def("__init__", &make_mlp, nb::kw_only(), "gate_up"_a, "down"_a, "width"_a, "gate"_a, "norm"_a,
           "post_norm"_a = nb::none(), "gate_up_bias"_a = nb::none(), "down_bias"_a = nb::none());
  nb::class_<HeldEngine>(module, "Engine", "Runs a range of a decoder's layers; see native/engine/engine.h.")
      .def(nb::init<std::int64_t, float, const std::vector<std::pair<In, float>>&, const nb::list&, nb::object, float,
                    nb::object, const Maybe&, float, std::int64_t, const std::string&, const std::string&, int, double,
                    double, std::int64_t>(),
           nb::kw_only(), "hidden"_a, "eps"_a, "ropes"_a, "layers"_a, "embedding"_a = nb::none(),
           "embedding_scale"_a = 1.0f, "head"_a = nb::none(), "head_norm"_a = nb::none(), "head_cap"_a = 0.0f,
           "cells"_a = 2048, "kv"_a = "f16", "activations"_a = "int8", "threads"_a = 0,
           "key_zeros"_a = 0.0, "value_zeros"_a = 0.0, "dense"_a = 0)
      .def("forward", &HeldEngine::forward, "input"_a, "positions"_a, "sequences"_a, "precision"_a, "wanted"_a, "out"_a,
           "Runs int32 tokens or float32 hidden states; \"done\", \"cancelled\", or \"full\" when cells are missing.")
      .def("cancel", [](HeldEngine& held) { held.engine().cancel(); })
      .def("seq_cp", &HeldEngine::copy, "source"_a, "target"_a, "first"_a = 0, "last"_a = kEnd)
      .def("seq_rm", &HeldEngine::remove, "sequence"_a, "first"_a = 0, "last"_a = kEnd)
      .def("mean_cache", &HeldEngine::mean_cache, "layer"_a, "sequence"_a = 0,
           "Count of positions, and means over heads of their keys and values, float32 [count * size] each.")
      .def("seq_first", &HeldEngine::first, "sequence"_a, "start"_a = 0)
      .def("seq_last", &HeldEngine::last, "sequence"_a)
      .def("reads", [](HeldEngine& held, int precision) { return held.engine().reads(precision); })
      .def("weight_bytes", [](HeldEngine& held, int precision) { return held.engine().weight_bytes(precision); })
      .def_prop_ro("cell_bytes", [](HeldEngine& held) { return held.engine().cell_bytes(); })
      .def_prop_ro("dense_bytes", [](HeldEngine& held) { return held.engine().dense_bytes(); })
      .def_prop_ro("outputs", [](HeldEngine& held) { return held.engine().outputs(); })
      .def_prop_ro("used", [](HeldEngine& held) { return held.engine().cells().used(); });
  module.def("argmax", [](const In& logits) {
    return argmax(logits_of(logits), static_cast<std::int64_t>(logits.size()));
  }, "logits"_a);
  module.def("draw", [](const In& logits, float temperature, float top_p, std::int64_t top_k, std::uint64_t seed,
                        std::uint64_t step) {
    return draw(logits_of(logits), static_cast<std::int64_t>(logits.size()), {temperature, top_p, top_k},
                uniform_at(seed, step));
  }, "logits"_a, "temperature"_a, "top_p"_a, "top_k"_a, "seed"_a, "step"_a);
}

}  // namespace lissome::bind
