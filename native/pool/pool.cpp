#include "pool/pool.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
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

constexpr int kSpins = 4000;  // pauses, 50 to 200 microseconds: more than the time between two layers

void pause() {
#if LISSOME_X86
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

// A number that threads wait for: they spin first, and sleep after that. `std::atomic::wait` once slept for good though
// the number had changed (GCC 12, a busy machine): here whoever changes it holds the lock of those who fall asleep, and
// they look again after a second whatever happens.
class Awaited {
 public:
  int now() const { return value_.load(std::memory_order_acquire); }

  void set(int value) {
    {
      const std::lock_guard guard(sleeping_);
      value_.store(value, std::memory_order_release);
    }
    awake_.notify_all();
  }

  // Returns what it is once it is no longer `old`.
  int changed(int old) {
    for (int spin = 0; spin < kSpins; ++spin) {
      if (const int found = now(); found != old) return found;
      pause();
    }
    std::unique_lock lock(sleeping_);
    while (now() == old) awake_.wait_for(lock, std::chrono::seconds(1));
    return now();
  }

 private:
  std::atomic<int> value_{0};
  std::mutex sleeping_;
  std::condition_variable awake_;
};

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
    const int turn = (round_.now() / kTurn + 1) % kTurns;
    round_.set(turn * kTurn + parts);
    attempt(0);
    for (int over = done_.now(); over != turn;) over = done_.changed(over);
    if (error_) std::rethrow_exception(error_);
  }

 private:
  void grow(int workers) {
    while (static_cast<int>(threads_.size()) < workers) {
      const int index = static_cast<int>(threads_.size()) + 1;
      threads_.emplace_back([this, index, seen = round_.now()] { serve(index, seen); });
    }
  }

  void serve(int index, int seen) {
    for (;;) {
      seen = round_.changed(seen);
      if (index >= seen % kTurn) continue;  // not asked for; the round may be over by now
      attempt(index);
      if (pending_.fetch_sub(1, std::memory_order_acq_rel) == 1) done_.set(seen / kTurn);
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
  Awaited round_, done_;  // done_: the number of the last round that is over
  std::atomic<int> pending_{0};
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
