/* The vector operations (C4, C6, C7) written once for every instruction set (simd.h). All of them read and write memory once and are bound by it; kernels/ref/vector.c is the
 * definition.
 *
 * Tails are masked vectors, not scalar code. Lanes that hold no element load as +0, and adding +0 to a sum that began
 * at +0 and only grows changes nothing. */
#include <float.h>

#include "kernels/parts.h"
#include "kernels/random.h"
#include "kernels/simd.h"

enum { SUM_BLOCK = 1024, UNIT_VECS = VF_LANES / VW_LANES };

static inline int lanes_left(int n, int i)
{
    return n - i < VF_LANES ? n - i : VF_LANES;
}

bool ISA(rms_norm)(const float *x, const float *w, int n, float eps, float *out)
{
    vf lane[SUM_VECS];
    for (int v = 0; v < SUM_VECS; v++) lane[v] = vf_set(0.0f);
    int full = n / SUM_LANES * SUM_LANES;
    for (int i = 0; i < full; i += SUM_LANES)
        for (int v = 0; v < SUM_VECS; v++) {
            vf y = vf_load(x + i + v * VF_LANES);
            lane[v] = vf_fma(y, y, lane[v]);
        }
    for (int i = full, v = 0; i < n; i += VF_LANES, v++) {
        vf y = vf_load_n(x + i, lanes_left(n, i));
        lane[v] = vf_fma(y, y, lane[v]);
    }
    float ss = tree_sum(lane);
    if (!mu_f32_finite(ss)) return false;
    vf r = vf_set(1.0f / sqrtf(ss / (float)n + eps));
    for (int i = 0; i < n; i += VF_LANES) {
        int m = lanes_left(n, i);
        vf_store_n(out + i, m, vf_mul(vf_mul(vf_load_n(x + i, m), r), vf_load_n(w + i, m)));
    }
    return true;
}

bool ISA(layer_norm)(const float *x, const float *w, const float *b, int n, float eps, float *out)
{
    vf lane[SUM_VECS];
    for (int v = 0; v < SUM_VECS; v++) lane[v] = vf_set(0.0f);
    for (int i = 0, v = 0; i < n; i += VF_LANES, v = (v + 1) % SUM_VECS)
        lane[v] = vf_add(lane[v], vf_load_n(x + i, lanes_left(n, i)));
    float sum = tree_sum(lane);
    if (!mu_f32_finite(sum)) return false;
    vf mean = vf_set(sum / (float)n);
    for (int v = 0; v < SUM_VECS; v++) lane[v] = vf_set(0.0f);
    for (int i = 0, v = 0; i < n; i += VF_LANES, v = (v + 1) % SUM_VECS) {
        int m = lanes_left(n, i);
        vf_store_n(out + i, m, vf_sub(vf_load_n(x + i, m), mean));
        vf y = vf_load_n(out + i, m); /* lanes without an element are +0 again */
        lane[v] = vf_fma(y, y, lane[v]);
    }
    float ss = tree_sum(lane);
    if (!mu_f32_finite(ss)) return false;
    vf r = vf_set(1.0f / sqrtf(ss / (float)n + eps));
    for (int i = 0; i < n; i += VF_LANES) {
        int m = lanes_left(n, i);
        vf y = vf_mul(vf_load_n(out + i, m), r);
        vf_store_n(out + i, m, vf_fma(y, vf_load_n(w + i, m), vf_load_n(b + i, m)));
    }
    return true;
}

static void rope_adjacent(float *x, int n_rot, const float *cos_sin)
{
    for (int i = 0; i < n_rot; i += VF_LANES) {
        int m = lanes_left(n_rot, i);
        vf_store_n(x + i, m, vf_rope_pairs(vf_load_n(x + i, m), vf_load_n(cos_sin + i, m)));
    }
}

/* Pairs (i, i + half), from the table split into cosines and sines. */
static void rope_halves(float *x, int half, const float *cosine, const float *sine)
{
    for (int i = 0; i < half; i += VF_LANES) {
        int m = lanes_left(half, i);
        vf a = vf_load_n(x + i, m), b = vf_load_n(x + half + i, m);
        vf c = vf_load_n(cosine + i, m), s = vf_load_n(sine + i, m);
        vf_store_n(x + i, m, vf_fma(a, c, vf_neg(vf_mul(b, s))));
        vf_store_n(x + half + i, m, vf_fma(a, s, vf_mul(b, c)));
    }
}

void ISA(rope)(float *x, int n_head, int d_head, int n_rot, int neox, const float *cos_sin)
{
    int half = n_rot / 2;
    if (!neox) {
        for (int h = 0; h < n_head; h++) rope_adjacent(x + (size_t)h * (size_t)d_head, half * 2, cos_sin);
        return;
    }
    float cosine[MU_MAX_D_HEAD / 2], sine[MU_MAX_D_HEAD / 2];
    for (int i = 0; i < half; i++) {
        cosine[i] = cos_sin[2 * i];
        sine[i] = cos_sin[2 * i + 1];
    }
    for (int h = 0; h < n_head; h++) rope_halves(x + (size_t)h * (size_t)d_head, half, cosine, sine);
}

void ISA(rope_table)(const float *freq, int n_pair, int pos, float mscale, float *cos_sin)
{
    vf p = vf_set((float)pos), scale = vf_set(mscale);
    for (int i = 0; i < n_pair; i += VF_LANES) {
        int m = lanes_left(n_pair, i);
        float cosine[VF_LANES], sine[VF_LANES];
        vf s, c;
        vf_sincos(vf_mul(p, vf_load_n(freq + i, m)), &s, &c);
        vf_store(cosine, vf_mul(c, scale));
        vf_store(sine, vf_mul(s, scale));
        for (int j = 0; j < m; j++) {
            cos_sin[2 * (i + j)] = cosine[j];
            cos_sin[2 * (i + j) + 1] = sine[j];
        }
    }
}

void ISA(silu_mul)(const float *gate, const float *up, int n, float *out)
{
    for (int i = 0; i < n; i += VF_LANES) {
        int m = lanes_left(n, i);
        vf_store_n(out + i, m, vf_mul(vf_silu(vf_load_n(gate + i, m)), vf_load_n(up + i, m)));
    }
}

void ISA(silu_clamped_mul)(const float *gate, const float *up, int n, float *out)
{
    for (int i = 0; i < n; i += VF_LANES) {
        int m = lanes_left(n, i);
        vf_store_n(out + i, m, vf_silu_clamped_mul(vf_load_n(gate + i, m), vf_load_n(up + i, m)));
    }
}

void ISA(gelu_tanh)(const float *x, const float *up, int n, float *out)
{
    for (int i = 0; i < n; i += VF_LANES) {
        int m = lanes_left(n, i);
        vf y = vf_gelu_tanh(vf_load_n(x + i, m));
        vf_store_n(out + i, m, up ? vf_mul(y, vf_load_n(up + i, m)) : y);
    }
}

void ISA(gelu_erf)(const float *x, const float *up, int n, float *out)
{
    for (int i = 0; i < n; i += VF_LANES) {
        int m = lanes_left(n, i);
        vf y = vf_gelu_erf(vf_load_n(x + i, m));
        vf_store_n(out + i, m, up ? vf_mul(y, vf_load_n(up + i, m)) : y);
    }
}

void ISA(soft_cap)(float *x, int n, float cap)
{
    vf c = vf_set(cap);
    for (int i = 0; i < n; i += VF_LANES) {
        int m = lanes_left(n, i);
        vf_store_n(x + i, m, vf_mul(c, vf_tanh(vf_div(vf_load_n(x + i, m), c))));
    }
}

/* To the nearest bf16, ties to even; a NaN stays one. */
static inline vf round_bf16(vf x)
{
    vi u = vf_bits(x);
    vi odd = vi_and(vi_shr16(u), vi_set(1));
    vi r = vi_and(vi_add(vi_add(u, vi_set(0x7fff)), odd), vi_set((int32_t)0xffff0000));
    return vf_select(vf_eq(x, x), vf_from_bits(r), x);
}

void ISA(add)(float *x, const float *y, int n, int round)
{
    for (int i = 0; i < n; i += VF_LANES) {
        int m = lanes_left(n, i);
        vf z = vf_load_n(y + i, m);
        if (round) z = round_bf16(z);
        vf_store_n(x + i, m, vf_add(vf_load_n(x + i, m), z));
    }
}

void ISA(add_scaled)(float *x, const float *y, float w, int n)
{
    vf scale = vf_set(w);
    for (int i = 0; i < n; i += VF_LANES) {
        int m = lanes_left(n, i);
        vf_store_n(x + i, m, vf_fma(scale, vf_load_n(y + i, m), vf_load_n(x + i, m)));
    }
}

void ISA(add_bf16)(float *x, const uint16_t *y, int n)
{
    int i = 0;
    for (; i + VF_LANES <= n; i += VF_LANES)
        vf_store(x + i, vf_add(vf_load(x + i), vf_from_bits(vi_shl(vi_load_u16(y + i), 16))));
    for (; i < n; i++) x[i] += mu_bf16_to_f32(y[i]);
}

void ISA(kv_store)(enum mu_kv_type kv, const float *k, const float *v, int d_head, int pos_in_page, void *k_page,
                   void *v_page)
{
    if (kv == MU_KV_Q8_0) {
        mu_kv_q8_store(k, v, d_head, pos_in_page, k_page, v_page, ISA(quantize));
        return;
    }
    uint16_t *kp = (uint16_t *)k_page + (size_t)(pos_in_page / 16) * (size_t)d_head * 16 + (size_t)(pos_in_page % 16);
    uint16_t *vp = (uint16_t *)v_page + (size_t)pos_in_page * (size_t)d_head;
    for (int d = 0; d < d_head; d += VF_LANES) {
        int m = lanes_left(d_head, d);
        uint16_t column[VF_LANES];
        f16_store_n(column, m, vf_load_n(k + d, m));
        for (int j = 0; j < m; j++) kp[(size_t)(d + j) * 16] = column[j];
        f16_store_n(vp + d, m, vf_load_n(v + d, m));
    }
}

/* Two passes: the maximum (whose order does not matter once all are finite), then the first index that equals it. */
int ISA(argmax)(const float *x, int n, float *max_out)
{
    if (n <= 0) return -1;
    int full = n / VF_LANES * VF_LANES;
    vi ones = vi_set(0x7f800000);
    vf best = vf_set(x[0]), finite = vf_set(1.0f);
    for (int i = 0; i < full; i += VF_LANES) {
        vf v = vf_load(x + i);
        finite = vf_select(vi_eq(vi_and(vf_bits(v), ones), ones), vf_set(0.0f), finite);
        best = vf_max(v, best);
    }
    if (vm_any(vf_eq(finite, vf_set(0.0f)))) return -1;
    float lane[VF_LANES], max = x[0];
    vf_store(lane, best);
    for (int j = 0; j < VF_LANES; j++) max = lane[j] > max ? lane[j] : max;
    for (int i = full; i < n; i++) {
        if (!mu_f32_finite(x[i])) return -1;
        max = x[i] > max ? x[i] : max;
    }
    int at = 0;
    for (; at < full; at += VF_LANES) {
        vm equal = vf_eq(vf_load(x + at), vf_set(max));
        if (vm_any(equal)) {
            at += vm_lowest(equal);
            break;
        }
    }
    while (!(x[at] == max)) at++; /* only in the tail: all finite, so it is there */
    *max_out = x[at];
    return at;
}

float ISA(softmax_terms)(const float *x, int n, float max, float *out)
{
    float sum = 0.0f;
    vf top = vf_set(max);
    for (int i0 = 0; i0 < n; i0 += SUM_BLOCK) {
        vf lane[SUM_VECS];
        for (int v = 0; v < SUM_VECS; v++) lane[v] = vf_set(0.0f);
        int end = n - i0 < SUM_BLOCK ? n : i0 + SUM_BLOCK;
        for (int i = i0; i < end; i += SUM_LANES)
            for (int v = 0; v < SUM_VECS && i + v * VF_LANES < end; v++) {
                int at = i + v * VF_LANES, m = lanes_left(end, at);
                vf e = vf_exp(vf_sub(vf_load_n(x + at, m), top));
                vf_store_n(out + at, m, e);
                lane[v] = vf_add(lane[v], m == VF_LANES ? e : vf_load_n(out + at, m));
            }
        sum += tree_sum(lane);
    }
    return sum;
}

/* mu_random_unit of VF_LANES ids at once, each in a lane of 64 bits of which the lower half counts: a product's
 * lower half is the next round's word as it stands. */
static void units_at(uint64_t seed, uint64_t position, uint32_t first, float *out)
{
    uint64_t word[VF_LANES];
    vw c0[UNIT_VECS], c1[UNIT_VECS], c2[UNIT_VECS], c3[UNIT_VECS];
    for (int j = 0; j < VF_LANES; j++) word[j] = first + (uint32_t)j;
    for (int v = 0; v < UNIT_VECS; v++) {
        c0[v] = vw_set((uint32_t)position);
        c1[v] = vw_set((uint32_t)(position >> 32));
        c2[v] = vw_load(word + v * VW_LANES);
        c3[v] = vw_set(0);
    }
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int round = 0; round < 10; round++) {
        for (int v = 0; v < UNIT_VECS; v++) {
            vw a = vw_mul(c0[v], vw_set(0xd2511f53u)), b = vw_mul(c2[v], vw_set(0xcd9e8d57u));
            c0[v] = vw_xor(vw_xor(vw_high(b), c1[v]), vw_set(k0));
            c1[v] = b;
            c2[v] = vw_xor(vw_xor(vw_high(a), c3[v]), vw_set(k1));
            c3[v] = a;
        }
        k0 += 0x9e3779b9u;
        k1 += 0xbb67ae85u;
    }
    for (int v = 0; v < UNIT_VECS; v++) vw_store(word + v * VW_LANES, c0[v]);
    for (int j = 0; j < VF_LANES; j++) out[j] = mu_random_unit_of((uint32_t)word[j]);
}

/* At least the noise of u, without a logarithm: -log u > 1 - u ≥ 2^e, so it is less than -e log 2; 0.01 is far more than what
 * rounding adds. */
static inline vf noise_bound(vf u)
{
    vi e = vi_sub(vi_set(127), vi_sar(vf_bits(vf_sub(vf_set(1.0f), u)), 23));
    return vf_add(vf_mul(vf_from_int(e), vf_set(0.6931472f)), vf_set(0.01f));
}

/* Of a vocabulary only a few ids come so near to the best one that their noise must be known: first no id's may be so large
 * (u ≤ 1 - 2^-24, so -log(-log u) < 17), then not this one's. Sums round in order. */
int ISA(draw)(const float *x, int n, const struct mu_draw *d, float *sum_out)
{
    float best = 0.0f, part[VF_LANES];
    int at = -1;
    for (int i = 0; i < n; i += VF_LANES) {
        int left = lanes_left(n, i);
        vf z = vf_load_n(x + i, left), y = vf_div(z, vf_set(d->temperature));
        vm may = at < 0 ? vf_lt(vf_set(-FLT_MAX), z) : vf_lt(vf_set(best), vf_add(y, vf_set(20.0f)));
        if (!vm_any(may)) continue;
        units_at(d->seed, d->position, d->first + (uint32_t)i, part);
        vf u = vf_load(part);
        if (at >= 0 && !vm_any(vf_lt(vf_set(best), vf_add(y, noise_bound(u))))) continue;
        vf_store(part, vf_add(y, vf_neg(vf_log(vf_neg(vf_log(u))))));
        for (int j = 0; j < left; j++) {
            if (x[i + j] == -FLT_MAX || (at >= 0 && !(part[j] > best))) continue;
            at = i + j;
            best = part[j];
        }
    }
    if (at >= 0) *sum_out = best;
    return at;
}
