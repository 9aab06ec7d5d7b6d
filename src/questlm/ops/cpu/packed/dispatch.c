/* Which instruction set is used: the best that this processor has, chosen once, unless a lower one is asked for. */

#include "layout.h"
#include "../export.h"
#include "../llama/llama.h"

#include <stdatomic.h>
#include <string.h>

#if defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

typedef struct {
    const char *name;
    const kernels_t *kernels;
    const llama_kernels_t *llama;
    int vector_floats; /* of the kernels that quantise rows */
} set_t;

/* From the lowest to the highest. */
static const set_t SETS[] = {
    {"scalar", &questlm_kernels_scalar, &questlm_llama_scalar, 4},
#if defined(__x86_64__)
    {"avx2", &questlm_kernels_avx2, &questlm_llama_avx2, 8},
    {"avx512vnni", &questlm_kernels_avx512vnni, &questlm_llama_avx512, 16},
    {"avx512vpopcntdq", &questlm_kernels_avx512vpopcntdq, &questlm_llama_avx512, 16},
#elif defined(__aarch64__) && defined(__linux__)
    {"dotprod", &questlm_kernels_dotprod, &questlm_llama_neon, 4},
    {"i8mm", &questlm_kernels_i8mm, &questlm_llama_neon, 4},
#endif
};
enum { COUNT = sizeof SETS / sizeof *SETS };

static int supported(int set)
{
#if defined(__x86_64__)
    const int avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                       __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                       __builtin_cpu_supports("avx512vnni");
    if (set == 1)
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (set == 2)
        return avx512;
    if (set == 3)
        return avx512 && __builtin_cpu_supports("avx512vpopcntdq");
#elif defined(__aarch64__) && defined(__linux__)
    if (set == 1)
        return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
    if (set == 2)
        return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) && (getauxval(AT_HWCAP2) & HWCAP2_I8MM);
#endif
    return set == 0;
}

static atomic_int chosen = -1;

static int in_use(void)
{
    int set = atomic_load_explicit(&chosen, memory_order_relaxed);
    if (set < 0) { /* all threads find the same */
        set = COUNT - 1;
        while (!supported(set))
            set--;
        atomic_store_explicit(&chosen, set, memory_order_relaxed);
    }
    return set;
}

const kernels_t *questlm_kernels(void) { return SETS[in_use()].kernels; }

const llama_kernels_t *questlm_llama_kernels(void) { return SETS[in_use()].llama; }

/* Name of instruction set `index`, from the lowest; NULL after the last that this library knows. */
EXPORT const char *questlm_instruction_set(int index) { return index < COUNT ? SETS[index].name : 0; }

EXPORT const char *questlm_instruction_set_in_use(void) { return SETS[in_use()].name; }

EXPORT int questlm_supports(int index) { return index < COUNT && supported(index); }

/* Use instruction set `index`, which this processor has. */
EXPORT void questlm_use_instruction_set(int index)
{
    atomic_store(&chosen, index);
    questlm_limit_vector_width(SETS[index].vector_floats);
}
