/* What the files of a rank that computes on a device (kernels/device.h) share: its memory there and here, a step on its
 * way into the queue. Private to shard/.
 *
 *   device_memory.c    opening, sizes, buffers           device_step.c      a step from top to bottom
 *   device_load.c      weights, through pinned memory    device_exchange.c  what travels between ranks
 *   device_lora.c      what adapters add                 device_sample.c    logits, states, picks
 *   device_graph.c     decode steps that are replayed    device_rough.c     tokens of prompts that are computed roughly
 *   device_hop.c       the residual, from device to device
 *   device_stream.c    layers whose matrices come from the host's memory
 *
 * Pointers in struct dev are the device's, but for those in `pinned`. Of struct mu_shard a rank on a device uses the
 * tables (layers, whose matrices' data is the device's; page tables; rows), and of its scratch what the next ids are made
 * from: `logits`, `parts`, `whole`, `state`. */
#ifndef MU_SHARD_DEVICE_H
#define MU_SHARD_DEVICE_H

#include "kernels/device.h"
#include "shard/load.h"
#include "shard/parts.h"

enum {
    DEV_LOGIT_ROWS = 64,    /* rows of logits on the device at once */
    DEV_TIMEOUT_MS = 30000, /* of a wait, as a transport's */
    DEV_MARK = 0,           /* the step's; loading has those after it */
    DEV_MARK_RECEIVED = 30, /* by links between stages */
    DEV_MARK_SENT = 31,
    DEV_LOAD_BUFFERS = 4,
    DEV_LOAD_BYTES = 32 << 20, /* of one of them, and of rows on the device that are not packed yet */
    DEV_GRAPHS = 32,
};

/* What a step tells the device: filled in pinned memory, uploaded in one piece, at fixed addresses on both sides. */
struct dev_in {
    char *base;
    int32_t *pos, *slot; /* [step_tokens] */
    uint8_t *far;        /* [step_tokens] */
    float *q_scale;      /* [step_tokens]; of models whose queries grow with their position */
    int32_t *live, *row; /* [step_tokens]: tokens that the last layer goes on with; rows of logits, then of states */
    struct mu_device_block *block; /* [step_tokens] */
    struct mu_device_draw *draw;   /* [n_slot] */
    float *x;                      /* [step_tokens][d_model]; there it is the residual */
    /* uploaded apart, where there are any: */
    struct mu_device_set *set; /* [n_page + window pages that a step tells]: changes of the page tables */
    float *lora_scale;         /* [n_lora keys][n_tok of the step] */
};

struct dev_act_sizes {
    size_t f32, bf16, q, s, sum;
};
struct dev_sizes { /* bytes */
    size_t x;      /* also of a ticket's residual */
    size_t live_x; /* 0 but in the last stage */
    size_t q, kv, ff, y;
    size_t y_mine; /* my rows, where they are not all */
    size_t y_attn;
    struct dev_act_sizes act, input; /* of d_model columns; of the inputs of o and down, whole */
    size_t route, chosen, begin, expert_part;
    size_t rope, part, gather;
    size_t logits, pick; /* of DEV_LOGIT_ROWS rows; of all */
    size_t table, set;
    size_t lora_x, lora_u, lora_y, lora_scale;
    bool send;
};

struct dev_graph { /* a decode step that is replayed */
    int n_tok, max_pos, n_row, n_host, n_live;
    struct mu_device_graph *graph; /* NULL: seen once */
    uint64_t used;                 /* when, in steps; 0: free */
};

struct dev_run { /* neighbouring vectors of a step */
    int begin, end;
};

struct dev_hop {                 /* between my stage and a neighbour */
    struct mu_device_link *link; /* of the ranks of both, the gang's `first` is its 0. NULL: through comm */
    int first;
    int n, rank[MU_MAX_RANKS]; /* whom I receive from, or send to */
    bool under_way;            /* in the queue, and not waited for yet */
};

struct dev_stream {    /* layers whose matrices take turns on the device (shard/plan.h) */
    int n;             /* of them; 0: none */
    size_t *at;        /* [n + 1]: where each begins in `host`, packed, and the last ends */
    void *host;        /* pinned */
    char *rooms;       /* in `weights`; layer i's is number i % MU_STREAM_ROOMS, */
    size_t room_bytes; /* each so large */
};

struct dev {
    const struct mu_device_ops *ops;
    struct mu_device *d;
    struct mu_device_link *link; /* NULL: exchanges go through the host */
    struct dev_hop before, after;
    int index, timeout_ms;
    struct dev_sizes size;
    struct dev_stream stream;

    /* on the device */
    void *weights, *kv, *scratch, *lora;
    float *vectors, *freq; /* copies of the shard's, in `weights` */
    struct dev_in in;
    uint32_t *table; /* [group][n_slot][max_page] */
    float *live_x;   /* residual of the live tokens */
    float *q, *key, *value, *attn, *gate, *y, *y_mine, *y_attn, *rope, *part;
    struct act act, input; /* inputs of matrices: normed residuals; of o and down */
    float *route, *expert_part;
    int32_t *chosen, *place, *at, *begin;
    float *chosen_weight;
    char *gather;
    float *logits; /* [DEV_LOGIT_ROWS][my vocabulary] */
    struct mu_device_pick *pick;
    float *lora_x, *lora_u, *lora_y;

    /* here, pinned */
    void *pinned_block;
    struct {
        struct dev_in in;
        char *gather;
        float *down; /* [DEV_LOGIT_ROWS][my vocabulary] */
        struct mu_device_pick *pick;
        float *send[MU_SHARD_TICKETS];
    } pinned;

    struct dev_run *rough; /* [n_slot]: the step's, ascending */
    int n_lora_key;        /* 0 without adapters */
    struct dev_graph graph[DEV_GRAPHS];
    uint64_t n_step, n_replay, n_hop; /* n_hop: residuals that a link took */
    bool no_graphs;
};

/* ---- device_memory.c ---- */
bool mu_dev_sizes(const struct mu_model *model, const struct mu_plan *plan, int rank, const struct mu_serving *serving,
                  struct dev_sizes *sizes_out);
/* Of a rank's scratch on the device, that of loading included, and pinned here; UINT64_MAX on overflow. */
void mu_dev_scratch_bytes(const struct mu_model *model, const struct mu_plan *plan, int rank,
                          const struct mu_serving *serving, uint64_t *device_out, uint64_t *pinned_out);
/* The rank's device and its buffers but for weights, into s->dev. */
enum mu_status mu_dev_create(struct mu_shard *s, const struct mu_shard_options *opt, struct mu_err *err);
void mu_dev_destroy(struct mu_shard *s);
/* Memory on the device; `what` for the error, which says how much was there. */
enum mu_status mu_dev_alloc(struct mu_shard *s, size_t bytes, const char *what, void **p_out, struct mu_err *err);
/* Until all that is queued before the mark is done, links' transfers first. Moves sends along meanwhile. false: s->failed and
 * s->err say why. */
bool mu_dev_wait(struct mu_shard *s, int mark, const char *what);
/* The same, whatever links do. */
bool mu_dev_wait_mark(struct mu_shard *s, int mark, const char *what);
/* Other devices need not wait for this one any more: its links are closed. The gang is lost. */
void mu_dev_leave(struct mu_shard *s);
/* A vector of the shard on the device; NULL stays NULL. */
static inline const float *mu_dev_vector(const struct mu_shard *s, const float *v)
{
    return v ? s->dev->vectors + (v - s->vectors) : NULL;
}

/* ---- device_load.c ---- */
/* Of a matrix, packed, with what is left free behind it. */
size_t mu_dev_mat_bytes(const struct mu_shard *s, const struct mu_mat *m);
/* Packs on the device all items of the load. */
enum mu_status mu_dev_load(struct load *l, struct mu_err *err);
/* Rows through pinned memory onto the device, where they are packed. `bytes` come through it, groups of 16 rows of at
 * most `group_bytes`, of n_item items. */
struct dev_loader;
enum mu_status mu_dev_loader_open(struct mu_shard *s, uint64_t bytes, size_t group_bytes, int n_item,
                                  struct dev_loader **ld_out, struct mu_err *err);
void mu_dev_loader_close(struct dev_loader *ld); /* NULL is fine */
/* Room for rows of m from row0 on: how many (a multiple of 16, or all that are left), and where they go. They are to be
 * there before the next flush. 0: there is no room before it. */
int mu_dev_loader_take(struct dev_loader *ld, const struct mu_mat *m, int row0, size_t row_bytes, int item,
                       char **room_out);
/* Queues what was taken. */
enum mu_status mu_dev_loader_flush(struct dev_loader *ld, struct mu_err *err);
/* Copies; nothing may be taken and not flushed. */
enum mu_status mu_dev_loader_copy(struct dev_loader *ld, void *to, const void *from, size_t bytes, struct mu_err *err);
/* All is packed. *bad_out: the first item with a scale or weight that is not finite; -1: none. */
enum mu_status mu_dev_loader_end(struct dev_loader *ld, int *bad_out, struct mu_err *err);

/* A step on its way into the queue; as struct run. */
struct queue {
    struct mu_shard *s;
    struct dev *v;
    const struct mu_device_ops *ops;
    int n_tok, max_pos;          /* max_pos: no position is that large */
    int n_block, n_rough_block;  /* of these, the first so many are of rough tokens */
    int n_exact, n_rough;        /* vectors [0, n_exact) have some that are exact; runs of v->rough are rough */
    float *x;                    /* [n_tok][d_model]: the residual */
    const float *pending, *post; /* what still has to be added to it; the norm that it passes first; NULL: none */
    bool pending_round;
    const struct lora_groups *lora; /* of the vectors that are worked on; NULL: no adapter in this step */
    int first;                      /* which of these the first is: of logits, which come in parts */
};

/* ---- device_step.c ---- */
/* A whole step; s->failed has the status. */
void mu_dev_step(struct mu_shard *s);
/* A product of forward.c's, on the device. form: of the first job's result; NULL: not wanted. */
void mu_dev_matmul(const struct queue *r, const struct job *job, int n_job, const struct mu_act *x,
                   const struct mu_act_to *form);
/* The buffers of act that hold these forms. */
struct mu_act_to mu_dev_forms(const struct act *act, unsigned forms);
/* All of act, as n_tok vectors from the first on. */
struct mu_act mu_dev_act(const struct act *act, int n_tok, int n_col);
enum mu_device_norm_kind mu_dev_norm_kind(const struct mu_shard *s);

/* ---- device_rough.c ---- */
/* Which of the step's tokens are rough. From end on all vectors are exact. */
void mu_dev_rough_find(struct queue *r);
void mu_dev_rough_end(struct queue *r);
/* Whether experts' products may be rough: places are exchanged for exact and rough vectors apart then, which ranks on
 * processors do not. */
bool mu_dev_rough_experts(const struct mu_shard *s);
/* Vectors [begin, end) of x. */
struct mu_act mu_dev_act_from(const struct mu_act *x, int begin, int end);
/* ops->matmul, roughly where the vectors are. */
void mu_dev_matmul_parts(const struct queue *r, const struct mu_device_job *job, int n_job, const struct mu_act *x);

/* ---- device_exchange.c ---- */
/* Where this rank's columns of an input of o or down go, for n_vec vectors. */
struct dev_part {
    enum input input;
    unsigned forms;
    int n_vec, width;
    float *f32;            /* where they are to be written as they are */
    struct mu_act_to form; /* and in these forms too */
    enum wire wire;
    struct parts parts;
};
struct dev_part mu_dev_input_begin(const struct queue *r, enum input input, unsigned forms, int n_vec);
/* After they are written: the whole input. false: the step failed. */
bool mu_dev_input_end(const struct queue *r, const struct dev_part *part, struct mu_act *act_out);
/* What is computed next is pending, as for mu_run_project_begin: where the job's rows of r->n_tok tokens go. */
void mu_dev_project_begin(struct queue *r, float **out, uint16_t **bf16_out, bool round, const float *post,
                          struct parts *parts_out);
bool mu_dev_project_end(struct queue *r, const struct parts *parts);
/* The residual, whole, to the next stage. */
void mu_dev_send(struct queue *r);

/* ---- device_hop.c ---- */
enum mu_status mu_dev_hops_open(struct mu_shard *s, const struct mu_shard_options *opt, struct mu_err *err);
void mu_dev_hops_close(struct mu_shard *s);
/* Queued, where there is such a link: the residual that the step begins with; the one that it ends with, which also waits
 * for the pass. */
void mu_dev_hop_recv(struct queue *r);
void mu_dev_hop_send(struct queue *r);
/* For what was queued so. false: the step failed. */
bool mu_dev_hops_wait(struct mu_shard *s);
/* Of the last send: 1: it is done, or there was none; 0: not yet; -1: failed. */
int mu_dev_hop_test(struct mu_shard *s, struct mu_err *err);

/* ---- device_sample.c ---- */
/* Final norm of the rows that are wanted, logits and picks: in the queue, as far as they need nothing from here. */
void mu_dev_rows(struct queue *r);
/* The rest, after mu_dev_rows or what replayed it: the step's results. */
void mu_dev_results(struct queue *r);

/* ---- device_lora.c ---- */
/* The adapters' scales for every matrix, in pinned memory, and the device's copy of them. */
void mu_dev_lora_scales(const struct queue *r);
/* What adapters add to the jobs' products. */
void mu_dev_lora(const struct queue *r, const struct job *job, struct mu_device_job *to, int n_job,
                 const struct mu_act *x);

/* ---- device_stream.c ---- */
/* Which of the layers that are streamed this one is; -1: it stays, or it is none. */
static inline int mu_dev_streamed(const struct mu_shard *s, int layer)
{
    return layer < 0 ? -1 : mu_plan_streamed(&s->plan, s->rank, layer);
}
/* Before the weights are placed: what is streamed. *room_out: bytes that its rooms take there. */
enum mu_status mu_dev_stream_plan(struct load *l, size_t *room_out, struct mu_err *err);
/* The rooms begin at base. */
void mu_dev_stream_place(struct load *l, char *base);
/* Whether item i is the last of a layer that is to be kept; that, queued behind what packs it. */
bool mu_dev_stream_keeps(const struct load *l, int i);
void mu_dev_stream_keep(struct mu_shard *s, int layer);
/* All are kept: the first are on their way. */
void mu_dev_stream_start(struct mu_shard *s);
/* Queued: the layer's matrices are there from here on; they are not needed any more, and the next are on their way. Both do
 * nothing where the layer stays. */
void mu_dev_stream_begin(const struct queue *r, int layer);
void mu_dev_stream_end(const struct queue *r, int layer);

/* ---- device_graph.c ---- */
/* Queues the step by `pass`, or what was recorded of one like it. */
void mu_dev_pass(struct queue *r, bool pass(struct queue *));

/* Tests: whether steps may be replayed, which no result shows; how many were so far; how many residuals a link took to
 * this rank or from it. */
void mu_shard_device_graphs(struct mu_shard *s, bool on);
uint64_t mu_shard_device_replays(const struct mu_shard *s);
uint64_t mu_shard_device_hops(const struct mu_shard *s);

#endif
