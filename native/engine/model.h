// A contiguous range of a decoder's layers, as the engine runs them.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "engine/matrix.h"
#include "engine/steps.h"
#include "nested/linear.h"

namespace lissome {

using Vector = std::vector<float>;  // empty: there is none

struct Rope {
  Vector frequencies;  // of pair i: its angle is position · frequencies[i]
  float scale = 1;     // of cosines and sines
};

struct Attention {
  std::int64_t heads = 0, kv_heads = 0, size = 0;  // size: of a head
  std::int32_t window = 0;                         // positions that are seen, 0 for all
  int rope = 0;                                    // which of the model's
  float scale = 1, cap = 0;
  Vector norm, post_norm;        // before, and of what it adds
  Vector query_norm, key_norm;   // per head
  Vector qkv_bias, out_bias;
  Matrix qkv, out;               // rows: queries, keys, values
};

struct Mlp {
  std::int64_t width = 0;
  Gate gate = Gate::silu;
  Vector norm, post_norm;
  Vector gate_up_bias, down_bias;
  Matrix gate_up, down;          // rows: gate, up
};

struct Layer {
  std::optional<Attention> attention;
  std::optional<Mlp> mlp;
};

struct Head {
  Vector norm;
  float cap = 0;
  Matrix weight;
};

struct Decoder {
  std::int64_t hidden = 0;
  float eps = 1e-6f;
  std::vector<Rope> ropes;
  std::optional<Nested> embedding;  // the range begins with tokens
  float embedding_scale = 1;
  std::vector<Layer> layers;
  std::optional<Head> head;         // the range ends with logits
};

// Throws std::invalid_argument unless all sizes fit each other.
void check_decoder(const Decoder& model);

}  // namespace lissome
