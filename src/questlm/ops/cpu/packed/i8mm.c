/* The products for 64-bit ARM with i8mm (ARMv8.6): Neoverse V1 and N2, Apple M2, and later. */

#include "layout.h"

#if defined(__aarch64__)
#include <arm_neon.h>
#include <string.h>

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("dotprod,i8mm"))), apply_to = function)
#else
#pragma GCC target("arch=armv8.2-a+dotprod+i8mm")
#endif
#define SET i8mm
#define MIXES_SIGNS 1
#include "neon.h"
#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
