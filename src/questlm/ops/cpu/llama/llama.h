/* The forward pass of a whole packed Llama, for decoding and for prompts: what the model looks like to C, and what the
   parts of this folder give each other.

   How it runs
   -----------
   Python describes the model once, when it is loaded: addresses, shapes, constants. A step is then one call. All threads
   enter it together and walk through the same stages (forward.c); the work of each stage is handed out in small pieces
   (team.c), and a stage begins when all pieces of the last one are done. So a layer costs ten meetings of threads that
   are already running, of a fraction of a microsecond each, in place of a call for each operation.

   A stage of linear layers that read the same numbers (q, k and v; gate and up) makes those numbers once for each token
   (the sum with the residual and its norm, attention's output, SwiGLU), quantises and encodes them once where the
   layers' inputs are alike, and then multiplies strips of rows of all of them (plan.h of packed).

   Only tokens are computed: the padding of ragged prompts is left out. Each token's numbers depend on its own sequence
   alone and are summed in the same order whatever the batch, the number of threads and the tokens of a step.

   Precision
   ---------
   The products are those of packed_linear. The residual, norms, rotary positions, attention and SwiGLU are float32; keys
   and values are read as they are cached. */

#ifndef QUESTLM_LLAMA_H
#define QUESTLM_LLAMA_H

#include "../packed/plan.h"
#include "../threads.h"

#include <stdint.h>

/* What the step of an input's row is a multiple of; as in questlm.ops.cpu.llama. */
enum { NOT_ROUNDED, PLAIN_GRID, BY_RMS, BY_LARGEST, BY_ONE };

/* How the numbers that a layer reads become what its product takes. As in questlm.ops.cpu.llama. */
typedef struct {
    const float *edges;     /* (levels - 1), between levels that are not evenly spaced; or NULL */
    const float *values;    /* (levels), level of each code, for products of floats; or NULL */
    float step_per_scale;
    float fraction, whole;  /* of the code that stands for 0 */
    float offset;           /* taken off the rotated numbers */
    int32_t scale, levels;
    int32_t has_offset;
} input_t;

/* A linear layer; where it has two branches, this is the wide one. */
typedef struct linear {
    const packed_t *weight;
    const float *gain;            /* (k), of the layer's own norm; or NULL */
    const struct linear *narrow;  /* the other branch, without a norm and a branch of its own; or NULL */
    input_t input;
    float eps;                    /* of its own norm */
    int32_t by_rows;              /* outputs of the branches are side by side; else inputs are, and outputs are added */
} linear_t;

typedef struct {
    const float *attention_gain, *mlp_gain; /* (hidden) */
    linear_t q, k, v, o, gate, up, down;
} layer_t;

/* As in questlm.ops.cpu.llama. */
typedef struct {
    const layer_t *layers;
    const float *gain;         /* (hidden), of the last norm */
    const void *embedding;     /* (vocabulary, hidden) */
    const float *embedding_scales; /* (vocabulary), of 8-bit codes */
    linear_t head;
    int64_t depth, hidden, heads, kv_heads, width, mlp, vocabulary; /* width: of a head */
    float eps;
    int32_t embedding_type;
} llama_t;

/* How numbers are stored in an embedding or a cache; as in questlm.ops.cpu.llama. */
typedef enum { NUMBERS_FLOAT32, NUMBERS_BFLOAT16, NUMBERS_INT8 } numbers_t;

/* Keys and values, (depth, 2, slots, kv_heads, width) (questlm.models.cache has the layout), and the rotary
   angles of the positions they may have. As in questlm.ops.cpu.llama. */
typedef struct {
    void *entries;
    float *scales;                /* of 8-bit codes, one for each token and head */
    const float *cosines, *sines; /* (capacity, width / 2) */
    int64_t *lengths;             /* (batch), tokens that each sequence holds; a step adds its own */
    int64_t slots, capacity;      /* of each layer, and of them those of a sequence; there may be more than batch * capacity */
    int32_t type;                 /* numbers_t */
} cache_t;

/* Some queries of one head of keys, and a range of the keys. */
typedef struct {
    const uint8_t *keys, *values; /* those of the sequence's first token */
    const float *key_scales, *value_scales; /* what 8-bit codes are multiplied by, or NULL */
    int64_t stride, heads;     /* numbers, and scales, from one token to the next */
    numbers_t type;
    int64_t width, rows, begin;
    const float *queries;      /* (rows, stored_width), rotated, scaled, filled up with 0 */
    const int64_t *ends;       /* (rows), keys begin .. ends - 1 are attended to, at most SPLIT_KEYS */
    float *partials;           /* (rows, partial_width) */
} attend_t;

/* What attention to a range of keys leaves of each query: the largest score, the sum of exp(score - largest), and the
   sum of the values weighted so. */
typedef struct {
    float largest, total;
    float sums[];
} partial_t;

enum { BLOCK_KEYS = 64, SPLIT_KEYS = 512, WIDEST = 16 /* floats of a vector */ };

static inline int64_t stored_width(int64_t width) { return (width + WIDEST - 1) / WIDEST * WIDEST; }

static inline int64_t number_bytes(numbers_t type)
{
    return type == NUMBERS_INT8 ? 1 : type == NUMBERS_BFLOAT16 ? 2 : 4;
}

static inline int64_t partial_width(int64_t width) { return width + 2; }

/* What each instruction set implements; numbers.h and attend.h have the code. */
typedef struct {
    /* x / sqrt(mean(x^2) + eps) * gain */
    void (*norm)(const float *x, const float *gain, float eps, int64_t k, float *to);
    /* silu(gate) * up */
    void (*swiglu)(const float *gate, const float *up, int64_t k, float *to);
    /* scores: (rows, BLOCK_KEYS) of scratch */
    void (*attend)(const attend_t *job, float *scores);
    /* the partial of one range and that of the next, as one */
    void (*merge)(partial_t *into, const partial_t *next, int64_t width);
    int64_t (*largest_of)(const float *x, int64_t n);
    int (*all_finite)(const float *x, int64_t n);
} llama_kernels_t;

extern const llama_kernels_t questlm_llama_scalar, questlm_llama_avx2, questlm_llama_avx512, questlm_llama_neon;

/* The kernels in use. */
const llama_kernels_t *questlm_llama_kernels(void);

#endif
