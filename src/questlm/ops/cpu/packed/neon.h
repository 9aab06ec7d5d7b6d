/* The products for 64-bit ARM with dot products of bytes; MIXES_SIGNS says whether those of unsigned by signed bytes
   (i8mm) are there too. Included by the files of both sets. */

#define BYTES 16
#define GROUPS 1
#define TOKENS 4
#define FEW 4
#define WAYS(tokens) 1
#define WORD_ROWS 2
#include "vectors.h"

typedef uint8x16_t table_t;
typedef struct {
    uint8x16x4_t bytes; /* 16 floats */
} values_t;

/* Without i8mm a byte above 127 goes as the signed number w - 128, and 128 x is added as twice 64 x. */
INLINE vec dot(vec sum, vec w, vec x, int wide)
{
#if MIXES_SIGNS
    (void)wide;
    return (vec)vusdotq_s32((int32x4_t)sum, (uint8x16_t)w, (int8x16_t)x);
#else
    if (!wide)
        return (vec)vdotq_s32((int32x4_t)sum, (int8x16_t)w, (int8x16_t)x);
    const int8x16_t half = vdupq_n_s8(64);
    const int32x4_t added = vdotq_s32(vdotq_s32((int32x4_t)sum, half, (int8x16_t)x), half, (int8x16_t)x);
    return (vec)vdotq_s32(added, (int8x16_t)(w ^ splat_byte(128)), (int8x16_t)x);
#endif
}

INLINE table_t load_table(const uint8_t *table) { return vld1q_u8(table); }

INLINE vec lookup(table_t table, vec w) { return (vec)vqtbl1q_u8(table, (uint8x16_t)w); }

INLINE vec spread(const uint8_t *bits)
{
    const uint8x16_t bit = (uint8x16_t)(words_t){0x8040201008040201u, 0x8040201008040201u};
    const uint8x16_t both = vcombine_u8(vdup_n_u8(bits[0]), vdup_n_u8(bits[1]));
    return (vec)vandq_u8(vtstq_u8(both, bit), vdupq_n_u8(1));
}

INLINE vec add_fours(vec w, const uint8_t *bits) { return w | spread(bits) << 2; }

/* 3 v / 256 as half of v + v / 2, divided by 64; both halves are rounded down. */
INLINE vec leading_digit(vec v)
{
    return (vec)vshrq_n_u8(vhaddq_u8((uint8x16_t)v, vshrq_n_u8((uint8x16_t)v, 1)), 6);
}

INLINE words_t count_bits(words_t v)
{
    return (words_t)vpaddlq_u32(vpaddlq_u16(vpaddlq_u8(vcntq_u8((uint8x16_t)v))));
}

INLINE uint64_t plane_of(const uint8_t *codes, int plane) { return plain_plane_of(codes, plane); }

INLINE floats_t multiply_add(floats_t a, floats_t b, floats_t c)
{
    return (floats_t)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
}

INLINE values_t load_values(const float *values)
{
    const uint8_t *from = (const uint8_t *)values;
    return (values_t){{{vld1q_u8(from), vld1q_u8(from + 16), vld1q_u8(from + 32), vld1q_u8(from + 48)}}};
}

/* The 4 bytes of float w are bytes 4 w to 4 w + 3. */
INLINE floats_t pick(values_t values, vec w)
{
    const vec index = (w & splat(15)) * 0x04040404u + splat(0x03020100u);
    return (floats_t)vqtbl4q_u8(values.bytes, (uint8x16_t)index);
}

INLINE floats_t to_floats(vec w) { return (floats_t)vcvtq_f32_s32((int32x4_t)w); }

#include "strips.h"
