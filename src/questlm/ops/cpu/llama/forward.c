/* A step of a whole Llama: from token ids to the logits behind the last token of each sequence. */

#include "run.h"
#include "../export.h"

#include <stdlib.h>
#include <string.h>

/* ---- The numbers that linear layers read ------------------------------------------------------------------------ */

/* The residual with what is to be added to it, in place, and the norm of that. */
static void add_and_norm(const run_t *run, const float *gain, int64_t token, float *to)
{
    const int64_t hidden = run->model->hidden;
    float *x = run->x + token * hidden;
    const float *delta = run->delta + token * hidden;
    for (int64_t i = 0; i < hidden; i++)
        x[i] += delta[i];
    run->kernels->norm(x, gain, run->model->eps, hidden, to);
}

static void first_numbers(const run_t *run, const void *layer, int64_t token, float *to)
{
    const int64_t hidden = run->model->hidden;
    run->kernels->norm(run->x + token * hidden, ((const layer_t *)layer)->attention_gain, run->model->eps, hidden, to);
}

static void attention_numbers(const run_t *run, const void *layer, int64_t token, float *to)
{
    add_and_norm(run, ((const layer_t *)layer)->attention_gain, token, to);
}

static void attended_numbers(const run_t *run, const void *layer, int64_t token, float *to)
{
    (void)layer;
    questlm_attended(run, token, to);
}

static void mlp_numbers(const run_t *run, const void *layer, int64_t token, float *to)
{
    add_and_norm(run, ((const layer_t *)layer)->mlp_gain, token, to);
}

static void activation_numbers(const run_t *run, const void *layer, int64_t token, float *to)
{
    const int64_t mlp = run->model->mlp;
    (void)layer;
    run->kernels->swiglu(run->gate + token * mlp, run->up + token * mlp, mlp, to);
}

/* Of the last token of a sequence; of one without new tokens, of any other, as nobody reads its logits. */
static void head_numbers(const run_t *run, const void *unused, int64_t row, float *to)
{
    const sequence_t *sequence = run->sequences + row;
    const int64_t hidden = run->model->hidden, token = sequence->count ? sequence->first + sequence->count - 1 : 0;
    const float *x = run->x + token * hidden, *delta = run->delta + token * hidden;
    (void)unused;
    for (int64_t i = 0; i < hidden; i++)
        to[i] = x[i] + delta[i];
    run->kernels->norm(to, run->model->gain, run->model->eps, hidden, to);
}

static void embed(void *data, int64_t begin, int64_t end, uint8_t *scratch)
{
    const run_t *run = data;
    const llama_t *model = run->model;
    const int64_t hidden = model->hidden;
    (void)scratch;
    for (int64_t token = begin; token < end; token++) {
        const int64_t id = run->token[token].id, at = id * hidden;
        float *x = run->x + token * hidden;
        if (model->embedding_type == NUMBERS_INT8)
            for (int64_t i = 0; i < hidden; i++)
                x[i] = (float)((const int8_t *)model->embedding)[at + i] * model->embedding_scales[id];
        else if (model->embedding_type == NUMBERS_BFLOAT16)
            for (int64_t i = 0; i < hidden; i++) {
                const uint32_t bits = (uint32_t)((const uint16_t *)model->embedding)[at + i] << 16;
                memcpy(x + i, &bits, sizeof bits);
            }
        else
            memcpy(x, (const float *)model->embedding + at, (size_t)hidden * 4);
    }
}

/* ---- All stages, as each thread walks through them --------------------------------------------------------------- */

static void run_stages(run_t *run, member_t *me)
{
    const llama_t *model = run->model;
    questlm_stage(me, run->tokens, 4, 0, embed, run);
    for (int64_t i = 0; i < model->depth; i++) {
        const layer_t *layer = model->layers + i;
        const linear_t *qkv[] = {&layer->q, &layer->k, &layer->v}, *gate_up[] = {&layer->gate, &layer->up};
        const linear_t *o = &layer->o, *down = &layer->down;
        questlm_linear_group(run, me, qkv, (float *[]){run->q, run->k, run->v}, 3, run->tokens,
                             i ? attention_numbers : first_numbers, layer);
        questlm_attention(run, me, i);
        questlm_linear_group(run, me, &o, &run->delta, 1, run->tokens, attended_numbers, layer);
        questlm_linear_group(run, me, gate_up, (float *[]){run->gate, run->up}, 2, run->tokens, mlp_numbers, layer);
        questlm_linear_group(run, me, &down, &run->delta, 1, run->tokens, activation_numbers, layer);
    }
    const linear_t *head = &model->head;
    questlm_linear_group(run, me, &head, &run->logits, 1, run->batch, head_numbers, 0);
}

typedef struct {
    const run_t *run;
    team_t team;
    int64_t scratch_bytes;
    atomic_int through; /* threads that have been through all stages */
} call_t;

static void enter(void *data)
{
    call_t *call = data;
    run_t run = *call->run; /* what a thread finds out while planning is its own */
    member_t me = {.team = &call->team, .scratch = aligned_alloc(LINE, (size_t)call->scratch_bytes)};
    if (!me.scratch)
        return;
    run_stages(&run, &me);
    atomic_fetch_add(&call->through, 1);
    free(me.scratch);
}

/* ---- Memory ------------------------------------------------------------------------------------------------------- */

static int64_t padded(int64_t bytes) { return (bytes + LINE - 1) / LINE * LINE; }

/* Bytes of everything that a run points to; with `memory`, it points there. */
static int64_t lay_out(run_t *run, uint8_t *memory)
{
    const llama_t *m = run->model;
    const int64_t tokens = run->tokens, kv = m->kv_heads * m->width;
    float **const kept[] = {&run->x, &run->delta, (float **)&run->encoded, &run->branches};
    float **const attention[] = {&run->q, &run->k, &run->v, &run->partials}, **const mlp[] = {&run->gate, &run->up};
    const int64_t kept_bytes[] = {tokens * m->hidden * 4, tokens * m->hidden * 4, run->encoded_bytes, run->branch_floats * 4};
    const int64_t attention_bytes[] = {tokens * m->heads * m->width * 4, tokens * kv * 4, tokens * kv * 4,
                                       questlm_partial_floats(run) * 4};
    int64_t at = 0, other;
    for (int i = 0; i < 4; at += padded(kept_bytes[i++]))
        if (memory)
            *kept[i] = (float *)(memory + at);
    other = at;
    for (int i = 0; i < 4; at += padded(attention_bytes[i++]))
        if (memory)
            *attention[i] = (float *)(memory + at);
    for (int i = 0; i < 2; i++, other += padded(tokens * m->mlp * 4))
        if (memory)
            *mlp[i] = (float *)(memory + other);
    return at > other ? at : other;
}

/* The tokens that are computed: of each row of ids the first counts[row]. Returns 0 where an id is none. */
static int list_tokens(run_t *run, const int64_t *ids, int64_t columns)
{
    int64_t at = 0;
    for (int64_t row = 0; row < run->batch; row++)
        for (int64_t i = 0; i < run->sequences[row].count; i++) {
            const int64_t id = ids[row * columns + i];
            if (id < 0 || id >= run->model->vocabulary)
                return 0;
            run->token[at++] = (token_t){row, run->sequences[row].length + i, id};
        }
    return 1;
}

/* Returns 0 where a count is no number of columns, or the cache has no room for it. */
static int list_sequences(run_t *run, const int64_t *counts, int64_t columns)
{
    int64_t longest = 0;
    for (int64_t row = 0; row < run->batch; row++) {
        const sequence_t sequence = {run->tokens, counts ? counts[row] : columns, run->cache->lengths[row]};
        if (sequence.count < 0 || sequence.count > columns || sequence.length > run->cache->capacity - sequence.count)
            return 0;
        run->sequences[row] = sequence;
        run->tokens += sequence.count;
        run->most = sequence.count > run->most ? sequence.count : run->most;
        longest = sequence.length + sequence.count > longest ? sequence.length + sequence.count : longest;
    }
    run->splits = run->most > FEW_TOKENS ? 1 : (longest + SPLIT_KEYS - 1) / SPLIT_KEYS;
    return 1;
}

static int run_all(run_t *run, int threads, parallel_fn parallel)
{
    static float nowhere[LINE]; /* sizes are found out without memory */
    member_t counter = {0};
    run->x = run->delta = run->q = run->k = run->v = run->partials = run->gate = run->up = run->branches = nowhere;
    run->encoded = (uint8_t *)nowhere;
    run_stages(run, &counter);
    uint8_t *memory = aligned_alloc(LINE, (size_t)lay_out(run, 0));
    stage_t *stages = aligned_alloc(LINE, (size_t)counter.stage * sizeof *stages);
    call_t call = {.run = run, .scratch_bytes = padded(counter.scratch_bytes + 1)};
    atomic_init(&call.through, 0);
    if (memory && stages) {
        lay_out(run, memory);
        questlm_open_team(&call.team, stages, counter.stage, threads);
        questlm_run(enter, &call, threads, parallel);
        questlm_close_team(&call.team);
    }
    free(stages);
    free(memory);
    return atomic_load(&call.through) == 0;
}

/* Compute the next tokens of `batch` sequences: ids (batch, columns), of which the first counts[row] of each row are
   tokens (NULL: all), behind what the cache holds, where their keys and values are stored and counted. logits is (batch,
   vocabulary). Returns 0; 1 if memory ran out; 2 if an id is none of the vocabulary; 3 if a count is none. */
EXPORT int questlm_llama_step(const llama_t *model, const cache_t *cache, const int64_t *ids, const int64_t *counts,
                              int64_t batch, int64_t columns, float *logits, int threads, parallel_fn parallel)
{
    run_t run = {.model = model, .cache = cache, .kernels = questlm_llama_kernels(), .batch = batch, .logits = logits};
    run.sequences = malloc((size_t)batch * sizeof *run.sequences);
    run.token = malloc((size_t)(batch * columns) * sizeof *run.token);
    int failed = !run.sequences || !run.token;
    if (!failed)
        failed = !list_sequences(&run, counts, columns) ? 3 : !list_tokens(&run, ids, columns) ? 2 : 0;
    memset(logits, 0, (size_t)(batch * model->vocabulary) * 4); /* of nobody, where there are no tokens */
    if (!failed && run.tokens)
        failed = run_all(&run, threads, parallel);
    for (int64_t row = 0; row < batch && !failed; row++)
        cache->lengths[row] += run.sequences[row].count;
    free(run.token);
    free(run.sequences);
    return failed;
}
