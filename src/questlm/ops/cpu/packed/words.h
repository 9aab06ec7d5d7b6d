/* Numbers of bits that 1-bit weights and the bit planes of an input have in common. Part of strips.h. */

/* Bits that rows of weights of a group and rows of the input have in common: sums[row of the input][row of the strip]. */
INLINE void sum_words(int rows, const strip_t *strip)
{
    enum { VECTORS = 2 * PARTS, LANES = BYTES / 8, AHEAD = 1024 }; /* 16 words to a group */
    words_t sum[MOST_SUMS];
    const uint8_t *at = strip->w[0], *x = strip->x;
    UNROLL for (int i = 0; i < rows * VECTORS; i++) sum[i] = (words_t){0};
    for (int64_t unit = 0; unit < strip->units; unit++, x += 8, at += 128) {
        words_t one[WORD_ROWS];
        UNROLL for (int m = 0; m < rows; m++) {
            uint64_t word;
            memcpy(&word, x + m * strip->stride, sizeof word);
            one[m] = splat_word(word);
        }
        UNROLL for (int p = 0; p < VECTORS; p++) {
            const words_t bits = (words_t)load(at + p * BYTES);
            UNROLL for (int m = 0; m < rows; m++) sum[m * VECTORS + p] += count_bits(bits & one[m]);
        }
        UNROLL for (int line = 0; line < 128; line += LINE) __builtin_prefetch(at + AHEAD + line, 0, 2);
    }
    UNROLL for (int m = 0; m < rows; m++)
        UNROLL for (int p = 0; p < VECTORS; p++) {
            const halves_t counts = __builtin_convertvector(sum[m * VECTORS + p], halves_t);
            memcpy(strip->sums + m * STRIP_ROWS + p * LANES, &counts, sizeof counts);
        }
}

static __attribute__((noinline)) int count_strip(const strip_t *s, int64_t rows)
{
    const int taken = few_of(rows, WORD_ROWS);
    strip_t one = *s;
    for (int g = 0; g < s->groups; g++, one.w++, one.sums += GROUP_ROWS) {
        if (taken == 1)
            sum_words(1, &one);
        else if (WORD_ROWS > 1 && taken == 2)
            sum_words(WORD_ROWS > 1 ? 2 : 1, &one);
        else if (WORD_ROWS > 2 && taken == 3)
            sum_words(WORD_ROWS > 2 ? 3 : 1, &one);
        else if (WORD_ROWS > 2 && taken == 4)
            sum_words(WORD_ROWS > 2 ? 4 : 1, &one);
        else if (WORD_ROWS > 4)
            sum_words(WORD_ROWS > 4 ? 8 : 1, &one);
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
