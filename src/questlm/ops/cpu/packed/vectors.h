/* Vectors of BYTES bytes, in the terms of the compiler; the file of each instruction set includes this after it has
   turned its instructions on. Everything is inlined into that file: a function that the linker may share between
   files would be compiled for one instruction set and run on a processor without it. */

#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

#ifdef UNROLL /* as nothing, by scripts/sanitize_kernels.py: sanitizers take minutes over long code */
#elif defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 32")
#endif

enum { PARTS = 64 / BYTES }; /* vectors to a step */

typedef uint32_t vec __attribute__((vector_size(BYTES)));
typedef uint8_t bytes_t __attribute__((vector_size(BYTES)));
typedef uint64_t words_t __attribute__((vector_size(BYTES)));
typedef uint32_t halves_t __attribute__((vector_size(BYTES / 2)));
typedef float floats_t __attribute__((vector_size(BYTES)));

INLINE vec load(const void *from)
{
    vec v;
    memcpy(&v, from, sizeof v);
    return v;
}

INLINE void store(void *to, vec v) { memcpy(to, &v, sizeof v); }

INLINE vec splat(uint32_t v) { return v - (vec){0}; }

INLINE vec splat_byte(uint8_t v) { return splat(v * 0x01010101u); }

INLINE vec splat4(const void *from)
{
    uint32_t four;
    memcpy(&four, from, sizeof four);
    return splat(four);
}

INLINE floats_t splat_float(float v) { return v - (floats_t){0}; }

INLINE words_t splat_word(uint64_t v) { return v - (words_t){0}; }

/* Bit p of 64 codes, first code lowest: the product adds the bit of byte j shifted to bit 56 + j, and no two meet. */
INLINE uint64_t plain_plane_of(const uint8_t *codes, int plane)
{
    uint64_t word = 0;
    for (int i = 0; i < 8; i++) {
        uint64_t eight;
        memcpy(&eight, codes + 8 * i, sizeof eight);
        word |= ((eight >> plane & 0x0101010101010101u) * 0x0102040810204080u >> 56) << (8 * i);
    }
    return word;
}
