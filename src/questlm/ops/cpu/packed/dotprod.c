/* The products for 64-bit ARM with dot products of bytes (ARMv8.2): Cortex-A75, Neoverse N1, Apple M1, and later. */

#include "layout.h"

#if defined(__aarch64__)
#include <arm_neon.h>
#include <string.h>

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("dotprod"))), apply_to = function)
#else
#pragma GCC target("arch=armv8.2-a+dotprod")
#endif
#define SET dotprod
#define MIXES_SIGNS 0
#include "neon.h"
#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
