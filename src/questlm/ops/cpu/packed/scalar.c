/* The products in portable C: for any processor that the compiler knows, and the only ones where no better file runs. */

#include "layout.h"

#define SET scalar
#define BYTES 16 /* SSE2 on x86-64, NEON on aarch64: what every machine of the architecture has */
#define GROUPS 1
#define TOKENS 2 /* more take a minute to compile */
#define FEW 2
#define WAYS(tokens) 1
#define WORD_ROWS 1
#include "vectors.h"

typedef int32_t ints_t __attribute__((vector_size(BYTES)));
typedef int16_t shorts_t __attribute__((vector_size(BYTES)));

typedef struct {
    uint8_t bytes[16];
} table_t;
typedef const float *values_t;

/* Products of two bytes fit 16 bits: at most 255 * 128. */
INLINE vec dot(vec sum, vec w, vec x, int wide)
{
    (void)wide;
    const shorts_t even = (shorts_t)(w & splat(0x00ff00ffu)) * ((shorts_t)x << 8 >> 8);
    const shorts_t odd = (shorts_t)(w >> 8 & splat(0x00ff00ffu)) * ((shorts_t)x >> 8);
    return sum + (vec)(((ints_t)even << 16 >> 16) + ((ints_t)even >> 16) + ((ints_t)odd << 16 >> 16) +
                       ((ints_t)odd >> 16));
}

INLINE table_t load_table(const uint8_t *table)
{
    table_t result;
    memcpy(result.bytes, table, 16);
    return result;
}

INLINE vec lookup(table_t table, vec w)
{
    uint8_t bytes[BYTES];
    store(bytes, w);
    for (int i = 0; i < BYTES; i++)
        bytes[i] = table.bytes[bytes[i]];
    return load(bytes);
}

INLINE vec spread(const uint8_t *bits)
{
    const bytes_t bit = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    const bytes_t low = bits[0] - (bytes_t){0}, high = bits[1] - (bytes_t){0};
    const words_t all = {((words_t)low)[0], ((words_t)high)[0]};
    return (vec)((bytes_t)(((bytes_t)all & bit) != 0) & (bytes_t)splat_byte(1));
}

INLINE vec add_fours(vec w, const uint8_t *bits) { return w | spread(bits) << 2; }

INLINE vec leading_digit(vec v)
{
    return ((v & splat(0x00ff00ffu)) * 3 >> 8 & splat(0x00ff00ffu)) |
           ((v >> 8 & splat(0x00ff00ffu)) * 3 & splat(0xff00ff00u));
}

/* Sums of 2, 4 and 8 neighbouring bits, then of all 8 bytes by a product. */
INLINE words_t count_bits(words_t v)
{
    v = v - (v >> 1 & splat_word(0x5555555555555555u));
    v = (v & splat_word(0x3333333333333333u)) + (v >> 2 & splat_word(0x3333333333333333u));
    v = (v + (v >> 4)) & splat_word(0x0f0f0f0f0f0f0f0fu);
    v += v >> 8;
    v += v >> 16;
    return (v + (v >> 32)) & splat_word(0xff);
}

INLINE uint64_t plane_of(const uint8_t *codes, int plane) { return plain_plane_of(codes, plane); }

INLINE floats_t multiply_add(floats_t a, floats_t b, floats_t c) { return a * b + c; }

INLINE values_t load_values(const float *values) { return values; }

INLINE floats_t pick(values_t values, vec w)
{
    return (floats_t){values[w[0] & 15], values[w[1] & 15], values[w[2] & 15], values[w[3] & 15]};
}

INLINE floats_t to_floats(vec w) { return __builtin_convertvector((ints_t)w, floats_t); }

#include "strips.h"
