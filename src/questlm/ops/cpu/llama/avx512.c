/* The parts of a Llama that are no products, for x86-64 with AVX-512: the same for both sets of products that use it. */

#include "llama.h"

#if defined(__x86_64__)
#include <immintrin.h>
#include <math.h>
#include <string.h>

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl")
#endif
#define BYTES 64
#include "../packed/vectors.h"

INLINE floats_t multiply_add(floats_t a, floats_t b, floats_t c)
{
    return (floats_t)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
}

#include "shuffles.h"

#include "numbers.h"

#include "attend.h"

const llama_kernels_t questlm_llama_avx512 = {norm, swiglu, attend, merge, largest_of, all_finite};
#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
