// The next token from logits.
#pragma once

#include <cstdint>

namespace lissome {

// The first of the largest; NaN is never chosen, -1 when there is nothing else.
std::int64_t argmax(const float* logits, std::int64_t count);

struct Choice {
  float temperature = 1;  // 0: the largest
  float top_p = 1;        // the fewest most likely tokens whose share reaches it
  std::int64_t top_k = 0;  // at most so many tokens, 0 for all
};

// Draws a token by a number in [0, 1); -1 when no logit is a number.
std::int64_t draw(const float* logits, std::int64_t count, const Choice& choice, double uniform);

// The number of a step: a pure function of seed and step, so that a text continues as it would have gone on.
double uniform_at(std::uint64_t seed, std::uint64_t step);

}  // namespace lissome
