#include "base/memory.h"

#include <cstdlib>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace lissome {
namespace {

constexpr std::size_t kLine = 64;
constexpr std::size_t kHuge = std::size_t{2} << 20;

}  // namespace

void Free::operator()(void* memory) const noexcept { std::free(memory); }

void* allocate_bytes(std::size_t bytes) {
  const std::size_t alignment = bytes >= 2 * kHuge ? kHuge : kLine;
  void* memory = nullptr;
  if (posix_memalign(&memory, alignment, bytes + kLine) != 0) throw std::bad_alloc();
#if defined(__linux__)
  if (alignment == kHuge) madvise(memory, bytes, MADV_HUGEPAGE);  // a wish: nothing depends on it
#endif
  return memory;
}

}  // namespace lissome
