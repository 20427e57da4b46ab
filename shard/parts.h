/* What the files of the forward pass share: the shard itself, a step as it runs, a pool member's view of it. Private to
 * shard/.
 *
 *   load.c      the rank's rows, packed               kv.c       pages and page tables
 *   kept.c      … in memory that outlives the process
 *   experts.c   routing, and the chosen experts' feed-forward
 *   small.c     norms, biases, rotation frequencies
 *   phase.c     shared work inside a step: claims, matrix products, norms and input forms
 *   lora.c      what adapters add to matrix products
 *   exchange.c  what travels between ranks            attend.c   rotation, cache, attention
 *   forward.c   a step from top to bottom             sample.c   the next ids
 *   halves.c    a chunk in two halves by turns, where exchanges are slow
 *   embed.c     states of tokens, pooled              device.h   the same on a device, in files of its own */
#ifndef MU_SHARD_PARTS_H
#define MU_SHARD_PARTS_H

#include <stdatomic.h>

#include "kernels/kernels.h"
#include "shard/scratch.h"
#include "shard/shard.h"

/* Up to so many tokens every member keeps the residual and prepares matrix inputs for itself: the same little work many
 * times costs less than meeting for it. */
enum { NARROW_TOKENS = 2 };
enum { N_COUNTER = 4 };
enum { MU_UP_TILE = 128 * 128 }; /* tokens × rows */
enum { EXPERT_TOKENS = 128 };    /* of a group: as many as the tile above holds with rows of a piece */
enum { LORA_TOKENS = 8 };        /* whose inputs a member widens at once */
enum { LORA_SLOTS = 3 };         /* matrices of a phase: q, k and v */

enum form { FORM_F32 = 1, FORM_BF16 = 2, FORM_Q8 = 4 }; /* of a matrix's input; a set where consumers differ */

struct layer {
    struct mu_mat mat[MU_T_MATRIX_COUNT];    /* my rows */
    const float *vec[MU_T_LAYER_COUNT];      /* norms and biases, whole; NULL where the layer has none */
    int window, rope;                        /* 0 = none; which rotation table, -1 = does not turn */
    unsigned attn_in, o_in, ffn_in, down_in; /* sets of enum form */
    bool o_round, down_round; /* C4: rounded to bf16 before it is added; parallel: down's is of the sum */
    int lora;                 /* key of matrix 0 in the tables of adapters (struct job) */
};

struct act { /* prepared inputs, [n_tok][n_col]; n_col is the consumer's */
    float *f32;
    uint16_t *bf16;
    int8_t *q;
    float *s;
    int16_t *sum;
};

struct member {       /* a pool member's own scratch */
    float *x;         /* [NARROW_TOKENS][d_model] */
    struct act act;   /* [NARROW_TOKENS][max_col] */
    float *row;       /* [max_col] */
    float *post;      /* [d_model]: what is added, while it is normed */
    float *up;        /* [MU_UP_TILE]: a piece of the up product; used at once, so it stays in the L2 cache */
    struct act group; /* [group_tokens][d_model]: inputs of one expert's tokens, together; experts only */
    float *lora_x;    /* [LORA_TOKENS][max_col]: inputs of matrices, widened; NULL without adapters, as the next */
    float *lora_y;    /* [MU_UP_TILE]: a piece of B·u */
    const void **k_page, **v_page; /* [pages of n_ctx] */
};

struct sampler {     /* what one row of logits takes that is wanted whole */
    uint32_t *order; /* [n_vocab]: candidates */
    float *terms;    /* [n_vocab] */
    float *nearness; /* [n_vocab]: of typical_p; before it, the largest logits of runs */
    float *given;    /* [n_vocab]: the row before it is adjusted; the leader's */
};
enum { MAX_SAMPLERS = 16 }; /* 4 MB each with the largest vocabularies */

/* Groups of layers that share a page table: what they can see decides (plan.h). */
enum kv_group { KV_FULL, KV_WINDOW, KV_GROUPS };
enum { KV_NO_PAGE = UINT32_MAX };

struct kv_layer {
    enum kv_group group;
    size_t offset; /* of its pages in kv.data */
};

struct kv {
    uint32_t n_page[KV_GROUPS], max_page; /* in the pool; of one slot. n_page[KV_WINDOW] 0: all layers are KV_FULL */
    int n_slot, n_head, d_head;           /* n_head: my KV heads */
    int window;                           /* of KV_WINDOW's layers */
    enum mu_kv_type type;
    size_t page_bytes; /* of one head: keys, then as many of values */
    char *data;        /* [layer][head][page of its group][2][page_bytes / 2] */
    size_t bytes;
    struct kv_layer *layer;    /* [layers of the stage] */
    uint32_t *slot_pages;      /* [n_slot]: full ones that it has */
    uint32_t *table;           /* [group][n_slot][max_page]; KV_NO_PAGE: a window page that it has not */
    struct mu_device_set *set; /* what this step changed in them, for a device's copy; NULL: not wanted */
    int n_set;
};

/* Some of the tokens of one expert: places [begin, end) of a step. A place is one token's with one expert; places are
 * numbered by expert, then token. */
struct group {
    int32_t expert, begin, end;
};

struct row {     /* a token whose logits are wanted */
    int at, seq; /* where its residual is after the last layer; its sequence in the step */
};

struct block { /* memory from the system, to give back */
    void *p;
    size_t bytes;
};

struct parts { /* of the ranks of the stage in a gather buffer */
    size_t off[MU_MAX_RANKS], len[MU_MAX_RANKS];
};

struct lora_pair { /* of one matrix and adapter: all of A, my rows of B; a.n_row 0: none */
    struct mu_mat a, b;
    float scale; /* the file's times the loaded one's */
};

struct lora_group { /* neighbours [begin, end) with the same adapter and strength */
    int adapter, begin, end;
    float scale; /* the request's */
};
struct lora_groups { /* ascending; what has no adapter is in none. At most n_slot: a sequence is in one */
    int n;
    struct lora_group *at;
};

enum pending {
    PENDING_NONE,
    PENDING_LOCAL,
    PENDING_PARTS
}; /* what still has to be added to the residual: y, or the gathered parts */

struct pick { /* the best candidate among some rows of the vocabulary, as it travels between ranks */
    float value;
    int32_t id; /* PICK_NONE: no rows here; PICK_NONFINITE */
};
enum { PICK_NONE = -1, PICK_NONFINITE = -2 };

struct mu_shard {
    int rank;
    const struct mu_model *model;
    struct mu_config cfg;
    struct mu_plan plan;
    struct mu_plan_rank me;
    struct mu_plan_stage stage;
    bool first_stage, last_stage, leader;
    struct mu_serving serving;
    struct mu_pool *pool;
    const struct mu_numa *numa; /* where its memory is to be; NULL: wherever it comes */
    struct mu_shard_comm comm;
    struct mu_rank_record *record;
    const struct mu_kernels *k;
    struct dev *dev; /* where it computes (device.h); NULL: here */

    /* weights */
    struct block weights;
    bool kept_full;    /* they were packed by an earlier launch, and are mapped read-only */
    size_t kept_huge;  /* else, where they are kept: huge pages among theirs */
    const char *whose; /* in the log, before "weights" */
    float *vectors;    /* all norms and biases */
    size_t n_vector_value;
    struct layer *layer;                        /* [layers of the stage] */
    struct mu_mat *expert;                      /* [layers of the stage][3: gate, up, down][n_expert], my rows */
    struct mu_mat out;                          /* my vocabulary rows */
    const float *out_norm, *out_norm_b, *out_b; /* [d_model], [d_model] or NULL, [n_vocab] or NULL */
    unsigned out_in;
    /* adapters */
    const struct mu_adapters *adapters;
    struct lora_pair *lora; /* [n_adapter][n_lora]: [layers of the stage][MU_T_MATRIX_COUNT], then the output's */
    int n_lora;
    struct block lora_data;

    float *rope_freq; /* [n_rope][n_rot/2] and then, of sequences beyond n_ctx_short, [n_rot/2] for the first table */
    size_t n_freq;
    int n_rope; /* rotation tables: one, or one of layers that see everything and one of those with a window */

    struct kv kv;

    /* scratch, one block */
    struct block scratch;
    struct mu_scratch_sizes size;
    float *x, *q, *key, *value, *attn, *gate, *y, *rope; /* rope: [n_rope][step_tokens][n_rot] */
    float *route;                                        /* [step_tokens][n_expert] */
    int32_t *chosen;                                     /* [step_tokens][n_expert_used], ascending */
    float *chosen_weight;                                /* likewise */
    int32_t *place;                                      /* [n_tok · n_expert_used] of the step: index in chosen[] */
    struct group *group;                                 /* [n_group], experts ascending */
    int n_group, largest_group;                          /* of this step and layer; the tokens of the largest */
    float *y_attn;                                       /* what o produces, in a parallel block: as y */
    float *lora_u;                                       /* [LORA_SLOTS][step_tokens][lora_rank] */
    struct act act;
    char *gather;
    float *send[MU_SHARD_TICKETS];
    float *logits, *parts, *whole;
    float *state; /* [n_slot][d_model]; the leader's */
    struct member *member;
    void *member_block;

    /* the step that runs; written by member 0 before the others start */
    const struct mu_step *step;
    int n_tok;
    bool narrow, decode;  /* n_tok ≤ NARROW_TOKENS; one token of each sequence */
    int32_t *seq_of;      /* [n_tok]: index of its sequence */
    uint32_t *block0;     /* [n_seq + 1]: blocks of queries before a sequence's */
    uint32_t query_block; /* tokens of one, but of the last */
    uint32_t *segment0;   /* [n_seq + 1]: segments before a sequence's */
    int n_cut;            /* a decode's pieces of the longest sequence; 0: sequences stay whole */
    float *part;          /* where their results wait for each other (struct mu_attn) */
    /* Rows of logits: those that the caller gets, then those needed whole for top-k and top-p, then those that are
     * adjusted, then the rest, of which a device picks. Where the last layer has more tokens than rows, it goes on with
     * live[] alone once their keys and values are stored. */
    struct row *row; /* [step_tokens] */
    int n_result, n_whole, n_host, n_row;
    const struct pick *device_pick; /* [n_row - n_host] */
    int n_live;                     /* rows of logits, and after them in row[] those whose state is wanted */
    int32_t *live;                  /* [n_live] tokens, ascending */
    bool prune;
    struct lora_groups lora_tok, lora_live, lora_row; /* of the tokens, of live[], of row[] */
    struct lora_group *lora_group;                    /* backing of these */
    struct pick *pick;                                /* [rows][blocks of my vocabulary] */
    struct pick *pick_all;                            /* [ranks of the stage][n_slot] */
    struct sampler sampler[MAX_SAMPLERS];             /* of the first n_sampler members */
    int n_sampler;
    char *sampler_block;
    struct mu_logprobs *logprobs; /* [n_slot] */
    int32_t *id;                  /* [n_slot] */
    int ticket;                   /* of this step's send */
    bool sent[MU_SHARD_TICKETS];
    int n_sent;             /* tickets in flight */
    struct half *half;      /* [MU_SHARD_GATHERS]; NULL: steps go whole */
    bool halved;            /* this one does not */
    struct mu_shard *owner; /* in a half's view: the shard, which has the status; NULL */
    int half_of;            /* … and which half */
    enum mu_status failed;  /* written by member 0, read by all after they met */
    struct mu_err err;
    struct {
        _Alignas(64) atomic_int next;
    } counter[N_COUNTER];

    struct mu_shard_times times;
    int64_t exchange_ns, recv_ns, send_ns, attention_ns, sampling_ns;
    struct mu_shard_trace *trace; /* borrowed; NULL: none */
};

/* A pool member inside a step. */
struct run {
    struct mu_shard *s;
    struct member *mine;
    int member, n_member;
    unsigned phase; /* every member counts the same phases */
    int n_tok;
    bool narrow; /* x and act are mine alone */
    float *x;    /* [n_tok][d_model] */
    struct act *act;
    enum pending pending;
    bool pending_round;
    const struct lora_groups *lora; /* of the vectors that are worked on; NULL: no adapter in this step */
    const float *pending_norm;      /* what is pending is normed with it first; NULL: no */
    struct parts pending_parts;
};

/* ---- load.c ---- */
unsigned mu_form_of(uint32_t type);
enum mu_status mu_shard_load(struct mu_shard *s, const struct mu_shard_options *opt, struct mu_err *err);

/* ---- kept.c ---- */
/* Maps weights.bytes of that memory as the weights: complete (kept_full), or to be packed into and then sealed. layout is
 * a fingerprint of the matrices in them. false: it cannot be used, a warning was given, nothing is mapped. */
bool mu_kept_open(struct mu_shard *s, int fd, uint64_t layout);
/* After all is packed: nobody can change the weights any more. A system that refuses to seal leaves them good for this
 * process only. */
enum mu_status mu_kept_seal(struct mu_shard *s, int fd, uint64_t layout, struct mu_err *err);
/* A line of the log. */
void mu_kept_tell(const struct mu_shard *s, double seconds);

/* ---- experts.c ---- */
/* Matrices of all experts; id is MU_T_GATE, MU_T_UP or MU_T_DOWN. layer counts from the stage's first. */
static inline struct mu_mat *mu_expert_mats(const struct mu_shard *s, int layer, enum mu_tensor_id id)
{
    return s->expert + ((size_t)layer * 3 + (size_t)(id - MU_T_GATE)) * (size_t)s->cfg.n_expert;
}
/* The feed-forward of a layer with experts, from its normed input; what it adds is left pending. */
bool mu_run_experts(struct run *r, int layer);

/* ---- small.c ---- */
/* What layers have besides matrices: norms, biases, windows, rotations. */
enum mu_status mu_shard_load_small(struct mu_shard *s, struct mu_err *err);

/* ---- kv.c ---- */
enum mu_status mu_kv_create(struct mu_shard *s, struct mu_err *err);
void mu_kv_destroy(struct kv *kv);
/* Applies the step's page changes and checks that every sequence has the pages it is about to write. */
enum mu_status mu_kv_apply(struct mu_shard *s, const struct mu_step *step, struct mu_err *err);
/* The layer's pages of a slot by place, [max_page]. */
static inline uint32_t *mu_kv_table(const struct kv *kv, enum kv_group group, uint32_t slot)
{
    return kv->table + ((size_t)group * (size_t)kv->n_slot + slot) * kv->max_page;
}
/* Where the layer keeps what that head had at the positions of page number `at` of the slot. */
static inline char *mu_kv_page(const struct kv *kv, int layer, int head, uint32_t slot, uint32_t at)
{
    const struct kv_layer *l = &kv->layer[layer];
    size_t page = mu_kv_table(kv, l->group, slot)[at];
    return kv->data + l->offset + ((size_t)head * kv->n_page[l->group] + page) * kv->page_bytes;
}

/* ---- forward.c ---- */
/* A layer's attention up to its output, and its feed-forward up to the hidden vectors; met afterwards. last: of the model. */
void mu_run_attention(struct run *r, const struct layer *layer, int index, bool last);
void mu_run_hidden(struct run *r, const struct layer *layer);
/* What both passes compute: */
struct job;
/* A layer's matrix, with the adapters' part and the bias, where there is one, of the rows that begin at row0. */
struct job mu_job_biased(const struct layer *layer, enum mu_tensor_id id, enum mu_tensor_id bias, int row0, float *out);
/* … of what is added to the residual. */
struct job mu_job_added(const struct mu_shard *s, const struct layer *layer, enum mu_tensor_id id,
                        enum mu_tensor_id bias, float *out);
/* The hidden vectors of a feed-forward without experts. */
struct job mu_job_hidden(const struct mu_shard *s, const struct layer *layer, float *out);
struct job mu_job_logits(const struct mu_shard *s, float *out);

/* ---- phase.c ---- */
/* Meets all members; afterwards the next phase's counter is at 0. */
void mu_run_meet(struct run *r);
/* The next items of a phase for this member: at most max, fewer towards the end, at least min but for the last; false
 * when there are none left. */
bool mu_run_claim(struct run *r, int n_item, int min, int max, int *begin_out, int *end_out);
/* This member's fixed share of n. */
struct mu_range mu_run_share(const struct run *r, int n);
/* Its share of the tokens: all of them where the run is narrow. */
struct mu_range mu_run_tokens(const struct run *r);
/* Between claims: member 0 keeps sends moving. */
static inline void mu_run_breathe(const struct run *r)
{
    if (r->member == 0 && (r->s->n_sent > 0 || r->s->owner)) r->s->comm.progress(r->s->comm.ctx);
}

struct job { /* one matrix of a phase */
    const struct mu_mat *m;
    float *out; /* [n_tok][stride] */
    size_t stride;
    const struct mu_mat *up; /* m is a gate: out = act(m·x) · (up·x). NULL: no */
    const float *bias;       /* [n_row], added to the product; NULL: no */
    const float *plus;       /* [n_tok][stride], added to that; NULL: no */
    float scale;             /* of product and bias; 0: none */
    enum job_act { ACT_NONE, ACT_SILU, ACT_GELU, ACT_GELU_ERF } act; /* applied to all that; silu only with up */
    float cap;                                                       /* soft cap of the result; 0: none */
    uint16_t *bf16;                                                  /* out rounded, the same stride; NULL: no */
    int lora, lora_up; /* keys of m and up in the tables of adapters, from 1; added to the product; 0: no */
};
void mu_run_matmul(struct run *r, const struct job *job, int n_job, const struct act *act, int n_tok);
/* Row groups of a matrix of n_col columns that take n_tok vectors some 40 µs. */
int mu_run_piece_groups(int n_col, int n_tok);
/* v[n] in the forms asked for, as vector t of act. A value that is not finite poisons the vector. */
void mu_form_vector(const struct mu_shard *s, unsigned forms, const float *v, int n, const struct act *act, int t);
/* out = norm(v)·weight; out may be v. NaN where it is not finite. */
void mu_norm_vector(const struct mu_shard *s, const float *v, const float *weight, const float *bias, float *out);
/* The residual with what is pending, normed, in its forms: for all tokens when it returns. */
void mu_run_norm(struct run *r, const float *weight, const float *bias, unsigned forms);

/* ---- lora.c ---- */
static inline struct lora_pair *mu_lora_pair(const struct mu_shard *s, int adapter, int key)
{
    return &s->lora[(size_t)(adapter - 1) * (size_t)s->n_lora + (size_t)(key - 1)];
}
enum mu_status mu_lora_load(struct mu_shard *s, const struct mu_shard_options *opt, struct mu_err *err);
/* The step's groups, after its rows. */
void mu_lora_plan(struct mu_shard *s);
/* A·x̂ of the jobs' matrices for every group; met afterwards, where there was anything to do. */
void mu_lora_inner(struct run *r, const struct job *job, int n_job, const struct act *act);
/* Adds the strength times B·(A·x̂) to rows [row0, row1) of n_tok tokens from t0 on, whose row 0 is at out[t·stride].
 * slot: the job's number, one more for its up. */
void mu_lora_add(const struct run *r, int key, int slot, int row0, int row1, int t0, int n_tok, float *out,
                 size_t stride);

/* ---- exchange.c ---- */
enum input { INPUT_O, INPUT_DOWN };
enum wire { WIRE_F32, WIRE_BF16, WIRE_Q8 };
/* How the input of o or down, which is wanted in these forms, travels; the parts of n_tok vectors of it; the columns that
 * a rank of the stage has. */
enum wire mu_input_wire(const struct mu_shard *s, enum input input, unsigned forms);
struct parts mu_input_parts(const struct mu_shard *s, enum input input, enum wire wire, int n_tok);
struct mu_range mu_input_columns(const struct mu_shard *s, enum input input, int local);
/* The same of what o and down produce. */
struct parts mu_model_parts(const struct mu_shard *s, enum wire wire, int n_tok);
struct mu_range mu_model_rows(const struct mu_shard *s, int local);
/* Adds what is pending to token t's residual x. */
void mu_residual_add(const struct run *r, float *x, int t);
/* ① and ③: the whole input of o (heads of d_head columns) or down in its forms. src [n_tok][my width] was finished
 * before a meeting. */
bool mu_run_gather_input(struct run *r, enum input input, const float *src, unsigned forms, struct act *act_out);
/* The same in two, of a half; nobody meets at the end of begin. */
void mu_run_input_begin(struct run *r, enum input input, const float *src, unsigned forms);
bool mu_run_input_end(struct run *r, enum input input, unsigned forms, struct act *act_out);
/* … and of what is pending, once it is computed and everybody met. */
void mu_run_parts_begin(struct run *r);
bool mu_run_parts_end(struct run *r);
/* What is computed next is pending, a row of job->out a token (job->bf16 too, where set): where it belongs. */
void mu_run_project_begin(struct run *r, struct job *job, bool round, const float *post);
/* After it is computed and everybody met. false: the step failed. */
bool mu_run_project_end(struct run *r);
/* ② and ④: the product of o or down, left pending. post: the norm that it passes before it is added, or NULL. */
bool mu_run_project(struct run *r, const struct job *job, const struct act *act, bool round, const float *post);
/* All ranks' parts of buf, by member 0; everybody meets. false: the step failed. */
bool mu_run_gather(struct run *r, void *buf, const struct parts *parts);
/* What a wait for other ranks takes: noted in the record, the trace and *spent_ns. waiting_on: MU_RECORD_NOBODY where comm
 * says whom. */
int64_t mu_talk_begin(struct mu_shard *s, enum mu_rank_op op, int waiting_on);
void mu_talk_end(struct mu_shard *s, enum mu_rank_op op, int64_t start, int64_t *spent_ns);
/* The same by member 0 alone; s->failed has the status. */
void mu_gather_now(struct mu_shard *s, void *buf, const struct parts *parts);
bool mu_run_recv(struct run *r);
void mu_run_send(struct run *r); /* the step ends with it; member 0 has the status */
/* n tokens' residual from the stage before, or begins to send that in the buffer of the step's ticket to the next; by
 * member 0 alone. s->failed has the status. */
void mu_recv_now(struct mu_shard *s, float *x, int n_tok);
void mu_send_now(struct mu_shard *s, int n_tok);

/* ---- halves.c ---- */
enum mu_status mu_halves_create(struct mu_shard *s, const struct mu_shard_options *opt, struct mu_err *err);
void mu_halves_destroy(struct mu_shard *s);
/* Whether the step that was prepared goes in halves (s->halved); then they are prepared, too. */
void mu_halves_plan(struct mu_shard *s);
/* The first n_layer layers; afterwards the residual is whole, nothing is pending, everybody has met. false: the step
 * failed. */
bool mu_run_halves(struct run *r, int n_layer);

/* ---- attend.c ---- */
/* Cosines and sines of token t in rotation table i. */
static inline float *mu_rope_at(const struct mu_shard *s, int i, int t)
{
    return s->rope + ((size_t)i * (size_t)s->serving.step_tokens + (size_t)t) * (size_t)s->cfg.n_rot;
}
void mu_attend_plan(struct mu_shard *s);
/* Rotates, stores, attends; met afterwards. layer counts from the stage's first. last: of the model. */
void mu_run_attend(struct run *r, int layer, bool last);

/* ---- embed.c ---- */
/* The states that sequences want, into s->state; of the leader only, without meeting other ranks. */
void mu_run_states(struct run *r);
/* Adds dimensions [from, from + n) of the states; the i-th that is wanted is at x[i·d_model]. */
void mu_states_add(struct mu_shard *s, const float *x, int from, int n);
/* After the step: id is -2 where a state is not finite. */
void mu_states_check(struct mu_shard *s);

/* ---- sample.c ---- */
/* Whether the row is needed whole. */
bool mu_sample_whole(const struct mu_step_seq *q);
/* Whether its logits are adjusted first. */
bool mu_sample_adjusted(const struct mu_step_seq *q);
/* Fills id and whole from the rows of logits. */
void mu_run_sample(struct run *r);
/* The end of it, by member 0 alone; enough where no row is needed here (n_host 0). */
void mu_sample_finish(struct mu_shard *s);

#endif
