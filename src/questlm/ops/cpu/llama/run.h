/* One step of a model: which tokens it computes, and where its numbers are. */

#ifndef QUESTLM_RUN_H
#define QUESTLM_RUN_H

#include "llama.h"
#include "team.h"

/* The new tokens of one sequence. */
typedef struct {
    int64_t first, count; /* of the tokens of the step */
    int64_t length;       /* tokens that the cache holds before them */
} sequence_t;

typedef struct {
    int64_t sequence, position, id;
} token_t;

typedef struct {
    const llama_t *model;
    const cache_t *cache;
    const llama_kernels_t *kernels;
    sequence_t *sequences;
    token_t *token;
    int64_t batch, tokens, most; /* most: new tokens of any sequence */
    int64_t splits;              /* ranges of keys that are pieces of their own; 1: a piece takes all */
    float *x;                    /* (tokens, hidden), the residual */
    float *delta;                /* (tokens, hidden), what is to be added to it */
    float *q, *k, *v;            /* (tokens, heads * width) */
    float *partials;             /* (tokens, heads, splits, partial_width) */
    float *gate, *up;            /* (tokens, mlp), in the place of q, k, v and partials */
    float *branches;             /* outputs of layers with two branches, side by side */
    float *logits;               /* (batch, vocabulary) */
    uint8_t *encoded;            /* inputs of a group of layers */
    int64_t encoded_bytes, branch_floats;
} run_t;

/* A stage of linear layers that read the same numbers; groups.c. `numbers` makes the k numbers of one token. */
void questlm_linear_group(run_t *run, member_t *me, const linear_t *const *linears, float *const *outputs, int count,
                          int64_t tokens, void (*numbers)(const run_t *run, const void *about, int64_t token, float *to),
                          const void *about);

/* Attention of one layer, from q, k and v; attention.c. */
void questlm_attention(run_t *run, member_t *me, int64_t layer);

/* Floats of `partials` of all tokens. */
int64_t questlm_partial_floats(const run_t *run);

/* What attention gives for one token, (heads * width). */
void questlm_attended(const run_t *run, int64_t token, float *to);

#endif
