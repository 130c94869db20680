#include "engine/model.h"

#include <stdexcept>
#include <string>

namespace lissome {
namespace {

void need(bool fits, const std::string& what) {
  if (!fits) throw std::invalid_argument(what);
}

void check_vector(const Vector& vector, std::int64_t count, const std::string& what, bool optional = true) {
  const auto size = static_cast<std::int64_t>(vector.size());
  need(size == count || (optional && size == 0), what + " must have " + std::to_string(count) + " numbers");
}

void check_weight(const Matrix& weight, std::int64_t outputs, std::int64_t inputs, const std::string& what) {
  need(weight.outputs() == outputs && weight.inputs() == inputs,
       what + " must be " + std::to_string(outputs) + " x " + std::to_string(inputs) + ", got " +
           std::to_string(weight.outputs()) + " x " + std::to_string(weight.inputs()));
}

constexpr std::int64_t kMost = 1 << 24;  // heads, sizes and widths: far more than any, and products fit 64 bits

void check_attention(const Attention& a, const Decoder& model, const std::string& at) {
  need(a.heads >= 1 && a.kv_heads >= 1 && a.heads <= kMost && a.heads % a.kv_heads == 0, at + "heads do not fit");
  need(a.size >= 2 && a.size <= 4096, at + "a head has 2 to 4096 numbers");
  need(a.rope >= 0 && a.rope < static_cast<int>(model.ropes.size()), at + "there is no such rope");
  const auto pairs = static_cast<std::int64_t>(model.ropes[static_cast<std::size_t>(a.rope)].frequencies.size());
  need(2 * pairs <= a.size, at + "the rope turns more numbers than a head has");
  need(a.window >= 0, at + "a window cannot be negative");
  const std::int64_t q = a.heads * a.size, kv = a.kv_heads * a.size;
  check_weight(a.qkv, q + 2 * kv, model.hidden, at + "qkv");
  check_weight(a.out, model.hidden, q, at + "out");
  check_vector(a.norm, model.hidden, at + "norm", false);
  check_vector(a.post_norm, model.hidden, at + "post_norm");
  check_vector(a.query_norm, a.size, at + "query_norm");
  check_vector(a.key_norm, a.size, at + "key_norm");
  check_vector(a.qkv_bias, q + 2 * kv, at + "qkv_bias");
  check_vector(a.out_bias, model.hidden, at + "out_bias");
}

void check_mlp(const Mlp& mlp, const Decoder& model, const std::string& at) {
  need(mlp.width >= 1 && mlp.width <= kMost, at + "the width is no width");
  check_weight(mlp.gate_up, 2 * mlp.width, model.hidden, at + "gate_up");
  check_weight(mlp.down, model.hidden, mlp.width, at + "down");
  check_vector(mlp.norm, model.hidden, at + "norm", false);
  check_vector(mlp.post_norm, model.hidden, at + "post_norm");
  check_vector(mlp.gate_up_bias, 2 * mlp.width, at + "gate_up_bias");
  check_vector(mlp.down_bias, model.hidden, at + "down_bias");
}

}  // namespace

void check_decoder(const Decoder& model) {
  need(model.hidden >= 1 && model.hidden <= kMost, "the hidden size is no size");
  if (model.embedding) {
    check_weight(*model.embedding, model.embedding->outputs, model.hidden, "the embedding");
  }
  for (std::size_t index = 0; index < model.layers.size(); ++index) {
    const std::string at = "layer " + std::to_string(index) + ": ";
    if (model.layers[index].attention) check_attention(*model.layers[index].attention, model, at + "attention: ");
    if (model.layers[index].mlp) check_mlp(*model.layers[index].mlp, model, at + "mlp: ");
  }
  if (model.head) {
    check_weight(model.head->weight, model.head->weight.outputs(), model.hidden, "the head");
    check_vector(model.head->norm, model.hidden, "the last norm", false);
  }
}

}  // namespace lissome
