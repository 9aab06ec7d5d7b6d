/* A linear layer of a packed weight: from the input to the output, in blocks of tokens that stay in cache. */

#include "plan.h"
#include "../export.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum { BLOCK_BYTES = 1 << 21, MOST_TOKENS = 504, WORK_BYTES = 1 << 15, MOST_CHUNK = 1 << 17, CHUNKS = 16 };

typedef struct {
    plan_t plan;
    const uint8_t *rows; /* to encode */
    /* shared by threads */
    atomic_llong next;
    atomic_int out_of_memory;
} job_t;

static int64_t padded(int64_t bytes) { return (bytes + LINE - 1) / LINE * LINE; }

/* ---- Inputs --------------------------------------------------------------------------------------------------- */

/* z of each unit, 24 bytes, from its x, 20 bytes: see layout.h. In place, from the last unit back, as z is longer. */
static void to_residues(int8_t *input, int64_t units)
{
    while (units-- > 0) {
        int8_t x[28] = {0}; /* from x(-1) to x(5) */
        memcpy(x + 4, input + 20 * units, 20);
        for (int i = 0; i < 24; i++)
            input[24 * units + i] = (int8_t)(3 * x[i + 4] - x[i]);
    }
}

void questlm_encode(const plan_t *plan, int64_t token, const uint8_t *row)
{
    const packed_t *w = plan->product.weight;
    uint8_t *to = plan->input + token * plan->token_bytes;
    if (w->by_digits) {
        plan->unit[token] = plan->kernels->digits((const float *)row, w->k, (int8_t *)to, plan->product.stride,
                                                  plan->sums + token * DIGITS);
        return;
    }
    if (!w->in_integers) {
        memcpy(to, row, (size_t)w->k * 4);
        memset(to + w->k * 4, 0, (size_t)(plan->token_bytes - w->k * 4));
        return;
    }
    int32_t sum;
    if (w->kind == WORDS)
        sum = plan->kernels->planes(row, w->k, plan->product.planes, (uint64_t *)to, plan->product.units);
    else
        sum = plan->kernels->encode(row, w->k, w->input_table, (int8_t *)to, plan->token_bytes);
    if (plan->product.residues)
        to_residues((int8_t *)to, plan->product.units);
    plan->sums[token] = sum;
    plan->totals[token] = (float)((int64_t)w->input_scale * sum + w->k * w->input_shift) * 0.5f;
}

static void encode_rows(void *data)
{
    job_t *job = data;
    const packed_t *w = job->plan.product.weight;
    const int64_t row_bytes = w->k * (w->in_integers ? 1 : 4);
    int64_t token;
    while ((token = atomic_fetch_add(&job->next, 1)) < job->plan.product.tokens)
        questlm_encode(&job->plan, token, job->rows + token * row_bytes);
}

/* ---- The product ---------------------------------------------------------------------------------------------- */

static void multiply_strips(void *data)
{
    job_t *job = data;
    const plan_t *plan = &job->plan;
    uint8_t *scratch = aligned_alloc(LINE, (size_t)padded(plan->scratch));
    if (!scratch) {
        atomic_store(&job->out_of_memory, 1);
        return;
    }
    int64_t begin;
    while ((begin = atomic_fetch_add(&job->next, plan->chunk)) < plan->strips) {
        const int64_t end = begin + plan->chunk < plan->strips ? begin + plan->chunk : plan->strips;
        plan->kernels->product(&plan->product, begin, end, scratch);
    }
    free(scratch);
}

/* With inputs of more than 4 bits z would not fit a byte. */
static int takes_residues(const packed_t *w, int64_t tokens)
{
    return w->kind == TERNARY && w->in_integers && tokens <= FEW_TOKENS && w->input_levels <= 16;
}

/* Bytes between the inputs of two tokens. */
static int64_t stride_of(const packed_t *w, int planes, int64_t tokens)
{
    const unit_t unit = UNITS[w->kind];
    const int64_t units = (w->k + unit.k - 1) / unit.k;
    if (w->kind == WORDS)
        return units * 8 * planes;
    if (takes_residues(w, tokens))
        return units * 24;
    return units * unit.k * (w->in_integers ? 1 : w->by_digits ? DIGITS : 4);
}

static int planes_of(const packed_t *w)
{
    int planes = w->by_digits ? DIGITS : 1;
    while (w->kind == WORDS && 1 << planes < w->input_levels)
        planes++;
    return planes;
}

int64_t questlm_tokens_at_once(const packed_t *w)
{
    const int64_t fit = BLOCK_BYTES / (w->k * (w->in_integers ? 2 : 8) + 1);
    return fit < 12 ? 12 : fit > MOST_TOKENS ? MOST_TOKENS : fit / 12 * 12;
}

int64_t questlm_input_bytes(const packed_t *w, int64_t tokens)
{
    return padded(tokens * stride_of(w, planes_of(w), tokens)) + padded(tokens * (DIGITS + 2) * 4);
}

/* Strips that are handed out at once, for few tokens: long sequences are read faster, but all threads end together only
   where there are several pieces for each. */
static int64_t chunk_of(int64_t strips, int64_t strip_bytes)
{
    const int64_t fair = strips / CHUNKS, long_enough = MOST_CHUNK / strip_bytes;
    const int64_t chunk = fair < long_enough ? fair : long_enough;
    return chunk > 1 ? chunk : 1;
}

plan_t questlm_plan(const packed_t *w, int64_t tokens, uint8_t *buffer)
{
    const unit_t unit = UNITS[w->kind];
    const kernels_t *kernels = questlm_kernels();
    const int planes = planes_of(w);
    const int64_t token_bytes = stride_of(w, planes, tokens);
    int32_t *sums = (int32_t *)(buffer + padded(tokens * token_bytes));
    float *totals = (float *)(sums + DIGITS * tokens);
    plan_t plan = {
        .product = {.weight = w, .tokens = tokens, .units = (w->k + unit.k - 1) / unit.k, .input = buffer,
                    .stride = token_bytes / planes, /* each plane of a token is a row to the product */
                    .planes = planes, .residues = takes_residues(w, tokens), .sums = sums,
                    .totals = totals, .unit = totals + tokens},
        .kernels = kernels, .token_bytes = token_bytes, .input = buffer, .sums = sums, .totals = totals,
        .unit = totals + tokens,
    };
    plan.strips = (w->rows + kernels->groups * GROUP_ROWS - 1) / (kernels->groups * GROUP_ROWS);
    plan.chunk = tokens > FEW_TOKENS ? 1 : chunk_of(plan.strips, plan.product.units * unit.bytes * kernels->groups);
    plan.scratch = kernels->scratch(&plan.product);
    return plan;
}

static int multiply(const packed_t *w, const void *rows, const float *step, const float *offset, const float *totals,
                    int64_t tokens, float *y, uint8_t *buffer, int threads, parallel_fn parallel)
{
    job_t job = {.plan = questlm_plan(w, tokens, buffer), .rows = rows};
    product_t *product = &job.plan.product;
    product->step = step, product->offset = offset, product->y = y;
    if (totals)
        product->totals = totals;
    const int as_they_are = !w->in_integers && !w->by_digits && job.plan.token_bytes == w->k * 4;
    if (as_they_are)
        product->input = rows;
    atomic_init(&job.out_of_memory, 0);
    atomic_init(&job.next, 0);
    if (!as_they_are)
        questlm_run(encode_rows, &job, tokens * w->k < 4 * WORK_BYTES ? 1 : threads, parallel);
    atomic_store(&job.next, 0);
    const int64_t bytes = questlm_packed_bytes(w->kind, w->rows, w->k);
    questlm_run(multiply_strips, &job, bytes * (tokens > 4 ? tokens / 4 : 1) < 2 * WORK_BYTES ? 1 : threads, parallel);
    return atomic_load(&job.out_of_memory);
}

/* ---- What Python calls. Returns 0, or 1 if memory ran out. ------------------------------------------------------ */

/* y = input weight^T: of codes (tokens, k) uint8 with steps (tokens), or of floats (tokens, k) with or without. Where
   a weight has offsets, floats come with their totals, (tokens). */
EXPORT int questlm_packed_product(const packed_t *w, const uint8_t *input, const float *step, const float *offset,
                                  const float *totals, int64_t tokens, float *y, int threads, parallel_fn parallel)
{
    const int64_t most = questlm_tokens_at_once(w), row_bytes = w->k * (w->in_integers ? 1 : 4);
    uint8_t *buffer = aligned_alloc(LINE, (size_t)questlm_input_bytes(w, tokens < most ? tokens : most));
    int failed = !buffer;
    for (int64_t first = 0; first < tokens && !failed; first += most) {
        const int64_t count = tokens - first < most ? tokens - first : most;
        failed = multiply(w, input + first * row_bytes, step ? step + first : 0, offset, totals ? totals + first : 0, count,
                          y + first * w->rows, buffer, threads, parallel);
    }
    free(buffer);
    return failed;
}

/* The same from x (tokens, k) itself: rotated, and where sums are integers, quantised by its rms. Not
   for floats with a weight that has offsets. */
EXPORT int questlm_packed_linear(const packed_t *w, const float *x, int64_t tokens, float *y, int threads,
                                 parallel_fn parallel)
{
    const int64_t most = questlm_tokens_at_once(w), at_once = tokens < most ? tokens : most;
    const int64_t rows_bytes = padded(at_once * w->k * (w->in_integers ? 1 : 4)), steps_bytes = padded(at_once * 4);
    uint8_t *rows = aligned_alloc(LINE, (size_t)(rows_bytes + steps_bytes + questlm_input_bytes(w, at_once)));
    float *step = (float *)(rows + rows_bytes);
    int failed = !rows;
    for (int64_t first = 0; first < tokens && !failed; first += at_once) {
        const int64_t count = tokens - first < at_once ? tokens - first : at_once;
        const float *from = x + first * w->k;
        const void *input = rows;
        if (w->in_integers)
            failed = questlm_quantize(from, count, w->k, w->block, w->input_levels, (double)w->step_per_rms, 0.0, rows,
                                      step, 0, threads, parallel);
        else if (w->block > 1)
            failed = questlm_masked_hadamard(from, count, w->k, w->block, 0, (float *)rows, threads, parallel);
        else
            input = from;
        if (!failed)
            failed = multiply(w, input, w->in_integers ? step : 0, 0, 0, count, y + first * w->rows,
                              rows + rows_bytes + steps_bytes, threads, parallel);
    }
    free(rows);
    return failed;
}
