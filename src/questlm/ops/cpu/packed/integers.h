/* Sums of products of integers: straight from a packed weight, or from a panel of bytes. Part of strips.h. */

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
