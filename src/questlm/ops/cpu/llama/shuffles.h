/* The even and the odd lanes of two vectors of BYTES bytes, those of the first vector first. */

#ifdef __clang__
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (vec){__VA_ARGS__})
#endif

#if BYTES == 64
#define SHUFFLE_EVEN(a, b) SHUFFLE(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30)
#define SHUFFLE_ODD(a, b) SHUFFLE(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31)
#elif BYTES == 32
#define SHUFFLE_EVEN(a, b) SHUFFLE(a, b, 0, 2, 4, 6, 8, 10, 12, 14)
#define SHUFFLE_ODD(a, b) SHUFFLE(a, b, 1, 3, 5, 7, 9, 11, 13, 15)
#else
#define SHUFFLE_EVEN(a, b) SHUFFLE(a, b, 0, 2, 4, 6)
#define SHUFFLE_ODD(a, b) SHUFFLE(a, b, 1, 3, 5, 7)
#endif
