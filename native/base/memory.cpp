#include "base/memory.h"

#include <cstdlib>
#include <mutex>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#if defined(__SANITIZE_ADDRESS__)
#define LISSOME_ARENA 0  // blocks side by side would hide what reads past one
#else
#define LISSOME_ARENA 1
#endif

namespace lissome {
namespace {

constexpr std::size_t kLine = 64, kPage = 4096;
constexpr std::size_t kHuge = std::size_t{2} << 20;
constexpr std::size_t kChunk = std::size_t{32} << 20;

void* aligned(std::size_t alignment, std::size_t bytes) {
  void* memory = nullptr;
  if (posix_memalign(&memory, alignment, bytes) != 0) throw std::bad_alloc();
  return memory;
}

void wish_for_huge_pages([[maybe_unused]] void* memory, [[maybe_unused]] std::size_t bytes) {
#if defined(__linux__)
  madvise(memory, bytes, MADV_HUGEPAGE);  // nothing depends on it
#endif
}

// Gives whole pages of [first, last) back to the system; they read as zeros then.
void give_back([[maybe_unused]] std::byte* first, [[maybe_unused]] std::byte* last) {
#if defined(__linux__)
  const auto low = (reinterpret_cast<std::uintptr_t>(first) + kPage - 1) / kPage * kPage;
  const auto high = reinterpret_cast<std::uintptr_t>(last) / kPage * kPage;
  if (low < high) madvise(reinterpret_cast<void*>(low), high - low, MADV_DONTNEED);
#endif
}

// A stretch of huge pages that blocks are cut from in order. It lives as long as one of them, and while it is current.
struct Chunk {
  std::byte* memory;
  std::size_t size, used = 0, blocks = 0;
};

struct alignas(kLine) Header {  // before each block
  Chunk* chunk;
  std::size_t bytes;
};

std::mutex guard;
Chunk* current = nullptr;

void drop(Chunk* chunk) {
  std::free(chunk->memory);
  delete chunk;
}

Chunk* chunk_for(std::size_t bytes) {
  if (current && current->size - current->used >= bytes) return current;
  const std::size_t size = bytes > kChunk ? (bytes + kHuge - 1) / kHuge * kHuge : kChunk;
  auto* made = new Chunk{static_cast<std::byte*>(aligned(kHuge, size)), size};
  wish_for_huge_pages(made->memory, size);
  if (current && current->blocks == 0) drop(current);
  current = made;
  return made;
}

}  // namespace

void Free::operator()(void* memory) const noexcept { std::free(memory); }

void FreeBlock::operator()(void* memory) const noexcept {
  if (!LISSOME_ARENA) return std::free(memory);
  if (!memory) return;
  const Header* header = static_cast<Header*>(memory) - 1;
  Chunk* chunk = header->chunk;
  auto* first = static_cast<std::byte*>(memory);
  const std::lock_guard lock(guard);
  if (--chunk->blocks == 0 && chunk != current) {
    drop(chunk);
  } else {
    give_back(first, first + header->bytes);
  }
}

void* allocate_bytes(std::size_t bytes) { return aligned(kLine, bytes + (bytes == 0)); }

void* allocate_block(std::size_t bytes) {
  if (!LISSOME_ARENA) return allocate_bytes(bytes);
  const std::size_t whole = sizeof(Header) + (bytes + kLine - 1) / kLine * kLine;
  const std::lock_guard lock(guard);
  Chunk* chunk = chunk_for(whole);
  auto* header = new (chunk->memory + chunk->used) Header{chunk, bytes};
  chunk->used += whole;
  ++chunk->blocks;
  return header + 1;
}

}  // namespace lissome
