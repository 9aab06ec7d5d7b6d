/* The products for AVX-512 with VNNI; COUNTS_WORDS says whether VPOPCNTDQ is there too. Included by the files of both
   sets, because numbers of bits are all that differs. */

#define BYTES 64
#define GROUPS 4
#define TOKENS 6
#define FEW 8
#define WAYS(tokens) ((tokens) > 4 ? 1 : (tokens) > 2 ? 2 : 4)
#define WORD_ROWS 8
#include "vectors.h"

typedef __m512i table_t;
typedef __m512 values_t;

INLINE vec dot(vec sum, vec w, vec x, int wide)
{
    (void)wide;
    return (vec)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)w, (__m512i)x);
}

INLINE table_t load_table(const uint8_t *table)
{
    return _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)table));
}

INLINE vec lookup(table_t table, vec w) { return (vec)_mm512_shuffle_epi8(table, (__m512i)w); }

INLINE vec spread(const uint8_t *bits)
{
    uint64_t mask;
    memcpy(&mask, bits, sizeof mask);
    return (vec)_mm512_maskz_set1_epi8((__mmask64)mask, 1);
}

INLINE vec add_fours(vec w, const uint8_t *bits)
{
    uint64_t mask;
    memcpy(&mask, bits, sizeof mask);
    return (vec)_mm512_mask_add_epi8((__m512i)w, (__mmask64)mask, (__m512i)w, _mm512_set1_epi8(4));
}

/* 1 from 256 / 3 on, and 2 from 512 / 3. */
INLINE vec leading_digit(vec v)
{
    const __mmask64 from_one = _mm512_cmpge_epu8_mask((__m512i)v, _mm512_set1_epi8(86));
    const __mmask64 from_two = _mm512_cmpge_epu8_mask((__m512i)v, _mm512_set1_epi8((char)171));
    return (vec)_mm512_mask_mov_epi8(_mm512_maskz_set1_epi8(from_one, 1), from_two, _mm512_set1_epi8(2));
}

INLINE words_t count_bits(words_t v)
{
#if COUNTS_WORDS
    return (words_t)_mm512_popcnt_epi64((__m512i)v);
#else
    const __m512i counts = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
    const __m512i low = (__m512i)(v & splat_word(0x0f0f0f0f0f0f0f0fu));
    const __m512i high = (__m512i)(v >> 4 & splat_word(0x0f0f0f0f0f0f0f0fu));
    const __m512i each = _mm512_add_epi8(_mm512_shuffle_epi8(counts, low), _mm512_shuffle_epi8(counts, high));
    return (words_t)_mm512_sad_epu8(each, _mm512_setzero_si512());
#endif
}

INLINE uint64_t plane_of(const uint8_t *codes, int plane)
{
    return _mm512_test_epi8_mask((__m512i)load(codes), _mm512_set1_epi8((char)(1 << plane)));
}

INLINE floats_t multiply_add(floats_t a, floats_t b, floats_t c)
{
    return (floats_t)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
}

INLINE values_t load_values(const float *values) { return _mm512_loadu_ps(values); }

INLINE floats_t pick(values_t values, vec w)
{
    return (floats_t)_mm512_permutexvar_ps((__m512i)w, values);
}

INLINE floats_t to_floats(vec w) { return (floats_t)_mm512_cvtepi32_ps((__m512i)w); }

#include "strips.h"
