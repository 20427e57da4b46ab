/* The arithmetic of Muster on pointers and sizes: one table of operations per instruction set, all equal to `ref` bit
 * for bit.
 *
 * docs/arithmetic.md is the contract (C0 … C9 below refer to it), kernels/ref/ is that page in plain C, kernels/x86/
 * and kernels/arm/ are the same results faster. The table is chosen once, by what the processor has, or by
 * MUSTER_KERNELS=ref|avx2|avx512|streams|panels|amx|neon|dotprod|i8mm.
 *
 * Matrices. A matrix is packed once at load: `ref` keeps the file's rows as they are; the others interleave 16 rows so
 * that SIMD lanes are rows (packed.h). A shard is a packed matrix of just its rows; rows beyond
 * n_row in the last group of 16 are zero padding that no result shows.
 *
 * Threads. Every function is re-entrant; callers split rows (multiples of 16), tokens, heads among threads as they
 * like: no bit depends on it. Compute threads call mu_fp_env_set() once (C0). Nothing allocates. Sizes are validated by
 * the caller.
 *
 * Shapes use the field's names: n_tok vectors of n_col inputs, n_row outputs; x[t][c] row-major. */
#ifndef MU_KERNELS_KERNELS_H
#define MU_KERNELS_KERNELS_H

#include "base/status.h"
#include "kernels/random.h"
#include "kernels/types.h"

#ifdef __cplusplus
extern "C" {
#endif

#define MU_ARITHMETIC_VERSION 2

enum {
    MU_ROW_GROUP = 16,    /* rows interleaved; thread boundaries are multiples of it */
    MU_Q_BLOCK = 32,      /* values per activation block */
    MU_ATTN_SEGMENT = 256 /* C5: positions per softmax segment */
};

struct mu_mat {
    uint32_t type;    /* enum mu_type with act != MU_ACT_NONE */
    int n_row, n_col; /* n_col a multiple of the type's block */
    void *data;       /* mat_bytes() bytes, 64-byte aligned, written by mat_pack */
};

/* n_tok activation vectors in the form that a matrix wants. A caller fills what the matrices it meets need
 * (mu_act_kind). q, s, sum belong together: q[t*n_col + c] in [-127,127], s[t*n_col/32 + b], sum[(t*n_col/32 + b)*2 +
 * half]: sums of q over the first and second 16 of each block (C1; Q6_K, Q3_K and Q2_K need halves, the others their
 * sum). */
struct mu_act {
    int n_tok, n_col;
    const float *f32;     /* [n_tok][n_col]; for F32 and F16 matrices and the types without a rule in C2 */
    const uint16_t *bf16; /* [n_tok][n_col]; for BF16 matrices */
    const int8_t *q;
    const float *s;
    const int16_t *sum;
};

/* One piece of attention: n_tok consecutive tokens of one sequence (positions pos0 …), the n_rep query heads that share
 * one KV head, over that head's paged cache (C5). Strides in elements.
 *   q      [n_tok][n_rep][d_head] at q + t*q_stride + r*d_head, f32, already rotated, not yet scaled
 *   out    likewise with out_stride
 *   k_page, v_page [page] → mu_kv_bytes(kv, d_head, page_tokens) bytes in the layouts of types.h, aligned to 4
 * page p holds positions [p*page_tokens, (p+1)*page_tokens). Cache rows of positions pos0 … pos0+n_tok-1 are already
 * written. Position i sees j ≤ i with i - j < window (window 0 = all). Unwritten cache may hold anything: it must never
 * reach a result. Any d_head ≥ 1 up to MU_MAX_D_HEAD; page_tokens a multiple of 16 that divides 256. */
enum { MU_MAX_D_HEAD = 512 };
struct mu_attn {
    enum mu_kv_type kv;
    int n_tok, n_rep, d_head, pos0, page_tokens, window;
    float scale, softcap; /* softcap 0 = none */
    const float *sink;    /* [n_rep]: a score of each head that joins the softmax and has no value; NULL = none */
    const float *q;
    size_t q_stride;
    float *out;
    size_t out_stride;
    const void *const *k_page;
    const void *const *v_page;
    /* Segments apart, so that several threads share one long sequence: with part set, attn computes only what falls into
     * segments [seg_begin, seg_end) and leaves it at mu_attn_part; out is not written. Once all are there, attn_merge
     * makes out of them (C5's merge, ascending): the same bits as of one call. */
    float *part; /* NULL: no */
    int seg_begin, seg_end;
};
/* O[d_head], m, l of segment seg and row t·n_rep + r. */
static inline float *mu_attn_part(const struct mu_attn *a, int seg, int row)
{
    return a->part + ((size_t)seg * (size_t)(a->n_tok * a->n_rep) + (size_t)row) * (size_t)(a->d_head + 2);
}

struct mu_draw { /* a sample from softmax(x / temperature), by Gumbel-max */
    uint64_t seed, position;
    uint32_t first; /* x[0]'s id */
    float temperature;
};

struct mu_kernels {
    const char *name; /* as in MUSTER_KERNELS */

    /* Packed size in bytes of n_row × n_col; 0 where the type is not supported or it overflows. */
    size_t (*mat_bytes)(uint32_t type, int n_row, int n_col);
    /* Packs rows [row0, row1) (row0 a multiple of 16; row1 a multiple of 16 or n_row) from `raw`, the file's bytes of
     * row row0 onward (row stride mu_type_row_bytes), into m->data. false where a scale or weight is not finite
     * (C0). */
    bool (*mat_pack)(const struct mu_mat *m, int row0, int row1, const void *raw);
    /* out[t*out_stride + r] = Σ_c W[r][c]·x[t][c] for all tokens of x and rows [row0, row1), row0 a multiple of 16,
     * row1 one too or n_row (C2, C3). Writes nothing else. From some 16 tokens on, chunks of 128 rows or more are a few
     * percent faster than 64 (each call gathers the activations for the cache once); for one token any size serves. */
    void (*matmul)(const struct mu_mat *m, const struct mu_act *x, int row0, int row1, float *out, size_t out_stride);

    /* C1 on n values (a multiple of 32): q[n], s[n/32], sum[2*n/32]. false where a value is not finite. */
    bool (*quantize)(const float *x, int n, int8_t *q, float *s, int16_t *sum);
    /* sum[2*n/32] of q[n] that arrived over the wire. */
    void (*block_sums)(const int8_t *q, int n, int16_t *sum);
    void (*to_bf16)(const float *x, int n, uint16_t *out); /* round to nearest even */

    /* out = (x / sqrt(mean(x²) + eps)) · w; sums as C6: r = 1/sqrtf(fl(fl(ss/n) + eps)), out = fl(fl(x·r)·w). x may be
     * out. false where the sum of squares is not finite. */
    bool (*rms_norm)(const float *x, const float *w, int n, float eps, float *out);
    /* out = (x - mean) / sqrt(variance + eps) · w + b; sums as C6: d = fl(x - fl(Σx/n)), r = 1/sqrtf(fl(fl(Σd²/n) +
     * eps)), out = fmaf(fl(d·r), w, b). x may be out. false where a sum is not finite; out is then undefined. */
    bool (*layer_norm)(const float *x, const float *w, const float *b, int n, float eps, float *out);
    /* Rotates n_head vectors of d_head in place; the first n_rot dimensions turn in pairs. neox 0: pairs (2i, 2i+1); 1:
     * (i, i + n_rot/2). cos_sin[2*i], [2*i+1] for pair i: a' = fmaf(a, cos, -fl(b·sin)), b' = fmaf(a, sin,
     * fl(b·cos)). */
    void (*rope)(float *x, int n_head, int d_head, int n_rot, int neox, const float *cos_sin);
    /* cos_sin[2*n_pair] of one position: angle = fl((float)pos · freq[i]) (C7), both multiplied by mscale (1 =
     * none). */
    void (*rope_table)(const float *freq, int n_pair, int pos, float mscale, float *cos_sin);
    /* out[i] = silu(gate[i]) · up[i] (C7). out may be gate. */
    void (*silu_mul)(const float *gate, const float *up, int n, float *out);
    /* out[i] = g / (1 + e^(-1.702 g)) · (u + 1), g = gate[i] and u = up[i] held within ±7 (g: above only) (C7). out may
     * be gate. */
    void (*silu_clamped_mul)(const float *gate, const float *up, int n, float *out);
    /* out[i] = gelu(x[i]) · up[i], or gelu(x[i]) where up is NULL: the tanh form, the exact (erf) form (C7). out may be
     * x. */
    void (*gelu_tanh)(const float *x, const float *up, int n, float *out);
    void (*gelu_erf)(const float *x, const float *up, int n, float *out);
    /* x[i] = fl(cap · tanh(fl(x[i] / cap))) (C5's and the logits' soft cap). */
    void (*soft_cap)(float *x, int n, float cap);
    /* x[i] += y[i], y rounded to bf16 before it is added where round is set (C4). */
    void (*add)(float *x, const float *y, int n, int round);
    /* x[i] = fmaf(w, y[i], x[i]) (C8). */
    void (*add_scaled)(float *x, const float *y, float w, int n);
    /* x[i] += y[i], y already bf16 off the wire. */
    void (*add_bf16)(float *x, const uint16_t *y, int n);

    /* One new token's key and value into their pages (pos_in_page in [0, page_tokens)), rounded to f16 or quantised by
     * C1; a block with a value that is not finite gets a NaN for its scale. */
    void (*kv_store)(enum mu_kv_type kv, const float *k, const float *v, int d_head, int pos_in_page, void *k_page,
                     void *v_page);
    void (*attn)(const struct mu_attn *a);
    void (*attn_merge)(const struct mu_attn *a);

    /* Values of one raw row of a tensor (embedding look-up): n a multiple of the type's block. false: unsupported
     * type. */
    bool (*dequant_row)(uint32_t type, const void *raw, int n, float *out);

    /* Over x[n], ascending, ties to the lowest index: index of the maximum, its value; -1 where any value is not
     * finite. */
    int (*argmax)(const float *x, int n, float *max_out);
    /* exp(x[i] - max) for all i into out (x may be out) and the C6 sum over blocks of 1,024, blocks ascending. */
    float (*softmax_terms)(const float *x, int n, float max, float *out);
    /* Over x[n], finite, ascending, ties to the lowest index: index of the largest fl(fl(x[i] / temperature) + g), g = -log(-log u)
     * and u = mu_random_unit(seed, position, first + i) (random.h), and that sum; x[i] = -FLT_MAX is left out. -1 where all are. */
    int (*draw)(const float *x, int n, const struct mu_draw *d, float *sum_out);
};

/* The table chosen for this processor (or by MUSTER_KERNELS), NULL before mu_kernels_init. */
const struct mu_kernels *mu_kernels(void);
/* Chooses; also at any later time by name (tests). MU_EUNSUPPORTED names what is missing and lists what there is. */
enum mu_status mu_kernels_init(const char *name_or_null, struct mu_err *err);
/* Tables that run on this processor, NULL-terminated, ref first. */
const struct mu_kernels *const *mu_kernels_available(void);

/* C0: round to nearest even, denormals kept, exceptions masked, on the calling thread. */
void mu_fp_env_set(void);
void mu_fp_env_init(void *unused); /* the same, for the threads of a pool */
bool mu_fp_env_ok(void);

/* C7 for single values (the definition; SIMD forms equal it): */
float mu_expf(float x);
float mu_tanhf(float x);
float mu_siluf(float x);
float mu_gelu_tanhf(float x);
float mu_gelu_erff(float x);
float mu_logf(float x); /* x > 0 and finite */
void mu_sincosf(float x, float *sin_out, float *cos_out);
/* RoPE frequencies in our own f64 arithmetic (pure + - * / and sqrt, so the same everywhere): freq[i] =
 * base^(-2i/n_rot) / factors[i] (factors may be NULL), rounded once to f32; i < n_rot/2. */
void mu_rope_freqs(double base, int n_rot, const float *factors, float *freq);

/* The same by YaRN: pairs that turn more than beta_fast times within n_ctx positions keep their frequency, those that
 * turn less than beta_slow times have it divided by `factor`, in between linearly. truncate: the two bounds are whole
 * pairs, as most models were trained. */
struct mu_yarn {
    double factor, n_ctx, beta_fast, beta_slow;
    bool truncate;
};
void mu_yarn_freqs(double base, int n_rot, const float *factors, const struct mu_yarn *yarn, float *freq);
/* What YaRN multiplies cosines and sines with: 0.1 · weight · ln(factor) + 1. */
double mu_yarn_scale(double factor, double weight);
/* By what queries at this position are multiplied: 1 + scale · ln(1 + floor(pos / n_ctx)), rounded once. */
float mu_query_scale(double scale, int n_ctx, int pos);

#ifdef __cplusplus
}
#endif
#endif
