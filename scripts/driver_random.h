/* Random numbers of the drivers: xorshift, the same on every machine. `state` is the seed, not 0. */

#pragma once

#include <stdint.h>

static uint64_t state;

static int64_t below(int64_t n)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (int64_t)(state >> 11) % n;
}
