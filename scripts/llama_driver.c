/* The native forward pass of random small Llamas, against one written as plainly as possible; no torch, no Python.
   scripts/sanitize_kernels.py builds and runs it. Arguments: number of cases, seed.

   Weights are float32, so that every difference is one of rounding, or of 4 bits with inputs of 4 bits, for the sanitizers
   and for what must not change a bit: the batch, the number of threads, and the pieces in which a prompt comes. */

#include "driver_random.h"

#include "../src/questlm/ops/cpu/llama/llama.h"
#include "../src/questlm/ops/cpu/export.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int questlm_prepack(const uint8_t *rows, int64_t row_bytes, int64_t count, int64_t k, int bits, int kind,
                    const uint8_t *stored, const uint8_t *w, uint8_t *to, int32_t *sums, int threads,
                    parallel_fn parallel);
int questlm_llama_step(const llama_t *model, const cache_t *cache, const int64_t *ids, const int64_t *counts,
                       int64_t batch, int64_t columns, float *logits, int threads, parallel_fn parallel);
const char *questlm_instruction_set(int index);
int questlm_supports(int index);
void questlm_use_instruction_set(int index);

enum { MOST_KEPT = 4096 };

static void *kept[MOST_KEPT];
static int kept_count;

/* Memory of a case; all is freed at its end. */
static void *keep(int64_t bytes)
{
    void *memory = aligned_alloc(64, (size_t)(bytes + 63) / 64 * 64 + 64);
    if (!memory || kept_count == MOST_KEPT)
        exit(2);
    return memset(kept[kept_count++] = memory, 0, (size_t)bytes);
}

static float *floats(int64_t n, float size)
{
    float *v = keep(4 * n);
    for (int64_t i = 0; i < n; i++)
        v[i] = size * ((float)below(2001) / 1000.0f - 1.0f);
    return v;
}

/* ---- Random models ---------------------------------------------------------------------------------------------- */

/* Weights of the plain model, row by row; its layers are in the order of layer_t. */
static const float *plain[64];

static linear_t linear_of(int64_t rows, int64_t k, int coded, const float **values)
{
    static const uint8_t same[256] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    packed_t *w = keep(sizeof *w);
    const int64_t width = coded ? (k + 1) / 2 : 4 * k;
    *w = (packed_t){.rows = rows, .k = k, .kind = coded ? BITS4 : FLOAT32, .block = 1, .in_integers = coded,
                    .input_levels = coded ? 16 : 0, .scale = 2, .shift = -15, .input_scale = 2, .input_shift = 1};
    *values = floats(rows * k, 1.0f / sqrtf((float)k));
    uint8_t *source = (uint8_t *)*values, *data = keep(questlm_packed_bytes(w->kind, rows, k));
    if (coded) {
        source = keep(rows * width);
        for (int64_t i = 0; i < rows * width; i++)
            source[i] = (uint8_t)(below(256) & (k % 2 && i % width == width - 1 ? 15 : 255));
        w->step = floats(rows, 0.2f);
    }
    int32_t *sums = keep(4 * rows);
    if (questlm_prepack(source, width, rows, k, coded ? 4 : 8, w->kind, 0, same, data, sums, 1, 0))
        exit(2);
    w->data = data, w->sums = sums;
    for (int code = 0; code < 256; code++)
        w->input_table[code] = (int8_t)(code - 8);
    linear_t linear = {.weight = w, .input = {.scale = coded ? PLAIN_GRID : NOT_ROUNDED, .levels = 16}};
    linear.input.step_per_scale = 0.335f;
    return linear;
}

static llama_t random_model(int coded)
{
    llama_t m = {.depth = 1 + below(2), .kv_heads = 1 + below(3), .width = 2 + 2 * below(20), .mlp = 1 + below(70),
                 .hidden = 1 + below(70), .vocabulary = 2 + below(60), .eps = 1e-5f};
    m.heads = m.kv_heads * (1 + below(3));
    const int64_t q = m.heads * m.width, kv = m.kv_heads * m.width;
    layer_t *layers = keep(m.depth * (int64_t)sizeof *layers);
    const float **at = plain;
    for (int64_t i = 0; i < m.depth; i++) {
        layers[i] = (layer_t){.attention_gain = floats(m.hidden, 1.0f), .mlp_gain = floats(m.hidden, 1.0f)};
        layers[i].q = linear_of(q, m.hidden, coded, at++);
        layers[i].k = linear_of(kv, m.hidden, coded, at++);
        layers[i].v = linear_of(kv, m.hidden, coded, at++);
        layers[i].o = linear_of(m.hidden, q, coded, at++);
        layers[i].gate = linear_of(m.mlp, m.hidden, coded, at++);
        layers[i].up = linear_of(m.mlp, m.hidden, coded, at++);
        layers[i].down = linear_of(m.hidden, m.mlp, coded, at++);
    }
    m.layers = layers, m.gain = floats(m.hidden, 1.0f), m.embedding = floats(m.vocabulary * m.hidden, 1.0f);
    m.head = linear_of(m.vocabulary, m.hidden, 0, at);
    return m;
}

static cache_t cache_of(const llama_t *m, int64_t batch, int64_t capacity, int type)
{
    const int64_t slots = batch * capacity + below(3), rows = m->depth * 2 * slots * m->kv_heads, half = m->width / 2;
    float *cosines = keep(4 * capacity * half), *sines = keep(4 * capacity * half);
    for (int64_t i = 0; i < capacity * half; i++) {
        const double angle = (double)(i / half) * pow(1e4, -(double)(i % half) / (double)half);
        cosines[i] = (float)cos(angle), sines[i] = (float)sin(angle);
    }
    return (cache_t){.entries = keep(rows * m->width * number_bytes((numbers_t)type)), .scales = keep(4 * rows),
                     .cosines = cosines, .sines = sines, .lengths = keep(8 * batch), .slots = slots,
                     .capacity = capacity, .type = type};
}

/* ---- The plain forward pass: one sequence, in double ------------------------------------------------------------- */

static void product(const float *w, int64_t rows, int64_t k, const double *x, double *y)
{
    for (int64_t r = 0; r < rows; r++) {
        y[r] = 0.0;
        for (int64_t i = 0; i < k; i++)
            y[r] += (double)w[r * k + i] * x[i];
    }
}

static void norm(const double *x, const float *gain, int64_t k, double *y)
{
    double sum = 0.0;
    for (int64_t i = 0; i < k; i++)
        sum += x[i] * x[i];
    for (int64_t i = 0; i < k; i++)
        y[i] = x[i] / sqrt(sum / (double)k + 1e-5) * (double)gain[i];
}

static void rotate(double *x, int64_t heads, int64_t width, int64_t position)
{
    const int64_t half = width / 2;
    for (int64_t h = 0; h < heads; h++, x += width)
        for (int64_t i = 0; i < half; i++) {
            const double angle = (double)position * pow(1e4, -(double)i / (double)half), a = x[i], b = x[half + i];
            x[i] = a * cos(angle) - b * sin(angle);
            x[half + i] = b * cos(angle) + a * sin(angle);
        }
}

static void attend(const llama_t *m, const double *q, const double *keys, const double *values, int64_t count, double *y)
{
    const int64_t w = m->width, stride = m->kv_heads * w;
    double *weights = malloc((size_t)count * 8);
    for (int64_t h = 0; h < m->heads; h++) {
        const int64_t at = h / (m->heads / m->kv_heads) * w;
        double total = 0.0;
        for (int64_t t = 0; t < count; t++) {
            double score = 0.0;
            for (int64_t d = 0; d < w; d++)
                score += q[h * w + d] * keys[t * stride + at + d];
            total += weights[t] = exp(score / sqrt((double)w));
        }
        for (int64_t d = 0; d < w; d++) {
            y[h * w + d] = 0.0;
            for (int64_t t = 0; t < count; t++)
                y[h * w + d] += weights[t] / total * values[t * stride + at + d];
        }
    }
    free(weights);
}

static void plain_logits(const llama_t *m, const int64_t *ids, int64_t count, double *logits)
{
    const int64_t kv = m->kv_heads * m->width, most = m->hidden + m->mlp + m->heads * m->width;
    double *keys = malloc((size_t)(m->depth * count * kv) * 8), *values = malloc((size_t)(m->depth * count * kv) * 8);
    double *x = malloc((size_t)most * 8), *a = malloc((size_t)most * 8), *b = malloc((size_t)most * 8), *c = malloc((size_t)most * 8);
    for (int64_t t = 0; t < count; t++) {
        for (int64_t i = 0; i < m->hidden; i++)
            x[i] = (double)((const float *)m->embedding)[ids[t] * m->hidden + i];
        for (int64_t l = 0; l < m->depth; l++) {
            const float *const *w = plain + 7 * l;
            double *k = keys + (l * count + t) * kv, *v = values + (l * count + t) * kv;
            norm(x, m->layers[l].attention_gain, m->hidden, a);
            product(w[0], m->heads * m->width, m->hidden, a, b);
            product(w[1], kv, m->hidden, a, k);
            product(w[2], kv, m->hidden, a, v);
            rotate(b, m->heads, m->width, t);
            rotate(k, m->kv_heads, m->width, t);
            attend(m, b, keys + l * count * kv, values + l * count * kv, t + 1, a);
            product(w[3], m->hidden, m->heads * m->width, a, b);
            for (int64_t i = 0; i < m->hidden; i++)
                x[i] += b[i];
            norm(x, m->layers[l].mlp_gain, m->hidden, a);
            product(w[4], m->mlp, m->hidden, a, b);
            product(w[5], m->mlp, m->hidden, a, c);
            for (int64_t i = 0; i < m->mlp; i++)
                b[i] = b[i] / (1.0 + exp(-b[i])) * c[i];
            product(w[6], m->hidden, m->mlp, b, a);
            for (int64_t i = 0; i < m->hidden; i++)
                x[i] += a[i];
        }
    }
    norm(x, m->gain, m->hidden, a);
    product(plain[7 * m->depth], m->vocabulary, m->hidden, a, logits);
    free(keys), free(values), free(x), free(a), free(b), free(c);
}

/* ---- Cases -------------------------------------------------------------------------------------------------------- */

/* Logits (batch, vocabulary) behind prompts of `counts` tokens, read `columns` tokens at a time. */
static float *read_prompts(const llama_t *m, const int64_t *ids, const int64_t *counts, int64_t batch, int64_t most,
                           int64_t columns, int type, int threads)
{
    cache_t cache = cache_of(m, batch, most, type);
    float *logits = keep(4 * batch * m->vocabulary), *found = keep(4 * batch * m->vocabulary);
    int64_t *part = keep(8 * batch * columns), *now = keep(8 * batch);
    for (int64_t first = 0; first < most; first += columns) {
        for (int64_t row = 0; row < batch; row++) {
            const int64_t left = counts[row] - first;
            now[row] = left < 0 ? 0 : left < columns ? left : columns;
            for (int64_t i = 0; i < now[row]; i++)
                part[row * columns + i] = ids[row * most + first + i];
        }
        if (questlm_llama_step(m, &cache, part, now, batch, columns, found, threads, 0))
            exit(2);
        for (int64_t row = 0; row < batch; row++)
            if (now[row])
                memcpy(logits + row * m->vocabulary, found + row * m->vocabulary, (size_t)m->vocabulary * 4);
    }
    return logits;
}

static void compare(const char *set, const char *what, const float *found, const float *expected, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        if (memcmp(found + i, expected + i, 4)) {
            printf("%s: %s: logit %lld is %.9g, not %.9g\n", set, what, (long long)i, (double)found[i], (double)expected[i]);
            exit(1);
        }
}

static void check(const llama_t *m, const char *set, const float *found, const int64_t *ids, int64_t count)
{
    double *expected = malloc((size_t)m->vocabulary * 8), largest = 0.0;
    plain_logits(m, ids, count, expected);
    for (int64_t i = 0; i < m->vocabulary; i++)
        largest = fabs(expected[i]) > largest ? fabs(expected[i]) : largest;
    for (int64_t i = 0; i < m->vocabulary; i++)
        if (!(fabs((double)found[i] - expected[i]) <= 1e-4 * largest)) {
            printf("%s: logit %lld behind %lld tokens is %.9g, not %.9g\n", set, (long long)i, (long long)count,
                   (double)found[i], expected[i]);
            exit(1);
        }
    free(expected);
}

static void run(int coded)
{
    const llama_t m = random_model(coded);
    const int64_t batch = 1 + below(3), most = 1 + below(below(8) ? 20 : 700);
    const int type = (int)below(3), threads = 1 + (int)below(4);
    int64_t *ids = keep(8 * batch * most), *counts = keep(8 * batch);
    for (int64_t i = 0; i < batch * most; i++)
        ids[i] = below(m.vocabulary);
    for (int64_t row = 0; row < batch; row++)
        counts[row] = row ? 1 + below(most) : most;
    for (int set = 0; questlm_instruction_set(set); set++) {
        if (!questlm_supports(set))
            continue;
        const char *name = questlm_instruction_set(set);
        questlm_use_instruction_set(set);
        const float *logits = read_prompts(&m, ids, counts, batch, most, most, type, threads);
        compare(name, "in pieces", read_prompts(&m, ids, counts, batch, most, 1 + below(most), type, 1), logits,
                batch * m.vocabulary);
        for (int64_t row = 0; row < batch; row++) {
            const float *alone = read_prompts(&m, ids + row * most, counts + row, 1, most, most, type, threads);
            compare(name, "alone", alone, logits + row * m.vocabulary, m.vocabulary);
            if (!coded && type == NUMBERS_FLOAT32)
                check(&m, name, alone, ids + row * most, counts[row]);
        }
    }
    while (kept_count)
        free(kept[--kept_count]);
}

int main(int argc, char **argv)
{
    const int64_t cases = argc > 1 ? atoll(argv[1]) : 50;
    state = 88172645463325252u + (uint64_t)(argc > 2 ? atoll(argv[2]) : 0);
    for (int64_t i = 0; i < cases; i++)
        run((int)(i % 2));
    printf("%lld models agree\n", (long long)cases);
    return 0;
}
