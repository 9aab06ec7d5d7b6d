/* The parts of a Llama that are no products, for x86-64 with AVX2 and FMA. */

#include "llama.h"

#if defined(__x86_64__)
#include <immintrin.h>
#include <math.h>
#include <string.h>

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#define BYTES 32
#include "../packed/vectors.h"

INLINE floats_t multiply_add(floats_t a, floats_t b, floats_t c)
{
    return (floats_t)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
}

#include "shuffles.h"

#include "numbers.h"

#include "attend.h"

const llama_kernels_t questlm_llama_avx2 = {norm, swiglu, attend, merge, largest_of, all_finite};
#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
