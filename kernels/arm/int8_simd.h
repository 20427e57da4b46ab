/* C2 for arm64, written once for three ways to multiply int8; a file of each includes this with ISA(name) defined.
 *
 * Lanes. A vector of codes is 4 rows × 4 columns (packed.h): a quarter of a group, a "quad" of rows. Codes become
 * signed here, their offset taken off, so that no sums of activations are needed for it.
 *
 *   smull    ARMv8.0. Products of 8 bits to 16, four steps of them added up there (one where codes have 8 bits), then
 *            pairs of columns, then widened: at most 2·4·32·127 = 32,512, or 2·128·127. A step of 4 columns is DUP,
 *            SMLAL, SMLAL2, a widening ADDP, SADALP.
 *   sdot     FEAT_DotProd: 4 rows × 4 columns against one token's 4 activations, which are a lane of a register that
 *            holds 16: one instruction a step.
 *   smmla    FEAT_I8MM: 2 rows × 8 columns against 2 tokens × 8 columns, four sums. Codes are zipped into pairs of rows
 *            once per quad, activations into pairs of tokens once per call; a sum's lanes are then (row, token) =
 *            (0,0) (0,1) (1,0) (1,1), and so are those of everything it is multiplied with. One token alone takes sdot.
 *
 * Tiles. A tile is R quads × U units of tokens, a unit being one token or, for smmla, two. For 32 columns of a quad the
 * codes are decoded into 8 registers and then stay there while the units pass, so that 32 registers hold: 8 of codes,
 * the f32 accumulators (R·U, twice that for pairs), 2 to 4 of activations, the sum, scales and constants. Up to
 * FEW tokens take all four quads at once (16 accumulators at most): the weights stream in the order they lie in. More
 * tokens take one quad and 8 tokens (8 accumulators), so that a code, once decoded, is used 8 times.
 *
 * Vector instructions for 4 rows × 32 columns × 8 tokens of Q4_0, loads aside: 12 decode (EOR, SHL, AND of 4 vectors; a
 * code stays four bits too high, which the conversion to f32 takes off), 64 SDOT, 24 scale (SCVTF, FMUL, FMLA): 100, so
 * 64% of SDOT's peak. With pairs 12, 8 ZIPs, 32 SMMLA, 24, 2 ZIPs of scales: 78, 1.3 times as fast. With smull about
 * 264. Q4_K: 8 decode, 10 for the quad's scales, and an FMLS a token: 114 with SDOT. One token of 16 rows of Q4_0: 100
 * for 288 bytes, so that two vector pipes could take 5.8 bytes a cycle, more than a core's share of the memory. These
 * are counts of what gcc 12 emits; no speed has been measured.
 *
 * Loops, outermost first: up to TILES_A_PASS tiles; columns, so many that a group's weights and a tile's activations
 * share an L1 of 32 KiB; row groups; tiles; quads. Between passes of columns the accumulators rest in `out`. The
 * activations of a pass are gathered in the order in which a tile reads them, each scale spread over a vector. */
#include <arm_neon.h>
#include <string.h>

#include "kernels/arm/arm.h"
#include "kernels/arm/rows.h"
#include "kernels/blocks.h"
#include "kernels/parts.h"

enum {
    QUADS = MU_ROW_GROUP / QUAD,
    MAX_TILE = 8, /* tokens */
    FEW = 4,
    FEW_BLOCKS = 256, /* of 32 columns, in a pass */
    WIDE_BLOCKS = 32,
    TILES_A_PASS = 4,
    CELLS = FEW * FEW_BLOCKS, /* (token, block) */
};
_Static_assert(CELLS == MAX_TILE * WIDE_BLOCKS * TILES_A_PASS, "both kinds of pass fill the cells");

#if defined(MU_ARM_I8MM)
enum { PAIRS_FROM = 2 }; /* tokens */
#else
enum { PAIRS_FROM = MAX_TILE + 1 };
#endif

/* Activations of a pass, gathered: unit u of U in block b is cell b·U + u of its tile. q: 32 bytes a token; of a pair
 * four times 8 columns of both. s, a, b: a vector a unit, of one token's value or (t0, t1, t0, t1); a and b as the
 * type has it (terms_of). */
struct cells {
    int8_t q[CELLS * MU_Q_BLOCK];
    float s[CELLS * 4], a[CELLS * 4], b[CELLS * 4];
};

struct tile {
    const uint8_t *w; /* blocks of this pass of one group */
    int quad;         /* the first of the R */
    int n_block, n_tok;
    const int8_t *q;
    const float *s, *a, *b;
    float *out; /* of the first quad's first row and token */
    size_t out_stride;
    int rows;   /* that exist from there on */
    bool first; /* accumulators start at +0, else from out */
};

typedef void tile_fn(const struct tile *a);

enum terms {
    TERMS_NONE,
    TERMS_TOTAL,  /* a = fl((float)S·s) */
    TERMS_HALVES, /* a = (float)S0, b = (float)S1 */
};

MU_INLINE enum terms terms_of(uint32_t type)
{
    switch (type) {
    case MU_Q4_1:
    case MU_Q5_1:
    case MU_Q4_K:
    case MU_Q5_K: return TERMS_TOTAL;
    case MU_Q2_K: return TERMS_HALVES;
    default: return TERMS_NONE;
    }
}
MU_INLINE bool has_halves(uint32_t type)
{
    return type == MU_Q6_K || type == MU_Q3_K || type == MU_Q2_K;
}
MU_INLINE bool has_fifth_bit(uint32_t type)
{
    return type == MU_Q5_0 || type == MU_Q5_1 || type == MU_Q5_K;
}
/* Q4_0's codes as they are decoded are 2^4 times too large. */
MU_INLINE bool is_lifted(uint32_t type)
{
#if defined(MU_ARM_DOTPROD)
    return type == MU_Q4_0;
#else
    (void)type; /* the sums of 16 bits have no room */
    return false;
#endif
}

/* ---- codes ---- */

#define EACH_4(X) X(0) X(1) X(2) X(3)
#define EACH_8(X) EACH_4(X) X(4) X(5) X(6) X(7)

/* Bit `from` of every byte to bit `to`; both are constants. */
#define BIT_TO(v, from, to)                                             \
    ((from) < (to)   ? vshlq_n_u8(v, (from) < (to) ? (to) - (from) : 1) \
     : (from) > (to) ? vshrq_n_u8(v, (from) > (to) ? (from) - (to) : 1) \
                     : (v))

MU_INLINE int8x16_t look_up(const int8_t *values, uint8x16_t nibbles)
{
    return vqtbl1q_s8(vld1q_s8(values), nibbles);
}

/* w[k] = columns 4k … 4k+3 of a quad's rows; p is at the block's codes of the quad. */
MU_INLINE void codes(uint32_t type, const uint8_t *p, int8x16_t w[8])
{
    const uint8x16_t low4 = vdupq_n_u8(15);
    uint8x16_t c[8], two[2], bits;
    if (type == MU_Q8_0) {
#define Q8(k) w[k] = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(p + 64 * (k)), vdupq_n_u8(0x80)));
        EACH_8(Q8)
#undef Q8
        return;
    }
    if (is_lifted(type)) { /* code ^ 8 is code - 8 in two's complement */
#define LIFT(k)                                                \
    c[k] = veorq_u8(vld1q_u8(p + 64 * (k)), vdupq_n_u8(0x88)); \
    w[k] = vreinterpretq_s8_u8(vshlq_n_u8(c[k], 4));           \
    w[(k) + 4] = vreinterpretq_s8_u8(vandq_u8(c[k], vdupq_n_u8(0xf0)));
        EACH_4(LIFT)
#undef LIFT
        return;
    }
    if (type == MU_Q2_K || type == MU_Q3_K) {
        two[0] = vld1q_u8(p);
        two[1] = vld1q_u8(p + 64);
#define LOW2(k) c[k] = vandq_u8(BIT_TO(two[(k) / 4], 2 * ((k) % 4), 0), vdupq_n_u8(3));
        EACH_8(LOW2)
#undef LOW2
        if (type == MU_Q3_K) {
            bits = vld1q_u8(p + 128);
#define THIRD(k) c[k] = vorrq_u8(c[k], vandq_u8(BIT_TO(bits, k, 2), vdupq_n_u8(4)));
            EACH_8(THIRD)
#undef THIRD
        }
    } else {
#define NIBBLES(k)                    \
    c[k] = vld1q_u8(p + 64 * (k));    \
    c[(k) + 4] = vshrq_n_u8(c[k], 4); \
    c[k] = vandq_u8(c[k], low4);
        EACH_4(NIBBLES)
#undef NIBBLES
    }
    if (has_fifth_bit(type)) {
        bits = vld1q_u8(p + 256);
#define FIFTH(k) c[k] = vorrq_u8(c[k], vandq_u8(BIT_TO(bits, k, 4), vdupq_n_u8(16)));
        EACH_8(FIFTH)
#undef FIFTH
    }
    if (type == MU_Q6_K) {
        two[0] = vld1q_u8(p + 256);
        two[1] = vld1q_u8(p + 320);
#define TOP2(k) c[k] = vorrq_u8(c[k], vandq_u8(BIT_TO(two[(k) / 4], 2 * ((k) % 4), 4), vdupq_n_u8(0x30)));
        EACH_8(TOP2)
#undef TOP2
    }
    const int8_t offset = type == MU_Q4_0 ? 8 : type == MU_Q5_0 ? 16 : type == MU_Q6_K ? 32 : type == MU_Q3_K ? 4 : 0;
    MU_UNROLL
    for (int k = 0; k < 8; k++) {
        if (type == MU_IQ4_NL || type == MU_IQ4_XS)
            w[k] = look_up(mu_iq4_values, c[k]);
        else if (type == MU_MXFP4)
            w[k] = look_up(mu_mxfp4_values, c[k]);
        else
            w[k] = vsubq_s8(vreinterpretq_s8_u8(c[k]), vdupq_n_s8(offset));
    }
}

/* From 4 rows × 4 columns to rows 0, 1 (w[2i]) and 2, 3 (w[2i+1]) × columns 8i … 8i+7. */
MU_INLINE void codes_pair(int8x16_t w[8])
{
    MU_UNROLL
    for (int i = 0; i < 8; i += 2) {
        int32x4_t even = vreinterpretq_s32_s8(w[i]), odd = vreinterpretq_s32_s8(w[i + 1]);
        w[i] = vreinterpretq_s8_s32(vzip1q_s32(even, odd));
        w[i + 1] = vreinterpretq_s8_s32(vzip2q_s32(even, odd));
    }
}

/* ---- products ---- */

/* Columns [16h, 16h + 16) of a quad against a unit whose cell of q is at q. sum has one vector, or of a pair two: rows
 * 0, 1 and rows 2, 3. */
MU_INLINE void product_16(uint32_t type, bool pair, const int8x16_t w[8], const int8_t *q, int h, int32x4_t *sum)
{
    (void)type;
#if defined(MU_ARM_I8MM)
    if (pair) {
        int8x16_t q0 = vld1q_s8(q + 32 * h), q1 = vld1q_s8(q + 32 * h + 16);
        MU_UNROLL
        for (int v = 0; v < 2; v++) sum[v] = vmmlaq_s32(vmmlaq_s32(sum[v], w[4 * h + v], q0), w[4 * h + 2 + v], q1);
        return;
    }
#endif
    (void)pair;
    int8x16_t q4 = vld1q_s8(q + 16 * h);
#if defined(MU_ARM_DOTPROD)
#define STEP(k) sum[0] = vdotq_laneq_s32(sum[0], w[4 * h + (k)], q4, k);
#else
    const int run = type == MU_Q8_0 || type == MU_IQ4_NL || type == MU_IQ4_XS ? 1 : 4;
    int16x8_t lo = vdupq_n_s16(0), hi = lo;
#define STEP(k)                                                                            \
    {                                                                                      \
        int8x16_t qk = vreinterpretq_s8_s32(vdupq_laneq_s32(vreinterpretq_s32_s8(q4), k)); \
        int8x16_t wk = w[4 * h + (k)];                                                     \
        lo = (k) % run == 0 ? vmull_s8(vget_low_s8(wk), vget_low_s8(qk))                   \
                            : vmlal_s8(lo, vget_low_s8(wk), vget_low_s8(qk));              \
        hi = (k) % run == 0 ? vmull_high_s8(wk, qk) : vmlal_high_s8(hi, wk, qk);           \
        if ((k) % run == run - 1) sum[0] = vpadalq_s16(sum[0], vpaddq_s16(lo, hi));        \
    }
#endif
    EACH_4(STEP)
#undef STEP
}

/* ---- scales ---- */

MU_INLINE float32x4_t load_f16(const uint8_t *p)
{
    return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(p)));
}
MU_INLINE uint32x4_t load_u8(const uint8_t *p)
{
    uint32_t four;
    memcpy(&four, p, sizeof four);
    return vmovl_u16(vget_low_u16(vmovl_u8(vcreate_u8(four))));
}
MU_INLINE int32x4_t load_s8(const uint8_t *p)
{
    uint32_t four;
    memcpy(&four, p, sizeof four);
    return vmovl_s16(vget_low_s16(vmovl_s8(vcreate_s8(four))));
}

/* 2^(e-128): the exponent's field is 2^(e-127), and from e = 0, which has none, the bits of 2^-127; halving is exact. */
MU_INLINE float32x4_t load_e8m0(const uint8_t *p)
{
    uint32x4_t bits = vmaxq_u32(vshlq_n_u32(load_u8(p), 23), vdupq_n_u32(0x00400000));
    return vmulq_n_f32(vreinterpretq_f32_u32(bits), 0.5f);
}

/* Of a block of a quad's rows: d and min as in C2, of the types with halves the integer scales. */
struct scales {
    float32x4_t d, min, sc[2], mn[2];
};

/* p is at the block's scales, head (where the type has one) at that of the 256 columns. */
MU_INLINE struct scales scales_load(uint32_t type, const uint8_t *p, const uint8_t *head, int quad)
{
    struct scales k = {0};
    switch (type) {
    case MU_MXFP4: k.d = load_e8m0(p + QUAD * quad); break;
    case MU_IQ4_XS: k.d = vmulq_f32(load_f16(head + 8 * quad), vcvtq_f32_s32(load_s8(p + QUAD * quad))); break;
    case MU_Q4_K:
    case MU_Q5_K:
        k.d = vmulq_f32(load_f16(head + 8 * quad), vcvtq_f32_u32(load_u8(p + QUAD * quad)));
        k.min = vmulq_f32(load_f16(head + 32 + 8 * quad), vcvtq_f32_u32(load_u8(p + 16 + QUAD * quad)));
        break;
    case MU_Q2_K:
        k.d = load_f16(head + 8 * quad);
        k.min = load_f16(head + 32 + 8 * quad);
        for (int h = 0; h < 2; h++) {
            uint32x4_t both = load_u8(p + 16 * h + QUAD * quad);
            k.sc[h] = vcvtq_f32_u32(vandq_u32(both, vdupq_n_u32(15)));
            k.mn[h] = vcvtq_f32_u32(vshrq_n_u32(both, 4));
        }
        break;
    case MU_Q3_K:
    case MU_Q6_K:
        k.d = load_f16(head + 8 * quad);
        for (int h = 0; h < 2; h++) k.sc[h] = vcvtq_f32_s32(load_s8(p + 16 * h + QUAD * quad));
        break;
    default:
        k.d = load_f16(p + 8 * quad);
        if (type == MU_Q4_1 || type == MU_Q5_1) k.min = load_f16(p + 32 + 8 * quad);
    }
    return k;
}

/* Four rows' values as vector v of a unit's sums has its lanes. */
MU_INLINE float32x4_t spread(bool pair, float32x4_t rows, int v)
{
    return !pair ? rows : v ? vzip2q_f32(rows, rows) : vzip1q_f32(rows, rows);
}

/* ---- tiles ---- */

MU_INLINE float32x4_t to_f32(uint32_t type, int32x4_t sum)
{
    return is_lifted(type) ? vcvtq_n_f32_s32(sum, 4) : vcvtq_f32_s32(sum);
}

/* One block of one quad against one unit. J and Z of the types with halves: every partial result is an integer under
 * 2^24, so exact. */
MU_INLINE void block_run(const struct tile *a, uint32_t type, bool pair, const int8x16_t w[8], const struct scales *k,
                         size_t cell, float32x4_t *acc)
{
    const int V = pair ? 2 : 1;
    const int8_t *q = a->q + cell * (pair ? 2 * MU_Q_BLOCK : MU_Q_BLOCK);
    float32x4_t s = vld1q_f32(a->s + 4 * cell), f[2];
    int32x4_t sum[2] = {vdupq_n_s32(0), vdupq_n_s32(0)};
    product_16(type, pair, w, q, 0, sum);
    if (has_halves(type)) {
        MU_UNROLL
        for (int v = 0; v < V; v++) {
            f[v] = vmulq_f32(to_f32(type, sum[v]), spread(pair, k->sc[0], v));
            sum[v] = vdupq_n_s32(0);
        }
    }
    product_16(type, pair, w, q, 1, sum);
    MU_UNROLL
    for (int v = 0; v < V; v++) {
        float32x4_t d = spread(pair, k->d, v), min = spread(pair, k->min, v), i = to_f32(type, sum[v]);
        if (has_halves(type)) i = vfmaq_f32(f[v], i, spread(pair, k->sc[1], v));
        acc[v] = vfmaq_f32(acc[v], i, vmulq_f32(d, s));
        if (terms_of(type) == TERMS_TOTAL) {
            float32x4_t total = vld1q_f32(a->a + 4 * cell);
            acc[v] = type == MU_Q4_1 || type == MU_Q5_1 ? vfmaq_f32(acc[v], min, total) : vfmsq_f32(acc[v], min, total);
        }
        if (terms_of(type) == TERMS_HALVES) {
            float32x4_t z = vmulq_f32(spread(pair, k->mn[0], v), vld1q_f32(a->a + 4 * cell));
            z = vfmaq_f32(z, spread(pair, k->mn[1], v), vld1q_f32(a->b + 4 * cell));
            acc[v] = vfmsq_f32(acc[v], z, vmulq_f32(min, s));
        }
    }
}

/* The accumulators of quad r and unit u, from and to `out`. */
MU_INLINE void acc_load(const struct tile *a, bool pair, int r, int u, float32x4_t *acc)
{
    const float *out = a->out + QUAD * r;
    int rows = a->rows - QUAD * r;
    acc[0] = acc[1] = vdupq_n_f32(0.0f);
    if (a->first) return;
    if (!pair) {
        acc[0] = rows_load(out + (size_t)u * a->out_stride, rows);
        return;
    }
    float32x4_t t0 = rows_load(out + (size_t)(2 * u) * a->out_stride, rows), t1 = acc[0];
    if (2 * u + 1 < a->n_tok) t1 = rows_load(out + (size_t)(2 * u + 1) * a->out_stride, rows);
    acc[0] = vzip1q_f32(t0, t1);
    acc[1] = vzip2q_f32(t0, t1);
}
MU_INLINE void acc_store(const struct tile *a, bool pair, int r, int u, const float32x4_t *acc)
{
    float *out = a->out + QUAD * r;
    int rows = a->rows - QUAD * r;
    if (!pair) {
        rows_store(out + (size_t)u * a->out_stride, rows, acc[0]);
        return;
    }
    rows_store(out + (size_t)(2 * u) * a->out_stride, rows, vuzp1q_f32(acc[0], acc[1]));
    if (2 * u + 1 < a->n_tok) rows_store(out + (size_t)(2 * u + 1) * a->out_stride, rows, vuzp2q_f32(acc[0], acc[1]));
}

MU_INLINE int units(int n_tok)
{
    return n_tok >= PAIRS_FROM ? (n_tok + 1) / 2 : n_tok;
}

/* T tokens; the last of an odd number of them has no partner: its pair's other half is zero and goes nowhere. */
MU_INLINE void tile_run(const struct tile *a, uint32_t type, int T)
{
    const bool pair = T >= PAIRS_FROM;
    const int R = T <= FEW ? QUADS : 1, U = units(T);
    float32x4_t acc[QUADS][MAX_TILE][2];
    MU_UNROLL
    for (int r = 0; r < R; r++) {
        MU_UNROLL
        for (int u = 0; u < U; u++) acc_load(a, pair, r, u, acc[r][u]);
    }
    const uint8_t *p = a->w, *head = p;
    for (int b = 0; b < a->n_block; b++, p += mu_packed_block_bytes(type)) {
        if (mu_packed_head_bytes(type) && b % 8 == 0) {
            head = p;
            p += mu_packed_head_bytes(type);
        }
        MU_UNROLL
        for (int r = 0; r < R; r++) {
            int8x16_t w[8];
            struct scales k = scales_load(type, p, head, a->quad + r);
            codes(type, p + mu_packed_scale_bytes(type) + 16 * (a->quad + r), w);
            if (pair) codes_pair(w);
            MU_UNROLL
            for (int u = 0; u < U; u++) block_run(a, type, pair, w, &k, (size_t)b * (size_t)U + (size_t)u, acc[r][u]);
        }
    }
    MU_UNROLL
    for (int r = 0; r < R; r++) {
        MU_UNROLL
        for (int u = 0; u < U; u++) acc_store(a, pair, r, u, acc[r][u]);
    }
}

#define TILE(name, type, T)                      \
    static void name##_##T(const struct tile *a) \
    {                                            \
        tile_run(a, type, T);                    \
    }
#if defined(MU_ARM_I8MM)
#define TILES(name, type) \
    TILE(name, type, 1) TILE(name, type, 2) TILE(name, type, 4) TILE(name, type, 6) TILE(name, type, 8)
#define LIST(name)                                                                           \
    {                                                                                        \
        NULL, name##_1, name##_2, name##_4, name##_4, name##_6, name##_6, name##_8, name##_8 \
    }
#else
/* clang-format off */
#define TILES(name, type)                                                                               \
    TILE(name, type, 1)                                                                                 \
    TILE(name, type, 2)                                                                                 \
    TILE(name, type, 3) TILE(name, type, 4) TILE(name, type, 5) TILE(name, type, 6) TILE(name, type, 7) \
        TILE(name, type, 8)
/* clang-format on */
#define LIST(name)                                                                           \
    {                                                                                        \
        NULL, name##_1, name##_2, name##_3, name##_4, name##_5, name##_6, name##_7, name##_8 \
    }
#endif
TILES(q4_0, MU_Q4_0)
TILES(q4_1, MU_Q4_1)
TILES(q5_0, MU_Q5_0)
TILES(q5_1, MU_Q5_1)
TILES(q8_0, MU_Q8_0)
TILES(q2_k, MU_Q2_K)
TILES(q3_k, MU_Q3_K)
TILES(q4_k, MU_Q4_K)
TILES(q5_k, MU_Q5_K)
TILES(q6_k, MU_Q6_K)
TILES(iq4_nl, MU_IQ4_NL)
TILES(iq4_xs, MU_IQ4_XS)
TILES(mxfp4, MU_MXFP4)
static tile_fn *const tiles[MU_TYPE_LIMIT][MAX_TILE + 1] = {
    [MU_Q4_0] = LIST(q4_0),   [MU_Q4_1] = LIST(q4_1), [MU_Q5_0] = LIST(q5_0),     [MU_Q5_1] = LIST(q5_1),
    [MU_Q8_0] = LIST(q8_0),   [MU_Q2_K] = LIST(q2_k), [MU_Q3_K] = LIST(q3_k),     [MU_Q4_K] = LIST(q4_k),
    [MU_Q5_K] = LIST(q5_k),   [MU_Q6_K] = LIST(q6_k), [MU_IQ4_NL] = LIST(iq4_nl), [MU_IQ4_XS] = LIST(iq4_xs),
    [MU_MXFP4] = LIST(mxfp4),
};

/* ---- the walk ---- */

/* Blocks [b0, b0 + n) of tokens [t0, t0 + T) into c, cells from `cell` on. */
static void gather(const struct mu_act *x, enum terms terms, int t0, int T, size_t b0, int n, struct cells *c,
                   size_t cell)
{
    const size_t n_block = (size_t)x->n_col / MU_Q_BLOCK;
    const int step = T >= PAIRS_FROM ? 2 : 1;
    for (int b = 0; b < n; b++)
        for (int t = 0; t < T; t += step, cell++) {
            float s[2], ta[2], tb[2];
            for (int i = 0; i < step; i++) {
                bool there = t + i < T;
                size_t at = (size_t)(t0 + t + i) * n_block + b0 + (size_t)b;
                int s0 = there ? x->sum[2 * at] : 0, s1 = there ? x->sum[2 * at + 1] : 0;
                s[i] = there ? x->s[at] : 0.0f;
                ta[i] = terms == TERMS_TOTAL ? (float)(s0 + s1) * s[i] : (float)s0;
                tb[i] = (float)s1;
                int8_t *q = c->q + cell * (size_t)(step * MU_Q_BLOCK);
                if (step == 1)
                    memcpy(q, x->q + at * MU_Q_BLOCK, MU_Q_BLOCK);
                else if (there)
                    for (int k = 0; k < 4; k++) memcpy(q + 16 * k + 8 * i, x->q + at * MU_Q_BLOCK + 8 * k, 8);
                else
                    for (int k = 0; k < 4; k++) memset(q + 16 * k + 8, 0, 8);
            }
            for (int i = 0; i < 4; i++) {
                c->s[4 * cell + (size_t)i] = s[i % step];
                if (terms == TERMS_NONE) continue;
                c->a[4 * cell + (size_t)i] = ta[i % step];
                if (terms == TERMS_HALVES) c->b[4 * cell + (size_t)i] = tb[i % step];
            }
        }
}

void ISA(matmul_int8)(const struct mu_mat *m, const struct mu_act *x, int row0, int row1, float *out, size_t stride)
{
    struct cells c __attribute__((aligned(64)));
    const size_t group_bytes = mu_packed_group_bytes(m->type, m->n_col), n_block = (size_t)m->n_col / MU_Q_BLOCK;
    const bool few = x->n_tok <= FEW;
    const size_t pass = few ? FEW_BLOCKS : WIDE_BLOCKS;
    const int n_tile = (x->n_tok + MAX_TILE - 1) / MAX_TILE; /* as equal as can be */
    for (int i = 0; i < n_tile; i += TILES_A_PASS) {
        int n = n_tile - i < TILES_A_PASS ? n_tile - i : TILES_A_PASS, from[TILES_A_PASS + 1];
        for (int j = 0; j <= n; j++) from[j] = (int)((int64_t)(i + j) * x->n_tok / n_tile);
        for (size_t b0 = 0; b0 == 0 || b0 < n_block; b0 += pass) {
            struct tile tile[TILES_A_PASS];
            size_t cell = 0, blocks = n_block - b0 < pass ? n_block - b0 : pass;
            for (int j = 0; j < n; j++) {
                int T = from[j + 1] - from[j], per = T >= PAIRS_FROM ? 2 : 1;
                gather(x, terms_of(m->type), from[j], T, b0, (int)blocks, &c, cell);
                tile[j] = (struct tile){.n_block = (int)blocks,
                                        .n_tok = T,
                                        .q = c.q + cell * (size_t)(per * MU_Q_BLOCK),
                                        .s = c.s + 4 * cell,
                                        .a = c.a + 4 * cell,
                                        .b = c.b + 4 * cell,
                                        .out_stride = stride,
                                        .first = b0 == 0};
                cell += (size_t)units(T) * blocks;
            }
            for (int r = row0; r < row1; r += MU_ROW_GROUP)
                for (int j = 0; j < n; j++) {
                    struct tile *a = &tile[j];
                    a->w = (const uint8_t *)m->data + (size_t)(r / MU_ROW_GROUP) * group_bytes +
                           mu_packed_group_offset(m->type, b0 * MU_Q_BLOCK);
                    for (a->quad = 0; a->quad < (a->n_tok <= FEW ? 1 : QUADS); a->quad++) {
                        a->rows = row1 - r - QUAD * a->quad;
                        if (a->rows <= 0) break;
                        a->out = out + (size_t)from[j] * stride + r + QUAD * a->quad;
                        tiles[m->type][a->n_tok](a);
                    }
                }
        }
    }
}

/* ---- peak.h's loop: the products of this instruction set, 12 sums at once ---- */

uint32_t ISA(peak_int8)(int n, double *ops_out)
{
    enum { CHAINS = 12 };
    int32x4_t sum[CHAINS];
    int8x16_t w = vdupq_n_s8(3), q = vdupq_n_s8(5);
    for (int j = 0; j < CHAINS; j++) sum[j] = vdupq_n_s32(0);
    for (int i = 0; i < n; i++) {
        MU_UNROLL
        for (int j = 0; j < CHAINS; j++) {
            __asm__ volatile("" : "+w"(q)); /* or the product would be computed once */
#if defined(MU_ARM_I8MM)
            sum[j] = vmmlaq_s32(sum[j], w, q);
#elif defined(MU_ARM_DOTPROD)
            sum[j] = vdotq_s32(sum[j], w, q);
#else
            int16x8_t s16 = vmlal_high_s8(vreinterpretq_s16_s32(sum[j]), w, q);
            sum[j] = vreinterpretq_s32_s16(vmlal_s8(s16, vget_low_s8(w), vget_low_s8(q)));
#endif
        }
    }
    for (int j = 1; j < CHAINS; j++) sum[0] = vaddq_s32(sum[0], sum[j]);
#if defined(MU_ARM_I8MM)
    const int macs = 32;
#else
    const int macs = 16;
#endif
    *ops_out = 2.0 * macs * CHAINS * n;
    return vaddvq_u32(vreinterpretq_u32_s32(sum[0]));
}
