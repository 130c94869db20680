// The pool: every part once, from several callers, from inside a part, after an exception, in a forked child.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <stdexcept>
#include <thread>

#include "check.h"
#include "pool/pool.h"

namespace lissome::testing {
namespace {

void every_part_once(int parts) {
  std::vector<std::atomic<int>> seen(static_cast<std::size_t>(parts));
  parallel(parts, [&](int part) { seen[static_cast<std::size_t>(part)].fetch_add(1); });
  for (const auto& count : seen) CHECK(count.load() == 1);
}

void shares_cover() {
  for (std::int64_t count : {0, 1, 5, 64, 1000}) {
    for (int parts : {1, 2, 3, 7, 64}) {
      std::int64_t next = 0;
      for (int part = 0; part < parts; ++part) {
        const auto [first, last] = share(count, parts, part);
        CHECK(first == next && last >= first);
        next = last;
      }
      CHECK(next == count);
    }
  }
}

void callers_at_once() {
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 4; ++caller) {
    callers.emplace_back([] {
      for (int turn = 0; turn < 300; ++turn) every_part_once(1 + turn % 5);
    });
  }
  for (auto& caller : callers) caller.join();
}

// Work arrives while a thread is falling asleep, or asleep.
void sleepers_wake() {
  for (int turn = 0; turn < 400; ++turn) {
    every_part_once(2 + turn % 3);
    const auto until = std::chrono::steady_clock::now() + std::chrono::microseconds(turn);
    while (std::chrono::steady_clock::now() < until) continue;
  }
}

void exceptions_arrive() {
  for (int bad : {0, 2}) {
    bool thrown = false;
    try {
      parallel(3, [&](int part) {
        if (part == bad) throw std::runtime_error("part");
      });
    } catch (const std::runtime_error&) {
      thrown = true;
    }
    CHECK(thrown);
    every_part_once(3);
  }
}

void child_starts_afresh() {
  const pid_t child = fork();
  if (child == 0) {
    every_part_once(4);
    _exit(0);
  }
  int status = 1;
  CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

}  // namespace
}  // namespace lissome::testing

int main() {
  using namespace lissome;
  using namespace lissome::testing;
  shares_cover();
  for (int parts : {1, 2, 8, 3}) every_part_once(parts);
  parallel(3, [](int) { every_part_once(4); });
  sleepers_wake();
  callers_at_once();
  exceptions_arrive();
  child_starts_afresh();
  set_threads(3);
  CHECK(threads() == 3);
  CHECK(threads_or(0) == 3 && threads_or(-1) == 3 && threads_or(2) == 2 && threads_or(5000) == kMostThreads);
  std::puts("the pool does every part once");
  return 0;
}
