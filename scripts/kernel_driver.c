/* Native products of packed weights over random shapes, against sums written as plainly as possible; no torch, no Python.
   scripts/sanitize_kernels.py builds and runs it. Arguments: number of cases, seed. */

#include "driver_random.h"

#include "../src/questlm/ops/cpu/packed/layout.h"
#include "../src/questlm/ops/cpu/export.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int64_t questlm_packed_bytes(int kind, int64_t rows, int64_t k);
int questlm_prepack(const uint8_t *rows, int64_t row_bytes, int64_t count, int64_t k, int bits, int kind,
                    const uint8_t *stored, const uint8_t *w, uint8_t *to, int32_t *sums, int threads,
                    parallel_fn parallel);
int questlm_packed_product(const packed_t *w, const uint8_t *input, const float *step, const float *offset,
                           const float *totals, int64_t tokens, float *y, int threads, parallel_fn parallel);
int questlm_packed_linear(const packed_t *w, const float *x, int64_t tokens, float *y, int threads,
                          parallel_fn parallel);
const char *questlm_instruction_set(int index);
int questlm_supports(int index);
void questlm_use_instruction_set(int index);

static float noise(void) { return (float)below(2001) / 1000.0f - 1.0f; }

static float *floats(int64_t n)
{
    float *v = malloc((size_t)n * 4);
    for (int64_t i = 0; i < n; i++)
        v[i] = noise();
    return v;
}

static const struct {
    int kind, levels, bits;
} CODED[] = {{BITS1, 2, 1}, {WORDS, 2, 1}, {TERNARY, 3, 0}, {BITS2, 4, 2}, {BITS3, 8, 3},   {BITS4, 16, 4},
             {BITS8, 32, 5}, {BITS8, 64, 6}, {BITS8, 128, 7}, {BITS8, 256, 8}};

/* Rows of codes as an artifact stores them. */
static int64_t pack_rows(const uint8_t *codes, int64_t rows, int64_t k, int bits, uint8_t **packed)
{
    const int64_t width = bits ? (k * bits + 7) / 8 : (k + 4) / 5;
    *packed = calloc((size_t)(rows * width), 1);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = k - 1; i >= 0; i--) {
            uint8_t *row = *packed + r * width;
            const int code = codes[r * k + i];
            if (bits == 0)
                row[i / 5] = (uint8_t)(3 * row[i / 5] + code);
            for (int b = 0; b < bits; b++)
                row[(i * bits + b) / 8] |= (uint8_t)((code >> b & 1) << ((i * bits + b) % 8));
        }
    return width;
}

typedef struct {
    int64_t rows, k, tokens;
    int kind, levels, input_levels, has_table, by_digits, threads;
} case_t;

static void fail(const case_t *c, const char *set, int64_t m, int64_t r, double found, double expected)
{
    printf("%s, kind %d of %d levels, table %d, digits %d, inputs of %d, %lld x %lld, %lld tokens: y[%lld, %lld] is %.9g, not %.9g\n",
           set, c->kind, c->levels, c->has_table, c->by_digits, c->input_levels, (long long)c->rows, (long long)c->k,
           (long long)c->tokens, (long long)m, (long long)r, found, expected);
    exit(1);
}

/* Compare y with sums of `levels[w code] * x`, exactly where they are integers. */
static void check(const case_t *c, const char *set, const packed_t *w, const uint8_t *codes, const double *levels,
                  const double *x, const float *step, const float *y)
{
    for (int64_t m = 0; m < c->tokens; m++)
        for (int64_t r = 0; r < c->rows; r++) {
            double sum = 0.0, size = 0.0;
            for (int64_t i = 0; i < c->k; i++) {
                const double term = levels[codes[r * c->k + i]] * x[m * c->k + i];
                sum += term;
                size += fabs(term);
            }
            const float found = y[m * c->rows + r];
            if (w->in_integers) {
                const float expected = (float)sum * step[m] * w->step[r];
                if (found != expected)
                    fail(c, set, m, r, (double)found, (double)expected);
            } else {
                const double scale = (double)w->step[r];
                if (!(fabs((double)found - sum * scale) <= (size * fabs(scale)) * 1e-6 * (8 + sqrt((double)c->k))))
                    fail(c, set, m, r, (double)found, sum * scale);
            }
        }
}

static void run(const case_t *c, int bits)
{
    const int64_t n = c->rows * c->k;
    uint8_t *codes = malloc((size_t)n), *rows, *data, w_of[256] = {0}, stored[256] = {0};
    for (int64_t i = 0; i < n; i++)
        codes[i] = (uint8_t)below(c->levels);
    const int64_t width = pack_rows(codes, c->rows, c->k, bits, &rows);
    double levels[256] = {0};
    float values[256] = {0};
    packed_t w = {.rows = c->rows, .k = c->k, .kind = c->kind, .has_table = c->has_table, .block = 1,
                  .in_integers = c->input_levels > 0, .by_digits = c->by_digits, .input_levels = c->input_levels, .scale = 2,
                  .shift = 1 - c->levels, .input_scale = 2, .step_per_rms = 0.3f};
    for (int code = 0; code < c->levels; code++) {
        stored[code] = (uint8_t)code;
        w_of[code] = c->has_table ? (uint8_t)(code * code / 2) : (uint8_t)code;
        if (code < 16)
            w.table[code] = w_of[code];
        levels[code] = 0.5 * (2 * w_of[code] + w.shift);
        values[code] = (float)levels[code];
        for (int again = 1; c->kind == BITS2 && again < 4; again++)
            values[4 * again + code] = values[code];
        w.is_wide |= w_of[code] > 127;
    }
    if (c->kind == BITS8 && !w.in_integers && !w.by_digits) {
        w.by_table = c->levels % 64 == 0;
        if (!w.by_table)
            values[0] = (float)(c->levels - 1) / 2.0f;
    }
    float *weight_step = floats(c->rows);
    int32_t *sums = malloc((size_t)c->rows * 4);
    data = aligned_alloc(64, (size_t)(questlm_packed_bytes(c->kind, c->rows, c->k) + 63) / 64 * 64);
    if (questlm_prepack(rows, width, c->rows, c->k, bits, c->kind, stored, w_of, data, sums, c->threads, 0))
        exit(2);
    w.data = data, w.sums = sums, w.values = values;
    w.step = weight_step;

    /* codes or numbers of the input */
    const int base = c->kind == WORDS ? 0 : c->input_levels / 2;
    w.input_shift = 1 - c->input_levels + 2 * base;
    for (int code = 0; code < 256; code++)
        w.input_table[code] = (int8_t)(code - base);
    double *x = malloc((size_t)(c->tokens * c->k) * 8);
    uint8_t *input_codes = malloc((size_t)(c->tokens * c->k));
    float *numbers = floats(c->tokens * c->k), *step = floats(c->tokens), *y = malloc((size_t)(c->tokens * c->rows) * 4);
    for (int64_t i = 0; i < c->tokens * c->k; i++) {
        input_codes[i] = (uint8_t)below(c->input_levels ? c->input_levels : 1);
        x[i] = w.in_integers ? input_codes[i] - (c->input_levels - 1) / 2.0 : (double)numbers[i];
    }
    const uint8_t *input = w.in_integers ? input_codes : (const uint8_t *)numbers;
    for (int set = 0; questlm_instruction_set(set); set++) {
        if (!questlm_supports(set))
            continue;
        questlm_use_instruction_set(set);
        memset(y, 0xff, (size_t)(c->tokens * c->rows) * 4);
        if (questlm_packed_product(&w, input, w.in_integers ? step : 0, 0, 0, c->tokens, y, c->threads, 0))
            exit(2);
        check(c, questlm_instruction_set(set), &w, codes, levels, x, step, y);
        if (questlm_packed_linear(&w, numbers, c->tokens, y, c->threads, 0)) /* for the sanitizers */
            exit(2);
    }
    free(codes), free(rows), free(data), free(weight_step), free(sums);
    free(x), free(input_codes), free(numbers), free(step), free(y);
}

int main(int argc, char **argv)
{
    const int64_t cases = argc > 1 ? atoll(argv[1]) : 200;
    static const int inputs[] = {0, 2, 3, 4, 16, 256};
    state = 88172645463325252u + (uint64_t)(argc > 2 ? atoll(argv[2]) : 0);
    for (int64_t i = 0; i < cases; i++) {
        const int at = (int)below(sizeof CODED / sizeof *CODED);
        case_t c = {.rows = 1 + below(below(8) ? 40 : 200), .k = 1 + below(below(8) ? 90 : 3000),
                    .tokens = 1 + below(below(4) ? 8 : 65), .kind = CODED[at].kind, .levels = CODED[at].levels,
                    .input_levels = inputs[below(sizeof inputs / sizeof *inputs)], .threads = 1 + (int)below(3)};
        if (c.kind == WORDS)
            c.input_levels = 2 + (int)below(15);
        c.by_digits = c.input_levels == 0 && below(4) != 0;
        c.has_table = (c.input_levels || c.by_digits) && (c.kind == BITS2 || c.kind == BITS3 || c.kind == BITS4) && below(2);
        run(&c, CODED[at].bits);
    }
    printf("%lld cases agree; instruction sets:", (long long)cases);
    for (int set = 0; questlm_instruction_set(set); set++)
        printf(" %s%s", questlm_instruction_set(set), questlm_supports(set) ? "" : " (not here)");
    printf("\n");
    return 0;
}
