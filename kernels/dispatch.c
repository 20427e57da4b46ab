/* The tables of kernels, and which one runs. Chosen once at start (or again by tests); read-only afterwards, so any
 * thread may call mu_kernels(). */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/parts.h"

#ifdef __x86_64__
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "kernels/x86/layout.h"
#elif defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>

#include "kernels/packed.h"
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
        .softmax_terms = mu_##isa##_softmax_terms, .draw = mu_##isa##_draw,                                          \
    }

static const struct mu_kernels table_ref = TABLE(ref, ref);

#ifdef __x86_64__
static const struct mu_kernels table_avx2 = TABLE(avx2, packed);
static const struct mu_kernels table_avx512 = TABLE(avx512, packed);
/* avx512's, but for matmul and streams' attention; filled by detect() */
static struct mu_kernels table_streams, table_panels, table_amx;

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

static bool intel, zen5;

bool mu_x86_intel(void)
{
    return intel;
}

bool mu_x86_zen5(void)
{
    return zen5;
}

static bool cpu_is_zen5(void)
{
    unsigned a, b, c, d;
    if (!__builtin_cpu_is("amd") || !__get_cpuid(1, &a, &b, &c, &d)) return false;
    return ((a >> 8) & 15) == 15 && ((a >> 20) & 255) + 15 >= 0x1a;
}

/* The processor has AMX's int8 products, and the kernel lets this process use them: it saves the tiles' 8 KiB a thread
 * only for those who ask (Linux Documentation/arch/x86/xstate.rst). Threads started later inherit it. */
static bool cpu_has_amx(void)
{
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    enum { EDX_AMX_TILE = 1 << 24, EDX_AMX_INT8 = 1 << 25 }; /* of leaf 7; clang's cpuid.h has no names for them */
    unsigned a, b, c, d;
    if (!cpu_has_avx512() || !__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d & EDX_AMX_TILE) || !(d & EDX_AMX_INT8))
        return false;
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}
#elif defined(__aarch64__)
static const struct mu_kernels table_neon = TABLE(neon, packed);
static struct mu_kernels table_dotprod, table_i8mm; /* neon's, but for matmul; filled by detect() */
#endif

static const struct mu_kernels *available[7]; /* NULL-terminated, the best last; filled by detect(), once */
static pthread_once_t detected = PTHREAD_ONCE_INIT;
static const struct mu_kernels *chosen;

static void detect(void)
{
    int n = 0;
    available[n++] = &table_ref;
#ifdef __x86_64__
    __builtin_cpu_init();
    intel = __builtin_cpu_is("intel");
    zen5 = cpu_is_zen5();
    if (cpu_has_avx2()) available[n++] = &table_avx2;
    if (cpu_has_avx512()) {
        mu_avx512_bf16_probe();
        table_panels = table_avx512;
        table_panels.name = "panels";
        table_panels.matmul = mu_panels_matmul;
        table_streams = table_avx512;
        table_streams.name = "streams";
        table_streams.matmul = mu_streams_matmul;
        table_streams.attn = mu_streams_attn;
        table_streams.attn_merge = mu_streams_attn_merge;
        /* the order that was measured on each: Intel's want panels, AMD's streams since Zen 5 */
        const struct mu_kernels *best = intel ? &table_panels : zen5 ? &table_streams : &table_avx512;
        const struct mu_kernels *const with_avx512[] = {&table_panels, &table_streams, &table_avx512};
        for (size_t i = 0; i < sizeof with_avx512 / sizeof *with_avx512; i++)
            if (with_avx512[i] != best) available[n++] = with_avx512[i];
        available[n++] = best;
    }
    if (cpu_has_amx()) {
        table_amx = table_avx512;
        table_amx.name = "amx";
        table_amx.matmul = mu_amx_matmul;
        available[n++] = &table_amx;
    }
#elif defined(__aarch64__)
    available[n++] = &table_neon;
    if (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) {
        table_dotprod = table_neon;
        table_dotprod.name = "dotprod";
        table_dotprod.matmul = mu_dotprod_matmul;
        available[n++] = &table_dotprod;
        if (getauxval(AT_HWCAP2) & HWCAP2_I8MM) {
            table_i8mm = table_neon;
            table_i8mm.name = "i8mm";
            table_i8mm.matmul = mu_i8mm_matmul;
            available[n++] = &table_i8mm;
        }
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
        static const char *const names[] = {"avx2", "avx512", "streams", "panels", "amx", "neon", "dotprod", "i8mm"};
        bool known = false;
        for (size_t i = 0; i < sizeof names / sizeof *names; i++) known |= strcmp(name, names[i]) == 0;
        return mu_fail(err, MU_EUNSUPPORTED,
                       known ? "kernels '%s' (%s) need instructions that this processor lacks; here run: %s"
                             : "there are no kernels '%s' (%s); here run: %s",
                       name, source, list);
    }
    chosen = best;
    return MU_OK;
}
