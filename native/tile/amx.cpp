#include "base/target.h"
#define LISSOME_TARGET LISSOME_AMX
#include "linear/kernels.h"

#if LISSOME_X86
#include "linear/avx512_ops.h"
#include "linear/panels.h"
#include "tile/amx_tile.h"
#include "tile/tile_loop.h"

namespace lissome {
namespace {

// Bringing weights into tiles takes as long for one row of activations as for many, and sparse ones go there through
// memory. So few rows are multiplied in registers, straight from the stream, with a tile's encoding and to its very
// sums: no result may depend on how many rows there are.
template <class P>
LISSOME_TARGET void few_or_tiles(const Job& job, std::int64_t first, std::int64_t last) {
  if (job.rows <= P::kRows) return run_few<P>(job, first, last);
  tile_panels<AmxTile, P, typename P::Sum>(job, first, last);
}

// Adds the 128 that vpdpbusd wants on the way.
struct Int8Few : Int8 {
  using X = std::int8_t;
  LISSOME_OP Step broadcast(const X* x) {
    return _mm512_xor_si512(_mm512_set1_epi32(load_as<int>(x)), _mm512_set1_epi8(-128));
  }
};

// TDPBF16PS as real ones have it, to the bit: even and odd inputs of a tile are added up apart from zero, each product
// with one rounding, and then go to the sum of the tiles before. vpdpbf16ps adds in another order.
struct Bf16Few : Bits16 {
  static constexpr int kRows = 4, kUnroll = 8;  // 24 registers of sums
  static constexpr std::uint32_t kOffset = 0;
  using X = std::uint16_t;
  using Sum = float;
  struct Acc {
    __m512 now, before;  // the latter of the first Acc alone
  };
  struct Step {
    __m512 even, odd;
  };

  // Tiles round to nearest and take denormals for zero, whatever this thread's floating-point unit is told to do.
  class Guard {
   public:
    Guard() { set(0x9fc0); }
    ~Guard() { set(before_); }
    Guard(const Guard&) = delete;

   private:
    static void set(unsigned mode) { __asm__ volatile("ldmxcsr %0" : : "m"(mode) : "memory"); }
    unsigned before_ = _mm_getcsr();
  };

  LISSOME_OP Acc load(const Sum* from) { return {_mm512_setzero_ps(), _mm512_loadu_ps(from)}; }
  LISSOME_OP void store(Sum* to, Acc acc) { _mm512_storeu_ps(to, acc.before); }
  LISSOME_OP void join(const Sum* sums, Sum* out) { _mm512_storeu_ps(out, _mm512_loadu_ps(sums)); }
  LISSOME_OP Step broadcast(const X* x) {
    const __m512i pair = _mm512_set1_epi32(load_as<int>(x));
    return {even(pair), odd(pair)};
  }
  LISSOME_OP void add(Acc (&acc)[2], Row row, Step x, int) {
    acc[0].now = _mm512_fmadd_ps(even(row), x.even, acc[0].now);
    acc[1].now = _mm512_fmadd_ps(odd(row), x.odd, acc[1].now);
  }
  LISSOME_OP void close(Acc (&acc)[2]) {
    acc[0].before = _mm512_add_ps(acc[0].before, _mm512_add_ps(acc[0].now, acc[1].now));
    acc[0].now = acc[1].now = _mm512_setzero_ps();
  }
};

}  // namespace

const Kernels* amx_kernels() {
  static const Kernels table = [] {
    Kernels made = *avx512bf16_kernels();
    made.isa = Isa::amx;
    made.bf16_bf16 = {encode_halves, few_or_tiles<Bf16Few>, sizeof(std::uint16_t)};
    made.int8 = {encode_integers<std::int8_t, 0>, few_or_tiles<Int8Few>, sizeof(std::int8_t)};
    made.nested = nested_amx();
    return made;
  }();
  return &table;
}

}  // namespace lissome
#else
const lissome::Kernels* lissome::amx_kernels() { return nullptr; }
#endif
