/* Inputs as the loops take them. Part of strips.h. */

static int32_t encode(const uint8_t *codes, int64_t k, const int8_t *table, int8_t *to, int64_t width)
{
    int32_t sum = 0;
    const int8_t first = table[0];
    int even = 1; /* the usual table adds a number */
    for (int c = 0; c < 256; c++)
        even &= table[c] == (int8_t)(first + c);
    if (even)
        for (int64_t i = 0; i < k; i++)
            to[i] = (int8_t)(codes[i] + first);
    else
        for (int64_t i = 0; i < k; i++)
            to[i] = table[codes[i]];
    for (int64_t i = 0; i < k; i++)
        sum += to[i];
    memset(to + k, 0, (size_t)(width - k));
    return sum;
}

/* Bit p of 64 codes, first code lowest: the product adds the bit of byte j shifted to bit 56 + j, and no two meet. */
INLINE uint64_t plane_of(const uint8_t *codes, int plane)
{
    uint64_t word = 0;
    for (int i = 0; i < 8; i++) {
        uint64_t eight;
        memcpy(&eight, codes + 8 * i, sizeof eight);
        word |= ((eight >> plane & 0x0101010101010101u) * 0x0102040810204080u >> 56) << (8 * i);
    }
    return word;
}

static int32_t to_planes(const uint8_t *codes, int64_t k, int planes, uint64_t *to, int64_t words)
{
    uint32_t sum = 0;
    for (int64_t word = 0; word < words; word++) {
        uint8_t rest[64] = {0};
        const uint8_t *from = codes + word * 64;
        if ((word + 1) * 64 > k) {
            memcpy(rest, from, (size_t)(k - word * 64));
            from = rest;
        }
        for (int p = 0; p < planes; p++)
            to[p * words + word] = plane_of(from, p);
        for (int i = 0; i < 64; i++)
            sum += from[i];
    }
    return (int32_t)sum;
}
