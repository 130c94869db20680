// Memory that starts at a cache line.
//
// Weights lie in blocks of huge pages that many share: whoever reads gigabytes in order would otherwise stop at every
// 4 KiB for the next address translation, and weights of small layers do not fill a huge page of their own.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace lissome {

struct Free {
  void operator()(void* memory) const noexcept;
};

template <class T>
using Buffer = std::unique_ptr<T[], Free>;

struct FreeBlock {
  void operator()(void* memory) const noexcept;
};

// On huge pages, beside other blocks; for what is kept and read often.
template <class T>
using Block = std::unique_ptr<T[], FreeBlock>;

// Both throw std::bad_alloc and leave the contents unset.
void* allocate_bytes(std::size_t bytes);
void* allocate_block(std::size_t bytes);

template <class T>
Buffer<T> allocate(std::int64_t count) {
  return Buffer<T>(static_cast<T*>(allocate_bytes(static_cast<std::size_t>(count) * sizeof(T))));
}

template <class T>
Block<T> allocate_block(std::int64_t count) {
  return Block<T>(static_cast<T*>(allocate_block(static_cast<std::size_t>(count) * sizeof(T))));
}

// A buffer that grows and is used again, one per thread and purpose.
class Scratch {
 public:
  template <class T>
  T* at_least(std::int64_t count) {
    const auto bytes = static_cast<std::size_t>(count) * sizeof(T);
    if (bytes > size_) {
      memory_ = allocate<std::byte>(static_cast<std::int64_t>(bytes));
      size_ = bytes;
    }
    return reinterpret_cast<T*>(memory_.get());
  }

 private:
  Buffer<std::byte> memory_;
  std::size_t size_ = 0;
};

}  // namespace lissome
