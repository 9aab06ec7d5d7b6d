/* A product whose parts the caller hands out: what linear.c does for one layer, for callers that run many layers in one
   parallel region. Encode each token's input, then compute all strips; both in any order and on any thread. */

#ifndef QUESTLM_PLAN_H
#define QUESTLM_PLAN_H

#include "layout.h"

typedef struct {
    product_t product;
    const kernels_t *kernels;
    int64_t strips, chunk; /* how many there are, and how many at once are worth handing out */
    int64_t scratch;       /* bytes that `kernels->product` needs on each thread */
    int64_t token_bytes;   /* from one token's encoded input to the next */
    uint8_t *input;
    int32_t *sums;
    float *totals, *unit;
} plan_t;

/* How many tokens are best multiplied at once, so that their encoded input stays in cache. */
int64_t questlm_tokens_at_once(const packed_t *weight);

/* Bytes of the encoded input of so many tokens, their sums and their totals. */
int64_t questlm_input_bytes(const packed_t *weight, int64_t tokens);

/* The plan for `tokens` tokens; `buffer` is aligned to 64 bytes and has questlm_input_bytes. The caller sets what the
   inputs' steps and offset are and where outputs go: product.step, .offset, .y. */
plan_t questlm_plan(const packed_t *weight, int64_t tokens, uint8_t *buffer);

/* Encode the input of one token: codes (k) uint8 where sums are integers, else floats (k). */
void questlm_encode(const plan_t *plan, int64_t token, const uint8_t *row);

#endif
