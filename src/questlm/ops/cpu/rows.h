/* The work on rows, for vectors of WIDTH floats: included by kernels.c once for each instruction set, with WIDTH, TARGET
   (the attribute that turns the instructions on) and NAME(x) (x with a suffix) defined. */

#define GROUP (2 * WIDTH)

typedef float NAME(vec) __attribute__((vector_size(4 * WIDTH)));
typedef int32_t NAME(ivec) __attribute__((vector_size(4 * WIDTH)));
#define vec NAME(vec)
#define ivec NAME(ivec)

INLINE TARGET vec NAME(load)(const float *from)
{
    vec v;
    memcpy(&v, from, sizeof v);
    return v;
}

INLINE TARGET void NAME(store)(float *to, vec v) { memcpy(to, &v, sizeof v); }

/* ---- The transform ------------------------------------------------------------------------------------------- */

/* One pass over the 2 WIDTH entries of a and b: transform the lowest bit of the index and move it to the top. */
INLINE TARGET void NAME(pass)(vec *a, vec *b)
{
#if WIDTH == 16
    vec even = SHUFFLE(*a, *b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    vec odd = SHUFFLE(*a, *b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
#elif WIDTH == 8
    vec even = SHUFFLE(*a, *b, 0, 2, 4, 6, 8, 10, 12, 14);
    vec odd = SHUFFLE(*a, *b, 1, 3, 5, 7, 9, 11, 13, 15);
#else
    vec even = SHUFFLE(*a, *b, 0, 2, 4, 6);
    vec odd = SHUFFLE(*a, *b, 1, 3, 5, 7);
#endif
    *a = even + odd;
    *b = even - odd;
}

/* Transform a group: after log2(2 WIDTH) passes every bit is back in its place. */
INLINE TARGET void NAME(rotate_group)(vec a, vec b, float *out)
{
    for (int size = GROUP; size > 1; size /= 2)
        NAME(pass)(&a, &b);
    NAME(store)(out, a);
    NAME(store)(out + WIDTH, b);
}

/* The bits of the index from `first` upwards: entries `first` apart are added and subtracted, two bits at a time. */
INLINE TARGET void NAME(rotate_between)(float *v, int64_t first, int64_t block)
{
    int64_t h = first;
    for (; 2 * h < block; h *= 4)
        for (int64_t base = 0; base < block; base += 4 * h)
            for (int64_t i = base; i < base + h; i += WIDTH) {
                vec a = NAME(load)(v + i), b = NAME(load)(v + i + h);
                vec c = NAME(load)(v + i + 2 * h), d = NAME(load)(v + i + 3 * h);
                vec ab = a + b, a_b = a - b, cd = c + d, c_d = c - d;
                NAME(store)(v + i, ab + cd);
                NAME(store)(v + i + h, a_b + c_d);
                NAME(store)(v + i + 2 * h, ab - cd);
                NAME(store)(v + i + 3 * h, a_b - c_d);
            }
    if (h < block)
        for (int64_t i = 0; i < h; i += WIDTH) {
            vec a = NAME(load)(v + i), b = NAME(load)(v + i + h);
            NAME(store)(v + i, a + b);
            NAME(store)(v + i + h, a - b);
        }
}

/* `scale` where the bit of the lane is set, else 0. The caller multiplies by it, so that the mask does not hide NaN. */
INLINE TARGET vec NAME(masked_scale)(uint32_t bits, float scale)
{
#if WIDTH == 16
    const ivec lane_bit = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768};
#elif WIDTH == 8
    const ivec lane_bit = {1, 2, 4, 8, 16, 32, 64, 128};
#else
    const ivec lane_bit = {1, 2, 4, 8};
#endif
    const vec scales = scale - (vec){0};
    return (vec)((((int32_t)bits & lane_bit) != 0) & (ivec)scales);
}

INLINE TARGET void NAME(rotate_block)(const float *in, const uint8_t *mask, float *out, int64_t block, float scale)
{
    for (int64_t i = 0; i < block; i += GROUP) {
        vec low = scale - (vec){0}, high = low;
        if (mask) {
            uint32_t bits = 0;
            for (int j = 0; j < GROUP / 8; j++)
                bits |= (uint32_t)mask[i / 8 + j] << (8 * j);
            low = NAME(masked_scale)(bits, scale);
            high = NAME(masked_scale)(bits >> WIDTH, scale);
        }
        NAME(rotate_group)(NAME(load)(in + i) * low, NAME(load)(in + i + WIDTH) * high, out + i);
    }
    NAME(rotate_between)(out, GROUP, block);
}

/* Any row: `mask` may be NULL. The transform is fastest where the compiler knows the block size. */
INLINE TARGET void NAME(rotate_row)(const float *in, const uint8_t *mask, float *out, int64_t k, int64_t block,
                                    float scale)
{
    if (block < GROUP)
        rotate_small_blocks(in, mask, out, k, block, scale);
    else if (block == 128)
        for (int64_t i = 0; i < k; i += 128)
            NAME(rotate_block)(in + i, mask ? mask + i / 8 : NULL, out + i, 128, scale);
    else
        for (int64_t i = 0; i < k; i += block)
            NAME(rotate_block)(in + i, mask ? mask + i / 8 : NULL, out + i, block, scale);
}

/* ---- The rows ------------------------------------------------------------------------------------------------ */

/* Mean of squares, right between SMALLEST_MEAN and LARGEST_MEAN. SUMS float sums over at most SUM_CHUNK entries, added up in double: relative error < 1e-6. */
INLINE TARGET double NAME(mean_square)(const float *row, int64_t k)
{
    const int64_t whole = k - k % SUMS;
    double total = 0.0;
    for (int64_t begin = 0; begin < whole; begin += SUM_CHUNK) {
        int64_t end = begin + SUM_CHUNK < whole ? begin + SUM_CHUNK : whole;
        vec sums[SUMS / WIDTH] = {{0}};
        for (int64_t i = begin; i < end; i += SUMS)
            for (int j = 0; j < SUMS / WIDTH; j++) {
                vec v = NAME(load)(row + i + j * WIDTH);
                sums[j] += v * v;
            }
        float sum[SUMS];
        memcpy(sum, sums, sizeof sum);
        for (int j = 0; j < SUMS; j++)
            total += (double)sum[j];
    }
    for (int64_t i = whole; i < k; i++)
        total += (double)(row[i] * row[i]);
    return total / (double)k;
}

static TARGET void NAME(quantize_rows)(const job_t *job, int64_t begin, int64_t end, float *row)
{
    const int64_t k = job->k, mask_width = (k + 7) / 8;
    for (int64_t r = begin; r < end; r++) {
        NAME(rotate_row)(job->x + r * k, NULL, row, k, job->block, job->scale);
        double mean_square = NAME(mean_square)(row, k);
        float rms = mean_square > SMALLEST_MEAN && mean_square < LARGEST_MEAN
                        ? sqrtf((float)mean_square)
                        : (float)sqrt(mean_square_in_double(row, k));
        float step = job->step_per_rms * rms;
        job->step[r] = step;
        encode(row, k, step, job->levels, job->codes + r * k);
        if (job->mask)
            write_mask(row, k, job->mask_bound * step, job->mask + r * mask_width);
    }
}

static TARGET void NAME(masked_hadamard_rows)(const job_t *job, int64_t begin, int64_t end, float *unused)
{
    const int64_t k = job->k, mask_width = (k + 7) / 8;
    (void)unused;
    for (int64_t r = begin; r < end; r++)
        NAME(rotate_row)(job->x + r * k, job->mask ? job->mask + r * mask_width : NULL, job->out + r * k, k,
                         job->block, job->scale);
}

#undef vec
#undef ivec
#undef GROUP
