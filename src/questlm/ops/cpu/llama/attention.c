/* Attention over the static cache: new keys and values are stored, then queries meet them, some of one head at a time.

   Keys are attended to in ranges of SPLIT_KEYS, whose results are merged in order, so a sequence's numbers are the same
   however the work is divided. Where a step has few tokens of a sequence, each range is a piece of work of its own: a
   long context then keeps all threads busy, also with few heads. */

#include "run.h"

#include <math.h>
#include <string.h>

enum { TILE_ROWS = 64 }; /* queries that share loaded keys */

typedef struct {
    const run_t *run;
    int64_t layer;
} attention_t;

/* Which of all rows of `width` numbers in the cache a token and head has, for keys (which = 0) or values (1). */
static int64_t row_of(const attention_t *a, int which, int64_t sequence, int64_t position, int64_t head)
{
    const cache_t *cache = a->run->cache;
    return ((a->layer * 2 + which) * cache->slots + sequence * cache->capacity + position) * a->run->model->kv_heads + head;
}

/* ---- New keys and values -------------------------------------------------------------------------------------- */

/* Rotate entry i with entry i + width / 2 of one head, and multiply by `scale`. */
static void rotate(const run_t *run, const float *x, int64_t position, float scale, float *to)
{
    const int64_t half = run->model->width / 2;
    const float *cosines = run->cache->cosines + position * half, *sines = run->cache->sines + position * half;
    for (int64_t i = 0; i < half; i++) {
        const float a = x[i], b = x[half + i], c = cosines[i], s = sines[i];
        to[i] = (a * c + -b * s) * scale;
        to[half + i] = (b * c + a * s) * scale;
    }
}

static void store_bfloat16(const float *from, int64_t count, uint16_t *to)
{
    for (int64_t i = 0; i < count; i++) { /* to the nearest, ties to even */
        uint32_t bits;
        memcpy(&bits, from + i, sizeof bits);
        to[i] = (uint16_t)(from[i] == from[i] ? (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16 : 0x7fc0u);
    }
}

/* As questlm.ops.reference.storage.to_int8_rows; returns the scale. */
static float store_int8(const float *from, int64_t count, int8_t *to)
{
    float largest = 0.0f;
    for (int64_t i = 0; i < count; i++)
        largest = fabsf(from[i]) > largest || from[i] != from[i] ? fabsf(from[i]) : largest;
    const float scale = largest / 127.0f, smallest = 1.17549435e-38f, divisor = scale > smallest ? scale : smallest;
    for (int64_t i = 0; i < count; i++) {
        float code = from[i] / divisor;
        code = code > -127.0f ? code : -127.0f;
        code = code < 127.0f ? code : 127.0f;
        to[i] = (int8_t)((code + 12582912.0f) - 12582912.0f);
    }
    return scale;
}

/* Store the numbers of one row as the cache keeps them. */
static void store_row(const run_t *run, int64_t row, const float *from)
{
    const cache_t *cache = run->cache;
    const int64_t width = run->model->width;
    if (cache->type == NUMBERS_INT8)
        cache->scales[row] = store_int8(from, width, (int8_t *)cache->entries + row * width);
    else if (cache->type == NUMBERS_BFLOAT16)
        store_bfloat16(from, width, (uint16_t *)cache->entries + row * width);
    else
        memcpy((float *)cache->entries + row * width, from, (size_t)width * 4);
}

/* Pieces: heads of keys of each token. `scratch` holds one head. */
static void store_new(void *data, int64_t begin, int64_t end, uint8_t *scratch)
{
    const attention_t *a = data;
    const run_t *run = a->run;
    const int64_t width = run->model->width, heads = run->model->kv_heads;
    for (int64_t i = begin; i < end; i++) {
        const token_t *token = run->token + i / heads;
        rotate(run, run->k + i * width, token->position, 1.0f, (float *)scratch);
        store_row(run, row_of(a, 0, token->sequence, token->position, i % heads), (const float *)scratch);
        store_row(run, row_of(a, 1, token->sequence, token->position, i % heads), run->v + i * width);
    }
}

/* ---- Queries ---------------------------------------------------------------------------------------------------- */

/* One piece: a range of a sequence's tokens, a head of keys, and a range of keys or all. */
typedef struct {
    const sequence_t *sequence;
    int64_t index, head, first, tokens, split;
} piece_t;

static int64_t group_of(const run_t *run) { return run->model->heads / run->model->kv_heads; }

static int64_t tile_tokens(const run_t *run)
{
    const int64_t group = group_of(run), most = group < TILE_ROWS ? TILE_ROWS / group : 1;
    return run->most < most ? run->most : most;
}

static int64_t tiles_of(const run_t *run) { return (run->most + tile_tokens(run) - 1) / tile_tokens(run); }

static piece_t piece_of(const run_t *run, int64_t number)
{
    piece_t piece = {.split = number % run->splits};
    number /= run->splits;
    piece.first = number % tiles_of(run) * tile_tokens(run);
    number /= tiles_of(run);
    piece.head = number % run->model->kv_heads;
    piece.index = number / run->model->kv_heads;
    piece.sequence = run->sequences + piece.index;
    piece.tokens = piece.sequence->count - piece.first;
    if (piece.tokens > tile_tokens(run))
        piece.tokens = tile_tokens(run);
    return piece;
}

/* What a piece needs in memory, all aligned to 64 bytes. */
typedef struct {
    float *queries, *scores, *partials, *next;
    int64_t *ends;
    int64_t bytes;
} memory_t;

static memory_t memory_of(const run_t *run, uint8_t *scratch)
{
    const int64_t rows = tile_tokens(run) * group_of(run), width = run->model->width;
    const int64_t sizes[] = {rows * stored_width(width) * 4, rows * BLOCK_KEYS * 4, rows * partial_width(width) * 4,
                             rows * partial_width(width) * 4, rows * 8};
    int64_t at[6] = {0};
    for (int i = 0; i < 5; i++)
        at[i + 1] = at[i] + (sizes[i] + LINE - 1) / LINE * LINE;
    return (memory_t){(float *)(scratch + at[0]), (float *)(scratch + at[1]), (float *)(scratch + at[2]),
                      (float *)(scratch + at[3]), (int64_t *)(scratch + at[4]), at[5]};
}

static float *partial_of(const run_t *run, int64_t token, int64_t head, int64_t split)
{
    return run->partials + ((token * run->model->heads + head) * run->splits + split) * partial_width(run->model->width);
}

static void rotate_queries(const run_t *run, const piece_t *piece, float *queries)
{
    const int64_t width = run->model->width, stride = stored_width(width), group = group_of(run);
    const float scale = 1.0f / sqrtf((float)width);
    for (int64_t i = 0; i < piece->tokens; i++)
        for (int64_t g = 0; g < group; g++) {
            const int64_t token = piece->sequence->first + piece->first + i, head = piece->head * group + g;
            float *to = queries + (i * group + g) * stride;
            rotate(run, run->q + (token * run->model->heads + head) * width, run->token[token].position, scale, to);
            memset(to + width, 0, (size_t)(stride - width) * 4);
        }
}

/* Attention to keys begin .. begin + SPLIT_KEYS - 1. */
static void attend_split(const run_t *run, const piece_t *piece, const memory_t *memory, attend_t job, int64_t begin)
{
    const int64_t group = group_of(run);
    for (int64_t row = 0; row < job.rows; row++) {
        const int64_t end = piece->sequence->length + piece->first + row / group + 1;
        memory->ends[row] = end < begin ? begin : end < begin + SPLIT_KEYS ? end : begin + SPLIT_KEYS;
    }
    job.begin = begin;
    run->kernels->attend(&job, memory->scores);
}

static void attend_piece(const attention_t *a, const piece_t *piece, uint8_t *scratch)
{
    const run_t *run = a->run;
    const memory_t memory = memory_of(run, scratch);
    const int64_t group = group_of(run), width = run->model->width, stride = partial_width(width);
    const int64_t keys = piece->sequence->length + piece->first + piece->tokens;
    const int64_t bytes = width * number_bytes((numbers_t)run->cache->type), heads = run->model->kv_heads;
    const int64_t first_key = row_of(a, 0, piece->index, 0, piece->head), first_value = row_of(a, 1, piece->index, 0, piece->head);
    int64_t begin = run->splits > 1 ? piece->split * SPLIT_KEYS : 0;
    if (piece->tokens <= 0 || begin >= keys)
        return;
    const int64_t end = run->splits > 1 ? begin + 1 : keys;
    const uint8_t *entries = run->cache->entries;
    const float *scales = run->cache->scales;
    attend_t job = {
        .keys = entries + first_key * bytes, .values = entries + first_value * bytes,
        .key_scales = scales ? scales + first_key : 0, .value_scales = scales ? scales + first_value : 0,
        .stride = heads * width, .heads = heads, .type = (numbers_t)run->cache->type, .width = width, .rows = piece->tokens * group,
        .queries = memory.queries, .ends = memory.ends, .partials = memory.partials,
    };
    rotate_queries(run, piece, memory.queries);
    attend_split(run, piece, &memory, job, begin);
    for (begin += SPLIT_KEYS; begin < end; begin += SPLIT_KEYS) {
        job.partials = memory.next;
        attend_split(run, piece, &memory, job, begin);
        for (int64_t row = 0; row < job.rows; row++)
            run->kernels->merge((partial_t *)(memory.partials + row * stride),
                                (const partial_t *)(memory.next + row * stride), width);
    }
    for (int64_t row = 0; row < job.rows; row++)
        memcpy(partial_of(run, piece->sequence->first + piece->first + row / group, piece->head * group + row % group,
                          piece->split), memory.partials + row * stride, (size_t)stride * 4);
}

static void attend_pieces(void *data, int64_t begin, int64_t end, uint8_t *scratch)
{
    const attention_t *a = data;
    for (int64_t i = begin; i < end; i++) {
        const piece_t piece = piece_of(a->run, i);
        attend_piece(a, &piece, scratch);
    }
}

/* ---- What run.h names ------------------------------------------------------------------------------------------- */

int64_t questlm_partial_floats(const run_t *run)
{
    return run->tokens * run->model->heads * run->splits * partial_width(run->model->width);
}

void questlm_attention(run_t *run, member_t *me, int64_t layer)
{
    static uint8_t nowhere[LINE]; /* only sizes matter */
    attention_t a = {run, layer};
    const int64_t heads = run->model->kv_heads, news = run->tokens * heads, few = (news + 15) / 16;
    questlm_stage(me, news, few < 64 ? few : 64, run->model->width * 4, store_new, &a);
    questlm_stage(me, run->batch * heads * tiles_of(run) * run->splits, 1, memory_of(run, nowhere).bytes, attend_pieces, &a);
}

void questlm_attended(const run_t *run, int64_t token, float *to)
{
    const int64_t width = run->model->width, position = run->token[token].position;
    const int64_t splits = run->splits > 1 ? position / SPLIT_KEYS + 1 : 1;
    for (int64_t head = 0; head < run->model->heads; head++, to += width) {
        partial_t *partial = (partial_t *)partial_of(run, token, head, 0);
        for (int64_t split = 1; split < splits; split++)
            run->kernels->merge(partial, (const partial_t *)partial_of(run, token, head, split), width);
        for (int64_t d = 0; d < width; d++)
            to[d] = partial->sums[d] / partial->total;
    }
}
