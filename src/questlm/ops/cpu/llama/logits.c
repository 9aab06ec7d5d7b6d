/* What generation asks of logits: the likeliest token of each row, and whether all are finite. */

#include "llama.h"
#include "../export.h"

/* Index of the first of the largest numbers of each row of x (rows, n), n above 0. */
EXPORT void questlm_argmax(const float *x, int64_t rows, int64_t n, int64_t *found)
{
    for (int64_t row = 0; row < rows; row++)
        found[row] = questlm_llama_kernels()->largest_of(x + row * n, n);
}

EXPORT int questlm_all_finite(const float *x, int64_t n) { return questlm_llama_kernels()->all_finite(x, n); }
