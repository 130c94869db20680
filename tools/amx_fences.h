// Put before every C++ source of llama.cpp when it is compiled for the tests and claims (`make test-all`).
//
// GCC 12's intrinsics do not say that tiles are shaped by and filled from memory, or emptied into it. Optimised, stores
// that only a tile reads are left out: llama.cpp then ends the process at the first prompt (ggml-org/llama.cpp#20824) or
// computes wrong logits. Here each such access orders memory around itself.
#if defined(__AMX_TILE__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>

static inline void amx_fence(const void* what) { __asm__ volatile("" : : "r"(what) : "memory"); }

#define _tile_loadconfig(config) (amx_fence(config), (_tile_loadconfig)(config))

#undef _tile_loadd
#define _tile_loadd(tile, from, stride)          \
  do {                                           \
    amx_fence(from);                             \
    _tile_loadd_internal(tile, from, stride);    \
  } while (0)

#undef _tile_stored
#define _tile_stored(tile, to, stride)           \
  do {                                           \
    _tile_stored_internal(tile, to, stride);     \
    amx_fence(to);                               \
  } while (0)
#endif
