/* From sums to outputs. Part of strips.h. */

/* Nearest bfloat16, ties to even. */
INLINE float to_bfloat16(float number)
{
    uint32_t bits;
    memcpy(&bits, &number, sizeof bits);
    bits = number == number ? (bits + 0x7fffu + (bits >> 16 & 1u)) & 0xffff0000u : bits;
    memcpy(&number, &bits, sizeof bits);
    return number;
}

/* Sums of one token, integers, to floats: see "The mathematics" in layout.h. */
INLINE void to_dots(const product_t *job, int64_t token, int64_t row, int count, const uint32_t *sums, float *dots)
{
    const packed_t *w = job->weight;
    const uint32_t scale = (uint32_t)(w->scale * w->input_scale), by_row = (uint32_t)(w->scale * w->input_shift);
    const uint32_t constant = (uint32_t)(w->shift * w->input_scale) * (uint32_t)job->sums[token] +
                              (uint32_t)w->k * (uint32_t)(w->shift * w->input_shift);
    for (int i = 0; i < count; i++) {
        const uint32_t sum = job->residues ? (uint32_t)((int32_t)sums[i] / 256) : sums[i];
        dots[i] = (float)(int32_t)(scale * sum + by_row * (uint32_t)w->sums[row + i] + constant) * 0.25f;
    }
}

/* Steps, offsets and bias, in the order of questlm.ops.reference.matmul. */
INLINE void finish(const product_t *job, int64_t token, int64_t row, int count, const float *dots)
{
    const packed_t *w = job->weight;
    float *y = job->y + token * w->rows + row;
    for (int i = 0; i < count; i++)
        y[i] = w->rounds_sums ? to_bfloat16(dots[i]) : dots[i];
    if (job->step)
        for (int i = 0; i < count; i++)
            y[i] *= job->step[token];
    if (w->step)
        for (int i = 0; i < count; i++)
            y[i] *= w->step[row + i];
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
