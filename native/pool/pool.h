// Threads that wait for work in parts.
//
// Work is split before it starts into contiguous parts, one per thread, and every part writes its own results: what
// comes out is the same bits for any number of threads. A worker spins for some microseconds after its part, because
// the next layer's usually follows, and sleeps after that.
#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>

namespace lissome {

// Threads that the calling process may run on at once, at least 1.
int processors();

// How many threads work is split over when a call does not say it; at first `processors()`.
int threads();

// Throws std::invalid_argument for fewer than 1 or more than kMostThreads.
void set_threads(int count);

inline constexpr int kMostThreads = 1024;

// What a caller wants, kMostThreads at most; `threads()` when that is less than 1.
int threads_or(int wanted);

using Part = void (*)(void* work, int part);

// Runs part 0 on the calling thread and the others on workers, until all are done. When another thread is using the
// workers, or this one is a worker itself, all parts run here. An exception of a part is thrown again here.
void run_parts(int parts, Part part, void* work);

template <class Work>
void parallel(int parts, Work&& work) {
  run_parts(
      parts, [](void* given, int part) { (*static_cast<std::remove_reference_t<Work>*>(given))(part); },
      const_cast<void*>(static_cast<const void*>(&work)));
}

// [first, last) of one part of `count` things in contiguous parts that differ by one at most.
inline std::pair<std::int64_t, std::int64_t> share(std::int64_t count, int parts, int part) {
  const std::int64_t each = count / parts, rest = count % parts;
  const std::int64_t first = part * each + (part < rest ? part : rest);
  return {first, first + each + (part < rest ? 1 : 0)};
}

// work(first, last) over shares of `count` things.
template <class Work>
void parallel_ranges(std::int64_t count, int wanted, Work&& work) {
  const int parts = static_cast<int>(count < wanted ? (count < 1 ? 1 : count) : wanted);
  parallel(parts, [&](int part) {
    const auto [first, last] = share(count, parts, part);
    work(first, last);
  });
}

}  // namespace lissome
