/* The native entropy coder: it writes what a plain encoder writes, returns what was coded, and reads and writes nothing
   beside its memory when streams and tables are damaged. scripts/sanitize_kernels.py builds and runs it.
   Arguments: number of cases, seed. */

#include "driver_random.h"

#include "../src/questlm/ops/cpu/export.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TOTAL = 1 << 14 };

/* A table of `levels` frequencies that add up, most of them small. */
static void fill_table(uint16_t *table, int64_t levels)
{
    int64_t left = TOTAL - levels;
    for (int64_t s = 0; s < levels; s++) {
        const int64_t more = s == levels - 1 ? left : below(left + 1) / (1 + below(8));
        table[s] = (uint16_t)(1 + more);
        left -= more;
    }
}

/* As `encode` of questlm/artifact/rans.py. Returns the bytes. */
static int64_t encode(const uint8_t *symbols, const int32_t *tables_of, int64_t count, const uint16_t *tables,
                      int64_t levels, int64_t lanes, uint8_t *stream)
{
    uint32_t lane[256];
    uint16_t *words = malloc((size_t)count * 2 + 2);
    int64_t written = 0;
    for (int64_t i = 0; i < lanes; i++)
        lane[i] = 1u << 16;
    for (int64_t i = count - 1; i >= 0; i--) {
        const uint16_t *table = tables + tables_of[i] * levels;
        uint32_t x = lane[i % lanes], start = 0, f = table[symbols[i]];
        for (int s = 0; s < symbols[i]; s++)
            start += table[s];
        if (x >> 18 >= f) {
            words[written++] = (uint16_t)x;
            x >>= 16;
        }
        lane[i % lanes] = (x / f << 14) + x % f + start;
    }
    for (int64_t i = 0; i < lanes; i++)
        for (int byte = 0; byte < 4; byte++)
            stream[4 * i + byte] = (uint8_t)(lane[i] >> 8 * byte);
    for (int64_t i = 0; i < written; i++) {
        stream[4 * lanes + 2 * i] = (uint8_t)words[written - 1 - i];
        stream[4 * lanes + 2 * i + 1] = (uint8_t)(words[written - 1 - i] >> 8);
    }
    free(words);
    return 4 * lanes + 2 * written;
}

/* Decode a copy of the stream that has exactly its size, so that a sanitizer sees what is read behind it. */
static int decode(const uint8_t *stream, int64_t bytes, const uint16_t *tables, int64_t count, int64_t levels,
                  int64_t lanes, const int32_t *of_rows, const int32_t *of_columns, int64_t rows, int64_t columns,
                  uint8_t *symbols)
{
    uint8_t *own = malloc((size_t)bytes + !bytes);
    memcpy(own, stream, (size_t)bytes);
    const int result = questlm_rans_decode(own, bytes, tables, count, levels, lanes, of_rows, of_columns, rows, columns,
                                           symbols);
    free(own);
    return result;
}

static void run(void)
{
    const int64_t rows = 1 + below(6), columns = 1 + below(below(4) ? 50 : 3000), levels = 1 + below(below(4) ? 16 : 256);
    const int64_t tables = 5, lanes = 1 << below(9), count = rows * columns;
    uint16_t *frequencies = malloc((size_t)(tables * levels) * 2);
    for (int64_t t = 0; t < tables; t++)
        fill_table(frequencies + t * levels, levels);
    int32_t *of_rows = below(2) ? malloc((size_t)rows * 4) : NULL;
    int32_t *of_columns = below(2) ? malloc((size_t)columns * 4) : NULL;
    for (int64_t i = 0; of_rows && i < rows; i++)
        of_rows[i] = (int32_t)below(3);
    for (int64_t i = 0; of_columns && i < columns; i++)
        of_columns[i] = (int32_t)below(3);
    uint8_t *symbols = malloc((size_t)count), *read = malloc((size_t)count);
    int32_t *tables_of = malloc((size_t)count * 4);
    for (int64_t i = 0; i < count; i++) {
        symbols[i] = (uint8_t)below(levels);
        tables_of[i] = (of_rows ? of_rows[i / columns] : 0) + (of_columns ? of_columns[i % columns] : 0);
    }
    uint8_t *stream = malloc((size_t)(4 * lanes + 2 * count));
    int64_t bytes = encode(symbols, tables_of, count, frequencies, levels, lanes, stream);
    uint8_t *own = malloc((size_t)(4 * lanes + 2 * count));
    const int64_t own_bytes = questlm_rans_encode(symbols, frequencies, tables, levels, lanes, of_rows, of_columns, rows,
                                                  columns, own);
    if (own_bytes != bytes || memcmp(own, stream, (size_t)bytes)) {
        printf("rows %lld of %lld, levels %lld, lanes %lld: coded otherwise\n", (long long)rows, (long long)columns,
               (long long)levels, (long long)lanes);
        exit(1);
    }
    free(own);
    if (decode(stream, bytes, frequencies, tables, levels, lanes, of_rows, of_columns, rows, columns, read) ||
        memcmp(symbols, read, (size_t)count)) {
        printf("rows %lld of %lld, levels %lld, lanes %lld: decoded wrong\n", (long long)rows, (long long)columns,
               (long long)levels, (long long)lanes);
        exit(1);
    }
    for (int damage = 0; damage < 4; damage++) {
        stream[below(bytes)] = (uint8_t)below(256);
        if (damage == 1)
            bytes -= below(bytes + 1);
        if (damage == 2)
            frequencies[below(tables * levels)] = (uint16_t)below(1 << 16);
        if (damage == 3 && of_rows)
            of_rows[below(rows)] = (int32_t)below(1 << 30) - (1 << 29);
        decode(stream, bytes, frequencies, tables, levels, damage == 3 ? below(600) : lanes, of_rows, of_columns, rows,
               columns, read);
        if (bytes == 0)
            break;
    }
    free(frequencies), free(of_rows), free(of_columns), free(symbols), free(read), free(tables_of), free(stream);
}

int main(int argc, char **argv)
{
    const int64_t cases = argc > 1 ? atoll(argv[1]) : 200;
    state = 88172645463325252u + (uint64_t)(argc > 2 ? atoll(argv[2]) : 0);
    for (int64_t i = 0; i < cases; i++)
        run();
    printf("%lld streams decoded, each damaged four times\n", (long long)cases);
    return 0;
}
