/* Inputs of linear layers: rotated, rounded and encoded. The codes of evenly spaced grids with steps by the rms, which most layers have, are those of
   kernels.c; the others are rounded here, in the order of questlm.ops.reference.quantize. */

#include "input.h"
#include "../export.h"

#include <math.h>
#include <string.h>

static int64_t padded(int64_t bytes) { return (bytes + LINE - 1) / LINE * LINE; }

int64_t questlm_input_scratch(const linear_t *linear)
{
    const int64_t k = linear->weight->k; /* rotated numbers, codes */
    return padded(4 * k) + padded(k);
}

int questlm_same_input(const linear_t *a, const linear_t *b)
{
    const packed_t *v = a->weight, *w = b->weight;
    const input_t *x = &a->input, *y = &b->input;
    if (x->edges != y->edges || x->values != y->values)
        return 0;
    return v->k == w->k && v->kind == w->kind && v->block == w->block && v->in_integers == w->in_integers &&
           v->by_digits == w->by_digits &&
           v->input_levels == w->input_levels && v->step_per_rms == w->step_per_rms &&
           v->input_scale == w->input_scale && v->input_shift == w->input_shift &&
           !v->offset == !w->offset && !memcmp(v->input_table, w->input_table, sizeof v->input_table) &&
           x->scale == y->scale && x->levels == y->levels && x->step_per_scale == y->step_per_scale &&
           x->fraction == y->fraction && x->whole == y->whole && x->has_offset == y->has_offset && x->offset == y->offset;
}

/* ---- Codes ---------------------------------------------------------------------------------------------------- */

static float row_scale(const input_t *input, const float *row, int64_t k)
{
    float largest = 0.0f;
    for (int64_t i = 0; i < k; i++)
        largest = fabsf(row[i]) > largest || row[i] != row[i] ? fabsf(row[i]) : largest;
    if (input->scale == BY_LARGEST)
        return largest;
    if (input->scale == BY_ONE)
        return 1.0f + 0.0f * largest;
    double sum = 0.0;
    for (int64_t i = 0; i < k; i++)
        sum += (double)row[i] * (double)row[i];
    return (float)sqrt(sum / (double)k);
}

/* How many edges lie below `number`; of NaN, all. */
static int code_between(const float *edges, int count, float number)
{
    int first = 0;
    while (count > 0) {
        const int half = count / 2;
        if (!(edges[first + half] >= number))
            first += half + 1, count -= half + 1;
        else
            count = half;
    }
    return first;
}

static void to_codes(const input_t *input, const float *row, int64_t k, float step, uint8_t *codes)
{
    const float smallest = 1.17549435e-38f, divisor = step < smallest ? smallest : step;
    if (input->edges) {
        for (int64_t i = 0; i < k; i++)
            codes[i] = (uint8_t)code_between(input->edges, input->levels - 1, row[i] / divisor);
        return;
    }
    /* as in kernels.c: clipped first, numbers are small enough to be rounded by adding 1.5 * 2^23 */
    const float to_integer = 12582912.0f, lowest = -input->whole, highest = (float)(input->levels - 1) - input->whole;
    for (int64_t i = 0; i < k; i++) {
        float code = row[i] / divisor + input->fraction;
        code = code > lowest ? code : lowest;
        code = code < highest ? code : highest;
        codes[i] = (uint8_t)((code + to_integer) - to_integer + input->whole);
    }
}

/* Codes of `row`, and their step; `rotated` is for numbers in between. */
static float quantize(const linear_t *linear, const float *row, float *rotated, uint8_t *codes)
{
    const packed_t *w = linear->weight;
    const input_t *input = &linear->input;
    float step = 0.0f;
    if (input->scale == PLAIN_GRID) {
        if (questlm_quantize(row, 1, w->k, w->block, input->levels, (double)input->step_per_scale, 0.0, codes, &step, 0, 1, 0))
            return NAN; /* no memory: as numbers that are not finite */
        return step;
    }
    for (int64_t i = 0; i < w->k; i++)
        rotated[i] = row[i] - input->offset;
    step = input->step_per_scale * row_scale(input, rotated, w->k);
    to_codes(input, rotated, w->k, step, codes);
    return step;
}

/* ---- Numbers ---------------------------------------------------------------------------------------------------- */

static const float *rotate(const packed_t *w, const float *row, float *to)
{
    if (w->block == 1)
        return row;
    if (questlm_masked_hadamard(row, 1, w->k, w->block, 0, to, 1, 0))
        to[0] = NAN;
    return to;
}

void questlm_prepare_input(const linear_t *linear, const plan_t *plan, float *steps, int64_t token, const float *row,
                           uint8_t *scratch)
{
    const packed_t *w = linear->weight;
    const input_t *input = &linear->input;
    float *numbers = (float *)scratch;
    uint8_t *codes = scratch + padded(4 * w->k);
    if (input->scale != PLAIN_GRID)
        row = rotate(w, row, numbers);
    if (input->scale != NOT_ROUNDED) {
        steps[token] = quantize(linear, row, numbers, codes);
        if (w->in_integers) {
            questlm_encode(plan, token, codes);
            return;
        }
        for (int64_t i = 0; i < w->k; i++)
            numbers[i] = input->values[codes[i]];
        row = numbers;
    }
    questlm_encode(plan, token, (const uint8_t *)row);
    if (w->offset) {
        float total = 0.0f;
        for (int64_t i = 0; i < w->k; i++)
            total += row[i];
        plan->totals[token] = total;
    }
}
