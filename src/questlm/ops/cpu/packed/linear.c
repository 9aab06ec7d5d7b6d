/* A linear layer of a packed weight: from the input to the output, in blocks of tokens that stay in cache. */

#include "layout.h"
#include "../export.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum { BLOCK_BYTES = 1 << 21, MOST_TOKENS = 504, CHUNK_BYTES = 1 << 15 };

typedef struct {
    product_t product;
    const kernels_t *kernels;
    int64_t strips, chunk, scratch;
    /* the rows to encode */
    const uint8_t *rows;
    int32_t *sums;
    float *totals;
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

/* One token's input as the product takes it. */
static void encode_row(const job_t *job, int64_t token)
{
    const packed_t *w = job->product.weight;
    uint8_t *to = (uint8_t *)job->product.input + token * job->product.stride;
    if (!w->in_integers) {
        memcpy(to, job->rows + token * w->k * 4, (size_t)w->k * 4);
        memset(to + w->k * 4, 0, (size_t)(job->product.stride - w->k * 4));
        return;
    }
    const uint8_t *codes = job->rows + token * w->k;
    int32_t sum;
    if (w->kind == WORDS)
        sum = job->kernels->planes(codes, w->k, job->product.planes, (uint64_t *)to, job->product.units);
    else
        sum = job->kernels->encode(codes, w->k, w->input_table, (int8_t *)to, job->product.stride);
    if (job->product.residues)
        to_residues((int8_t *)to, job->product.units);
    job->sums[token] = sum;
    job->totals[token] = (float)((int64_t)w->input_scale * sum + w->k * w->input_shift) * 0.5f;
}

static void encode_rows(void *data)
{
    job_t *job = data;
    int64_t token;
    while ((token = atomic_fetch_add(&job->next, 1)) < job->product.tokens)
        encode_row(job, token);
}

/* ---- The product ---------------------------------------------------------------------------------------------- */

static void multiply_strips(void *data)
{
    job_t *job = data;
    uint8_t *scratch = aligned_alloc(LINE, (size_t)padded(job->scratch));
    if (!scratch) {
        atomic_store(&job->out_of_memory, 1);
        return;
    }
    int64_t begin;
    while ((begin = atomic_fetch_add(&job->next, job->chunk)) < job->strips) {
        const int64_t end = begin + job->chunk < job->strips ? begin + job->chunk : job->strips;
        job->kernels->product(&job->product, begin, end, scratch);
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
    return units * unit.k * (w->in_integers ? 1 : 4);
}

static int planes_of(const packed_t *w)
{
    int planes = 1;
    while (w->kind == WORDS && 1 << planes < w->input_levels)
        planes++;
    return planes;
}

static int multiply(const packed_t *w, const void *rows, const float *step, const float *offset, const float *totals,
                    int64_t tokens, float *y, uint8_t *buffer, int threads, parallel_fn parallel)
{
    const unit_t unit = UNITS[w->kind];
    const kernels_t *kernels = questlm_kernels();
    const int planes = planes_of(w);
    const int64_t token_stride = stride_of(w, planes, tokens);
    const int as_they_are = !w->in_integers && token_stride == w->k * 4;
    int32_t *sums = (int32_t *)(buffer + padded(tokens * token_stride));
    job_t job = {
        .product = {.weight = w, .tokens = tokens, .units = (w->k + unit.k - 1) / unit.k,
                    .input = as_they_are ? rows : buffer, .stride = token_stride, .planes = planes,
                    .residues = takes_residues(w, tokens),
                    .sums = sums, .totals = totals ? totals : (float *)(sums + tokens), .step = step, .offset = offset, .y = y},
        .kernels = kernels, .rows = rows, .sums = sums, .totals = (float *)(sums + tokens),
    };
    const int64_t strip_bytes = job.product.units * unit.bytes * kernels->groups;
    job.strips = (w->rows + kernels->groups * GROUP_ROWS - 1) / (kernels->groups * GROUP_ROWS);
    job.chunk = tokens > 4 || strip_bytes >= CHUNK_BYTES ? 1 : CHUNK_BYTES / strip_bytes;
    atomic_init(&job.out_of_memory, 0);

    atomic_init(&job.next, 0);
    if (!as_they_are)
        questlm_run(encode_rows, &job, tokens * w->k < 4 * CHUNK_BYTES ? 1 : threads, parallel);
    if (w->kind == WORDS) /* each plane of a token is a row to the product */
        job.product.stride /= planes;
    job.scratch = kernels->scratch(&job.product);
    atomic_store(&job.next, 0);
    const int64_t work = job.strips * strip_bytes * (tokens > 4 ? tokens / 4 : 1);
    questlm_run(multiply_strips, &job, work < 2 * CHUNK_BYTES ? 1 : threads, parallel);
    return atomic_load(&job.out_of_memory);
}

/* ---- What Python calls. Returns 0, or 1 if memory ran out. ------------------------------------------------------ */

static int64_t tokens_at_once(const packed_t *w)
{
    const int64_t fit = BLOCK_BYTES / (w->k * (w->in_integers ? 2 : 8) + 1);
    return fit < 12 ? 12 : fit > MOST_TOKENS ? MOST_TOKENS : fit / 12 * 12;
}

/* Bytes of what `multiply` encodes, its sums and totals, and a line to align them. */
static int64_t buffer_bytes(const packed_t *w, int64_t tokens)
{
    return padded(tokens * stride_of(w, planes_of(w), tokens)) + padded(8 * tokens);
}

/* y = input weight^T: of codes (tokens, k) uint8 with steps (tokens), or of floats (tokens, k) with or without. Where
   a weight has offsets, floats come with their totals, (tokens). */
EXPORT int questlm_packed_product(const packed_t *w, const uint8_t *input, const float *step, const float *offset,
                                  const float *totals, int64_t tokens, float *y, int threads, parallel_fn parallel)
{
    const int64_t most = tokens_at_once(w), row_bytes = w->k * (w->in_integers ? 1 : 4);
    uint8_t *buffer = aligned_alloc(LINE, (size_t)buffer_bytes(w, tokens < most ? tokens : most));
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
    const int64_t most = tokens_at_once(w), at_once = tokens < most ? tokens : most;
    const int64_t rows_bytes = padded(at_once * w->k * (w->in_integers ? 1 : 4)), steps_bytes = padded(at_once * 4);
    uint8_t *rows = aligned_alloc(LINE, (size_t)(rows_bytes + steps_bytes + buffer_bytes(w, at_once)));
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
