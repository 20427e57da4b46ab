/* kernels/simd.h's operations with NEON, which every arm64 processor has. Included by it.
 *
 * f16 values are converted by FCVTL and FCVTN, which are part of ARMv8.0: only arithmetic on f16 would need more. There
 * are no masked loads and stores; a part of a vector goes through a small array. */
#ifndef MU_KERNELS_ARM_SIMD_H
#define MU_KERNELS_ARM_SIMD_H

static inline vf vf_load(const float *p)
{
    return vld1q_f32(p);
}
static inline void vf_store(float *p, vf x)
{
    vst1q_f32(p, x);
}
static inline vf vf_load_n(const float *p, int n)
{
    if (n == VF_LANES) return vf_load(p);
    float part[VF_LANES] = {0};
    memcpy(part, p, (size_t)n * sizeof *p);
    return vf_load(part);
}
static inline void vf_store_n(float *p, int n, vf x)
{
    float part[VF_LANES];
    if (n == VF_LANES) {
        vf_store(p, x);
    } else {
        vf_store(part, x);
        memcpy(p, part, (size_t)n * sizeof *p);
    }
}
static inline vf vf_max(vf a, vf b)
{
    return vbslq_f32(vcgtq_f32(a, b), a, b);
}
static inline vf vf_load_f16(const uint16_t *p)
{
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
}
static inline vf vf_load_f16_n(const uint16_t *p, int n)
{
    if (n == VF_LANES) return vf_load_f16(p);
    uint16_t part[VF_LANES] = {0};
    memcpy(part, p, (size_t)n * sizeof *p);
    return vf_load_f16(part);
}
static inline vf vf_load_i8(const int8_t *p)
{
    int32_t four;
    memcpy(&four, p, sizeof four);
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(four))))));
}
static inline vf vf_load_i8_n(const int8_t *p, int n)
{
    int8_t part[VF_LANES] = {0};
    memcpy(part, p, (size_t)n);
    return vf_load_i8(part);
}
static inline void f16_store_n(uint16_t *p, int n, vf x)
{
    uint16_t part[VF_LANES];
    vst1_u16(part, vreinterpret_u16_f16(vcvt_f16_f32(x)));
    memcpy(p, part, (size_t)n * sizeof *p);
}
static inline vi vi_load_u16(const uint16_t *p)
{
    return vreinterpretq_s32_u32(vmovl_u16(vld1_u16(p)));
}
static inline vi vi_shr16(vi a)
{
    return vreinterpretq_s32_u32(vshrq_n_u32(vreinterpretq_u32_s32(a), 16));
}
static inline bool vm_any(vm m)
{
    return vmaxvq_u32(m) != 0;
}
static inline int vm_lowest(vm m)
{
    uint64_t halves = vget_lane_u64(vreinterpret_u64_u16(vmovn_u32(m)), 0);
    return __builtin_ctzll(halves) / 16;
}
static inline vm vm_all_if(bool yes)
{
    return vdupq_n_u32(0u - (uint32_t)yes);
}
static inline vm vf_eq(vf a, vf b)
{
    return vceqq_f32(a, b);
}
static inline vm vi_eq(vi a, vi b)
{
    return vceqq_s32(a, b);
}
typedef uint64x2_t vw;
static inline vw vw_set(uint64_t x)
{
    return vdupq_n_u64(x);
}
static inline vw vw_load(const uint64_t *p)
{
    return vld1q_u64(p);
}
static inline void vw_store(uint64_t *p, vw x)
{
    vst1q_u64(p, x);
}
static inline vw vw_mul(vw a, vw b)
{
    return vmull_u32(vmovn_u64(a), vmovn_u64(b));
}
static inline vw vw_high(vw a)
{
    return vshrq_n_u64(a, 32);
}
static inline vw vw_xor(vw a, vw b)
{
    return veorq_u64(a, b);
}

static inline float tree_sum(const vf lane[SUM_VECS])
{
    float32x4_t s4 = vaddq_f32(vaddq_f32(lane[0], lane[2]), vaddq_f32(lane[1], lane[3]));
    float32x2_t s2 = vadd_f32(vget_low_f32(s4), vget_high_f32(s4));
    return vget_lane_f32(s2, 0) + vget_lane_f32(s2, 1);
}

static inline float vf_reduce_max(vf x)
{
    return vmaxvq_f32(x);
}

static inline vf vf_rope_pairs(vf v, vf cs)
{
    static const uint32_t even_signs[VF_LANES] = {0x80000000u, 0, 0x80000000u, 0};
    vf b = vmulq_f32(vtrn2q_f32(v, v), vrev64q_f32(cs)); /* b·sin, b·cos */
    b = vreinterpretq_f32_u32(veorq_u32(vreinterpretq_u32_f32(b), vld1q_u32(even_signs)));
    return vfmaq_f32(b, vtrn1q_f32(v, v), cs);
}

#define simd_fetch(p) __builtin_prefetch((p), 0, 2)

#endif
