/* From the numbers that a linear layer reads to what its product takes: rotated, rounded and encoded. */

#ifndef QUESTLM_INPUT_H
#define QUESTLM_INPUT_H

#include "llama.h"

/* Bytes that questlm_prepare_input needs. */
int64_t questlm_input_scratch(const linear_t *linear);

/* Whether two layers, or branches of layers, make the same of the same numbers. */
int questlm_same_input(const linear_t *a, const linear_t *b);

/* Encode one token's numbers `row` (k) for a plan of the layer, and write its step to steps[token]. `scratch` is aligned
   to 64 bytes. */
void questlm_prepare_input(const linear_t *linear, const plan_t *plan, float *steps, int64_t token, const float *row,
                           uint8_t *scratch);

#endif
