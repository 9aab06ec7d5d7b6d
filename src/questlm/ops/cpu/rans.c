/* Coding of symbols by interleaved range ANS, and decoding. questlm/artifact/rans.py states the code and is the reference,
   whose symbols and refusals these are.

   A state's step is two look-ups and a multiplication that wait for one another, some 15 cycles. States of different
   lanes do not wait, so that a processor works on several at once: all that a step does is free of branches. The symbol
   of each slot has a table of bytes, 16 KiB for each table of frequencies, which stays in the first cache where there
   are few; frequency and start of a symbol have another, much smaller.

   The input is hostile: tables that do not add up are refused before they are spread, so that each slot has one symbol;
   a state may be any number; and words are read only where there are some. */

#include "export.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { PRECISION = 14, TOTAL = 1 << PRECISION, MOST_LANES = 256, CHUNK = 1024 };
static const uint32_t LOWEST = 1u << 16; /* of a state between two symbols */

enum { DONE, NO_MEMORY, BAD_ARGUMENT, BAD_TABLE, BAD_LENGTH, TOO_SHORT, BAD_END };

typedef struct {
    uint8_t *symbols; /* (tables, 2^14): of each slot */
    uint32_t *ranges; /* (tables, levels): frequency, and start in the upper half */
    int64_t levels;
} spread_t;

typedef struct {
    const uint8_t *next, *end; /* words that have not been read */
    uint32_t state[MOST_LANES];
    int64_t lane, lanes;
} reader_t;

static inline uint32_t word_at(const uint8_t *at) { return (uint32_t)at[0] | (uint32_t)at[1] << 8; }

/* Whether each table adds up; then its slots are spread. */
static int spread(const uint16_t *frequencies, int64_t tables, spread_t *to)
{
    for (int64_t table = 0; table < tables; table++) {
        uint8_t *symbols = to->symbols + table * TOTAL;
        uint32_t start = 0;
        for (int64_t symbol = 0; symbol < to->levels; symbol++) {
            const uint32_t frequency = frequencies[table * to->levels + symbol];
            if (frequency > TOTAL - start)
                return BAD_TABLE;
            to->ranges[table * to->levels + symbol] = frequency | start << 16;
            memset(symbols + start, (int)symbol, frequency);
            start += frequency;
        }
        if (start != TOTAL)
            return BAD_TABLE;
    }
    return DONE;
}

/* Decode `count` symbols, whose tables are `table` or, with `classes`, that plus those of each. Unless `careful`, at
   least `count` words are left: a symbol takes at most one. Returns whether the words were enough. */
static inline __attribute__((always_inline)) int decode(reader_t *reader, const spread_t *by, int32_t table,
                                                        const int32_t *classes, int64_t count, int careful,
                                                        uint8_t *symbols)
{
    const uint8_t *next = reader->next;
    const int64_t mask = reader->lanes - 1;
    int64_t lane = reader->lane;
    for (int64_t i = 0; i < count; i++) {
        const int64_t own = classes ? table + classes[i] : table;
        uint32_t x = reader->state[lane];
        const uint32_t slot = x & (TOTAL - 1);
        const uint8_t symbol = by->symbols[own * TOTAL + slot];
        const uint32_t range = by->ranges[own * by->levels + symbol];
        x = (range & 0xffff) * (x >> PRECISION) + slot - (range >> 16);
        const uint32_t low = x < LOWEST;
        if (careful && low && next == reader->end)
            return 0;
        if (!careful || low) {
            x = (x << 16 * low) | (word_at(next) & -low);
            next += 2 * low;
        }
        reader->state[lane] = x;
        lane = (lane + 1) & mask;
        symbols[i] = symbol;
    }
    reader->next = next;
    reader->lane = lane;
    return 1;
}

static int decode_row(reader_t *reader, const spread_t *by, int32_t table, const int32_t *classes, int64_t columns,
                      uint8_t *symbols)
{
    for (int64_t begin = 0; begin < columns; begin += CHUNK) {
        const int64_t count = columns - begin < CHUNK ? columns - begin : CHUNK;
        const int32_t *own = classes ? classes + begin : NULL;
        int enough;
        if (reader->end - reader->next < 2 * count)
            enough = decode(reader, by, table, own, count, 1, symbols + begin);
        else if (own)
            enough = decode(reader, by, table, own, count, 0, symbols + begin);
        else
            enough = decode(reader, by, table, NULL, count, 0, symbols + begin);
        if (!enough)
            return 0;
    }
    return 1;
}

static int decode_rows(reader_t *reader, const spread_t *by, const int32_t *row_tables, const int32_t *column_tables,
                       int64_t rows, int64_t columns, uint8_t *symbols)
{
    for (int64_t row = 0; row < rows; row++)
        if (!decode_row(reader, by, row_tables ? row_tables[row] : 0, column_tables, columns, symbols + row * columns))
            return TOO_SHORT;
    if (reader->next != reader->end)
        return BAD_END;
    for (int64_t lane = 0; lane < reader->lanes; lane++)
        if (reader->state[lane] != LOWEST)
            return BAD_END;
    return DONE;
}

static int64_t largest(const int32_t *tables, int64_t count)
{
    int64_t found = 0;
    for (int64_t i = 0; tables && i < count; i++) {
        if (tables[i] < 0)
            return INT32_MAX;
        found = tables[i] > found ? tables[i] : found;
    }
    return found;
}

static int sizes_fit(int64_t tables, int64_t levels, int64_t lanes, const int32_t *row_tables,
                     const int32_t *column_tables, int64_t rows, int64_t columns)
{
    return levels >= 1 && levels <= 256 && lanes >= 1 && lanes <= MOST_LANES && (lanes & (lanes - 1)) == 0 &&
           largest(row_tables, rows) + largest(column_tables, columns) < tables;
}

/* Decode rows x columns symbols.
   frequencies: (tables, levels), at most 256 levels; lanes: a power of two, at most 256.
   row_tables, column_tables: whose sum is the table of a symbol; NULL: zeros. */
EXPORT int questlm_rans_decode(const uint8_t *stream, int64_t bytes, const uint16_t *frequencies, int64_t tables,
                               int64_t levels, int64_t lanes, const int32_t *row_tables, const int32_t *column_tables,
                               int64_t rows, int64_t columns, uint8_t *symbols)
{
    if (!sizes_fit(tables, levels, lanes, row_tables, column_tables, rows, columns))
        return BAD_ARGUMENT;
    if (bytes < 4 * lanes || bytes % 2)
        return BAD_LENGTH;
    spread_t by = {malloc((size_t)tables * TOTAL), malloc((size_t)(tables * levels) * sizeof(uint32_t)), levels};
    int result = by.symbols && by.ranges ? spread(frequencies, tables, &by) : NO_MEMORY;
    if (result == DONE) {
        reader_t reader = {.next = stream + 4 * lanes, .end = stream + bytes, .lanes = lanes};
        for (int64_t lane = 0; lane < lanes; lane++)
            reader.state[lane] = word_at(stream + 4 * lane) | word_at(stream + 4 * lane + 2) << 16;
        result = decode_rows(&reader, &by, row_tables, column_tables, rows, columns, symbols);
    }
    free(by.symbols);
    free(by.ranges);
    return result;
}

/* The table of symbol `column` of row `row`; NULL: zeros. */
static inline int64_t table_of(const int32_t *row_tables, const int32_t *column_tables, int64_t row, int64_t column)
{
    return (row_tables ? row_tables[row] : 0) + (column_tables ? column_tables[column] : 0);
}

/* Code symbols from the last to the first, with words from `end` downwards; returns the lowest word, or NULL for a symbol
   that has no frequency. */
static uint8_t *encode(const uint8_t *symbols, const spread_t *by, const int32_t *row_tables,
                       const int32_t *column_tables, int64_t rows, int64_t columns, reader_t *writer, uint8_t *end)
{
    for (int64_t row = rows - 1; row >= 0; row--)
        for (int64_t column = columns - 1; column >= 0; column--) {
            const int64_t i = row * columns + column, table = table_of(row_tables, column_tables, row, column);
            const uint32_t range = symbols[i] < by->levels ? by->ranges[table * by->levels + symbols[i]] : 0;
            const uint32_t frequency = range & 0xffff;
            uint32_t x = writer->state[i & (writer->lanes - 1)];
            if (frequency == 0)
                return NULL;
            if (x >> (32 - PRECISION) >= frequency) {
                *--end = (uint8_t)(x >> 8);
                *--end = (uint8_t)x;
                x >>= 16;
            }
            writer->state[i & (writer->lanes - 1)] = (x / frequency << PRECISION) + x % frequency + (range >> 16);
        }
    return end;
}

/* Code rows x columns symbols into `stream`, which has room for 4 lanes + 2 rows columns bytes. The other arguments are
   those of questlm_rans_decode. Returns the bytes of the stream, or less than 0: minus the reason. */
EXPORT int64_t questlm_rans_encode(const uint8_t *symbols, const uint16_t *frequencies, int64_t tables, int64_t levels,
                                   int64_t lanes, const int32_t *row_tables, const int32_t *column_tables, int64_t rows,
                                   int64_t columns, uint8_t *stream)
{
    if (!sizes_fit(tables, levels, lanes, row_tables, column_tables, rows, columns))
        return -BAD_ARGUMENT;
    spread_t by = {malloc((size_t)tables * TOTAL), malloc((size_t)(tables * levels) * sizeof(uint32_t)), levels};
    int result = by.symbols && by.ranges ? spread(frequencies, tables, &by) : NO_MEMORY;
    int64_t bytes = 4 * lanes;
    if (result == DONE) {
        reader_t writer = {.lanes = lanes};
        for (int64_t lane = 0; lane < lanes; lane++)
            writer.state[lane] = LOWEST;
        uint8_t *end = stream + 4 * lanes + 2 * rows * columns;
        uint8_t *words = encode(symbols, &by, row_tables, column_tables, rows, columns, &writer, end);
        if (words) {
            memmove(stream + bytes, words, (size_t)(end - words));
            bytes += end - words;
            for (int64_t lane = 0; lane < lanes; lane++)
                for (int byte = 0; byte < 4; byte++)
                    stream[4 * lane + byte] = (uint8_t)(writer.state[lane] >> 8 * byte);
        } else
            result = BAD_ARGUMENT;
    }
    free(by.symbols);
    free(by.ranges);
    return result == DONE ? bytes : -result;
}
