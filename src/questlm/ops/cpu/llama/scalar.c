/* The parts of a Llama that are no products, for every processor: in vectors of 16 bytes, of which compilers make what the
   architecture always has. */

#include "llama.h"

#include <math.h>

#define BYTES 16
#include "../packed/vectors.h"

INLINE floats_t multiply_add(floats_t a, floats_t b, floats_t c) { return a * b + c; }

#include "shuffles.h"

#include "numbers.h"

#include "attend.h"

const llama_kernels_t questlm_llama_scalar = {norm, swiglu, attend, merge, largest_of, all_finite};
