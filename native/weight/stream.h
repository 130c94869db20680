// Rows of 64 weights in the order of a panel: read as they lie, or made from bitmap and values.
//
// Included once per instruction set, after LISSOME_TARGET. `E` has `Row`, `dense(p)`, `mask32`/`mask64` types through
// `expand(bits, p)`. Memory answers some 100 ns after it was asked; at tens of bytes per nanosecond that is kilobytes
// ahead, more than hardware looks for when values come at uneven pace.
#pragma once

#include <cstdint>

#include "base/target.h"
#include "weight/weight.h"

namespace lissome {

inline constexpr std::int64_t kValuesAhead = 8192, kBitmapAhead = 4096;

LISSOME_INLINE void prefetch(const void* p, std::int64_t ahead) {
  __builtin_prefetch(static_cast<const char*>(p) + ahead, 0, 3);
}

// `Far`: ask for rows to come. With one row of activations, hardware keeps ahead by itself; with several, it does not.
template <class E, bool Far = false>
struct DenseRows {
  const std::byte* at;

  LISSOME_TARGET LISSOME_INLINE void ahead() {}

  LISSOME_TARGET LISSOME_INLINE void next(typename E::Row& low, typename E::Row& high) {
    if constexpr (Far) {
      prefetch(at, kValuesAhead);
      prefetch(at, kValuesAhead + kRowBytes);
    }
    low = E::dense(at);
    high = E::dense(at + kRowBytes);
    at += kStepBytes;
  }
};

template <class E>
struct SparseRows {
  const std::uint64_t* bitmap;
  const std::byte* at;

  LISSOME_TARGET LISSOME_INLINE void ahead() {  // called every 8 steps: one or two lines of the bitmap
    prefetch(bitmap, kBitmapAhead);
    if constexpr (E::kFormat == Format::int8) prefetch(bitmap, kBitmapAhead + 64);
  }

  LISSOME_TARGET LISSOME_INLINE void next(typename E::Row& low, typename E::Row& high) {
    prefetch(at, kValuesAhead);
    if constexpr (E::kFormat == Format::bf16) {
      const std::uint64_t both = opaque(*bitmap++);
      const auto first = static_cast<std::uint32_t>(both);
      low = E::expand16(first, at);
      high = E::expand16(opaque(static_cast<std::uint32_t>(both >> 32)), at + 2 * __builtin_popcountll(first));
      at += 2 * __builtin_popcountll(both);
    } else {
      const std::uint64_t first = opaque(*bitmap++), second = opaque(*bitmap++);
      low = E::expand8(first, at);
      at += __builtin_popcountll(first);
      high = E::expand8(second, at);
      at += __builtin_popcountll(second);
    }
  }

 private:
  // Keeps the bits in a general register, from where they go to the mask and to the count: loads are what these loops
  // run out of first, and shifts of mask registers are slow.
  template <class Bits>
  LISSOME_TARGET static LISSOME_INLINE Bits opaque(Bits bits) {
    __asm__("" : "+r"(bits));
    return bits;
  }
};

template <class E>
LISSOME_TARGET inline DenseRows<E> dense_rows(const Weight& weight, std::int64_t panel) {
  return {weight.values + panel * weight.steps() * kStepBytes};
}

template <class E>
LISSOME_TARGET inline SparseRows<E> sparse_rows(const Weight& weight, std::int64_t panel) {
  return {weight.bitmap + panel * weight.words(), weight.values + weight.starts[panel] * item_of(weight.format)};
}

// Writes the next `steps` steps out as dense rows.
template <class E>
LISSOME_TARGET inline void expand_steps(SparseRows<E>& rows, std::int64_t steps, std::byte* out) {
  for (std::int64_t step = 0; step < steps; ++step) {
    if (step % 8 == 0) rows.ahead();
    typename E::Row low, high;
    rows.next(low, high);
    E::put(out, low);
    E::put(out + kRowBytes, high);
    out += kStepBytes;
  }
}

}  // namespace lissome
