/* Products of packed weights: what a weight looks like in memory, and what the parts of this folder give each other.

   The layout
   ----------
   An artifact stores a weight row by row, as a stream of bits that depends on no processor. Once, when a model is
   loaded, prepack.c writes it in the order in which the product reads it. That order is the same for every instruction
   set and serves one token and many alike, so there is one copy, of as many bits as the artifact's:

   - Rows go in groups of 16. A group is contiguous, from its first k to its last. The last group is filled up with
     zeros.
   - Along k a group is a sequence of units. A unit holds whole steps, and a step is 4 neighbouring k of 16 rows: 64
     bytes, of which each row has 4. This is what one instruction of AVX-512 VNNI multiplies and adds up; AVX2 takes
     half a step at a time, NEON a quarter.
   - In a unit of b-bit codes a byte holds a bit field for each of 8 / b steps. To unpack a step is a shift and a mask.
     A third bit (and the only one, of 1-bit weights for inputs of more than 4 bits) is kept apart, as 64 bits a step.
   - Ternary codes go 5 to a byte, as in the artifact, but as the fraction v = 0.d0 d1 d2 d3 d4 in base 3, rounded up to
     1/256. The leading digit is the whole part of 3 v, and the next digits follow by multiplying by 3 modulo 1.
   - 1-bit weights for inputs of up to 4 bits are words of 64 neighbouring k, 16 rows a unit: sums of products are then
     numbers of bits in common with each bit plane of the input.
   - Numbers of 16 or 32 bits (the head, sparse weights) are stored the same way: 4 k of 16 rows, or 1 k.

   Few tokens take ternary weights without unpacking digits. With r0 = v and r(j+1) the fraction of 3 r(j), in 1/256, a
   digit is d(j) = (3 r(j) - r(j+1)) / 256, so 256 sum(d(j) x(j)) is the sum of r(j) z(j) for j = 0 to 5, with z(j) =
   3 x(j) - x(j-1): 6 products of bytes and nothing else but the multiplications by 3. In the code: RESIDUES.

   k is filled up to whole units. What the filler of a weight means does not matter, because that of the input is 0.

   The mathematics
   ---------------
   Levels are half-integers, so everything that is summed is a whole number. Twice a weight's level is A w + B, where w
   is what its code unpacks to (0 to 255; by a table, where levels are not evenly spaced), and twice an input's level is
   C x + D, where x fits 8 bits. Hence

       4 sum(level level) = A C sum(w x) + A D sum(w) + B C sum(x) + K B D.

   Only sum(w x) is left to the inner loop. sum(w) is computed when the weight is laid out, sum(x) when an input is.

   Numbers as inputs
   -----------------
   An input that is not rounded to codes is rounded to whole multiples q of a unit. The unit of a row is the smallest
   power of two by which its largest entry is not more than 2^23 - 32897. That is 24 bits with a sign: each entry is off by at
   most half a unit. In base 256, q = d0 + 256 d1 + 65536 d2 with digits from -128 to 127, and each row of digits
   multiplies as x does above, three rows to a token. Sums are exact, and three products of bytes take a third of the
   time of as many products of floats. The output is the three sums put together in float32.

   Rounding
   --------
   Sums are exact, in 32 bits. An output is float32(4 sum) * 0.25f * input step * weight step, in this order, then the
   terms of offsets and the bias: the order of questlm.ops.reference.matmul, so that the result has the same bits. Where
   levels are not half-integers, weights are turned to float32 in registers, and each output is a float32 sum of sums of
   320 k, in order, whatever the number of tokens. */

#ifndef QUESTLM_LAYOUT_H
#define QUESTLM_LAYOUT_H

#include <stdint.h>

enum { GROUP_ROWS = 16, STEP_K = 4, STEP_BYTES = 64, LINE = 64, FEW_TOKENS = 8, DIGITS = 3 };

/* How the weights of a matrix are stored; as in questlm.ops.cpu.linear. */
typedef enum { BITS1, BITS2, BITS3, BITS4, BITS8, TERNARY, WORDS, BF16, FLOAT32, KINDS,
               RESIDUES = KINDS, PANEL } kind_t;

typedef struct {
    int32_t k, bytes;
} unit_t;

static const unit_t UNITS[KINDS + 2] = {
    [BITS1] = {16, 32}, [BITS2] = {16, 64},   [BITS3] = {16, 96}, [BITS4] = {16, 128},  [BITS8] = {16, 256},
    [TERNARY] = {20, 64}, [WORDS] = {64, 128}, [BF16] = {4, 128},  [FLOAT32] = {1, 64},
    [RESIDUES] = {20, 64}, [PANEL] = {4, 64},
};

/* A weight, and how its inputs are encoded. The caller owns all memory. As in questlm.ops.cpu.linear. */
typedef struct {
    const uint8_t *data;  /* aligned to 64 bytes */
    const int32_t *sums;  /* (rows), sum(w) */
    const float *step;    /* (rows), or NULL */
    const float *offset;  /* (rows), added to each entry of a row, or NULL */
    const float *bias;    /* (rows), or NULL */
    const float *totals;  /* (rows), sum of a row's levels, where inputs have an offset; or NULL */
    const float *values;  /* for float sums: level of each w, 16 of them, those of
                             2 bits 4 times; or of 8 bits, unless `by_table`, the w of level 0 */
    int64_t rows, k;
    int32_t kind;
    int32_t has_table;    /* w is table[code]; codes below 16 */
    int32_t by_table;     /* float sums of 8 bits look levels up in `values`, (256) */
    int32_t is_wide;      /* some w are above 127 */
    int32_t in_integers;  /* inputs are codes, and sums are integers */
    int32_t by_digits;    /* inputs are numbers, and sums are integers all the same: see "Numbers as inputs" */
    int32_t scale, shift; /* A and B */
    int32_t input_scale, input_shift; /* C and D */
    int32_t rounds_sums;  /* sums are rounded to bfloat16 */
    int32_t block, input_levels; /* of questlm_packed_linear: Hadamard block, levels of the input, 0 for floats */
    float step_per_rms;
    uint8_t table[16];
    int8_t input_table[256]; /* x of each code of the input */
} packed_t;

/* One product: inputs as the inner loops take them, and where outputs go. */
typedef struct {
    const packed_t *weight;
    int64_t tokens, units;
    const void *input;   /* int8, float or uint64 planes, rows of `stride` bytes, aligned, filled up with 0 */
    int64_t stride;
    int32_t planes;      /* rows that a token has: of bits, of WORDS; of digits; else 1 */
    int32_t residues;    /* the weight is TERNARY, and the input z */
    const int32_t *sums; /* (tokens), sum(x); of digits (tokens, DIGITS) */
    const float *unit;   /* (tokens), what a digit of the lowest row stands for */
    const float *totals; /* (tokens), sum of the input's levels, for a weight with an offset */
    const float *step;   /* (tokens), or NULL */
    const float *offset; /* (1), added to each entry of the input, or NULL */
    float *y;            /* (tokens, rows) */
} product_t;

/* What each instruction set implements; strips.h has the code. */
typedef struct {
    int32_t groups;      /* a strip is so many groups */
    int64_t (*scratch)(const product_t *product); /* bytes that a thread needs */
    void (*product)(const product_t *product, int64_t begin, int64_t end, uint8_t *scratch); /* of strips */
    /* x of a row of codes, and its sum; `to` is filled up with 0 to `width` bytes */
    int32_t (*encode)(const uint8_t *codes, int64_t k, const int8_t *table, int8_t *to, int64_t width);
    int32_t (*planes)(const uint8_t *codes, int64_t k, int planes, uint64_t *to, int64_t words); /* the same, in bits */
    /* the rows of digits of a row of numbers, each filled up to `width` bytes, and their sums; returns the unit */
    float (*digits)(const float *row, int64_t k, int8_t *to, int64_t width, int32_t *sums);
} kernels_t;

extern const kernels_t questlm_kernels_scalar, questlm_kernels_avx2, questlm_kernels_avx512vnni,
    questlm_kernels_avx512vpopcntdq, questlm_kernels_dotprod, questlm_kernels_i8mm;

/* The kernels in use, and their name. */
const kernels_t *questlm_kernels(void);

#endif
