/* Groups of linear layers that read the same numbers: one stage makes, rounds and encodes these numbers, token by token,
   and one multiplies strips of rows of all layers. Many tokens go through in blocks whose encoded input stays in cache. */

#include "input.h"
#include "run.h"

#include <string.h>

enum { MOST_LAYERS = 3, MOST_BRANCHES = 2 * MOST_LAYERS, ENCODED_AT_ONCE = 4 };

/* A product of the group: a layer, or a branch of one. */
typedef struct {
    const linear_t *linear;
    plan_t plan;
    float *steps;
    int encodes;     /* its input has to be encoded: that of no branch before it is the same */
    int layer;       /* of the group */
    int64_t from;    /* its first number in the row */
    int64_t pieces;  /* that its strips make */
} branch_t;

typedef struct {
    run_t *run;
    const linear_t *const *linears;
    float *const *outputs;
    int layers, branches;
    branch_t branch[MOST_BRANCHES];
    int64_t first, tokens; /* of the block */
    void (*numbers)(const run_t *run, const void *about, int64_t token, float *to);
    const void *about;
} group_t;

static int64_t padded(int64_t bytes) { return (bytes + LINE - 1) / LINE * LINE; }

static int64_t outputs_of(const linear_t *linear)
{
    return linear->weight->rows + (linear->narrow && linear->by_rows ? linear->narrow->weight->rows : 0);
}

static int64_t inputs_of(const linear_t *linear)
{
    return linear->weight->k + (linear->narrow && !linear->by_rows ? linear->narrow->weight->k : 0);
}

/* ---- The plan of a block ------------------------------------------------------------------------------------------ */

/* Of a layer with a norm of its own the input is no other's. */
static void add_branch(group_t *group, const linear_t *linear, int layer, int64_t from, uint8_t *encoded, int64_t *at)
{
    branch_t *branch = group->branch + group->branches++;
    *branch = (branch_t){.linear = linear, .encodes = 1, .layer = layer, .from = from};
    const branch_t *same = 0;
    for (const branch_t *other = group->branch; other < branch && !same; other++)
        if (other->encodes && other->from == from && questlm_same_input(other->linear, linear) &&
            (other->layer == layer || (!group->linears[other->layer]->gain && !group->linears[layer]->gain)))
            same = other;
    if (same) {
        const product_t product = same->plan.product;
        branch->plan = questlm_plan(linear->weight, group->tokens, same->plan.input);
        branch->plan.product.step = product.step;
        branch->encodes = 0;
    } else {
        branch->plan = questlm_plan(linear->weight, group->tokens, encoded + *at);
        *at += questlm_input_bytes(linear->weight, group->tokens);
        branch->steps = (float *)(encoded + *at);
        *at += padded(4 * group->tokens);
        if (linear->input.scale != NOT_ROUNDED)
            branch->plan.product.step = branch->steps;
    }
    if (linear->input.has_offset)
        branch->plan.product.offset = &linear->input.offset;
    branch->pieces = (branch->plan.strips + branch->plan.chunk - 1) / branch->plan.chunk;
}

/* Where outputs go: of branches to memory in between, which `combine` makes one output of. */
static void set_outputs(group_t *group)
{
    float *between = group->run->branches;
    for (int i = 0; i < group->branches; i++) {
        branch_t *branch = group->branch + i;
        const int64_t rows = branch->linear->weight->rows;
        if (!group->linears[branch->layer]->narrow)
            branch->plan.product.y = group->outputs[branch->layer] + group->first * rows;
        else {
            branch->plan.product.y = between;
            between += group->tokens * rows;
        }
    }
    const int64_t floats = between - group->run->branches;
    if (floats > group->run->branch_floats)
        group->run->branch_floats = floats;
}

static void plan_group(group_t *group)
{
    int64_t at = 0;
    group->branches = 0;
    for (int i = 0; i < group->layers; i++) {
        const linear_t *linear = group->linears[i];
        add_branch(group, linear, i, 0, group->run->encoded, &at);
        if (linear->narrow)
            add_branch(group, linear->narrow, i, linear->by_rows ? 0 : linear->weight->k, group->run->encoded, &at);
    }
    set_outputs(group);
    if (at > group->run->encoded_bytes)
        group->run->encoded_bytes = at;
}

/* ---- The work ----------------------------------------------------------------------------------------------------- */

static void encode_tokens(void *data, int64_t begin, int64_t end, uint8_t *scratch)
{
    const group_t *group = data;
    const int64_t k = inputs_of(group->linears[0]);
    float *row = (float *)scratch, *normed = (float *)(scratch + padded(4 * k));
    for (int64_t token = begin; token < end; token++) {
        group->numbers(group->run, group->about, group->first + token, row);
        for (int i = 0; i < group->branches; i++) {
            const branch_t *branch = group->branch + i;
            const linear_t *layer = group->linears[branch->layer];
            const float *from = row;
            if (!branch->encodes)
                continue;
            if (layer->gain) {
                group->run->kernels->norm(row, layer->gain, layer->eps, k, normed);
                from = normed;
            }
            questlm_prepare_input(branch->linear, &branch->plan, branch->steps, token, from + branch->from,
                                  scratch + 2 * padded(4 * k));
        }
    }
}

static void multiply_pieces(void *data, int64_t begin, int64_t end, uint8_t *scratch)
{
    const group_t *group = data;
    int64_t before = 0; /* pieces of the branches before */
    for (int i = 0; i < group->branches && before < end; before += group->branch[i++].pieces) {
        const plan_t *plan = &group->branch[i].plan;
        const int64_t first = begin > before ? (begin - before) * plan->chunk : 0, last = (end - before) * plan->chunk;
        if (first < plan->strips)
            plan->kernels->product(&plan->product, first, last < plan->strips ? last : plan->strips, scratch);
    }
}

/* One output of two branches: side by side, or added. */
static void combine(const group_t *group, const branch_t *wide, int64_t token)
{
    const linear_t *linear = group->linears[wide->layer];
    const int64_t a = linear->weight->rows, b = linear->narrow->weight->rows;
    const float *first = wide[0].plan.product.y + token * a, *second = wide[1].plan.product.y + token * b;
    float *to = group->outputs[wide->layer] + (group->first + token) * outputs_of(linear);
    memcpy(to, first, (size_t)a * 4);
    if (linear->by_rows)
        memcpy(to + a, second, (size_t)b * 4);
    else
        for (int64_t i = 0; i < a; i++)
            to[i] += second[i];
}

static void combine_tokens(void *data, int64_t begin, int64_t end, uint8_t *scratch)
{
    const group_t *group = data;
    (void)scratch;
    for (int64_t token = begin; token < end; token++)
        for (int i = 0; i < group->branches; i++) {
            const branch_t *branch = group->branch + i;
            if (branch->linear == group->linears[branch->layer] && branch->linear->narrow)
                combine(group, branch, token);
        }
}

static void run_block(group_t *group, member_t *me)
{
    int64_t pieces = 0, multiply = 0, encode = 0, has_branches = 0;
    plan_group(group);
    for (int i = 0; i < group->branches; i++) {
        const branch_t *branch = group->branch + i;
        const int64_t input = questlm_input_scratch(branch->linear);
        pieces += branch->pieces;
        multiply = branch->plan.scratch > multiply ? branch->plan.scratch : multiply;
        encode = input > encode ? input : encode;
        has_branches |= branch->linear->narrow != 0;
    }
    encode += 2 * padded(4 * inputs_of(group->linears[0]));
    questlm_stage(me, group->tokens, group->tokens < 64 ? 1 : ENCODED_AT_ONCE, encode, encode_tokens, group);
    questlm_stage(me, pieces, 1, multiply, multiply_pieces, group);
    if (has_branches)
        questlm_stage(me, group->tokens, 1, 0, combine_tokens, group);
}

void questlm_linear_group(run_t *run, member_t *me, const linear_t *const *linears, float *const *outputs, int count,
                          int64_t tokens, void (*numbers)(const run_t *run, const void *about, int64_t token, float *to),
                          const void *about)
{
    group_t group = {.run = run, .linears = linears, .outputs = outputs, .layers = count, .numbers = numbers, .about = about};
    int64_t most = tokens;
    for (int i = 0; i < count; i++)
        for (const linear_t *each = linears[i]; each; each = each->narrow)
            if (questlm_tokens_at_once(each->weight) < most)
                most = questlm_tokens_at_once(each->weight);
    const int64_t blocks = (tokens + most - 1) / most, even = (tokens + blocks - 1) / blocks;
    for (int64_t first = 0; first < tokens; first += even) {
        group.first = first;
        group.tokens = tokens - first < even ? tokens - first : even;
        run_block(&group, me);
    }
}
