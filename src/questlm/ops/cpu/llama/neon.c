/* The parts of a Llama that are no products, for 64-bit ARM. */

#include "llama.h"

#if defined(__aarch64__)
#include <arm_neon.h>
#include <math.h>
#include <string.h>

#define BYTES 16
#include "../packed/vectors.h"

INLINE floats_t multiply_add(floats_t a, floats_t b, floats_t c)
{
    return (floats_t)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
}

#include "shuffles.h"

#include "numbers.h"

#include "attend.h"

const llama_kernels_t questlm_llama_neon = {norm, swiglu, attend, merge, largest_of, all_finite};
#endif
