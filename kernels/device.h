/* Accelerators: one table of operations on a device's own memory, which a plugin exports and mu_device_load finds.
 *
 * A device keeps the same arithmetic contract as the processors (docs/arithmetic.md, C0 … C9): every operation here, but
 * those that are told to be rough, gives, to the bit, what the forward pass computes with struct mu_kernels. A stage on a GPU, one on CPUs and one of
 * both are then the same model, and a stream that moves between them does not change. Where the contract leaves room
 * (layouts of packed weights and of the cache, the order of independent work) the plugin chooses.
 *
 * Two plugins: kernels/cuda (libmuster_cuda.so), and tests/stubs/device_host.c, the definition in plain C on the host's
 * memory, which every operation of the other is held to with memcmp.
 *
 * Queue. A device has one queue. What returns nothing is put in the queue and runs in order, after the call has
 * returned; its arguments are read before the call returns, but for the memory they point to on the device (and pinned
 * host memory: a source may be written again, and a destination read, after a wait). What goes wrong in the queue is
 * told by the next wait, and the device is then good for close alone.
 *
 * Pointers. In what follows, pointers inside argument structs, and those to an operation's arrays, are device memory unless said
 * otherwise; structs themselves, and struct mu_mat (whose data is on the device), are host memory. Shapes are row-major. Zero tokens, rows
 * or sequences are fine everywhere and do nothing. What an operation writes overlaps neither what it reads nor what else
 * it writes, unless said otherwise. Elements are aligned to their size, q, s and sum of vectors to 16 bytes, allocations to 256 bytes.
 *
 * Rough. Where a job or an attention says so, the contract is left for the tensor cores' speed: what is multiplied may be
 * rounded to bf16 (f16 in attention), and sums may be in any order, in f32. A result still depends on nothing but its own
 * row and vector (head and query), so it is the same whatever else is in the call, and wherever. Bounds: with A = Σ|w·x| a
 * product is within A/128 of what the contract asks for; attention within 1% of its largest value. A vector, row or query that
 * gives a NaN or an infinity there gives one of them here. A plugin may also keep the contract.
 *
 * Threads: a device belongs to the thread that opened it. Several may be open, in several threads. */
#ifndef MU_KERNELS_DEVICE_H
#define MU_KERNELS_DEVICE_H

#include "kernels/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    MU_DEVICE_ABI = 3,
    MU_DEVICE_MARKS = 32,    /* points in the queue that can be waited for */
    MU_DEVICE_FETCHES = 2,   /* copies beside the queue that can be waited for in it */
    MU_DEVICE_LINK_ID = 128, /* bytes of what the ranks of a link agree on */
    MU_DEVICE_MAX_JOBS = 4,
};

struct mu_device;       /* an opened device: its queue and memory */
struct mu_device_graph; /* a recorded stretch of the queue */
struct mu_device_link;  /* what joins the devices of several ranks */

struct mu_device_info {
    char name[64];                     /* "NVIDIA H100 80GB HBM3" */
    char pci[24];                      /* "0000:1b:00.0"; "" where there is none */
    uint64_t memory_bytes, free_bytes; /* free now */
    int capability;                    /* 90: compute capability 9.0 */
    bool has_link;                     /* links can be opened */
};

struct mu_device_speed {                   /* measured; 0: unknown */
    double read_gbps, up_gbps, down_gbps;  /* device memory; host to device; device to host (pinned) */
    double int8_gops, bf16_gops, f32_gops; /* operations, two a multiply-add */
};

/* Where vectors of n values go in the forms that matrices want (struct mu_act), [n_tok][n]; NULL: not wanted. q and s go
 * together (n a multiple of 32), and sum with them, but it may be NULL where it is made elsewhere. A block of 32 with a
 * value that is not finite gets zero codes and sums and a NaN for its scale, so that every product with the vector is
 * NaN: the other blocks of the vector are as ever. */
struct mu_act_to {
    float *f32;
    uint16_t *bf16;
    int8_t *q;
    float *s;
    int16_t *sum;
};

/* ---- matrix products ---- */

enum mu_device_act {
    MU_DEVICE_ACT_NONE,
    MU_DEVICE_ACT_SILU,
    MU_DEVICE_ACT_SILU_CLAMPED,
    MU_DEVICE_ACT_GELU,
    MU_DEVICE_ACT_GELU_ERF
};

/* One matrix times n_tok vectors, and what follows, in this order, each step where its field is set:
 *
 *   y = m·x;  y = fmaf(lora_scale[t], lora[t], y) where lora_scale[t] is not 0;  y += bias;  y *= scale;
 *   y += plus[t];  y = act(y), or act(y)·u with u from `up`, treated up to its bias likewise;  y = soft_cap(y)
 *
 * (shard/phase.c's piece_finish.) u = up·x; u = fmaf(lora_up_scale[t], lora_up[t], u); u += up_bias. A `lora` or bias
 * that is NULL takes no part. */
struct mu_device_job {
    const struct mu_mat *m, *up; /* host structs, of one shape; up NULL: none. With up there is an act */
    float *out;                  /* [n_tok][stride] at column 0 of the matrix; never NULL */
    size_t stride;
    uint16_t *bf16;              /* y rounded, likewise [n_tok][stride]; NULL: no */
    struct mu_act_to form;       /* y as vectors of n_row values, dense; f32 stays NULL, for out is that */
    const float *bias, *up_bias; /* [n_row]; with experts [n_expert][n_row] */
    const float *plus;           /* [n_tok][stride] */
    const float *lora, *lora_up; /* [n_tok][n_row] */
    const float *lora_scale;     /* [n_tok]; with lora */
    const float *lora_up_scale;  /* [n_tok]; with lora_up */
    float scale, cap;            /* 0: none */
    enum mu_device_act act;      /* SILU and SILU_CLAMPED only with up */
    bool rough;                  /* the products may be (see above); all jobs of a call alike */
};

/* The same of a mixture: matrix e is m->data + e·m_bytes. Vectors are places: place p ∈ [begin[e], begin[e+1]) is of
 * expert e and belongs to token place[p] / n_used. out, bf16 and form are by place. lora and plus are not used.
 * x has the n_tok tokens (gate, up), or with by_place the n_tok · n_used places (down). */
struct mu_device_experts {
    int n_expert, n_used;
    size_t m_bytes, up_bytes;
    const int32_t *begin, *place; /* [n_expert + 1]; [n_tok · n_used] */
    bool by_place;                /* inputs are places too (down); else tokens (gate, up) */
};

/* ---- norms ---- */

enum mu_device_norm_kind { MU_DEVICE_NORM_NONE, MU_DEVICE_NORM_RMS, MU_DEVICE_NORM_LAYER };

/* x += pending, then the norm of x in the forms wanted. Vector t is x[row[t]] (row NULL: x[t]; else rows are distinct),
 * and y's likewise. pending: y, rounded to bf16 where y_round is set; or, with post, the RMS norm by weight post and eps of
 * 0 + y (rounded likewise), whatever `kind` is. y NULL: nothing is pending. A norm that is not finite gives NaN
 * everywhere. kind NONE: x itself. LAYER: b is not NULL; else it is. */
struct mu_device_norm {
    int n_tok, n;
    float *x;
    const int32_t *row;
    bool keep; /* the sum goes back to x */
    const float *y, *post;
    bool y_round;
    enum mu_device_norm_kind kind;
    float eps;
    const float *w, *b;
    struct mu_act_to form; /* of the result, [n_tok][n] */
};

/* ---- cache and attention ---- */

/* The pages of one layer: head h of page p is at data + (h·n_page + p)·page_bytes. Positions [i·page_tokens, (i+1)·page_tokens) of
 * slot s are in page table[s·max_page + i]. page_bytes is that of both halves, 2·mu_kv_bytes(type, d_head, page_tokens); the layout inside
 * a page is the plugin's. */
struct mu_device_kv {
    enum mu_kv_type type;
    int n_head, d_head, page_tokens;
    uint32_t n_page, max_page;
    size_t page_bytes;
    void *data;
    const uint32_t *table;
};

/* Heads are normed (weights of d_head, NULL: not; RMS; one that is not finite becomes NaN), turned (cos_sin
 * [n_tok][n_rot]; NULL: not; as mu_kernels.rope), q is multiplied by q_scale[t] (NULL: not); k and v go to the cache at
 * pos[t] of slot[t], each to a place of its own. q [n_tok][n_head][d_head] is changed in place, k and v
 * [n_tok][kv.n_head][d_head] may be. */
struct mu_device_rotate {
    struct mu_device_kv kv;
    int n_tok, n_head, n_rot, neox;
    float eps;
    const float *cos_sin, *q_norm, *k_norm, *q_scale;
    float *q, *k, *v;
    const int32_t *pos, *slot; /* [n_tok] */
};

struct mu_device_block { /* consecutive tokens of one sequence */
    int32_t tok, n_tok, pos0, slot;
};
enum { MU_DEVICE_QUERY_BLOCK = 64 }; /* most tokens of a block */

/* Attention (C5) of my n_head query heads, of which number h reads my KV head (head0 + h)/group - kv_head0. Either block by block
 * (n_block > 0; results go to the tokens' rows), or query by query: result i is of token query[i] (NULL: i), at position
 * pos[query[i]] of slot[query[i]]. max_pos: no position is that large (it sizes the work: segments beyond a query's own cost little,
 * but not nothing). */
struct mu_device_attn {
    struct mu_device_kv kv;
    int n_head, head0, group, kv_head0;
    int window;
    float scale, softcap;
    const float *sink;     /* [n_head]; NULL: none */
    const float *q;        /* [tokens][n_head][d_head] */
    float *out;            /* likewise */
    struct mu_act_to form; /* of query by query's results: as vectors of n_head · d_head values; f32 stays NULL, for
                            * out is that. Block by block: not wanted */
    int n_query;
    const int32_t *query, *pos, *slot;
    int n_block;
    const struct mu_device_block *block;
    bool rough; /* block by block only */
    int max_pos;
    float *part; /* scratch, part_bytes of it: at least n_head · (d_head + 2) floats for every 256 positions of a
                  * context; with more, more queries at once are cut at segments */
    size_t part_bytes;
};

/* ---- experts ---- */

/* The choice of each token (C8; shard/experts.c's choose and groups_make): chosen, weight [n_tok][n_used], experts ascending;
 * places by expert, then token: place[p] is an index in chosen, at[] its inverse, begin [n_expert + 1]. Which are
 * chosen where scores are not finite is open, but they are distinct and ascending; where a NaN or +∞ is among them, the
 * weights are NaN. */
struct mu_device_route {
    int n_tok, n_expert, n_used;
    const float *score; /* [n_tok][n_expert] */
    int32_t *chosen, *place, *at, *begin;
    float *weight;
};

/* out[t] = Σ over its experts, ascending: fmaf(weight, part[at] + bias[expert], sum), from 0, then times scale (0: no). */
struct mu_device_combine {
    int n_tok, n_used, n;
    const float *part, *weight, *bias; /* part [places][n]; bias [n_expert][n] or NULL */
    const int32_t *chosen, *at;
    float scale;
    float *out; /* [n_tok][n] */
};

/* ---- the next id ---- */

struct mu_device_draw {
    float temperature;       /* 0: the largest logit */
    uint64_t seed, position; /* of the new id */
};
struct mu_device_pick {
    float value;
    int32_t id; /* -2: a logit is not finite, value is 0 then. -1: n is 0 */
};

/* ---- moving ---- */

enum mu_device_spread { MU_SPREAD_F32, MU_SPREAD_BF16, MU_SPREAD_I8, MU_SPREAD_BF16_TO_F32 };

/* A part of vectors goes to its columns of the whole: to[t·to_stride + i] = from[t·n + i], i < n; strides in elements of
 * `to`. */
struct mu_device_part {
    enum mu_device_spread kind;
    void *to;
    size_t to_stride;
    const void *from;
    int n;
};

struct mu_device_set {
    uint32_t at, value;
};

struct mu_device_ops {
    uint32_t abi; /* MU_DEVICE_ABI */
    const char *name;

    /* ---- devices ---- */
    /* How many there are; -1 with the reason where none can be used (no driver, one too old). */
    int (*count)(struct mu_err *err);
    enum mu_status (*info)(int index, struct mu_device_info *info_out, struct mu_err *err);
    enum mu_status (*open)(int index, struct mu_device **dev_out, struct mu_err *err);
    void (*close)(struct mu_device *d); /* waits for nothing it cannot end; frees what is left */
    enum mu_status (*measure)(struct mu_device *d, struct mu_device_speed *speed_out, struct mu_err *err); /* < 1 s */

    /* ---- memory ---- */
    enum mu_status (*alloc)(struct mu_device *d, size_t bytes, void **p_out,
                            struct mu_err *err); /* MU_ENOMEM: numbers */
    void (*free)(struct mu_device *d, void *p);  /* after what is queued; NULL is fine */
    enum mu_status (*alloc_host)(struct mu_device *d, size_t bytes, void **p_out, struct mu_err *err); /* pinned */
    void (*free_host)(struct mu_device *d, void *p);

    /* ---- the queue ---- */
    void (*upload)(struct mu_device *d, void *to, const void *from_host, size_t bytes);   /* from_host: pinned */
    void (*download)(struct mu_device *d, void *to_host, const void *from, size_t bytes); /* to_host: pinned */
    void (*copy)(struct mu_device *d, void *to, const void *from, size_t bytes);
    void (*zero)(struct mu_device *d, void *to, size_t bytes);
    /* Beside the queue: a copy from pinned memory that begins when all that is queued so far is done, and the fetches before
     * it, and runs beside what is queued afterwards; until that has passed fetched(n), `to` is undefined. */
    void (*fetch)(struct mu_device *d, int n, void *to, const void *from_host, size_t bytes);
    /* What is queued from here on begins after the last fetch n (never put: at once). Neither can be recorded. */
    void (*fetched)(struct mu_device *d, int n);
    void (*mark)(struct mu_device *d, int mark); /* a mark may be put again: the last one counts */
    /* Until everything before that mark is done (never put: nothing); MU_DEVICE_MARKS: everything. what: for the error of a deadline. */
    enum mu_status (*wait)(struct mu_device *d, int mark, int timeout_ms, const char *what, struct mu_err *err);
    int (*test)(struct mu_device *d, int mark); /* 1: done, 0: not yet, -1: failed (wait says why) */
    /* What is queued between the two is recorded and not run, with the arguments of its structs: operations on the
     * device, copies there, links' transfers; not uploads, downloads, marks or waits, nor memory taken or freed. NULL: it
     * cannot be recorded, and everything is as before begin. */
    void (*record_begin)(struct mu_device *d);
    struct mu_device_graph *(*record_end)(struct mu_device *d);
    void (*replay)(struct mu_device *d, const struct mu_device_graph *g);
    void (*graph_free)(struct mu_device *d, struct mu_device_graph *g);

    /* ---- weights ---- */
    size_t (*mat_bytes)(uint32_t type, int n_row, int n_col); /* 0: not supported */
    /* As mu_kernels.mat_pack, from raw rows on the device. *bad (device) becomes 1 where a scale or weight is not
     * finite, and otherwise stays as it is. */
    void (*mat_pack)(struct mu_device *d, const struct mu_mat *m, int row0, int row1, const void *raw, int32_t *bad);

    /* ---- the forward pass ---- */
    /* At most MU_DEVICE_MAX_JOBS jobs of one input: x's forms are those that the matrices want. experts NULL: none;
     * else there is one job. */
    void (*matmul)(struct mu_device *d, const struct mu_device_job *job, int n_job, const struct mu_act *x,
                   const struct mu_device_experts *experts);
    void (*norm)(struct mu_device *d, const struct mu_device_norm *a);
    /* Vectors src[t·stride …] of n values in other forms. to->f32 may be src where stride is n. */
    void (*form)(struct mu_device *d, const float *src, size_t stride, int n_tok, int n, const struct mu_act_to *to);
    /* q·s, or bf16, or f32 (what is not NULL, in this order) as f32 [n_tok][n_col]. */
    void (*widen)(struct mu_device *d, const struct mu_act *x, float *out);
    void (*block_sums)(struct mu_device *d, const int8_t *q, size_t n, int16_t *sum);
    /* All of the parts (a host array, as long as it likes), of n_tok vectors each. */
    void (*spread)(struct mu_device *d, const struct mu_device_part *part, int n_part, int n_tok);
    void (*set)(struct mu_device *d, uint32_t *table, const struct mu_device_set *set,
                int n); /* table[at] = value, ats distinct */
    /* out[t][2·n_pair]: mu_kernels.rope_table of pos[t], by freq, or freq_far where far[t] is 1 (far NULL: nowhere). */
    void (*rope_table)(struct mu_device *d, const float *freq, const float *freq_far, const uint8_t *far,
                       const int32_t *pos, int n_tok, int n_pair, float mscale, float *out);
    void (*rotate)(struct mu_device *d, const struct mu_device_rotate *a);
    void (*attn)(struct mu_device *d, const struct mu_device_attn *a);
    void (*route)(struct mu_device *d, const struct mu_device_route *a);
    void (*combine)(struct mu_device *d, const struct mu_device_combine *a);
    /* Row i of logits: ids first_id … first_id + n - 1 at logits[i·stride …]; the best as shard/sample.c's pick_of has
     * it (no logit is forbidden here). */
    void (*pick)(struct mu_device *d, const float *logits, size_t stride, int n_row, int n, int first_id,
                 const struct mu_device_draw *draw, struct mu_device_pick *out);

    /* ---- between devices: where info says has_link; else functions may be NULL or give MU_EUNSUPPORTED ---- */
    enum mu_status (*link_id)(unsigned char id_out[MU_DEVICE_LINK_ID], struct mu_err *err);
    enum mu_status (*link_open)(struct mu_device *d, const unsigned char id[MU_DEVICE_LINK_ID], int n_rank, int rank,
                                int timeout_ms, struct mu_device_link **link_out, struct mu_err *err);
    /* Queued. Rank i of the link has buf[off[i], off[i] + len[i]), in bytes; afterwards all have all. off and len are host
     * arrays. What one rank sends another, it receives in the same order and sizes; a send may last until then. */
    void (*link_gather)(struct mu_device_link *l, void *buf, const size_t *off, const size_t *len);
    void (*link_send)(struct mu_device_link *l, int to, const void *buf, size_t bytes);
    void (*link_recv)(struct mu_device_link *l, int from, void *buf, size_t bytes);
    void (*link_close)(struct mu_device_link *l); /* gives up what is not done */
};

/* ---- finding it (kernels/device.c) ---- */

/* The plugin: $MUSTER_DEVICE_PLUGIN, else libmuster_cuda.so beside the program, in ../lib/muster, where the build left it, or where the
 * system's loader finds it. Loaded once, by whoever asks first; any thread. NULL with the reason (no such file, which
 * is no fault: MU_ENOENT; another ABI, a missing library: MU_EUNSUPPORTED). "none" as the variable: no plugin. */
const struct mu_device_ops *mu_device_load(struct mu_err *err);

/* What a plugin exports under this name. */
#define MU_DEVICE_SYMBOL "muster_device_ops"
typedef const struct mu_device_ops *mu_device_ops_fn(void);

#ifdef __cplusplus
}
#endif
#endif
