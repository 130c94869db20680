// Memory that starts at a cache line, and on huge pages where it is large: a kernel that reads gigabytes in order
// otherwise stops at every 4 KiB for the next address translation.
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

// Throws std::bad_alloc. The contents are not set.
void* allocate_bytes(std::size_t bytes);

template <class T>
Buffer<T> allocate(std::int64_t count) {
  return Buffer<T>(static_cast<T*>(allocate_bytes(static_cast<std::size_t>(count) * sizeof(T))));
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
