/* The products for x86-64 with AVX2 and FMA. */

#include "layout.h"

#if defined(__x86_64__)
#include <immintrin.h>
#include <string.h>

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#define SET avx2
#define BYTES 32
#define GROUPS 1
#define TOKENS 4
#define FEW 4
#define WAYS(tokens) 1
#define WORD_ROWS 2
#include "vectors.h"

typedef __m256i table_t;
typedef struct {
    __m256 low, high;
} values_t;

/* Sums of two products of bytes fit 16 bits where w is at most 127, or x within 64; else products go one by one. */
INLINE vec dot(vec sum, vec w, vec x, int wide)
{
    const __m256i ones = _mm256_set1_epi16(1);
    if (wide != 1)
        return sum + (vec)_mm256_madd_epi16(_mm256_maddubs_epi16((__m256i)w, (__m256i)x), ones);
    const __m256i low = _mm256_set1_epi16(0xff);
    const __m256i even_x = _mm256_srai_epi16(_mm256_slli_epi16((__m256i)x, 8), 8);
    const __m256i even = _mm256_madd_epi16(_mm256_and_si256((__m256i)w, low), even_x);
    const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16((__m256i)w, 8), _mm256_srai_epi16((__m256i)x, 8));
    return sum + (vec)even + (vec)odd;
}

INLINE table_t load_table(const uint8_t *table)
{
    return _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)table));
}

INLINE vec lookup(table_t table, vec w) { return (vec)_mm256_shuffle_epi8(table, (__m256i)w); }

INLINE vec spread(const uint8_t *bits)
{
    const __m256i byte = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    const __m256i bit = _mm256_set1_epi64x((int64_t)0x8040201008040201u);
    const __m256i of_byte = _mm256_and_si256(_mm256_shuffle_epi8((__m256i)splat4(bits), byte), bit);
    return (vec)_mm256_and_si256(_mm256_cmpeq_epi8(of_byte, bit), _mm256_set1_epi8(1));
}

INLINE vec add_fours(vec w, const uint8_t *bits) { return w | spread(bits) << 2; }

/* 1 from 256 / 3 on, and 2 from 512 / 3. A comparison that holds is -1. */
INLINE vec leading_digit(vec v)
{
    const __m256i one = _mm256_set1_epi8(86), two = _mm256_set1_epi8((char)171);
    const __m256i from_one = _mm256_cmpeq_epi8(_mm256_max_epu8((__m256i)v, one), (__m256i)v);
    const __m256i from_two = _mm256_cmpeq_epi8(_mm256_max_epu8((__m256i)v, two), (__m256i)v);
    return (vec)_mm256_abs_epi8(_mm256_add_epi8(from_one, from_two));
}

INLINE words_t count_bits(words_t v)
{
    const __m256i counts = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
    const __m256i low = (__m256i)(v & splat_word(0x0f0f0f0f0f0f0f0fu));
    const __m256i high = (__m256i)(v >> 4 & splat_word(0x0f0f0f0f0f0f0f0fu));
    const __m256i each = _mm256_add_epi8(_mm256_shuffle_epi8(counts, low), _mm256_shuffle_epi8(counts, high));
    return (words_t)_mm256_sad_epu8(each, _mm256_setzero_si256());
}

/* The bit is moved to the top of its byte. */
INLINE uint64_t plane_of(const uint8_t *codes, int plane)
{
    const vec low = load(codes) << (7 - plane), high = load(codes + BYTES) << (7 - plane);
    return (uint32_t)_mm256_movemask_epi8((__m256i)low) | (uint64_t)(uint32_t)_mm256_movemask_epi8((__m256i)high) << 32;
}

INLINE floats_t multiply_add(floats_t a, floats_t b, floats_t c)
{
    return (floats_t)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
}

INLINE values_t load_values(const float *values)
{
    return (values_t){_mm256_loadu_ps(values), _mm256_loadu_ps(values + 8)};
}

INLINE floats_t pick(values_t values, vec w)
{
    const __m256 low = _mm256_permutevar8x32_ps(values.low, (__m256i)w);
    const __m256 high = _mm256_permutevar8x32_ps(values.high, (__m256i)w);
    return (floats_t)_mm256_blendv_ps(low, high, (__m256)(w << 28));
}

INLINE floats_t to_floats(vec w) { return (floats_t)_mm256_cvtepi32_ps((__m256i)w); }

#include "strips.h"
#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
