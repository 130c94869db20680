#include "engine/cells.h"

#include <algorithm>
#include <iterator>

namespace lissome {

std::vector<std::int32_t> Cells::take(std::int64_t count, std::int64_t first, std::int64_t last) const {
  std::vector<std::int32_t> found;
  const bool packed = frozen_ == 0 && used_ == top_;
  for (std::int64_t cell = packed ? top_ : first; cell < last && std::ssize(found) < count; ++cell) {
    if (cells_[static_cast<std::size_t>(cell)].sequences == 0) found.push_back(static_cast<std::int32_t>(cell));
  }
  if (std::ssize(found) < count) found.clear();
  return found;
}

void Cells::set(std::int32_t cell, std::int32_t position, Sequences sequences) {
  Cell& place = cells_[static_cast<std::size_t>(cell)];
  used_ += place.sequences == 0;
  place = {position, sequences};
  top_ = std::max<std::int64_t>(top_, cell + 1);
}

void Cells::move(std::int32_t from, std::int32_t to) {
  const Cell cell = cells_[static_cast<std::size_t>(from)];
  free(from);
  set(to, cell.position, cell.sequences);
}

std::vector<std::int32_t> Cells::before(Sequences sequences, std::int32_t position) const {
  std::vector<std::int32_t> found;
  for (std::int64_t at = frozen_; at < top_; ++at) {
    const Cell& cell = cells_[static_cast<std::size_t>(at)];
    if (sees(sequences, cell) && cell.position < position) found.push_back(static_cast<std::int32_t>(at));
  }
  return found;
}

bool Cells::frozen_from(Sequences sequences, std::int32_t position) const {
  return std::any_of(cells_.begin(), cells_.begin() + frozen_,
                     [&](const Cell& cell) { return sees(sequences, cell) && cell.position >= position; });
}

void Cells::free(std::int32_t cell) {
  used_ -= cells_[static_cast<std::size_t>(cell)].sequences != 0;
  cells_[static_cast<std::size_t>(cell)] = {};
  shrink();
}

void Cells::shrink() {
  while (top_ > 0 && cells_[static_cast<std::size_t>(top_ - 1)].sequences == 0) --top_;
}

void Cells::visible(Sequences sequences, std::int32_t position, std::int32_t window, std::vector<Run>& runs) {
  found_.clear();
  bool sorted = true;
  std::int32_t before = -1;
  for (std::int64_t cell = 0; cell < top_; ++cell) {
    const Cell& place = cells_[static_cast<std::size_t>(cell)];
    const bool seen = sees(sequences, place) && place.position <= position && (window <= 0 || position - place.position < window);
    if (!seen) continue;
    sorted = sorted && place.position >= before;
    before = place.position;
    found_.push_back(static_cast<std::int32_t>(cell));
  }
  if (!sorted) {  // sums are in the order of positions, wherever cells happen to lie
    std::stable_sort(found_.begin(), found_.end(), [&](std::int32_t a, std::int32_t b) {
      return cells_[static_cast<std::size_t>(a)].position < cells_[static_cast<std::size_t>(b)].position;
    });
  }
  runs.clear();
  for (const std::int32_t cell : found_) {
    if (!runs.empty() && runs.back().last == cell) {
      ++runs.back().last;
    } else {
      runs.push_back({cell, cell + 1});
    }
  }
}

void Cells::copy(int from, int to, std::int32_t first, std::int32_t last) {
  for (Cell& cell : cells_) {
    const bool meant = ((cell.sequences >> from) & 1) != 0 && cell.position >= first && cell.position < last;
    if (meant) cell.sequences |= Sequences{1} << to;
  }
}

void Cells::remove(int sequence, std::int32_t first, std::int32_t last) {
  const Sequences gone = sequence < 0 ? ~Sequences{0} : Sequences{1} << sequence;
  for (Cell& cell : cells_) {
    if ((cell.sequences & gone) == 0 || cell.position < first || cell.position >= last) continue;
    cell.sequences &= ~gone;
    if (cell.sequences == 0) --used_;
  }
  shrink();
}

std::int32_t Cells::first(int sequence, std::int32_t start) const {
  std::int32_t found = -1;
  for (const Cell& cell : cells_) {
    const bool meant = ((cell.sequences >> sequence) & 1) != 0 && cell.position >= start;
    if (meant && (found < 0 || cell.position < found)) found = cell.position;
  }
  return found;
}

std::int32_t Cells::last(int sequence) const {
  std::int32_t found = -1;
  for (const Cell& cell : cells_) {
    if (((cell.sequences >> sequence) & 1) != 0) found = std::max(found, cell.position);
  }
  return found;
}

}  // namespace lissome
