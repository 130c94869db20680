// Runs a range of layers over a batch of tokens of any sequences.
#pragma once

#include <atomic>
#include <functional>
#include <vector>

#include "base/memory.h"
#include "engine/cells.h"
#include "engine/frozen.h"
#include "engine/groups.h"
#include "engine/model.h"

namespace lissome {

struct Settings {
  std::int64_t cells = 2048;  // positions that all sequences together hold
  KvType kv = KvType::f16;
  Activations activations = Activations::int8;
  int threads = 1;
  // Shares of zeros in frozen keys and values, 0 to below 1. With either above 0, what lies in blocks of 64 positions
  // before a token's own is frozen: its smallest numbers are left out. `dense` cells hold the rest.
  double key_zeros = 0, value_zeros = 0;
  std::int64_t dense = 0;

  bool freezes() const { return key_zeros > 0 || value_zeros > 0; }
};

// A batch: token i has position positions[i] and belongs to sequences[i].
struct Batch {
  std::int64_t count = 0;
  const std::int32_t* tokens = nullptr;  // where the range begins with an embedding
  const float* hidden = nullptr;         // elsewhere: [count, hidden]
  const std::int32_t* positions = nullptr;
  const Sequences* sequences = nullptr;
  int precision = 0;
};

enum class Outcome { done, cancelled, full };

class Engine {
 public:
  // Throws std::invalid_argument, and std::bad_alloc when the cache does not fit.
  Engine(Decoder model, const Settings& settings);

  // Runs all tokens; `wanted` lists tokens whose results are written to `to`, in order: logits where the range has a
  // head, else hidden states. Unless it is done, the cache has no token more, though older ones may have been frozen.
  // Throws std::invalid_argument for tokens, positions, sequences or a precision that cannot be; where cells are frozen,
  // also for tokens of one sequence in several blocks of positions, and for one that sees frozen cells in its own block:
  // what came after it is in them.
  Outcome forward(const Batch& batch, const std::vector<std::int64_t>& wanted, float* to);

  // Makes a forward that is running in another thread, or the next one, stop before its next layer.
  void cancel() { cancelled_.store(true, std::memory_order_relaxed); }

  // Means over heads of the keys and values that a sequence has in a layer of the range, in the order of positions:
  // [count, size] each, where they are not null. Returns the count; 0 where the layer has no attention.
  std::int64_t mean_cache(std::int64_t layer, int sequence, float* keys, float* values);
  // Numbers of a head in a layer; 0 where it has no attention.
  std::int64_t head_size(std::int64_t layer) const;

  Cells& cells() { return cells_; }
  const Decoder& model() const { return model_; }
  const Settings& settings() const { return settings_; }
  std::int64_t outputs() const { return model_.head ? model_.head->weight.outputs() : model_.hidden; }
  bool reads(int precision) const;
  // Bytes of weights that one token reads, of its place in the cache for good, and of all cells that are not for good.
  std::int64_t weight_bytes(int precision) const;
  std::int64_t cell_bytes() const { return cell_bytes_; }
  std::int64_t dense_bytes() const { return dense_bytes_; }

 private:
  struct Side {  // keys or values of one attention
    Block<std::byte> frozen, dense;  // [head][cell][row]
    Block<float> scales;             // [head][cell], frozen ones first
    FrozenRows rows;                 // of frozen ones
    Order order = Order::keys;       // of integers
  };
  struct Cache {  // of one attention
    Side keys, values;
    std::int64_t size = 0, heads = 0;  // of a head, padded to 16; of keys and values
  };
  struct Work;  // what one forward needs

  void allocate(Side& side, const Attention& part, double zeros);
  bool grouped() const { return settings_.kv == KvType::int8; }  // see groups.h
  void check(const Batch& batch, const std::vector<std::int64_t>& wanted) const;
  void check_blocks(const Batch& batch) const;
  bool make_room(const Batch& batch);
  void freeze(const std::vector<std::int32_t>& from, const std::vector<std::int32_t>& to);
  void freeze(const Side& side, std::int64_t head, const std::vector<std::int32_t>& from,
              const std::vector<std::int32_t>& to) const;
  std::int64_t lane_of(std::int64_t cell) const { return (cell < cells_.frozen() ? cell : cell - cells_.frozen()) % kGroup; }
  std::byte* row_of(const Side& side, std::int64_t head, std::int64_t cell) const;  // or the group it is in
  HeldRows held(const Side& side, std::int64_t head) const;
  void read(const Side& side, std::int64_t head, std::int64_t cell, float* to) const;
  bool layers(Work& work);
  void gather(Work& work, std::size_t window) const;
  void embed(Work& work) const;
  void attention(Work& work, const Attention& part, Cache& cache);
  void heads(Work& work, const Attention& part, Cache& cache, float* qkv, std::int64_t row) const;
  void attend(Work& work, const Attention& part, const Cache& cache, const float* q, std::size_t window,
              std::int64_t row, std::int64_t count, std::int64_t head, float* out) const;
  void mlp(Work& work, const Mlp& part);
  void multiply(Work& work, const Matrix& weight, const float* x, std::int64_t rows, const Vector& bias, float* y,
                bool add);
  void normed(Work& work, const Vector& norm, const float* x, std::int64_t rows, float* to);
  void add_result(Work& work, const Vector& post_norm, float* result);
  void result(Work& work, const float* hidden, const std::vector<std::int64_t>& wanted, float* to);

  Decoder model_;
  Settings settings_;
  Cells cells_;
  std::vector<Cache> caches_;  // by layer
  std::vector<std::int32_t> windows_;
  std::int64_t cell_bytes_ = 0, dense_bytes_ = 0;
  std::atomic<bool> cancelled_{false};
  Scratch hidden_, normed_, wide_, mixed_, gated_, added_;
};

}  // namespace lissome
