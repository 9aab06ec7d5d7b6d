/* The products, for the vectors of one instruction set: included by its file, which has defined

     GROUPS               groups in a strip; TOKENS, most tokens whose sums stay in registers beside them
     FEW                  most tokens whose sums stay in registers beside those of one group
     WAYS(tokens)         sums that a row needs so that additions of `dot` do not wait for one another
     WORD_ROWS            most rows of bits whose sums stay in registers beside those of one group
     dot(sum, w, x, wide) sum + the products of 4 unsigned bytes w with 4 signed bytes x, in each 32 bits;
                          exact for w above 127 only where `wide` is not 0; 2 says that x are within 64
     lookup(table, w)     table[w] for each byte w below 16; load_table(table) gives the first argument
     spread(bits)         a byte, 0 or 1, for each of BYTES bits in memory
     add_fours(w, bits)   w + 4 for each byte whose bit is set, of BYTES bits in memory
     leading_digit(v)     whole part of 3 v / 256 for each byte
     count_bits(v)        number of bits set in each 64 bits
     plane_of(codes, p)   bit p of 64 codes, first code lowest
     multiply_add(a, b, c)  a b + c
     pick(values, w)      values[w] by the lowest 4 of each 32 bits; load_values(values) gives the first argument
     to_floats(w)         each of 32 bits as a float

   and the types table_t and values_t. A loop over k is written once, as a function that is inlined with its kind,
   tokens and table known, so that what unpacks a step is a few instructions without a branch. */

#define NAME_(set) questlm_kernels_##set
#define NAME(set) NAME_(set)

enum { STRIP_ROWS = GROUPS * GROUP_ROWS, PANEL_STEPS = 65536 / (GROUPS * STEP_BYTES), BLOCK_K = 320,
       MOST_TOKENS = FEW > TOKENS ? FEW : TOKENS, MOST_SUMS = 32 };

/* Part `part` of step `step` of a unit, as bytes. */
INLINE vec codes_of(kind_t kind, const uint8_t *unit, int step, int part)
{
    const uint8_t *at = unit + part * BYTES;
    switch (kind) {
    case BITS1:
        return spread(unit + 8 * step + part * (BYTES / 8));
    case BITS2:
        return (load(at) >> (2 * step)) & splat_byte(3);
    case BITS3:
        return add_fours((load(at) >> (2 * step)) & splat_byte(3), unit + 64 + 8 * step + part * (BYTES / 8));
    case BITS4:
        return (load(at + 64 * (step / 2)) >> (4 * (step % 2))) & splat_byte(15);
    case TERNARY:
    case RESIDUES: {
        bytes_t rest = (bytes_t)load(at);
        UNROLL for (int i = 0; i < step; i++) rest = rest + rest + rest;
        return kind == RESIDUES ? (vec)rest : leading_digit((vec)rest);
    }
    default:
        return load(at + STEP_BYTES * step);
    }
}

INLINE int steps_of(kind_t kind)
{
    return kind == FLOAT32 ? 1 : kind == RESIDUES ? 6 : UNITS[kind].k / STEP_K;
}

typedef struct {
    const uint8_t *table;
    const float *values;
    const uint8_t *const *w;
    const uint8_t *x;
    int64_t stride, units, left; /* `left` with those of later blocks */
    int groups, more, residues;  /* groups that the weight has */
    uint32_t *sums;
} strip_t;

#include "integers.h"
#include "floats.h"
#include "words.h"
#include "outputs.h"
#include "inputs.h"

/* ---- A strip: all tokens by the rows of some groups -------------------------------------------------------------- */

INLINE int sums_integers(const packed_t *weight) { return weight->in_integers || weight->by_digits; }

/* Rows of sums that a token has. */
INLINE int rows_of(const product_t *job) { return job->weight->by_digits ? DIGITS : 1; }

static int64_t panel_units(const packed_t *weight)
{
    if (!sums_integers(weight))
        return BLOCK_K / UNITS[weight->kind].k; /* which divides it */
    return PANEL_STEPS / steps_of(weight->kind);
}

static int64_t panel_steps(const packed_t *weight) { return sums_integers(weight) ? PANEL_STEPS : BLOCK_K; }

/* Of more tokens than these a weight is unpacked once into a panel, which stays in cache. */
static int takes_panel(const product_t *job)
{
    return job->tokens * rows_of(job) > FEW_TOKENS && job->weight->kind != WORDS;
}

static int64_t count_bytes(int64_t rows) { return rows * STRIP_ROWS * 4; }

static int counts_planes(const product_t *job) { return job->weight->kind == WORDS && job->planes > 1; }

static int64_t scratch_bytes(const product_t *job)
{
    const int64_t panel = takes_panel(job) ? (int64_t)panel_steps(job->weight) * GROUPS * STEP_BYTES : 0;
    return panel + count_bytes(job->tokens * rows_of(job)) + (counts_planes(job) ? count_bytes(job->tokens * job->planes) : 0);
}

/* Give the tokens' sums to `sum`, a few at a time. */
INLINE void for_all(const packed_t *weight, strip_t strip, int64_t tokens,
                    int (*sum)(const packed_t *, const strip_t *, int64_t))
{
    while (tokens > 0) {
        const int taken = sum(weight, &strip, tokens);
        tokens -= taken;
        strip.x += taken * strip.stride;
        strip.sums += taken * STRIP_ROWS;
    }
}

static int sum_direct(const packed_t *weight, const strip_t *strip, int64_t tokens)
{
    if (weight->kind == WORDS)
        return count_strip(strip, tokens);
    return sums_integers(weight) ? direct(weight, strip, tokens) : direct_floats(weight, strip, tokens);
}

static int sum_panel(const packed_t *weight, const strip_t *strip, int64_t tokens)
{
    if (!sums_integers(weight))
        return from_panel_of_floats(strip, tokens);
    return weight->is_wide ? from_wide_panel(strip, tokens) : from_panel(strip, tokens);
}

static void sum_by_panels(const product_t *job, strip_t strip, uint8_t *panel)
{
    const packed_t *w = job->weight;
    const unit_t unit = UNITS[w->kind];
    const int64_t most = panel_units(w), steps = sums_integers(w) ? steps_of(w->kind) : unit.k;
    const uint8_t *groups[GROUPS];
    const uint8_t *const *from = strip.w;
    strip.w = groups;
    for (int64_t first = 0; first < job->units; first += most) {
        const int64_t units = job->units - first < most ? job->units - first : most;
        for (int g = 0; g < GROUPS; g++) {
            uint8_t *to = panel + g * most * steps * STEP_BYTES;
            groups[g] = to;
            if (sums_integers(w))
                expand(w, from[g] + first * unit.bytes, units, to);
            else
                expand_floats(w, strip.values, from[g] + first * unit.bytes, units, to);
        }
        strip.units = strip.left = units * steps;
        strip.more = first > 0;
        for_all(w, strip, job->tokens * rows_of(job), sum_panel);
        strip.x += units * unit.k * (sums_integers(w) ? 1 : 4);
    }
}

/* Straight from the weight; floats block by block. */
static void sum_by_blocks(const product_t *job, strip_t strip)
{
    const unit_t unit = UNITS[job->weight->kind];
    const int64_t most = sums_integers(job->weight) ? job->units : BLOCK_K / unit.k;
    const uint8_t *groups[GROUPS];
    memcpy(groups, strip.w, sizeof groups);
    strip.w = groups;
    for (; strip.left > 0; strip.left -= most) {
        strip.units = strip.left < most ? strip.left : most;
        for_all(job->weight, strip, job->tokens * rows_of(job), sum_direct);
        strip.more = 1;
        strip.x += most * unit.k * 4;
        for (int g = 0; g < GROUPS; g++)
            groups[g] += most * unit.bytes;
    }
}

static void product(const product_t *job, int64_t begin, int64_t end, uint8_t *scratch)
{
    static const float none[256];
    const packed_t *w = job->weight;
    const int64_t group_bytes = job->units * UNITS[w->kind].bytes, last = (w->rows - 1) / GROUP_ROWS;
    uint32_t *sums = (uint32_t *)scratch;
    uint8_t *more = scratch + count_bytes(job->tokens * rows_of(job));
    for (int64_t strip = begin; strip < end; strip++) {
        const uint8_t *groups[GROUPS];
        for (int g = 0; g < GROUPS; g++) { /* beyond the last group: any weights will do */
            const int64_t group = strip * GROUPS + g < last ? strip * GROUPS + g : last;
            groups[g] = w->data + group_bytes * group;
        }
        strip_t s = {.table = w->table, 
                     .values = w->values ? w->values : none, .w = groups, .x = job->input,
                     .stride = job->stride, .units = job->units, .left = job->units,
                     .groups = (int)(last - strip * GROUPS < GROUPS ? last - strip * GROUPS + 1 : GROUPS),
                     .residues = job->residues, .sums = sums};
        if (takes_panel(job))
            sum_by_panels(job, s, more);
        else if (counts_planes(job)) {
            s.sums = (uint32_t *)more;
            for_all(w, s, job->tokens * job->planes, sum_direct);
            add_planes(job->planes, job->tokens, s.sums, sums);
        } else
            sum_by_blocks(job, s);
        const int64_t row = strip * STRIP_ROWS;
        const int count = w->rows - row < STRIP_ROWS ? (int)(w->rows - row) : STRIP_ROWS;
        rows_t rows;
        find_rows(w, row, count, &rows);
        for (int64_t m = 0; m < job->tokens; m++) {
            float dots[STRIP_ROWS];
            const uint32_t *of_token = sums + m * rows_of(job) * STRIP_ROWS;
            if (w->in_integers)
                to_dots(job, m, &rows, of_token, dots);
            else if (w->by_digits)
                put_together(job, m, of_token, dots);
            else
                memcpy(dots, of_token, sizeof dots);
            finish(job, m, row, count, &rows, dots);
        }
    }
}

const kernels_t NAME(SET) = {GROUPS, scratch_bytes, product, encode, to_planes, to_digits};
