#include "pool/pool.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <thread>
#include <vector>

#include "base/target.h"

#if defined(__linux__)
#include <sched.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace lissome {
namespace {

constexpr int kSpins = 4000;  // pauses, about 50 microseconds: more than the time between two layers

void pause() {
#if LISSOME_X86
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

// Waits until `value` is no longer `old`; returns what it is.
int changed(std::atomic<int>& value, int old) {
  for (int spin = 0; spin < kSpins; ++spin) {
    const int now = value.load(std::memory_order_acquire);
    if (now != old) return now;
    pause();
  }
  value.wait(old, std::memory_order_acquire);
  return value.load(std::memory_order_acquire);
}

class Pool {
 public:
  void run(int parts, Part part, void* work) {
    std::unique_lock lock(busy_, std::try_to_lock);
    if (parts <= 1 || !lock.owns_lock()) {
      for (int index = 0; index < parts; ++index) part(work, index);
      return;
    }
    grow(parts - 1);
    part_ = part, work_ = work, error_ = nullptr;
    pending_.store(parts - 1, std::memory_order_relaxed);
    const int turn = (round_.load(std::memory_order_relaxed) / kTurn + 1) % kTurns;
    round_.store(turn * kTurn + parts, std::memory_order_release);
    round_.notify_all();
    attempt(0);
    for (int left = pending_.load(std::memory_order_acquire); left != 0;) left = changed(pending_, left);
    if (error_) std::rethrow_exception(error_);
  }

 private:
  void grow(int workers) {
    while (static_cast<int>(threads_.size()) < workers) {
      const int index = static_cast<int>(threads_.size()) + 1;
      threads_.emplace_back([this, index, seen = round_.load()] { serve(index, seen); });
    }
  }

  void serve(int index, int seen) {
    for (;;) {
      seen = changed(round_, seen);
      if (index >= seen % kTurn) continue;  // not asked for; the round may be over by now
      attempt(index);
      if (pending_.fetch_sub(1, std::memory_order_acq_rel) == 1) pending_.notify_one();
    }
  }

  void attempt(int index) {
    try {
      part_(work_, index);
    } catch (...) {
      const std::lock_guard guard(failing_);
      if (!error_) error_ = std::current_exception();
    }
  }

  std::mutex busy_, failing_;
  std::vector<std::thread> threads_;
  // A round's number and how many parts it has, in one word, so that whoever wakes late reads both of the same round.
  static constexpr int kTurn = 2 * kMostThreads, kTurns = 1 << 18;
  std::atomic<int> round_{0}, pending_{0};
  Part part_ = nullptr;
  void* work_ = nullptr;
  std::exception_ptr error_;
};

// Never destroyed: workers wait in it until the process ends. A forked child has no workers and starts afresh.
Pool* current = nullptr;

Pool& pool() {
  static const bool made = [] {
    current = new Pool;
#if defined(__unix__) || defined(__APPLE__)
    pthread_atfork(nullptr, nullptr, [] { current = new Pool; });
#endif
    return true;
  }();
  static_cast<void>(made);
  return *current;
}

std::atomic<int> wanted{0};

}  // namespace

int processors() {
#if defined(__linux__)
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) return CPU_COUNT(&allowed) < 1 ? 1 : CPU_COUNT(&allowed);
#endif
  const unsigned count = std::thread::hardware_concurrency();
  return count < 1 ? 1 : static_cast<int>(count);
}

int threads() {
  const int count = wanted.load(std::memory_order_relaxed);
  return count > 0 ? count : processors();
}

void set_threads(int count) {
  if (count < 1 || count > kMostThreads) throw std::invalid_argument("threads must be 1 to 1024");
  wanted.store(count, std::memory_order_relaxed);
}

int threads_or(int wanted) { return wanted < 1 ? threads() : std::min(wanted, kMostThreads); }

void run_parts(int parts, Part part, void* work) {
  if (parts == 1) {
    part(work, 0);
  } else {
    pool().run(parts, part, work);
  }
}

}  // namespace lissome
