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
        for (int p = 0; p < planes; p++) {
            to[p * words + word] = plane_of(from, p);
            sum += (uint32_t)__builtin_popcountll(to[p * words + word]) << p;
        }
    }
    return (int32_t)sum;
}
