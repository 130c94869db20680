// Functions for one instruction set.
//
// The library is compiled for the oldest CPU of its architecture; what uses more carries LISSOME_TARGET, which each
// file of kernels defines before it includes the shared loops. Those loops are templates over types that only that
// file has, so that no function exists twice under one name.
#pragma once

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define LISSOME_X86 1
#else
#define LISSOME_X86 0
#endif

#define LISSOME_AVX2 __attribute__((target("avx2,fma,popcnt,bmi,bmi2,lzcnt")))
#define LISSOME_AVX512                                                                                       \
  __attribute__((target("avx2,fma,popcnt,bmi,bmi2,lzcnt,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,"       \
                        "avx512vbmi,avx512vbmi2,gfni")))
#define LISSOME_AVX512BF16                                                                                   \
  __attribute__((target("avx2,fma,popcnt,bmi,bmi2,lzcnt,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,"       \
                        "avx512vbmi,avx512vbmi2,gfni,avx512bf16")))
#define LISSOME_AMX                                                                                          \
  __attribute__((target("avx2,fma,popcnt,bmi,bmi2,lzcnt,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,"       \
                        "avx512vbmi,avx512vbmi2,gfni,avx512bf16,amx-tile,amx-bf16,amx-int8")))

#define LISSOME_INLINE inline __attribute__((always_inline))
