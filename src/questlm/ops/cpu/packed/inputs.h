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

/* The exponent e of the unit 2^-e of a row whose largest entry has these bits: at least 2^22 units, and at most what digits
   hold. Not above 126, so that unit and reciprocal are normal numbers. */
static int exponent_of(uint32_t bits)
{
    const int power = (int)(bits >> 23) - 126; /* largest < 2^power */
    const int fits = (bits & 0x7fffffu) <= 0x7efefeu; /* into 0x7f7f7f units */
    const int exponent = 22 + fits - power;
    return exponent > 126 ? 126 : exponent;
}

INLINE float power_of_two(int exponent)
{
    const uint32_t bits = (uint32_t)(exponent + 127) << 23;
    float number;
    memcpy(&number, &bits, sizeof number);
    return number;
}

/* With 128 added to each digit, digits are the bytes of a whole number. */
INLINE void write_digits(const float *restrict row, int64_t k, float units, int8_t *restrict low, int8_t *restrict middle,
                         int8_t *restrict high, int32_t *sums)
{
    const float to_integer = 12582912.0f;
    int32_t sum[DIGITS] = {0};
    for (int64_t i = 0; i < k; i++) {
        /* Adding 1.5 2^23 rounds numbers below 2^22, so the whole part is taken off first. */
        const float scaled = row[i] * units;
        const int32_t whole = (int32_t)scaled;
        const float rest = scaled - (float)whole;
        const int32_t bytes = whole + (int32_t)((rest + to_integer) - to_integer) + 0x808080;
        low[i] = (int8_t)((bytes & 255) - 128);
        middle[i] = (int8_t)((bytes >> 8 & 255) - 128);
        high[i] = (int8_t)((bytes >> 16) - 128);
        sum[0] += (bytes & 255) - 128;
        sum[1] += (bytes >> 8 & 255) - 128;
        sum[2] += (bytes >> 16) - 128;
    }
    memcpy(sums, sum, sizeof sum);
}

/* A row that is not finite has the unit NaN. */
static float to_digits(const float *row, int64_t k, int8_t *to, int64_t width, int32_t *sums)
{
    uint32_t largest = 0; /* as its bits, which are in the order of the numbers */
    for (int64_t i = 0; i < k; i++) {
        uint32_t bits;
        memcpy(&bits, row + i, sizeof bits);
        bits &= 0x7fffffffu;
        largest = bits > largest ? bits : largest;
    }
    const int is_finite = largest < 0x7f800000u, exponent = exponent_of(largest);
    if (is_finite) {
        for (int d = 0; d < DIGITS; d++)
            memset(to + d * width + k, 0, (size_t)(width - k));
        write_digits(row, k, power_of_two(exponent), to, to + width, to + 2 * width, sums);
        return power_of_two(-exponent);
    }
    memset(to, 0, (size_t)(DIGITS * width));
    memset(sums, 0, DIGITS * sizeof *sums);
    return __builtin_nanf("");
}
