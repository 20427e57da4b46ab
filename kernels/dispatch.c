/* The tables of kernels, and which one runs. Chosen once at start (or again by tests); read-only afterwards, so any
 * thread may call mu_kernels(). */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/parts.h"

#ifdef __x86_64__
#include <cpuid.h>

#include "kernels/x86/layout.h"
#endif

#define TABLE(isa, layout)                                                                                           \
    {                                                                                                                \
        .name = #isa, .mat_bytes = mu_##layout##_mat_bytes, .mat_pack = mu_##layout##_mat_pack,                      \
        .matmul = mu_##isa##_matmul, .quantize = mu_##isa##_quantize, .block_sums = mu_##isa##_block_sums,           \
        .to_bf16 = mu_##isa##_to_bf16, .rms_norm = mu_##isa##_rms_norm, .layer_norm = mu_##isa##_layer_norm,         \
        .gelu_tanh = mu_##isa##_gelu_tanh, .gelu_erf = mu_##isa##_gelu_erf, .soft_cap = mu_##isa##_soft_cap,         \
        .rope = mu_##isa##_rope, .rope_table = mu_##isa##_rope_table, .silu_mul = mu_##isa##_silu_mul,               \
        .silu_clamped_mul = mu_##isa##_silu_clamped_mul, .add = mu_##isa##_add, .add_scaled = mu_##isa##_add_scaled, \
        .add_bf16 = mu_##isa##_add_bf16, .kv_store = mu_##isa##_kv_store, .attn = mu_##isa##_attn,                   \
        .attn_merge = mu_##isa##_attn_merge, .dequant_row = mu_ref_dequant_row, .argmax = mu_##isa##_argmax,         \
        .softmax_terms = mu_##isa##_softmax_terms,                                                                   \
    }

static const struct mu_kernels table_ref = TABLE(ref, ref);

#ifdef __x86_64__
static const struct mu_kernels table_avx2 = TABLE(avx2, x86);
static const struct mu_kernels table_avx512 = TABLE(avx512, x86);

static bool cpu_has_avx2(void)
{
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_F16C)) return false;
    /* these two also check that the system saves the wide registers */
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

static bool cpu_has_avx512(void)
{
    return cpu_has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vnni");
}
#endif

static const struct mu_kernels *available[4]; /* NULL-terminated; filled by detect(), once */
static pthread_once_t detected = PTHREAD_ONCE_INIT;
static const struct mu_kernels *chosen;

static void detect(void)
{
    int n = 0;
    available[n++] = &table_ref;
#ifdef __x86_64__
    __builtin_cpu_init();
    if (cpu_has_avx2()) available[n++] = &table_avx2;
    if (cpu_has_avx512()) {
        mu_avx512_bf16_probe();
        available[n++] = &table_avx512;
    }
#endif
}

const struct mu_kernels *const *mu_kernels_available(void)
{
    pthread_once(&detected, detect);
    return available;
}

const struct mu_kernels *mu_kernels(void)
{
    return chosen;
}

enum mu_status mu_kernels_init(const char *name_or_null, struct mu_err *err)
{
    const struct mu_kernels *const *all = mu_kernels_available();
    const char *name = name_or_null, *source = "the name asked for";
    if (!name) {
        name = getenv("MUSTER_KERNELS");
        source = "MUSTER_KERNELS";
        if (name && !*name) name = NULL;
    }
    char list[64] = "";
    const struct mu_kernels *best = NULL;
    for (int i = 0; all[i]; i++) {
        if (!name || strcmp(name, all[i]->name) == 0) best = all[i];
        if (i) strcat(list, ", ");
        strcat(list, all[i]->name);
    }
    if (!best) {
        bool known = strcmp(name, "avx2") == 0 || strcmp(name, "avx512") == 0;
        return mu_fail(err, MU_EUNSUPPORTED,
                       known ? "kernels '%s' (%s) need instructions that this processor lacks; here run: %s"
                             : "there are no kernels '%s' (%s); here run: %s",
                       name, source, list);
    }
    chosen = best;
    return MU_OK;
}
