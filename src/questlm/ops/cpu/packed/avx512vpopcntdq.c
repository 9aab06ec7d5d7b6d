/* The products for x86-64 with AVX-512, VNNI and VPOPCNTDQ: Ice Lake, Zen 4, and later. */

#include "layout.h"

#if defined(__x86_64__)
#include <immintrin.h>
#include <string.h>

#ifdef __clang__
#pragma clang attribute push(                                                                                      \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vpopcntdq"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vpopcntdq")
#endif
#define SET avx512vpopcntdq
#define COUNTS_WORDS 1
#include "avx512.h"
#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
