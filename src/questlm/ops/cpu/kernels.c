/* The CPU kernels of questlm: rotate, scale and round in one pass over each row.

   The algorithm
   -------------
   A Hadamard matrix of order B = 2^k is a product of k sparse factors, one for each bit of the index, so H x takes k
   passes of additions and subtractions and no multiplication. A pass for a high bit adds and subtracts whole vectors.
   For the low bits, whose partners share a vector, we use the form in which all passes are the same: over a group of
   G entries held in two registers,

       out[i]         = in[2i] + in[2i + 1]
       out[i + G / 2] = in[2i] - in[2i + 1]        i = 0 .. G / 2 - 1

   transforms the lowest bit of the index and moves it to the top; after log2(G) passes every bit has been transformed
   and is back in its place, so the result is in Sylvester's order. A pass is two shuffles, an addition and a
   subtraction. The factor 1 / sqrt(B) is applied as entries are read. A block of 128 is thus read and written twice,
   the second time in cache: 2 to 3 times as fast as what compilers make of plain loops.

   A row is rotated block by block into a buffer that stays in cache. There it is squared and summed, which gives the
   step size, and divided by it, which gives the codes and the mask bits. Memory sees one read of x and one write of
   codes and mask: 5 1/8 bytes an entry, where operations one at a time move ten times as many.

   Same result everywhere
   ----------------------
   A row's result depends on that row alone. The passes go from the lowest bit to the highest whatever the vectors'
   width, and the sum of squares is SUMS partial sums. So neither the instruction set nor the number of threads or rows
   changes a bit of the result. Build without -ffast-math and with -ffp-contract=off. NaN or infinity anywhere in a row makes the row's step NaN or infinite, as in the
   reference; its codes mean nothing then, but are in range.

   Nothing here needs torch's or Python's headers; the functions at the end are called through ctypes. threads.c says
   how work is shared out. Products of packed weights are in the folder packed. */

#include "export.h"

#include <math.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* Helpers must be inlined into each copy of the row code, or they would be compiled for the oldest instruction set only. */
#define INLINE static inline __attribute__((always_inline))

/* Between these the squares of a row are floats, and what is lost below them is too small to change the sum. */
static const double SMALLEST_MEAN = 1e-30, LARGEST_MEAN = 1e30;

enum { ABI_VERSION = 8, SUMS = 16, SUM_CHUNK = 512 };

typedef struct job job_t;
typedef void (*rows_fn)(const job_t *job, int64_t begin, int64_t end, float *buffer);

struct job {
    /* both operations */
    const float *x;
    int64_t rows, k, block;
    float scale; /* 1 / sqrt(block) */
    /* quantize */
    int32_t levels;
    float step_per_rms, mask_bound;
    uint8_t *codes;
    float *step;
    uint8_t *mask; /* written by quantize, read by masked_hadamard; NULL for none */
    /* masked_hadamard */
    float *out;
    /* rows are handed out in chunks */
    rows_fn run;
    int64_t chunk;
    atomic_llong next;
    atomic_int out_of_memory;
};

/* ---- What is plain enough to be left to the compiler --------------------------------------------------------- */

/* Blocks smaller than two vectors, in plain C: they are rare. */
INLINE void rotate_small_blocks(const float *in, const uint8_t *mask, float *out, int64_t k, int64_t block, float scale)
{
    for (int64_t i = 0; i < k; i++)
        out[i] = in[i] * scale;
    if (mask)
        for (int64_t i = 0; i < k; i++)
            out[i] *= (float)(mask[i / 8] >> (i % 8) & 1);
    for (int64_t h = 1; h < block; h *= 2)
        for (int64_t base = 0; base < k; base += 2 * h)
            for (int64_t i = base; i < base + h; i++) {
                float a = out[i], b = out[i + h];
                out[i] = a + b;
                out[i + h] = a - b;
            }
}

/* Mean of squares of any row, slowly: squares of entries above 1e19 or below 1e-19 leave float, those of none double. */
static double mean_square_in_double(const float *row, int64_t k)
{
    double total = 0.0;
    for (int64_t i = 0; i < k; i++)
        total += (double)row[i] * (double)row[i];
    return total / (double)k;
}

/* Eight bytes, each 0 or 1, as the bits of one byte, first byte lowest: the product adds byte j shifted to bit 56 + j,
   and no two terms meet. */
INLINE uint8_t eight_bits(const uint8_t *flags)
{
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    uint64_t eight;
    memcpy(&eight, flags, 8);
    return (uint8_t)(eight * 0x0102040810204080u >> 56);
#else
    uint8_t bits = 0;
    for (int j = 0; j < 8; j++)
        bits |= (uint8_t)(flags[j] << j);
    return bits;
#endif
}

/* clip(round(x_h / step + offset) + zero): clipping first, to whole numbers, gives the same codes, sends NaN to a
   defined code, and leaves numbers small enough to round by adding 1.5 * 2^23, which rounds half to even. */
INLINE void encode(const float *row, int64_t k, float step, int32_t levels, uint8_t *codes)
{
    const float to_integer = 12582912.0f, smallest = 1.17549435e-38f;
    const float divisor = step < smallest ? smallest : step;
    const float offset = levels % 2 == 0 ? 0.5f : 0.0f;
    const int32_t zero = (levels - 1) / 2;
    const float lowest = (float)-zero, highest = (float)(levels - 1 - zero);
    for (int64_t i = 0; i < k; i++) {
        float index = row[i] / divisor + offset;
        index = index > lowest ? index : lowest;
        index = index < highest ? index : highest;
        index = (index + to_integer) - to_integer;
        codes[i] = (uint8_t)((int32_t)index + zero);
    }
}

/* Bits of |x_h| <= limit, lowest first, zero beyond the end of the row. */
INLINE void write_mask(const float *row, int64_t k, float limit, uint8_t *mask)
{
    uint8_t flags[SUM_CHUNK];
    for (int64_t begin = 0; begin < k; begin += SUM_CHUNK) {
        int64_t count = k - begin < SUM_CHUNK ? k - begin : SUM_CHUNK;
        for (int64_t i = 0; i < count; i++)
            flags[i] = fabsf(row[begin + i]) <= limit;
        for (int64_t i = count; i % 8 != 0; i++)
            flags[i] = 0;
        for (int64_t i = 0; i < count; i += 8)
            mask[(begin + i) / 8] = eight_bits(flags + i);
    }
}

/* ---- One copy of the row code for each instruction set ------------------------------------------------------- */

#ifdef __clang__
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (ivec){__VA_ARGS__})
#endif

#define WIDTH 4 /* SSE2 on x86-64, NEON on aarch64: what every machine of the architecture has */
#define TARGET
#define NAME(x) x##_baseline
#include "rows.h"
#undef WIDTH
#undef TARGET
#undef NAME

#if defined(__x86_64__)
#define WIDTH 8
#define TARGET __attribute__((target("avx2")))
#define NAME(x) x##_avx2
#include "rows.h"
#undef WIDTH
#undef TARGET
#undef NAME

#define WIDTH 16
#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl")))
#define NAME(x) x##_avx512
#include "rows.h"
#undef WIDTH
#undef TARGET
#undef NAME
#endif

typedef struct {
    rows_fn quantize, masked_hadamard;
} rows_t;

static int widest = 16; /* vectors wider than this are not used; for tests */

static rows_t rows_for_this_cpu(void)
{
#if defined(__x86_64__)
    if (widest >= 16 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        return (rows_t){quantize_rows_avx512, masked_hadamard_rows_avx512};
    if (widest >= 8 && __builtin_cpu_supports("avx2"))
        return (rows_t){quantize_rows_avx2, masked_hadamard_rows_avx2};
#endif
    return (rows_t){quantize_rows_baseline, masked_hadamard_rows_baseline};
}

/* ---- Threads ------------------------------------------------------------------------------------------------- */

/* Take chunks of rows until none is left. Right for any number of threads, so nobody needs to know how many came. */
static void work(void *data)
{
    job_t *job = data;
    const size_t line = 64, bytes = (size_t)job->k * sizeof(float);
    float *buffer = aligned_alloc(line, (bytes / line + 1) * line);
    if (!buffer) {
        atomic_store(&job->out_of_memory, 1);
        return;
    }
    int64_t begin;
    while ((begin = atomic_fetch_add(&job->next, job->chunk)) < job->rows)
        job->run(job, begin, begin + job->chunk < job->rows ? begin + job->chunk : job->rows, buffer);
    free(buffer);
}

static int run(job_t *job, int threads, parallel_fn parallel)
{
    const int64_t chunk_entries = 16384; /* some 10 us of work */
    job->scale = (float)(1.0 / sqrt((double)job->block));
    job->chunk = job->k < chunk_entries ? chunk_entries / (job->k ? job->k : 1) : 1;
    atomic_init(&job->next, 0);
    atomic_init(&job->out_of_memory, 0);
    questlm_run(work, job, job->rows * job->k < 4 * chunk_entries ? 1 : threads, parallel);
    return atomic_load(&job->out_of_memory);
}

/* ---- What Python calls. Matrices are row-major without gaps. Returns 0, or 1 if memory ran out. ---------------- */

EXPORT int questlm_abi_version(void) { return ABI_VERSION; }

EXPORT void questlm_limit_vector_width(int floats) { widest = floats; }

EXPORT int questlm_quantize(const float *x, int64_t rows, int64_t k, int64_t block, int levels, double step_per_rms,
                     double mask_bound, uint8_t *codes, float *step, uint8_t *mask, int threads, parallel_fn parallel)
{
    job_t job = {.x = x, .rows = rows, .k = k, .block = block, .levels = levels, .step_per_rms = (float)step_per_rms,
                 .mask_bound = (float)mask_bound, .codes = codes, .step = step, .mask = mask,
                 .run = rows_for_this_cpu().quantize};
    return run(&job, threads, parallel);
}

EXPORT int questlm_masked_hadamard(const float *gradient, int64_t rows, int64_t k, int64_t block, uint8_t *mask, float *out,
                            int threads, parallel_fn parallel)
{
    job_t job = {.x = gradient, .rows = rows, .k = k, .block = block, .mask = mask, .out = out,
                 .run = rows_for_this_cpu().masked_hadamard};
    return run(&job, threads, parallel);
}
