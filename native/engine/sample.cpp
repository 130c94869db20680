#include "engine/sample.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

namespace lissome {

std::int64_t argmax(const float* logits, std::int64_t count) {
  std::int64_t best = -1;
  for (std::int64_t i = 0; i < count; ++i) {
    if (best < 0 ? !std::isnan(logits[i]) : logits[i] > logits[best]) best = i;
  }
  return best;
}

std::int64_t draw(const float* logits, std::int64_t count, const Choice& choice, double uniform) {
  const std::int64_t best = argmax(logits, count);
  if (best < 0 || !(choice.temperature > 0)) return best;
  std::vector<double> shares(static_cast<std::size_t>(count));
  double total = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    const double share = std::exp((double{logits[i]} - double{logits[best]}) / double{choice.temperature});
    total += shares[static_cast<std::size_t>(i)] = std::isnan(share) ? 0.0 : share;
  }
  std::vector<std::int64_t> order(shares.size());
  std::iota(order.begin(), order.end(), std::int64_t{0});
  const auto likelier = [&](std::int64_t a, std::int64_t b) {
    const double x = shares[static_cast<std::size_t>(a)], y = shares[static_cast<std::size_t>(b)];
    return x != y ? x > y : a < b;
  };
  // Sorted piece by piece: the tokens that count are usually few.
  std::size_t sorted = 0, kept = 0;
  double reached = 0;
  const std::size_t most = choice.top_k > 0 ? std::min<std::size_t>(order.size(), static_cast<std::size_t>(choice.top_k)) : order.size();
  while (kept < most && (kept == 0 || reached < double{choice.top_p} * total)) {
    if (kept == sorted) {
      const std::size_t next = std::min(order.size(), std::max<std::size_t>(64, 4 * sorted));
      std::partial_sort(order.begin() + static_cast<std::ptrdiff_t>(sorted), order.begin() + static_cast<std::ptrdiff_t>(next), order.end(), likelier);
      sorted = next;
    }
    reached += shares[static_cast<std::size_t>(order[kept++])];
  }
  double left = uniform * reached;
  for (std::size_t i = 0; i + 1 < kept; ++i) {
    left -= shares[static_cast<std::size_t>(order[i])];
    if (left < 0) return order[i];
  }
  return order[kept - 1];
}

// SplitMix64 (Steele, Lea, Flood 2014), entered at any step.
double uniform_at(std::uint64_t seed, std::uint64_t step) {
  std::uint64_t z = seed + (step + 1) * 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return static_cast<double>((z ^ (z >> 31)) >> 11) * 0x1p-53;
}

}  // namespace lissome
