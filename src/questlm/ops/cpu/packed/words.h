/* Numbers of bits that 1-bit weights and the bit planes of an input have in common. Part of strips.h. */

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
