/* Sums of products of integers: straight from a packed weight, or from a panel of bytes. Part of strips.h. */

/* sums[token][row of the strip], uint32; `more` adds to what is there. Some groups side by side, at w[0 .. groups - 1].
   `ways` sums of a row take turns, so that one addition need not wait for the last. */
INLINE void sum_bytes(kind_t kind, int has_table, int wide, int tokens, int groups, int ways, const strip_t *strip,
                      int64_t units, int more)
{
    const int unit_bytes = UNITS[kind].bytes, steps = steps_of(kind);
    const table_t levels = load_table(strip->table);
    const int64_t stride = strip->stride;
    const int8_t *x = (const int8_t *)strip->x;
    vec sum[MOST_SUMS]; /* [token][group][part][way] */
    const uint8_t *at[GROUPS];
#define SUM(m, g, p, way) sum[(((m) * groups + (g)) * PARTS + (p)) * ways + (way)]
#define TO(m, g, p) (strip->sums + (m) * STRIP_ROWS + (g) * GROUP_ROWS + (p) * (BYTES / 4))
    UNROLL for (int g = 0; g < groups; g++) at[g] = strip->w[g];
    UNROLL for (int m = 0; m < tokens; m++)
        UNROLL for (int g = 0; g < groups; g++)
            UNROLL for (int p = 0; p < PARTS; p++)
                UNROLL for (int way = 0; way < ways; way++)
                    SUM(m, g, p, way) = more && !way ? load(TO(m, g, p)) : (vec){0};
    for (int64_t unit = 0; unit < units; unit++) {
        UNROLL for (int s = 0; s < steps; s++) {
            vec four[MOST_TOKENS];
            UNROLL for (int m = 0; m < tokens; m++) four[m] = splat4(x + m * stride + s * STEP_K);
            UNROLL for (int g = 0; g < groups; g++)
                UNROLL for (int p = 0; p < PARTS; p++) {
                    vec codes = codes_of(kind, at[g], s, p);
                    if (has_table)
                        codes = lookup(levels, codes);
                    UNROLL for (int m = 0; m < tokens; m++)
                        SUM(m, g, p, s % ways) = dot(SUM(m, g, p, s % ways), codes, four[m], wide);
                }
        }
        UNROLL for (int g = 0; g < groups; g++) at[g] += unit_bytes;
        x += steps * STEP_K;
    }
    UNROLL for (int m = 0; m < tokens; m++)
        UNROLL for (int g = 0; g < groups; g++)
            UNROLL for (int p = 0; p < PARTS; p++) {
                vec all = SUM(m, g, p, 0);
                UNROLL for (int way = 1; way < ways; way++) all += SUM(m, g, p, way);
                store(TO(m, g, p), all);
            }
#undef SUM
#undef TO
}

/* ---- Straight from the packed weight, for few tokens: a group at a time, in the order of memory ----------------

   The processor sees the one sequence and asks memory for what comes next; it does this better than instructions that
   prefetch, which took its place and made 2 to 4 bits up to twice as slow, and far better than for groups side by side. */

/* How many of some tokens, or rows of bits, a loop takes at once; `most` is a power of two, and at least 2. */
INLINE int few_of(int64_t tokens, int most) { return tokens >= most ? most : tokens >= 4 ? 4 : (int)tokens; }

/* All groups of a strip, of some tokens; returns how many. */
#define DIRECT(kind, has_table, wide)                                                                              \
    static __attribute__((noinline)) int NAME2(direct, kind, has_table)(const strip_t *s, int64_t tokens)          \
    {                                                                                                              \
        const int taken = few_of(tokens, FEW);                                                                          \
        strip_t one = *s;                                                                                          \
        for (int g = 0; g < s->groups; g++, one.w++, one.sums += GROUP_ROWS) {                                     \
            if (taken == 1)                                                                                        \
                sum_bytes(kind, has_table, wide, 1, 1, WAYS(1), &one, s->units, 0);                                \
            else if (taken == 2)                                                                                   \
                sum_bytes(kind, has_table, wide, 2, 1, WAYS(2), &one, s->units, 0);                                \
            else if (FEW > 2 && taken == 3)                                                                        \
                sum_bytes(kind, has_table, wide, FEW > 2 ? 3 : 1, 1, WAYS(3), &one, s->units, 0);                  \
            else if (FEW > 2 && taken == 4)                                                                        \
                sum_bytes(kind, has_table, wide, FEW > 2 ? 4 : 1, 1, WAYS(4), &one, s->units, 0);                  \
            else if (FEW > 4)                                                                                      \
                sum_bytes(kind, has_table, wide, FEW > 4 ? 8 : 1, 1, WAYS(8), &one, s->units, 0);                  \
        }                                                                                                          \
        return taken;                                                                                              \
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

/* ---- From a panel of bytes, for many tokens: the groups of a strip side by side ---------------------------------- */

#define FROM_PANEL(name, wide)                                                                                     \
    static __attribute__((noinline)) int name(const strip_t *s, int64_t tokens)                                    \
    {                                                                                                              \
        if (tokens >= TOKENS)                                                                                      \
            return sum_bytes(PANEL, 0, wide, TOKENS, GROUPS, 1, s, s->units, s->more), TOKENS;                     \
        if (tokens >= 2)                                                                                           \
            return sum_bytes(PANEL, 0, wide, 2, GROUPS, 1, s, s->units, s->more), 2;                               \
        return sum_bytes(PANEL, 0, wide, 1, GROUPS, 1, s, s->units, s->more), 1;                                   \
    }
FROM_PANEL(from_panel, 0)
FROM_PANEL(from_wide_panel, 1)

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

/* Some units of one group as one byte a weight, in the layout of PANEL. */
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
