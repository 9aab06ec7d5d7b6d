/* From the rows of an artifact to the layout of layout.h, once for each matrix. */

#include "layout.h"
#include "../threads.h"
#include "../export.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum { FROM_TERNARY = 0 }; /* bits of a source of 5 codes a byte */

typedef struct {
    const uint8_t *rows; /* as in questlm.ops.reference.packing */
    int64_t row_bytes, count, k;
    int bits, kind;
    const uint8_t *stored; /* (256), what is stored for each code of the source */
    const uint8_t *w;      /* (256), what that unpacks to */
    uint8_t *to;
    int32_t *sums;
    int is_plain; /* every code of the source unpacks to itself */
    uint8_t digits[256][5];
    atomic_llong next;
    atomic_int out_of_memory;
} prepack_t;

/* ---- Rows of the artifact to a byte a code ------------------------------------------------------------------- */

static void read_bits(const uint8_t *row, int64_t row_bytes, int bits, int64_t k, uint8_t *codes)
{
    const uint64_t mask = (1u << bits) - 1;
    for (int64_t i = 0; i < k; i += 8) { /* 8 codes are `bits` bytes */
        const int64_t at = i / 8 * bits, left = row_bytes - at < bits ? row_bytes - at : bits;
        uint64_t eight = 0;
        for (int64_t j = 0; j < left; j++)
            eight |= (uint64_t)row[at + j] << (8 * j);
        for (int j = 0; j < 8 && i + j < k; j++)
            codes[i + j] = (uint8_t)(eight >> (bits * j) & mask);
    }
}

static void read_nibbles(const uint8_t *row, int64_t k, uint8_t *codes)
{
    for (int64_t i = 0; i < k / 2; i++) {
        codes[2 * i] = row[i] & 15;
        codes[2 * i + 1] = row[i] >> 4;
    }
    if (k % 2)
        codes[k - 1] = row[k / 2] & 15;
}

static void read_ternary(const prepack_t *job, const uint8_t *row, int64_t k, uint8_t *codes)
{
    int64_t i = 0;
    for (; i + 5 <= k; i += 5)
        memcpy(codes + i, job->digits[row[i / 5]], 5);
    if (i < k)
        memcpy(codes + i, job->digits[row[i / 5]], (size_t)(k - i));
}

static void read_row(const prepack_t *job, int64_t row, uint8_t *codes)
{
    const uint8_t *from = job->rows + row * job->row_bytes;
    if (job->bits == FROM_TERNARY)
        read_ternary(job, from, job->k, codes);
    else if (job->bits == 8)
        memcpy(codes, from, (size_t)job->k);
    else if (job->bits == 4)
        read_nibbles(from, job->k, codes);
    else
        read_bits(from, job->row_bytes, job->bits, job->k, codes);
}

/* The stored codes of a row, and the sum of what they unpack to. */
static int32_t store_row(const prepack_t *job, int64_t row, uint8_t *codes)
{
    uint32_t sum = 0;
    read_row(job, row, codes);
    if (job->is_plain) /* without a table, compilers add many at once */
        for (int64_t i = 0; i < job->k; i++)
            sum += codes[i];
    else
        for (int64_t i = 0; i < job->k; i++)
            sum += job->w[codes[i]];
    if (job->stored)
        for (int64_t i = 0; i < job->k; i++)
            codes[i] = job->stored[codes[i]];
    return (int32_t)sum;
}

/* ---- One row of a unit: 4 bytes of each of its steps, at `codes` ----------------------------------------------- */

static uint32_t four(const uint8_t *codes, int step)
{
    uint32_t word;
    memcpy(&word, codes + 4 * step, sizeof word);
    return word;
}

static void put(uint8_t *to, uint32_t word) { memcpy(to, &word, sizeof word); }

/* Bit `bit` of 4 bytes, first byte lowest. */
static uint32_t bits_of(uint32_t word, int bit) { return ((word >> bit & 0x01010101u) * 0x10204080u) >> 28; }

/* 64 bits for each step: 4 for each row. */
static void put_bits(const uint8_t *codes, int bit, int row, uint8_t *to)
{
    for (int s = 0; s < 4; s++)
        to[8 * s + row / 2] |= (uint8_t)(bits_of(four(codes, s), bit) << (4 * (row % 2)));
}

static void put_ternary(const uint8_t *codes, uint8_t *to)
{
    for (int j = 0; j < 4; j++) {
        int number = 0;
        for (int s = 0; s < 5; s++)
            number = 3 * number + codes[4 * s + j];
        to[j] = (uint8_t)((256 * number + 242) / 243);
    }
}

static void put_words(const uint8_t *codes, uint8_t *to)
{
    for (int i = 0; i < 8; i++)
        to[i] = (uint8_t)(bits_of(four(codes, 2 * i), 0) | bits_of(four(codes, 2 * i + 1), 0) << 4);
}

static void put_unit(kind_t kind, const uint8_t *codes, int row, uint8_t *unit)
{
    uint8_t *to = unit + 4 * row;
    switch (kind) {
    case BITS1:
        put_bits(codes, 0, row, unit);
        break;
    case BITS3:
        put_bits(codes, 2, row, unit + 64);
        put(to, (four(codes, 0) & 0x03030303u) | (four(codes, 1) & 0x03030303u) << 2 |
                    (four(codes, 2) & 0x03030303u) << 4 | (four(codes, 3) & 0x03030303u) << 6);
        break;
    case BITS2:
        put(to, four(codes, 0) | four(codes, 1) << 2 | four(codes, 2) << 4 | four(codes, 3) << 6);
        break;
    case BITS4:
        put(to, four(codes, 0) | four(codes, 1) << 4);
        put(to + 64, four(codes, 2) | four(codes, 3) << 4);
        break;
    case TERNARY:
        put_ternary(codes, to);
        break;
    case WORDS:
        put_words(codes, unit + 8 * row);
        break;
    default:
        for (int step = 0; step < 4; step++)
            put(to + STEP_BYTES * step, four(codes, step));
    }
}

/* Numbers of 16 or 32 bits. */
static void put_numbers(kind_t kind, const uint8_t *numbers, int row, uint8_t *unit)
{
    memcpy(unit + 4 * row, numbers, 4);
    if (kind == BF16)
        memcpy(unit + 64 + 4 * row, numbers + 4, 4);
}

/* ---- Groups --------------------------------------------------------------------------------------------------- */

static int holds_codes(const prepack_t *job) { return job->kind != BF16 && job->kind != FLOAT32; }

static void pack_row(const prepack_t *job, int64_t row, uint8_t *buffer, uint8_t *group)
{
    const unit_t unit = UNITS[job->kind];
    const int64_t units = (job->k + unit.k - 1) / unit.k;
    const int is_coded = holds_codes(job), number_bytes = job->kind == BF16 ? 2 : 4;
    if (is_coded)
        job->sums[row] = store_row(job, row, buffer);
    else
        memcpy(buffer, job->rows + row * job->row_bytes, (size_t)(job->k * number_bytes));
    for (int64_t i = 0; i < units; i++, group += unit.bytes)
        if (is_coded)
            put_unit((kind_t)job->kind, buffer + i * unit.k, (int)(row % GROUP_ROWS), group);
        else
            put_numbers((kind_t)job->kind, buffer + i * unit.k * number_bytes, (int)(row % GROUP_ROWS), group);
}

static void work(void *data)
{
    prepack_t *job = data;
    const unit_t unit = UNITS[job->kind];
    const int64_t units = (job->k + unit.k - 1) / unit.k, group_bytes = units * unit.bytes;
    uint8_t *buffer = calloc((size_t)(units * unit.k), holds_codes(job) ? 1 : 4);
    if (!buffer) {
        atomic_store(&job->out_of_memory, 1);
        return;
    }
    int64_t first;
    while ((first = atomic_fetch_add(&job->next, GROUP_ROWS)) < job->count) {
        uint8_t *group = job->to + first / GROUP_ROWS * group_bytes;
        memset(group, 0, (size_t)group_bytes);
        for (int64_t row = first; row < first + GROUP_ROWS && row < job->count; row++)
            pack_row(job, row, buffer, group);
    }
    free(buffer);
}

/* Bytes that a matrix takes, its last groups and units filled up. */
EXPORT int64_t questlm_packed_bytes(int kind, int64_t rows, int64_t k)
{
    const unit_t unit = UNITS[kind];
    return (rows + GROUP_ROWS - 1) / GROUP_ROWS * ((k + unit.k - 1) / unit.k) * unit.bytes;
}

/* Lay out `count` rows of k codes of `bits` bits each (0: ternary), or numbers. Returns 0, or 1 if memory ran out. */
EXPORT int questlm_prepack(const uint8_t *rows, int64_t row_bytes, int64_t count, int64_t k, int bits, int kind,
                           const uint8_t *stored, const uint8_t *w, uint8_t *to, int32_t *sums, int threads,
                           parallel_fn parallel)
{
    prepack_t job = {.rows = rows, .row_bytes = row_bytes, .count = count, .k = k, .bits = bits, .kind = kind,
                     .stored = stored, .w = w, .to = to, .sums = sums};
    job.is_plain = 1;
    for (int code = 0; code < (bits == FROM_TERNARY ? 3 : 1 << bits); code++)
        job.is_plain &= w[code] == code;
    for (int byte = 0; byte < 256; byte++)
        for (int i = 0, rest = byte; i < 5; i++, rest /= 3)
            job.digits[byte][i] = (uint8_t)(rest % 3);
    atomic_init(&job.next, 0);
    atomic_init(&job.out_of_memory, 0);
    questlm_run(work, &job, count * k < 65536 ? 1 : threads, parallel);
    return atomic_load(&job.out_of_memory);
}
