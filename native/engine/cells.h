// Which position of which sequences each place of the key-value cache holds.
//
// A cell has a position and the set of sequences that it belongs to, so that sequences share a prefix without a copy.
// A token that belongs to several sequences (a node of a tree of guesses) sees what all of them hold.
//
// The first cells may be kept for what is frozen, whose keys and values have been pruned: tokens begin in the others.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/steps.h"

namespace lissome {

inline constexpr int kMostSequences = 64;
using Sequences = std::uint64_t;  // bit s: sequence s

class Cells {
 public:
  explicit Cells(std::int64_t count, std::int64_t frozen = 0)
      : cells_(static_cast<std::size_t>(count + frozen)), frozen_(frozen) {}

  std::int64_t count() const { return static_cast<std::int64_t>(cells_.size()); }
  std::int64_t frozen() const { return frozen_; }  // cells below are
  std::int64_t used() const { return used_; }

  // Takes `count` free cells, the lowest first; empty when there are not as many.
  std::vector<std::int32_t> take(std::int64_t count) { return take(count, frozen_, this->count()); }
  std::vector<std::int32_t> take_frozen(std::int64_t count) { return take(count, 0, frozen_); }
  void set(std::int32_t cell, std::int32_t position, Sequences sequences);
  // What `from` holds is in `to` now.
  void move(std::int32_t from, std::int32_t to);

  void free(std::int32_t cell);

  // Cells that a token sees, in the order of their positions: it belongs to `sequences`, at `position`; of a `window`
  // above 0 only the last positions.
  void visible(Sequences sequences, std::int32_t position, std::int32_t window, std::vector<Run>& runs);

  // Cells that tokens begin in, at positions before `position`, that a token of `sequences` sees; in order of cells.
  std::vector<std::int32_t> before(Sequences sequences, std::int32_t position) const;
  // Whether such a token sees a frozen cell at `position` or later.
  bool frozen_from(Sequences sequences, std::int32_t position) const;

  // Positions [first, last) of sequence `from` also belong to `to`.
  void copy(int from, int to, std::int32_t first, std::int32_t last);
  // Positions [first, last) leave a sequence, or all sequences when it is -1; cells of no sequence are free.
  void remove(int sequence, std::int32_t first, std::int32_t last);
  // The largest position of a sequence, or -1.
  std::int32_t last(int sequence) const;
  // The smallest one from `start` on, or -1.
  std::int32_t first(int sequence, std::int32_t start) const;

 private:
  struct Cell {
    std::int32_t position = -1;
    Sequences sequences = 0;  // none: free
  };
  static bool sees(Sequences sequences, const Cell& cell) {
    return (cell.sequences & sequences) == sequences && cell.sequences != 0;
  }
  std::vector<std::int32_t> take(std::int64_t count, std::int64_t first, std::int64_t last) const;
  void shrink();

  std::vector<Cell> cells_;
  std::vector<std::int32_t> found_;
  std::int64_t frozen_ = 0;
  std::int64_t used_ = 0, top_ = 0;  // all cells from `top_` on are free
};

}  // namespace lissome
