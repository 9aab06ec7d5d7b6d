/* The products, for the vectors of one instruction set: included by its file, which has defined

     GROUPS               groups in a strip; TOKENS, most tokens whose sums stay in registers beside them
     dot(sum, w, x, wide) sum + the products of 4 unsigned bytes w with 4 signed bytes x, in each 32 bits;
                          exact for w above 127 only where `wide` is not 0; 2 says that x are within 64
     lookup(table, w)     table[w] for each byte w below 16; load_table(table) gives the first argument
     spread(bits)         a byte, 0 or 1, for each of BYTES bits in memory
     add_fours(w, bits)   w + 4 for each byte whose bit is set, of BYTES bits in memory
     leading_digit(v)     whole part of 3 v / 256 for each byte
     count_bits(v)        number of bits set in each 64 bits
     multiply_add(a, b, c)  a b + c
     pick(values, w)      values[w] by the lowest 4 of each 32 bits; load_values(values) gives the first argument
     to_floats(w)         each of 32 bits as a float

   and the types table_t and values_t. A loop over k is written once, as a function that is inlined with its kind,
   tokens and table known, so that what unpacks a step is a few instructions without a branch. */

#define NAME_(set) questlm_kernels_##set
#define NAME(set) NAME_(set)

#define FEW (TOKENS < 4 ? TOKENS : 4)

enum { STRIP_ROWS = GROUPS * GROUP_ROWS, PANEL_STEPS = 65536 / (GROUPS * STEP_BYTES), AHEAD = 2048,
       BLOCK_K = 320 };

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
        return load(at);
    }
}

INLINE int steps_of(kind_t kind)
{
    return kind == FLOAT32 ? 1 : kind == RESIDUES ? 6 : UNITS[kind].k / STEP_K;
}

/* How far ahead of a unit memory is asked for. Groups are read side by side, so behind the last of the units that are
   left of one comes not the next group but one further on, by `jump`. */
INLINE int64_t ahead_of(int64_t unit, int64_t left, int unit_bytes, int64_t jump)
{
    return unit + AHEAD / unit_bytes < left ? AHEAD : AHEAD + jump;
}

/* ---- Sums of integers ----------------------------------------------------------------------------------------- */

/* sums[token][row of the strip], uint32; `more` adds to what is there. Groups are at w[0 .. GROUPS - 1]. */
INLINE void sum_bytes(kind_t kind, int has_table, int wide, int tokens, const uint8_t *table,
                      const uint8_t *const *w, const int8_t *x, int64_t stride, int64_t units, int64_t left,
                      int64_t jump, int more, uint32_t *sums)
{
    const int unit_bytes = UNITS[kind].bytes, steps = steps_of(kind);
    const table_t levels = load_table(table);
    vec sum[TOKENS][GROUPS][PARTS];
    const uint8_t *at[GROUPS];
    UNROLL for (int g = 0; g < GROUPS; g++) at[g] = w[g];
    UNROLL for (int m = 0; m < tokens; m++)
        UNROLL for (int g = 0; g < GROUPS; g++)
            UNROLL for (int p = 0; p < PARTS; p++)
                sum[m][g][p] = more ? load(sums + m * STRIP_ROWS + g * GROUP_ROWS + p * (BYTES / 4)) : (vec){0};
    for (int64_t unit = 0; unit < units; unit++) {
        UNROLL for (int s = 0; s < steps; s++) {
            vec four[TOKENS];
            UNROLL for (int m = 0; m < tokens; m++) four[m] = splat4(x + m * stride + s * STEP_K);
            UNROLL for (int g = 0; g < GROUPS; g++)
                UNROLL for (int p = 0; p < PARTS; p++) {
                    vec codes = codes_of(kind, at[g], s, p);
                    if (has_table)
                        codes = lookup(levels, codes);
                    UNROLL for (int m = 0; m < tokens; m++)
                        sum[m][g][p] = dot(sum[m][g][p], codes, four[m], wide);
                }
        }
        const int64_t ahead = ahead_of(unit, left, unit_bytes, jump);
        UNROLL for (int g = 0; g < GROUPS; g++) {
            UNROLL for (int line = 0; line < unit_bytes; line += LINE)
                __builtin_prefetch(at[g] + ahead + line);
            at[g] += unit_bytes;
        }
        x += steps * STEP_K;
    }
    UNROLL for (int m = 0; m < tokens; m++)
        UNROLL for (int g = 0; g < GROUPS; g++)
            UNROLL for (int p = 0; p < PARTS; p++)
                store(sums + m * STRIP_ROWS + g * GROUP_ROWS + p * (BYTES / 4), sum[m][g][p]);
}

typedef struct {
    const uint8_t *table;
    const float *values;
    const float *const *scales; /* of each group */
    const uint8_t *const *w;
    const uint8_t *x;
    int64_t stride, units, left, jump; /* see ahead_of */
    int more, residues;
    uint32_t *sums;
} strip_t;

#define SUM_BYTES(kind, has_table, wide, tokens)                                                                   \
    sum_bytes(kind, has_table, wide, tokens, s->table, s->w, (const int8_t *)s->x, s->stride, s->units,      \
              s->left, s->jump, s->more, s->sums)

/* Straight from the packed weight, for few tokens. Returns how many of `tokens` it took. */
#define DIRECT(kind, has_table, wide)                                                                              \
    static __attribute__((noinline)) int NAME2(direct, kind, has_table)(const strip_t *s, int64_t tokens)          \
    {                                                                                                              \
        if (tokens >= FEW)                                                                                         \
            return SUM_BYTES(kind, has_table, wide, FEW), FEW;                                                     \
        if (tokens >= 2)                                                                                           \
            return SUM_BYTES(kind, has_table, wide, 2), 2;                                                         \
        return SUM_BYTES(kind, has_table, wide, 1), 1;                                                             \
    }
#define NAME2(what, kind, has_table) what##_##kind##_##has_table

DIRECT(BITS1, 0, 0)
DIRECT(BITS2, 0, 0)
DIRECT(BITS2, 1, 0)
DIRECT(BITS3, 0, 0)
DIRECT(BITS3, 1, 0)
DIRECT(BITS4, 0, 0)
DIRECT(BITS4, 1, 0)
DIRECT(BITS8, 0, 1)
DIRECT(TERNARY, 0, 0)
DIRECT(RESIDUES, 0, 2)

static int direct(const packed_t *weight, const strip_t *s, int64_t tokens)
{
    switch (s->residues ? RESIDUES : weight->kind) {
    case BITS1:
        return direct_BITS1_0(s, tokens);
    case BITS2:
        return weight->has_table ? direct_BITS2_1(s, tokens) : direct_BITS2_0(s, tokens);
    case BITS3:
        return weight->has_table ? direct_BITS3_1(s, tokens) : direct_BITS3_0(s, tokens);
    case BITS4:
        return weight->has_table ? direct_BITS4_1(s, tokens) : direct_BITS4_0(s, tokens);
    case TERNARY:
        return direct_TERNARY_0(s, tokens);
    case RESIDUES:
        return direct_RESIDUES_0(s, tokens);
    default:
        return direct_BITS8_0(s, tokens);
    }
}

/* From a panel of bytes, for many tokens. */
static __attribute__((noinline)) int from_panel(const strip_t *s, int64_t tokens)
{
    if (tokens >= TOKENS)
        return SUM_BYTES(BITS8, 0, 0, TOKENS), TOKENS;
    if (tokens >= FEW)
        return SUM_BYTES(BITS8, 0, 0, FEW), FEW;
    if (tokens >= 2)
        return SUM_BYTES(BITS8, 0, 0, 2), 2;
    return SUM_BYTES(BITS8, 0, 0, 1), 1;
}

static __attribute__((noinline)) int from_wide_panel(const strip_t *s, int64_t tokens)
{
    if (tokens >= TOKENS)
        return SUM_BYTES(BITS8, 0, 1, TOKENS), TOKENS;
    if (tokens >= 2)
        return SUM_BYTES(BITS8, 0, 1, 2), 2;
    return SUM_BYTES(BITS8, 0, 1, 1), 1;
}

INLINE void expand_as(kind_t kind, int has_table, const uint8_t *table, const uint8_t *w, int64_t units, uint8_t *to)
{
    const int steps = steps_of(kind);
    const table_t levels = load_table(table);
    for (int64_t unit = 0; unit < units; unit++, w += UNITS[kind].bytes)
        UNROLL for (int s = 0; s < steps; s++)
            UNROLL for (int p = 0; p < PARTS; p++, to += BYTES) {
                vec codes = codes_of(kind, w, s, p);
                store(to, has_table ? lookup(levels, codes) : codes);
            }
}

/* Some units of one group as one byte a weight, in the layout of BITS8. */
static void expand(const packed_t *weight, const uint8_t *w, int64_t units, uint8_t *to)
{
#define EXPAND(kind)                                                                                               \
    case kind:                                                                                                     \
        if (weight->has_table)                                                                                     \
            expand_as(kind, 1, weight->table, w, units, to);                                                       \
        else                                                                                                       \
            expand_as(kind, 0, weight->table, w, units, to);                                                       \
        break;
    switch (weight->kind) {
        EXPAND(BITS1)
        EXPAND(BITS2)
        EXPAND(BITS3)
        EXPAND(BITS4)
        EXPAND(TERNARY)
        EXPAND(BITS8)
    }
#undef EXPAND
}

/* ---- Sums of floats ------------------------------------------------------------------------------------------- */

/* The weights of 16 rows at k `lane` of a step, as multiples of their steps. */
INLINE floats_t numbers_of(kind_t kind, int by_code, values_t values, const float *all, floats_t scale,
                           const uint8_t *unit, int step, int lane, int part)
{
    if (kind == FLOAT32)
        return (floats_t)load(unit + part * BYTES);
    if (kind == BF16) {
        vec two = load(unit + STEP_BYTES * (lane / 2) + part * BYTES);
        return (floats_t)(lane % 2 ? two & splat(0xffff0000u) : two << 16);
    }
    /* pick looks at 4 bits, and values of 2 bits come 4 times, so what is above a code does not matter. */
    if (kind == BITS4)
        return pick(values, load(unit + 64 * (step / 2) + part * BYTES) >> (4 * (step % 2) + 8 * lane));
    if (kind == BITS2)
        return pick(values, load(unit + part * BYTES) >> (2 * step + 8 * lane));
    vec codes = codes_of(kind, unit, step, part) >> (8 * lane);
    if (kind == SCALED8)
        return (to_floats(codes & splat(0xff)) - splat_float(128.0f)) * scale;
    if (kind != BITS8)
        return pick(values, codes);
    if (by_code) {
        uint32_t index[BYTES / 4];
        float found[BYTES / 4];
        floats_t result;
        store(index, codes & splat(0xff));
        for (int i = 0; i < BYTES / 4; i++)
            found[i] = all[index[i]];
        memcpy(&result, found, sizeof result);
        return result;
    }
    return to_floats(codes & splat(0xff)) - splat_float(all[0]);
}

INLINE floats_t load_scale(kind_t kind, const float *scales, int part)
{
    return kind == SCALED8 ? (floats_t)load(scales + part * (BYTES / 4)) : (floats_t){0};
}

/* The sums of one block of at most BLOCK_K entries; `more` adds them to what is there. One sum over a long row would
   lose several times as many digits as the reference does, and blocks that are alike for all numbers of tokens keep a
   token's output the same in any batch. */
INLINE void sum_floats(kind_t kind, int by_code, int tokens, const float *all, const float *const *scales,
                       const uint8_t *const *w, const uint8_t *x, int64_t stride, int64_t units, int64_t left,
                       int64_t jump, int more, float *sums)
{
    const int unit_bytes = UNITS[kind].bytes, steps = steps_of(kind), lanes = kind == FLOAT32 ? 1 : STEP_K;
    const values_t values = load_values(all);
    floats_t sum[TOKENS][GROUPS][PARTS], scale[GROUPS][PARTS];
    const uint8_t *at[GROUPS];
    UNROLL for (int g = 0; g < GROUPS; g++) {
        at[g] = w[g];
        UNROLL for (int p = 0; p < PARTS; p++) scale[g][p] = load_scale(kind, scales[g], p);
    }
    UNROLL for (int m = 0; m < tokens; m++)
        UNROLL for (int g = 0; g < GROUPS; g++)
            UNROLL for (int p = 0; p < PARTS; p++) sum[m][g][p] = (floats_t){0};
    for (int64_t unit = 0; unit < units; unit++) {
        UNROLL for (int s = 0; s < steps; s++)
            UNROLL for (int lane = 0; lane < lanes; lane++) {
                floats_t one[TOKENS];
                UNROLL for (int m = 0; m < tokens; m++) {
                    float number;
                    memcpy(&number, x + m * stride + 4 * (s * STEP_K + lane), sizeof number);
                    one[m] = splat_float(number);
                }
                UNROLL for (int g = 0; g < GROUPS; g++)
                    UNROLL for (int p = 0; p < PARTS; p++) {
                        floats_t number = numbers_of(kind, by_code, values, all, scale[g][p], at[g], s, lane, p);
                        UNROLL for (int m = 0; m < tokens; m++)
                            sum[m][g][p] = multiply_add(number, one[m], sum[m][g][p]);
                    }
            }
        const int64_t ahead = ahead_of(unit, left, unit_bytes, jump);
        UNROLL for (int g = 0; g < GROUPS; g++) {
            UNROLL for (int line = 0; line < unit_bytes; line += LINE)
                __builtin_prefetch(at[g] + ahead + line);
            at[g] += unit_bytes;
        }
        x += 4 * steps * lanes;
    }
    UNROLL for (int m = 0; m < tokens; m++)
        UNROLL for (int g = 0; g < GROUPS; g++)
            UNROLL for (int p = 0; p < PARTS; p++) {
                float *to = sums + m * STRIP_ROWS + g * GROUP_ROWS + p * (BYTES / 4);
                store(to, (vec)(more ? (floats_t)load(to) + sum[m][g][p] : sum[m][g][p]));
            }
}

#define SUM_FLOATS(kind, by_code, tokens)                                                                          \
    sum_floats(kind, by_code, tokens, s->values, s->scales, s->w, s->x, s->stride, s->units, s->left,  \
               s->jump, s->more, (float *)s->sums)
#define DIRECT_FLOATS(kind, by_code)                                                                               \
    static __attribute__((noinline)) int NAME2(floats, kind, by_code)(const strip_t *s, int64_t tokens)            \
    {                                                                                                              \
        if (tokens >= FEW)                                                                                         \
            return SUM_FLOATS(kind, by_code, FEW), FEW;                                                            \
        if (tokens >= 2)                                                                                           \
            return SUM_FLOATS(kind, by_code, 2), 2;                                                                \
        return SUM_FLOATS(kind, by_code, 1), 1;                                                                    \
    }

DIRECT_FLOATS(BITS1, 0)
DIRECT_FLOATS(BITS2, 0)
DIRECT_FLOATS(BITS3, 0)
DIRECT_FLOATS(BITS4, 0)
DIRECT_FLOATS(BITS8, 0)
DIRECT_FLOATS(BITS8, 1)
DIRECT_FLOATS(TERNARY, 0)
DIRECT_FLOATS(BF16, 0)
DIRECT_FLOATS(SCALED8, 0)
DIRECT_FLOATS(FLOAT32, 0)

static int direct_floats(const packed_t *weight, const strip_t *s, int64_t tokens)
{
    switch (weight->kind) {
    case BITS1:
        return floats_BITS1_0(s, tokens);
    case BITS2:
        return floats_BITS2_0(s, tokens);
    case BITS3:
        return floats_BITS3_0(s, tokens);
    case BITS4:
        return floats_BITS4_0(s, tokens);
    case TERNARY:
        return floats_TERNARY_0(s, tokens);
    case BF16:
        return floats_BF16_0(s, tokens);
    case SCALED8:
        return floats_SCALED8_0(s, tokens);
    case FLOAT32:
        return floats_FLOAT32_0(s, tokens);
    default:
        return weight->by_table ? floats_BITS8_1(s, tokens) : floats_BITS8_0(s, tokens);
    }
}

static __attribute__((noinline)) int from_panel_of_floats(const strip_t *s, int64_t tokens)
{
    if (tokens >= TOKENS)
        return SUM_FLOATS(FLOAT32, 0, TOKENS), TOKENS;
    return floats_FLOAT32_0(s, tokens);
}

INLINE void expand_floats_as(kind_t kind, int by_code, const float *all, const float *scales, const uint8_t *w,
                             int64_t units, uint8_t *to)
{
    const int steps = steps_of(kind), lanes = kind == FLOAT32 ? 1 : STEP_K;
    const values_t values = load_values(all);
    for (int64_t unit = 0; unit < units; unit++, w += UNITS[kind].bytes)
        UNROLL for (int s = 0; s < steps; s++)
            UNROLL for (int lane = 0; lane < lanes; lane++)
                UNROLL for (int p = 0; p < PARTS; p++, to += BYTES)
                    store(to, (vec)numbers_of(kind, by_code, values, all, load_scale(kind, scales, p), w, s, lane, p));
}

/* Some units of one group in the layout of FLOAT32. */
static void expand_floats(const packed_t *weight, const float *values, const float *scales, const uint8_t *w,
                          int64_t units, uint8_t *to)
{
#define EXPAND(kind)                                                                                               \
    case kind:                                                                                                     \
        expand_floats_as(kind, 0, values, scales, w, units, to);                                                           \
        break;
    switch (weight->kind) {
        EXPAND(BITS1)
        EXPAND(BITS2)
        EXPAND(BITS3)
        EXPAND(BITS4)
        EXPAND(TERNARY)
        EXPAND(BF16)
        EXPAND(SCALED8)
        EXPAND(FLOAT32)
    default:
        if (weight->by_table)
            expand_floats_as(BITS8, 1, values, scales, w, units, to);
        else
            expand_floats_as(BITS8, 0, values, scales, w, units, to);
    }
#undef EXPAND
}

/* ---- Numbers of bits ------------------------------------------------------------------------------------------ */

/* Bits that rows of weights and rows of the input have in common: sums[row of the input][row of the strip]. */
INLINE void sum_words(int rows, const uint8_t *const *w, const uint8_t *x, int64_t stride, int64_t units,
                      uint32_t *sums)
{
    enum { VECTORS = 2 * PARTS, LANES = BYTES / 8 }; /* 16 words to a group */
    words_t sum[TOKENS][WORD_GROUPS][VECTORS];
    const uint8_t *at[WORD_GROUPS];
    UNROLL for (int g = 0; g < WORD_GROUPS; g++) at[g] = w[g];
    UNROLL for (int m = 0; m < rows; m++)
        UNROLL for (int g = 0; g < WORD_GROUPS; g++)
            UNROLL for (int p = 0; p < VECTORS; p++) sum[m][g][p] = (words_t){0};
    for (int64_t unit = 0; unit < units; unit++, x += 8) {
        words_t one[TOKENS];
        const int64_t ahead = ahead_of(unit, units, 128, (WORD_GROUPS - 1) * units * 128);
        UNROLL for (int m = 0; m < rows; m++) {
            uint64_t word;
            memcpy(&word, x + m * stride, sizeof word);
            one[m] = splat_word(word);
        }
        UNROLL for (int g = 0; g < WORD_GROUPS; g++) {
            UNROLL for (int p = 0; p < VECTORS; p++) {
                words_t bits = (words_t)load(at[g] + p * BYTES);
                UNROLL for (int m = 0; m < rows; m++) sum[m][g][p] += count_bits(bits & one[m]);
            }
            __builtin_prefetch(at[g] + ahead);
            __builtin_prefetch(at[g] + ahead + LINE);
            at[g] += 128;
        }
    }
    UNROLL for (int m = 0; m < rows; m++)
        UNROLL for (int g = 0; g < WORD_GROUPS; g++)
            UNROLL for (int p = 0; p < VECTORS; p++) {
                uint64_t lanes[LANES];
                memcpy(lanes, &sum[m][g][p], sizeof lanes);
                UNROLL for (int i = 0; i < LANES; i++)
                    sums[m * STRIP_ROWS + g * GROUP_ROWS + p * LANES + i] = (uint32_t)lanes[i];
            }
}

static __attribute__((noinline)) int count_strip(const strip_t *s, int64_t rows)
{
    const int taken = rows >= FEW ? FEW : rows >= 2 ? 2 : 1;
    for (int g = 0; g < GROUPS; g += WORD_GROUPS) {
        uint32_t *sums = s->sums + g * GROUP_ROWS;
        if (taken == FEW)
            sum_words(FEW, s->w + g, s->x, s->stride, s->units, sums);
        else if (taken == 2)
            sum_words(2, s->w + g, s->x, s->stride, s->units, sums);
        else
            sum_words(1, s->w + g, s->x, s->stride, s->units, sums);
    }
    return taken;
}

/* Of the rows of bits of each token, sum(w x): the plane of bit p counts 2^p. */
static void add_planes(int planes, int64_t tokens, const uint32_t *counts, uint32_t *sums)
{
    for (int64_t m = 0; m < tokens; m++)
        for (int i = 0; i < STRIP_ROWS; i++) {
            uint32_t sum = 0;
            for (int p = 0; p < planes; p++)
                sum += counts[(m * planes + p) * STRIP_ROWS + i] << p;
            sums[m * STRIP_ROWS + i] = sum;
        }
}

/* ---- From sums to outputs --------------------------------------------------------------------------------------- */

/* Nearest bfloat16, ties to even. */
INLINE float to_bfloat16(float number)
{
    uint32_t bits;
    memcpy(&bits, &number, sizeof bits);
    bits = number == number ? (bits + 0x7fffu + (bits >> 16 & 1u)) & 0xffff0000u : bits;
    memcpy(&number, &bits, sizeof bits);
    return number;
}

/* Sums of one token, integers, to floats: see "The mathematics" in layout.h. */
INLINE void to_dots(const product_t *job, int64_t token, int64_t row, int count, const uint32_t *sums, float *dots)
{
    const packed_t *w = job->weight;
    const uint32_t scale = (uint32_t)(w->scale * w->input_scale), by_row = (uint32_t)(w->scale * w->input_shift);
    const uint32_t constant = (uint32_t)(w->shift * w->input_scale) * (uint32_t)job->sums[token] +
                              (uint32_t)w->k * (uint32_t)(w->shift * w->input_shift);
    for (int i = 0; i < count; i++) {
        const uint32_t sum = job->residues ? (uint32_t)((int32_t)sums[i] / 256) : sums[i];
        dots[i] = (float)(int32_t)(scale * sum + by_row * (uint32_t)w->sums[row + i] + constant) * 0.25f;
    }
}

/* Steps, offsets and bias, in the order of questlm.ops.reference.matmul. */
INLINE void finish(const product_t *job, int64_t token, int64_t row, int count, const float *dots)
{
    const packed_t *w = job->weight;
    float *y = job->y + token * w->rows + row;
    for (int i = 0; i < count; i++)
        y[i] = w->rounds_sums ? to_bfloat16(dots[i]) : dots[i];
    if (job->step)
        for (int i = 0; i < count; i++)
            y[i] *= job->step[token];
    if (w->step)
        for (int i = 0; i < count; i++)
            y[i] *= w->step[row + i];
    if (w->offset) {
        const float total = job->step ? job->totals[token] * job->step[token] : job->totals[token];
        for (int i = 0; i < count; i++)
            y[i] += total * w->offset[row + i];
    }
    if (job->offset)
        for (int i = 0; i < count; i++)
            y[i] += job->offset[0] * (w->step ? w->totals[row + i] * w->step[row + i] : w->totals[row + i]);
    if (job->offset && w->offset)
        for (int i = 0; i < count; i++)
            y[i] += (float)w->k * job->offset[0] * w->offset[row + i];
    if (w->bias)
        for (int i = 0; i < count; i++)
            y[i] += w->bias[row + i];
}

/* ---- A strip: all tokens by the rows of some groups -------------------------------------------------------------- */

static int64_t panel_units(const packed_t *weight)
{
    if (!weight->in_integers)
        return BLOCK_K / UNITS[weight->kind].k; /* which divides it */
    return PANEL_STEPS / steps_of(weight->kind);
}

static int64_t panel_steps(const packed_t *weight) { return weight->in_integers ? PANEL_STEPS : BLOCK_K; }

/* Of more tokens than these a weight is unpacked once into a panel, which stays in cache. */
static int takes_panel(const product_t *job)
{
    return job->tokens > FEW_TOKENS && job->weight->kind != WORDS;
}

static int64_t count_bytes(int64_t rows) { return rows * STRIP_ROWS * 4; }

static int64_t scratch_bytes(const product_t *job)
{
    const int64_t panel = takes_panel(job) ? (int64_t)panel_steps(job->weight) * GROUPS * STEP_BYTES : 0;
    return panel + count_bytes(job->tokens) + (job->planes > 1 ? count_bytes(job->tokens * job->planes) : 0);
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
    return weight->in_integers ? direct(weight, strip, tokens) : direct_floats(weight, strip, tokens);
}

static int sum_panel(const packed_t *weight, const strip_t *strip, int64_t tokens)
{
    if (!weight->in_integers)
        return from_panel_of_floats(strip, tokens);
    return weight->is_wide ? from_wide_panel(strip, tokens) : from_panel(strip, tokens);
}

static void sum_by_panels(const product_t *job, strip_t strip, uint8_t *panel)
{
    const packed_t *w = job->weight;
    const unit_t unit = UNITS[w->kind];
    const int64_t most = panel_units(w), steps = w->in_integers ? steps_of(w->kind) : unit.k;
    const uint8_t *groups[GROUPS];
    const uint8_t *const *from = strip.w;
    strip.w = groups;
    for (int64_t first = 0; first < job->units; first += most) {
        const int64_t units = job->units - first < most ? job->units - first : most;
        for (int g = 0; g < GROUPS; g++) {
            uint8_t *to = panel + g * most * steps * STEP_BYTES;
            groups[g] = to;
            if (w->in_integers)
                expand(w, from[g] + first * unit.bytes, units, to);
            else
                expand_floats(w, strip.values, strip.scales[g], from[g] + first * unit.bytes, units, to);
        }
        strip.units = strip.left = units * steps;
        strip.more = first > 0;
        for_all(w, strip, job->tokens, sum_panel);
        strip.x += units * unit.k * (w->in_integers ? 1 : 4);
    }
}

/* Straight from the weight; floats block by block. */
static void sum_by_blocks(const product_t *job, strip_t strip)
{
    const unit_t unit = UNITS[job->weight->kind];
    const int64_t most = job->weight->in_integers ? job->units : BLOCK_K / unit.k;
    const uint8_t *groups[GROUPS];
    memcpy(groups, strip.w, sizeof groups);
    strip.w = groups;
    for (; strip.left > 0; strip.left -= most) {
        strip.units = strip.left < most ? strip.left : most;
        for_all(job->weight, strip, job->tokens, sum_direct);
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
    uint8_t *more = scratch + count_bytes(job->tokens);
    for (int64_t strip = begin; strip < end; strip++) {
        const uint8_t *groups[GROUPS];
        const float *scales[GROUPS] = {0};
        for (int g = 0; g < GROUPS; g++) { /* beyond the last group: any weights will do */
            const int64_t group = strip * GROUPS + g < last ? strip * GROUPS + g : last;
            groups[g] = w->data + group_bytes * group;
            if (w->kind == SCALED8)
                scales[g] = w->scales + group * GROUP_ROWS;
        }
        strip_t s = {.table = w->table, 
                     .values = w->values ? w->values : none, .scales = scales, .w = groups, .x = job->input,
                     .stride = job->stride, .units = job->units, .left = job->units,
                     .jump = (GROUPS - 1) * group_bytes, .residues = job->residues, .sums = sums};
        if (takes_panel(job))
            sum_by_panels(job, s, more);
        else if (job->planes > 1) {
            s.sums = (uint32_t *)more;
            for_all(w, s, job->tokens * job->planes, sum_direct);
            add_planes(job->planes, job->tokens, s.sums, sums);
        } else
            sum_by_blocks(job, s);
        const int64_t row = strip * STRIP_ROWS;
        const int count = w->rows - row < STRIP_ROWS ? (int)(w->rows - row) : STRIP_ROWS;
        for (int64_t m = 0; m < job->tokens; m++) {
            float dots[STRIP_ROWS];
            if (w->in_integers)
                to_dots(job, m, row, count, sums + m * STRIP_ROWS, dots);
            else
                memcpy(dots, sums + m * STRIP_ROWS, sizeof dots);
            finish(job, m, row, count, dots);
        }
    }
}

/* ---- Inputs ------------------------------------------------------------------------------------------------------ */

static int32_t encode(const uint8_t *codes, int64_t k, const int8_t *table, int8_t *to, int64_t width)
{
    int32_t sum = 0;
    const int8_t first = table[0];
    int even = 1; /* the usual table adds a number */
    for (int c = 0; c < 256; c++)
        even &= table[c] == (int8_t)(first + c);
    if (even)
        for (int64_t i = 0; i < k; i++)
            to[i] = (int8_t)(codes[i] + first);
    else
        for (int64_t i = 0; i < k; i++)
            to[i] = table[codes[i]];
    for (int64_t i = 0; i < k; i++)
        sum += to[i];
    memset(to + k, 0, (size_t)(width - k));
    return sum;
}

/* Bit p of 64 codes, first code lowest: the product adds the bit of byte j shifted to bit 56 + j, and no two meet. */
INLINE uint64_t plane_of(const uint8_t *codes, int plane)
{
    uint64_t word = 0;
    for (int i = 0; i < 8; i++) {
        uint64_t eight;
        memcpy(&eight, codes + 8 * i, sizeof eight);
        word |= ((eight >> plane & 0x0101010101010101u) * 0x0102040810204080u >> 56) << (8 * i);
    }
    return word;
}

static int32_t to_planes(const uint8_t *codes, int64_t k, int planes, uint64_t *to, int64_t words)
{
    uint32_t sum = 0;
    for (int64_t word = 0; word < words; word++) {
        uint8_t rest[64] = {0};
        const uint8_t *from = codes + word * 64;
        if ((word + 1) * 64 > k) {
            memcpy(rest, from, (size_t)(k - word * 64));
            from = rest;
        }
        for (int p = 0; p < planes; p++)
            to[p * words + word] = plane_of(from, p);
        for (int i = 0; i < 64; i++)
            sum += from[i];
    }
    return (int32_t)sum;
}

const kernels_t NAME(SET) = {GROUPS, scratch_bytes, product, encode, to_planes};
