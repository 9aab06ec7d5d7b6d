/* From sums to outputs. Part of strips.h. All loops over a strip are of STRIP_ROWS, so that compilers unroll them. */

/* What rows of a strip have in common for all tokens, filled up with 0. */
typedef struct {
    uint32_t shift[STRIP_ROWS]; /* A D sum(w) */
    float step[STRIP_ROWS];
} rows_t;

static void find_rows(const packed_t *w, int64_t row, int count, rows_t *rows)
{
    memset(rows, 0, sizeof *rows);
    for (int i = 0; i < count; i++) {
        if (w->in_integers)
            rows->shift[i] = (uint32_t)(w->scale * w->input_shift) * (uint32_t)w->sums[row + i];
        rows->step[i] = w->step ? w->step[row + i] : 1.0f;
    }
}

/* Nearest bfloat16, ties to even. */
INLINE float to_bfloat16(float number)
{
    uint32_t bits;
    memcpy(&bits, &number, sizeof bits);
    bits = number == number ? (bits + 0x7fffu + (bits >> 16 & 1u)) & 0xffff0000u : bits;
    memcpy(&number, &bits, sizeof bits);
    return number;
}

/* Sums of one token, integers, to floats: see "The mathematics" in layout.h. Those of residues are multiples of 256. */
INLINE void to_dots(const product_t *job, int64_t token, const rows_t *rows, const uint32_t *sums, float *dots)
{
    const packed_t *w = job->weight;
    const uint32_t scale = (uint32_t)(w->scale * w->input_scale);
    const uint32_t constant = (uint32_t)(w->shift * w->input_scale) * (uint32_t)job->sums[token] +
                              (uint32_t)w->k * (uint32_t)(w->shift * w->input_shift);
    const int bits = job->residues ? 8 : 0;
    for (int i = 0; i < STRIP_ROWS; i++)
        dots[i] = (float)(int32_t)(scale * (uint32_t)((int32_t)sums[i] >> bits) + rows->shift[i] + constant) * 0.25f;
}

/* The same of rows of digits: twice the sum of each, then all in float32. */
INLINE void put_together(const product_t *job, int64_t token, const uint32_t *sums, float *dots)
{
    const packed_t *w = job->weight;
    const float half = 0.5f * job->unit[token];
    uint32_t shift[DIGITS];
    for (int d = 0; d < DIGITS; d++)
        shift[d] = (uint32_t)w->shift * (uint32_t)job->sums[token * DIGITS + d];
    for (int i = 0; i < STRIP_ROWS; i++) {
        float sum[DIGITS];
        for (int d = 0; d < DIGITS; d++)
            sum[d] = (float)(int32_t)((uint32_t)w->scale * sums[d * STRIP_ROWS + i] + shift[d]);
        dots[i] = (sum[2] * 65536.0f + (sum[1] * 256.0f + sum[0])) * half;
    }
}

/* Offsets and bias, in the order of questlm.ops.reference.matmul. */
static void add_offsets(const product_t *job, int64_t token, int64_t row, int count, float *y)
{
    const packed_t *w = job->weight;
    if (w->offset) {
        const float total = job->step ? job->totals[token] * job->step[token] : job->totals[token];
        for (int i = 0; i < count; i++)
            y[i] += total * w->offset[row + i];
    }
    if (job->offset)
        for (int i = 0; i < count; i++)
            y[i] += job->offset[0] * (w->step ? w->totals[row + i] * w->step[row + i] : w->totals[row + i]);
    if (job->offset && w->offset)
        for (int i = 0; i < count; i++)
            y[i] += (float)w->k * job->offset[0] * w->offset[row + i];
    if (w->bias)
        for (int i = 0; i < count; i++)
            y[i] += w->bias[row + i];
}

/* The outputs of one token. */
INLINE void finish(const product_t *job, int64_t token, int64_t row, int count, const rows_t *rows, float *dots)
{
    const packed_t *w = job->weight;
    const float step = job->step ? job->step[token] : 1.0f;
    if (w->rounds_sums)
        for (int i = 0; i < STRIP_ROWS; i++)
            dots[i] = to_bfloat16(dots[i]);
    for (int i = 0; i < STRIP_ROWS; i++)
        dots[i] = dots[i] * step * rows->step[i];
    if (w->offset || job->offset || w->bias)
        add_offsets(job, token, row, count, dots);
    float *y = job->y + token * w->rows + row;
    if (count == STRIP_ROWS)
        memcpy(y, dots, STRIP_ROWS * sizeof *y);
    else
        memcpy(y, dots, (size_t)count * sizeof *y);
}
