/* Norm, SwiGLU, the exponential function and what is asked of logits, for the vectors of one instruction set: included by its file behind
   packed/vectors.h and multiply_add(a, b, c), a b + c. */

enum { LANES = BYTES / 4 };

typedef int32_t whole_t __attribute__((vector_size(BYTES)));

INLINE floats_t load_floats(const float *from) { return (floats_t)load(from); }

INLINE void store_floats(float *to, floats_t v) { store(to, (vec)v); }

INLINE floats_t select_floats(vec mask, floats_t yes, floats_t no)
{
    return (floats_t)((mask & (vec)yes) | (~mask & (vec)no));
}

/* e^x within 2 units of the last place between -87 and 88; beyond, that of the nearer end, and of NaN, NaN. x = n ln 2 + r
   with |r| <= ln(2) / 2; the polynomial is that of Cephes (expf), and 2^n is made of bits. */
INLINE floats_t exponential(floats_t x)
{
    const floats_t to_integer = splat_float(12582912.0f);
    x = select_floats((vec)(x < splat_float(-87.0f)), splat_float(-87.0f), x);
    x = select_floats((vec)(x > splat_float(88.0f)), splat_float(88.0f), x);
    const floats_t shifted = multiply_add(x, splat_float(1.44269504f), to_integer);
    const floats_t n = shifted - to_integer;
    floats_t r = multiply_add(n, splat_float(-0.693359375f), x);
    r = multiply_add(n, splat_float(2.12194440e-4f), r);
    floats_t p = splat_float(1.9875691500e-4f);
    p = multiply_add(p, r, splat_float(1.3981999507e-3f));
    p = multiply_add(p, r, splat_float(8.3334519073e-3f));
    p = multiply_add(p, r, splat_float(4.1665795894e-2f));
    p = multiply_add(p, r, splat_float(1.6666665459e-1f));
    p = multiply_add(p, r, splat_float(5.0000001201e-1f));
    p = multiply_add(p, r * r, r) + splat_float(1.0f);
    return p * (floats_t)(((vec)shifted + splat(127)) << 23);
}

INLINE float sum_of(floats_t v)
{
    float lanes[LANES], sum = 0.0f;
    store_floats(lanes, v);
    for (int i = 0; i < LANES; i++)
        sum += lanes[i];
    return sum;
}

INLINE floats_t load_first(const float *from, int64_t count)
{
    float lanes[LANES] = {0};
    memcpy(lanes, from, (size_t)count * 4);
    return load_floats(lanes);
}

static void norm(const float *x, const float *gain, float eps, int64_t k, float *to)
{
    floats_t sums[4] = {{0}};
    int64_t i = 0;
    for (; i + 4 * LANES <= k; i += 4 * LANES)
        UNROLL for (int j = 0; j < 4; j++) {
            const floats_t v = load_floats(x + i + j * LANES);
            sums[j] = multiply_add(v, v, sums[j]);
        }
    float sum = sum_of((sums[0] + sums[1]) + (sums[2] + sums[3]));
    for (; i < k; i++)
        sum += x[i] * x[i];
    const float scale = 1.0f / sqrtf(sum / (float)k + eps);
    for (i = 0; i + LANES <= k; i += LANES)
        store_floats(to + i, load_floats(x + i) * splat_float(scale) * load_floats(gain + i));
    for (; i < k; i++)
        to[i] = x[i] * scale * gain[i];
}

INLINE floats_t silu(floats_t x) { return x / (splat_float(1.0f) + exponential(-x)); }

static void swiglu(const float *gate, const float *up, int64_t k, float *to)
{
    int64_t i = 0;
    for (; i + LANES <= k; i += LANES)
        store_floats(to + i, silu(load_floats(gate + i)) * load_floats(up + i));
    if (i < k) {
        float lanes[LANES];
        store_floats(lanes, silu(load_first(gate + i, k - i)) * load_first(up + i, k - i));
        memcpy(to + i, lanes, (size_t)(k - i) * 4);
    }
}

/* Index of the first of the largest numbers, at least one of which there is; 0 where all are NaN. */
static int64_t largest_of(const float *x, int64_t n)
{
    floats_t most = splat_float(-INFINITY);
    float lanes[LANES], largest = -INFINITY;
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        const floats_t v = load_floats(x + i);
        most = select_floats((vec)(v > most), v, most);
    }
    store_floats(lanes, most);
    for (int j = 0; j < LANES; j++)
        largest = lanes[j] > largest ? lanes[j] : largest;
    for (; i < n; i++)
        largest = x[i] > largest ? x[i] : largest;
    for (i = 0; i < n; i++)
        if (x[i] == largest)
            return i;
    return 0;
}

/* x - x is 0 for a finite number and NaN for every other. */
static int all_finite(const float *x, int64_t n)
{
    floats_t sums[4] = {{0}};
    int64_t i = 0;
    for (; i + 4 * LANES <= n; i += 4 * LANES)
        UNROLL for (int j = 0; j < 4; j++) {
            const floats_t v = load_floats(x + i + j * LANES);
            sums[j] += v - v;
        }
    float sum = sum_of((sums[0] + sums[1]) + (sums[2] + sums[3]));
    for (; i < n; i++)
        sum += x[i] - x[i];
    return sum == 0.0f;
}
