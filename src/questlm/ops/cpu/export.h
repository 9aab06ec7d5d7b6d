/* What Python calls, and what files of this library call of each other. */

#ifndef QUESTLM_EXPORT_H
#define QUESTLM_EXPORT_H

#include "threads.h"

#include <stdint.h>

#define EXPORT __attribute__((visibility("default")))

EXPORT int questlm_quantize(const float *x, int64_t rows, int64_t k, int64_t block, int levels, double step_per_rms,
                            double mask_bound, uint8_t *codes, float *step, uint8_t *mask, int threads,
                            parallel_fn parallel);
EXPORT int questlm_masked_hadamard(const float *gradient, int64_t rows, int64_t k, int64_t block, uint8_t *mask,
                                   float *out, int threads, parallel_fn parallel);
EXPORT int64_t questlm_packed_bytes(int kind, int64_t rows, int64_t k);
EXPORT int questlm_rans_decode(const uint8_t *stream, int64_t bytes, const uint16_t *frequencies, int64_t tables,
                               int64_t levels, int64_t lanes, const int32_t *row_tables, const int32_t *column_tables,
                               int64_t rows, int64_t columns, uint8_t *symbols);
EXPORT int64_t questlm_rans_encode(const uint8_t *symbols, const uint16_t *frequencies, int64_t tables, int64_t levels,
                                   int64_t lanes, const int32_t *row_tables, const int32_t *column_tables, int64_t rows,
                                   int64_t columns, uint8_t *stream);
EXPORT void questlm_limit_vector_width(int floats);

#endif
