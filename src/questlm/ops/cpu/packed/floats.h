/* Sums of products of floats, made from codes in registers, or in a panel. Part of strips.h. */

/* The weights of 16 rows at k `lane` of a step, as multiples of their steps. */
INLINE floats_t numbers_of(kind_t kind, int by_code, values_t values, const float *all, const uint8_t *unit, int step, int lane, int part)
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

/* The sums of one block of at most BLOCK_K entries; `more` adds them to what is there. One sum over a long row would
   lose several times as many digits as the reference does, and blocks that are alike for all numbers of tokens keep a
   token's output the same in any batch. */
INLINE void sum_floats(kind_t kind, int by_code, int tokens, const float *all, const uint8_t *const *w, const uint8_t *x, int64_t stride, int64_t units, int more,
                       float *sums)
{
    const int unit_bytes = UNITS[kind].bytes, steps = steps_of(kind), lanes = kind == FLOAT32 ? 1 : STEP_K;
    const values_t values = load_values(all);
    floats_t sum[TOKENS][GROUPS][PARTS];
    const uint8_t *at[GROUPS];
    UNROLL for (int g = 0; g < GROUPS; g++) at[g] = w[g];
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
                        floats_t number = numbers_of(kind, by_code, values, all, at[g], s, lane, p);
                        UNROLL for (int m = 0; m < tokens; m++)
                            sum[m][g][p] = multiply_add(number, one[m], sum[m][g][p]);
                    }
            }
        UNROLL for (int g = 0; g < GROUPS; g++) at[g] += unit_bytes;
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
    sum_floats(kind, by_code, tokens, s->values, s->w, s->x, s->stride, s->units, s->more,  \
               (float *)s->sums)
#define FEW_FLOATS (TOKENS < 4 ? TOKENS : 4)
#define DIRECT_FLOATS(kind, by_code)                                                                               \
    static __attribute__((noinline)) int NAME2(floats, kind, by_code)(const strip_t *s, int64_t tokens)            \
    {                                                                                                              \
        if (tokens >= FEW_FLOATS)                                                                                  \
            return SUM_FLOATS(kind, by_code, FEW_FLOATS), FEW_FLOATS;                                                            \
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

INLINE void expand_floats_as(kind_t kind, int by_code, const float *all, const uint8_t *w, int64_t units, uint8_t *to)
{
    const int steps = steps_of(kind), lanes = kind == FLOAT32 ? 1 : STEP_K;
    const values_t values = load_values(all);
    for (int64_t unit = 0; unit < units; unit++, w += UNITS[kind].bytes)
        UNROLL for (int s = 0; s < steps; s++)
            UNROLL for (int lane = 0; lane < lanes; lane++)
                UNROLL for (int p = 0; p < PARTS; p++, to += BYTES)
                    store(to, (vec)numbers_of(kind, by_code, values, all, w, s, lane, p));
}

/* Some units of one group in the layout of FLOAT32. */
static void expand_floats(const packed_t *weight, const float *values, const uint8_t *w, int64_t units, uint8_t *to)
{
#define EXPAND(kind)                                                                                               \
    case kind:                                                                                                     \
        expand_floats_as(kind, 0, values, w, units, to);                                                           \
        break;
    switch (weight->kind) {
        EXPAND(BITS1)
        EXPAND(BITS2)
        EXPAND(BITS3)
        EXPAND(BITS4)
        EXPAND(TERNARY)
        EXPAND(BF16)
        EXPAND(FLOAT32)
    default:
        if (weight->by_table)
            expand_floats_as(BITS8, 1, values, w, units, to);
        else
            expand_floats_as(BITS8, 0, values, w, units, to);
    }
#undef EXPAND
}
