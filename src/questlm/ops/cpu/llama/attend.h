/* Attention of some queries to a range of keys, for the vectors of one instruction set: included by its file behind
   numbers.h, and SHUFFLE_EVEN(a, b), SHUFFLE_ODD(a, b), the even and the odd lanes of two vectors.

   Keys are taken in blocks of BLOCK_KEYS. Scores of a block are dot products over the width of a head: each lane adds up
   its part, and a tree of pairwise sums turns LANES such vectors into LANES scores. Then the running largest score is
   raised, what was summed so far is scaled down to it, and the values of the block are added. The order of all sums is
   the same for one query and for many. */

/* LANES numbers of a cache. This is the one place that knows how they are stored. 8-bit codes come without their scales, of
   which a token has one: scores, and the weights of values, are multiplied by it. */
INLINE floats_t load_numbers(numbers_t type, const uint8_t *from)
{
    if (type == NUMBERS_BFLOAT16) {
        typedef uint16_t half_t __attribute__((vector_size(BYTES / 2)));
        half_t half;
        memcpy(&half, from, sizeof half);
        return (floats_t)(__builtin_convertvector(half, vec) << 16);
    }
    if (type == NUMBERS_INT8) {
        typedef int8_t codes_t __attribute__((vector_size(LANES)));
        codes_t codes;
        memcpy(&codes, from, sizeof codes);
        return __builtin_convertvector(codes, floats_t);
    }
    return (floats_t)load(from);
}

/* The first `count` numbers, and zeros. */
INLINE floats_t load_rest(numbers_t type, const uint8_t *from, int64_t count)
{
    uint8_t bytes[BYTES] = {0};
    memcpy(bytes, from, (size_t)(count * number_bytes(type)));
    return load_numbers(type, bytes);
}

/* ---- Scores --------------------------------------------------------------------------------------------------- */

/* QUERIES x KEYS dot products are LANES vectors of partial sums, one row of keys after the other. */
INLINE void add_products(numbers_t type, int queries, int keys, const float *query, int64_t query_stride,
                         const uint8_t *const *key, int64_t d, int64_t rest, floats_t *sums)
{
    floats_t q[LANES];
    UNROLL for (int i = 0; i < queries; i++) q[i] = load_floats(query + i * query_stride + d);
    UNROLL for (int j = 0; j < keys; j++) {
        const uint8_t *at = key[j] + d * number_bytes(type);
        const floats_t k = rest < LANES ? load_rest(type, at, rest) : load_numbers(type, at);
        UNROLL for (int i = 0; i < queries; i++)
            sums[i * keys + j] = multiply_add(q[i], k, sums[i * keys + j]);
    }
}

/* Scores of `queries` queries with `keys` keys, queries * keys = LANES. Keys from `count` on are taken to be the last. */
INLINE void score_tile(numbers_t type, int queries, int keys, const attend_t *job, const float *query, int64_t first,
                       int64_t count, float *scores)
{
    const int64_t width = job->width, stride = stored_width(width);
    const uint8_t *key[LANES];
    floats_t sums[LANES];
    UNROLL for (int i = 0; i < LANES; i++) sums[i] = (floats_t){0};
    UNROLL for (int j = 0; j < keys; j++) {
        const int64_t token = first + (j < count ? j : count - 1);
        key[j] = job->keys + token * job->stride * number_bytes(type);
    }
    int64_t d = 0;
    for (; d + LANES <= width; d += LANES)
        add_products(type, queries, keys, query, stride, key, d, LANES, sums);
    if (d < width)
        add_products(type, queries, keys, query, stride, key, d, width - d, sums);
    UNROLL for (int left = LANES / 2; left > 0; left /= 2)
        UNROLL for (int i = 0; i < left; i++)
            sums[i] = SHUFFLE_EVEN(sums[2 * i], sums[2 * i + 1]) + SHUFFLE_ODD(sums[2 * i], sums[2 * i + 1]);
    float found[LANES];
    store_floats(found, sums[0]);
    UNROLL for (int i = 0; i < queries; i++)
        memcpy(scores + i * BLOCK_KEYS, found + i * keys, (size_t)keys * 4);
}

enum { TILE_QUERIES = LANES >= 16 ? 4 : LANES >= 8 ? 2 : 1, TILE_KEYS = LANES / TILE_QUERIES };

/* Ask for rows of the cache that are needed soon: a token's row of one head is too short for the processor to guess. */
INLINE void fetch_rows(numbers_t type, const uint8_t *rows, const attend_t *job, int64_t first, int64_t last)
{
    for (; first < last; first++)
        for (int64_t at = 0; at < job->width * number_bytes(type); at += 64)
            __builtin_prefetch(rows + first * job->stride * number_bytes(type) + at);
}

INLINE void score_block(numbers_t type, const attend_t *job, int64_t row, int queries, int keys, int64_t first,
                        int64_t count, float *scores)
{
    const float *query = job->queries + row * stored_width(job->width);
    for (int64_t key = 0; key < count; key += keys) {
        if (row == 0) {
            const int64_t end = first + count, next = first + key + keys < end ? first + key + keys : end;
            fetch_rows(type, job->keys, job, next, next + keys < end ? next + keys : end);
            fetch_rows(type, job->values, job, first + key, next);
        }
        score_tile(type, queries, keys, job, query, first + key, count - key, scores + key);
    }
    for (int i = 0; i < queries && type == NUMBERS_INT8; i++)
        for (int64_t key = 0; key < count; key++)
            scores[i * BLOCK_KEYS + key] *= job->key_scales[(first + key) * job->heads];
}

/* ---- Probabilities and values ----------------------------------------------------------------------------------- */

/* Turn the scores of one query into exp(score - largest) and 0 where it attends to none; the largest score rises, and what
   was summed is scaled down to it. */
INLINE void weigh(const attend_t *job, int64_t row, int64_t first, float *scores)
{
    partial_t *partial = (partial_t *)(job->partials + row * partial_width(job->width));
    const int64_t end = job->ends[row] - first, count = end < 0 ? 0 : end < BLOCK_KEYS ? end : BLOCK_KEYS;
    if (count == 0) {
        memset(scores, 0, BLOCK_KEYS * 4);
        return;
    }
    for (int64_t i = count; i < BLOCK_KEYS; i++)
        scores[i] = -INFINITY;
    floats_t most = splat_float(partial->largest); /* NaN is no larger; it makes the sums NaN */
    for (int i = 0; i < BLOCK_KEYS; i += LANES) {
        const floats_t score = load_floats(scores + i);
        most = select_floats((vec)(score > most), score, most);
    }
    float lanes[LANES], largest = partial->largest;
    store_floats(lanes, most);
    for (int i = 0; i < LANES; i++)
        largest = lanes[i] > largest ? lanes[i] : largest;
    floats_t total = {0};
    for (int i = 0; i < BLOCK_KEYS; i += LANES) {
        const floats_t score = load_floats(scores + i);
        floats_t weight = exponential(score - splat_float(largest));
        weight = select_floats((vec)(score == splat_float(-INFINITY)), (floats_t){0}, weight);
        store_floats(scores + i, weight);
        total += weight;
    }
    for (int64_t i = 0; i < count && job->type == NUMBERS_INT8; i++)
        scores[i] *= job->value_scales[(first + i) * job->heads];
    floats_t shrink = exponential(splat_float(partial->largest) - splat_float(largest));
    if (partial->largest == -INFINITY) /* nothing was summed */
        shrink = (floats_t){0};
    const float by = shrink[0];
    partial->largest = largest;
    partial->total = partial->total * by + sum_of(total);
    if (by != 1.0f)
        for (int64_t d = 0; d < job->width; d++)
            partial->sums[d] *= by;
}

/* Add values weighted by each of `queries` rows of weights, `vectors` vectors wide from d on. */
INLINE void add_values(numbers_t type, int queries, int vectors, const attend_t *job, int64_t row, int64_t d,
                       int64_t rest, int64_t first, int64_t count, const float *weights)
{
    const int64_t step = job->stride * number_bytes(type), stride = partial_width(job->width);
    const uint8_t *value = job->values + (first * job->stride + d) * number_bytes(type);
    float *sums = job->partials + row * stride + 2 + d;
    floats_t sum[TILE_QUERIES][8];
    UNROLL for (int i = 0; i < queries; i++)
        UNROLL for (int v = 0; v < vectors; v++)
            sum[i][v] = rest < LANES ? load_first(sums + i * stride, rest) : load_floats(sums + i * stride + v * LANES);
    for (int64_t key = 0; key < count; key++, value += step) {
        floats_t numbers[8];
        UNROLL for (int v = 0; v < vectors; v++)
            numbers[v] = rest < LANES ? load_rest(type, value, rest)
                                      : load_numbers(type, value + v * LANES * number_bytes(type));
        UNROLL for (int i = 0; i < queries; i++) {
            const floats_t weight = splat_float(weights[i * BLOCK_KEYS + key]);
            UNROLL for (int v = 0; v < vectors; v++) sum[i][v] = multiply_add(weight, numbers[v], sum[i][v]);
        }
    }
    UNROLL for (int i = 0; i < queries; i++)
        UNROLL for (int v = 0; v < vectors; v++) {
            float lanes[LANES];
            store_floats(lanes, sum[i][v]);
            memcpy(sums + i * stride + v * LANES, lanes, (size_t)(rest < LANES ? rest : LANES) * 4);
        }
}

INLINE void value_block(numbers_t type, const attend_t *job, int64_t row, int queries, int vectors, int64_t first,
                        int64_t count, const float *weights)
{
    const int64_t width = job->width;
    int64_t d = 0;
    for (; d + vectors * LANES <= width; d += vectors * LANES)
        add_values(type, queries, vectors, job, row, d, LANES, first, count, weights);
    for (; d + LANES <= width; d += LANES)
        add_values(type, queries, 1, job, row, d, LANES, first, count, weights);
    if (d < width)
        add_values(type, queries, 1, job, row, d, width - d, first, count, weights);
}

/* ---- All of it --------------------------------------------------------------------------------------------------- */

/* All rows' queries, a tile at a time, with the keys of one block. */
INLINE void attend_block(numbers_t type, const attend_t *job, int64_t first, int64_t count, float *scores)
{
    int64_t row = 0;
    for (; row + TILE_QUERIES <= job->rows; row += TILE_QUERIES)
        score_block(type, job, row, TILE_QUERIES, TILE_KEYS, first, count, scores + row * BLOCK_KEYS);
    for (; row < job->rows; row++)
        score_block(type, job, row, 1, LANES, first, count, scores + row * BLOCK_KEYS);
    for (row = 0; row < job->rows; row++)
        weigh(job, row, first, scores + row * BLOCK_KEYS);
    row = 0;
    for (; row + TILE_QUERIES <= job->rows; row += TILE_QUERIES)
        value_block(type, job, row, TILE_QUERIES, 4, first, count, scores + row * BLOCK_KEYS);
    for (; row < job->rows; row++)
        value_block(type, job, row, 1, 8, first, count, scores + row * BLOCK_KEYS);
}

static __attribute__((noinline)) void attend_float32(const attend_t *job, int64_t first, int64_t count, float *scores)
{
    attend_block(NUMBERS_FLOAT32, job, first, count, scores);
}

static __attribute__((noinline)) void attend_bfloat16(const attend_t *job, int64_t first, int64_t count, float *scores)
{
    attend_block(NUMBERS_BFLOAT16, job, first, count, scores);
}

static __attribute__((noinline)) void attend_int8(const attend_t *job, int64_t first, int64_t count, float *scores)
{
    attend_block(NUMBERS_INT8, job, first, count, scores);
}

static void attend(const attend_t *job, float *scores)
{
    int64_t end = job->begin;
    for (int64_t row = 0; row < job->rows; row++) {
        partial_t *partial = (partial_t *)(job->partials + row * partial_width(job->width));
        *partial = (partial_t){-INFINITY, 0.0f};
        memset(partial->sums, 0, (size_t)job->width * 4);
        end = job->ends[row] > end ? job->ends[row] : end;
    }
    for (int64_t first = job->begin; first < end; first += BLOCK_KEYS) {
        const int64_t count = end - first < BLOCK_KEYS ? end - first : BLOCK_KEYS;
        if (job->type == NUMBERS_BFLOAT16)
            attend_bfloat16(job, first, count, scores);
        else if (job->type == NUMBERS_INT8)
            attend_int8(job, first, count, scores);
        else
            attend_float32(job, first, count, scores);
    }
}

static void merge(partial_t *into, const partial_t *next, int64_t width)
{
    const float largest = next->largest > into->largest ? next->largest : into->largest;
    const floats_t both = exponential((floats_t){into->largest - largest, next->largest - largest});
    const float a = both[0], b = next->total == 0.0f ? 0.0f : both[1];
    for (int64_t d = 0; d < width; d++)
        into->sums[d] = into->sums[d] * a + next->sums[d] * b;
    into->total = into->total * a + next->total * b;
    into->largest = largest;
}
