/* What the parts of `muster bench` share.
 *
 *   cmd_bench.c      the command line; which of the two it is
 *   bench_sweep.c    steps: every case of every split, here or as an MPI job     bench_serve.c    requests to a server
 *   bench_load.c     the workload that every rank runs                           bench_requests.c who asks what, and when
 *   bench_mpi.c      an MPI job of this program                                  bench_server.c   a server of our own
 *   bench_work.c     what a case costs at least, and what limits it              bench_told.c     tables and JSON of it
 *   bench_report.c   tables and JSON of the sweep                                bench_svg.c      pictures
 *   bench_machine.c  the machine, and who else uses it                           bench_stats.c    lists, percentiles, chance
 *   bench_predict.c  links between ranks, and what is expected of a case
 *   bench_draft.c    decoding with a draft model and without                 bench_draft_told.c tables, JSON, pictures of it */
#ifndef MU_CLI_BENCH_H
#define MU_CLI_BENCH_H

#include <jansson.h>
#include <stdbool.h>

#include "cli/bench_stats.h"
#include "cli/cli.h"
#include "shard/plan_predict.h"
#include "shard/plan_where.h"
#include "shard/shard.h"

/* ---- cases ---- */

enum { MU_BENCH_MAX_CASES = 256, MU_BENCH_MAX_REPEATS = 100, MU_BENCH_MAX_SPLITS = 16, MU_BENCH_MAX_THREADS = 1024 };
enum mu_bench_phase { MU_BENCH_PROMPT, MU_BENCH_DECODE };

struct mu_bench_case {
    enum mu_bench_phase phase;
    int n_tok;     /* of the prompt; steps of a decode */
    int n_stream;  /* sequences decoded at once; 1 for a prompt */
    int n_context; /* tokens before the decode */
};

/* What the machine does at most, measured in the same minutes: all threads of all ranks on processors at once, or a
 * GPU, which was measured before the first case. */
struct mu_bench_limits {
    double read_gbps, int8_gops, f32_gflops;
    double bf16_gflops; /* a GPU's tensor cores; 0: none */
    double up_gbps;     /* to a GPU, what is streamed; 0: unknown */
};

/* What runs, whole and without pointers: every rank of an MPI job reads it from a file. */
struct mu_bench_job {
    char path[4096], quantize[32], split[MU_SPLIT_TEXT]; /* quantize: "", as in the file */
    int n_thread, n_repeat;                              /* threads of a rank */
    struct mu_serving serving;
    uint64_t probe_bytes; /* read by all ranks on processors together to measure memory */
    struct mu_gpus gpus;  /* of this machine, for predictions */
    struct mu_bench_limits gpu[MU_MAX_GPUS];
    int n_case;
    struct mu_bench_case cases[MU_BENCH_MAX_CASES];
};

/* ---- bench_work.c ---- */

/* What a case has to do whoever does it: bytes from memory, and operations (a multiplication and an addition are two). */
struct mu_bench_work {
    double weight_bytes, kv_bytes, int8_ops, f32_ops;
    double streamed_bytes; /* of layers that are streamed to a GPU (shard/plan.h) */
};
/* Seconds that a case takes at least: reading and computing may overlap, so the longer one; int8 and f32 work may not. */
struct mu_bench_bound {
    double read_s, int8_s, f32_s, s;
};
/* A rank's seconds in one repeat. */
struct mu_bench_times {
    double matrix_s; /* computing, but for the next two: matrix products, norms, quantising */
    double attention_s, sampling_s;
    double wire_s; /* bytes moving between ranks */
    double wait_s; /* for a rank that was not there yet, and between steps */
};
/* Where a rank on processors ran. */
struct mu_bench_seat {
    int numa;          /* -1: no single node */
    double numa_share; /* of its memory, on that node; -1: not known */
    double read_gbps;  /* by its threads while all others read too; the best */
    char cpus[64];
};
/* What a case came to. Without pointers, as the job. */
struct mu_bench_result {
    struct mu_bench_spread s;      /* seconds */
    struct mu_bench_limits limits; /* of processors, of a GPU; where ranks are on several places: work / bound */
    struct mu_bench_limits host;   /* of processors alone; 0: no rank is on them */
    struct mu_bench_bound bound;
    double of_bf16;  /* operations of matrices and attention, as a fraction of the GPUs' bf16 rate; 0: processors */
    double of_bound; /* median of the repeats' bound / time, each by its own reading of memory */
    double load_s;
    int n_step;                          /* of a prompt; rounds of decoding */
    double predicted_s;                  /* 0: unknown, as in one process */
    struct mu_plan_link inside, between; /* the slowest links inside machines, between them; gbps 0: none */
    double delayed;                      /* share of the threads' time that they could have run and had no core */
    int n_rank;
    struct mu_bench_times rank[MU_MAX_RANKS];
    struct mu_bench_seat seat[MU_MAX_RANKS];
};

/* How many steps a prompt, or a round of decoding all streams, is cut into, so that stages work side by side (as the
 * scheduler does it). Ranks that are threads of one process run one step at a time. */
int mu_bench_groups(const struct mu_plan *plan, const struct mu_bench_case *c, bool is_mpi);
/* The tokens of each of a prompt's steps; the last one may have fewer. */
int mu_bench_chunk(const struct mu_plan *plan, int n_tok, bool is_mpi);
void mu_bench_work(const struct mu_model *m, const struct mu_plan *plan, const struct mu_bench_case *c, int n_group,
                   enum mu_kv_type kv, struct mu_bench_work *work_out);
struct mu_bench_bound mu_bench_bound(const struct mu_bench_work *w, const struct mu_bench_limits *l);
/* The same where places have limits of their own: a stage takes as long as its slowest place; n_flight steps are on their
 * way at once, over as many stages, and a place's stages share it. All ranks on one place: mu_bench_bound. */
struct mu_bench_bound mu_bench_bound_places(const struct mu_model *m, const struct mu_plan *plan,
                                            const struct mu_bench_case *c, int n_group, bool is_mpi, enum mu_kv_type kv,
                                            const struct mu_bench_limits *cpu, const struct mu_bench_limits *gpu);
/* Of each rank, how much of its time in talks was waiting for another one to begin: wait_ns[n_rank]. node_of: the machine of
 * each, as mu_plan_residual_from has it. */
void mu_bench_waits(const struct mu_plan *plan, const int *node_of, const struct mu_shard_trace *trace,
                    int64_t *wait_ns);
/* The rule that docs/benchmarking.md has in words. */
enum mu_bench_limit {
    MU_BENCH_BANDWIDTH,
    MU_BENCH_ARITHMETIC,
    MU_BENCH_NETWORK,
    MU_BENCH_WAITING,
    MU_BENCH_OTHERS,
    MU_BENCH_OVERHEAD
};
enum mu_bench_limit mu_bench_limit_of(const struct mu_bench_result *r);
const char *mu_bench_limit_name(enum mu_bench_limit limit);
/* One sentence without the case's name. */
void mu_bench_limit_say(const struct mu_bench_result *r, const struct mu_bench_work *w, char *buf, size_t buf_bytes);

/* ---- bench_load.c: what every rank runs; in this process (threads for ranks), or as one rank of an MPI job ---- */

/* Called for each case that is done, in order; of an MPI job on rank 0. */
typedef enum mu_status mu_bench_done(const struct mu_bench_result *r, int i, void *ctx, struct mu_err *err);
/* MU_ECANCELLED after Ctrl-C. */
enum mu_status mu_bench_local(const struct mu_bench_job *job, mu_bench_done *done, void *ctx, struct mu_err *err);
struct mu_comm;
enum mu_status mu_bench_rank(const struct mu_bench_job *job, struct mu_comm *comm, mu_bench_done *done, void *ctx,
                             struct mu_err *err);

/* ---- bench_predict.c: of an MPI job ---- */

/* Everybody's pieces of the same length, one after another. */
enum mu_status mu_bench_all_gather(struct mu_comm *comm, void *buf, size_t each, struct mu_err *err);
struct mu_bench_links;
/* By all ranks together; of each pair that the plan has talking to each other. Freed with mu_free. */
enum mu_status mu_bench_links_measure(struct mu_comm *comm, const struct mu_plan *plan,
                                      struct mu_bench_links **links_out, struct mu_err *err);
/* Whether a link within rank's stage is slow (mu_plan_link_slow): the same on all of the stage. */
bool mu_bench_links_slow(const struct mu_bench_links *l, const struct mu_plan *plan, int rank);
/* Fills the result's prediction and links, from its host's limits and the job's GPUs. */
void mu_bench_predict(const struct mu_model *model, const struct mu_plan *plan, const struct mu_bench_job *job,
                      const struct mu_bench_case *c, struct mu_bench_links *l, struct mu_bench_result *r);

/* ---- bench_mpi.c ---- */

/* mpirun with this program on every rank; on_result is called with results in order as they come. hosts: machines for the
 * ranks, as mpirun's --host has them, the first of them this one; NULL: all here. MU_ECANCELLED after Ctrl-C. */
enum mu_status mu_bench_mpi(const struct mu_bench_job *job, int n_rank, const char *hosts,
                            void (*on_result)(const struct mu_bench_result *r, int i, void *ctx), void *ctx,
                            struct mu_err *err);
/* The other side: the whole program of a rank that mu_bench_mpi started (MUSTER_BENCH_RANK names its folder). */
int mu_bench_rank_main(const char *folder);

/* ---- bench_machine.c ---- */

struct mu_bench_machine {
    char cpu[96], system[128];
    int n_cpu, n_core, n_usable; /* that we may use */
    int n_online;                /* the machine's, which shares are of */
    uint64_t mem_bytes, available_bytes;
    double load_average, quota_cpus; /* of the last minute when it began; 0: no quota */
    double elapsed_s;
    /* shares of all cores while it ran: everybody else, what the hypervisor kept, all together */
    double others, steal, busy;
    double own_cpus;         /* this process alone, in cores */
    double throttled_s;      /* the quota held us back */
    uint64_t heat_throttles; /* the processor slowed down for its temperature */
    double mhz, mhz_max;     /* 0: not told */
};
struct mu_bench_watch;
enum mu_status mu_bench_watch_begin(struct mu_bench_watch **watch_out, struct mu_err *err);
/* Frees it; machine_out may be NULL. */
void mu_bench_watch_end(struct mu_bench_watch *w, struct mu_bench_machine *machine_out);
json_t *mu_bench_machine_json(const struct mu_bench_machine *m);

/* Sentences that a reader of the figures must know, in order. */
enum { MU_BENCH_MAX_WARNINGS = 16 };
struct mu_bench_warnings {
    int n;
    char of[32]; /* what the next ones are of, which they begin with; empty: nothing */
    char text[MU_BENCH_MAX_WARNINGS][240];
};
__attribute__((format(printf, 2, 3))) void mu_bench_warn(struct mu_bench_warnings *w, const char *fmt, ...);
#define MU_BENCH_MOST_NOISE 0.15 /* of repeats, without a warning */
/* By the rules of docs/benchmarking.md. alone: other processes should have been idle. */
void mu_bench_machine_warn(const struct mu_bench_machine *m, bool alone, struct mu_bench_warnings *w);
json_t *mu_bench_warnings_json(const struct mu_bench_warnings *w);

/* ---- outputs ---- */

enum mu_bench_format { MU_BENCH_TABLE, MU_BENCH_JSON, MU_BENCH_SVG };
struct mu_bench_output {
    enum mu_bench_format format;
    const char *out; /* a file instead of standard output; NULL: that */
    const char *svg; /* a picture beside it; NULL: none */
};
/* Text to where output says, a file complete or not at all. */
enum mu_status mu_bench_write(const char *path, const char *text, size_t len, struct mu_err *err);
/* Takes the document; NULL: MU_ENOMEM. */
enum mu_status mu_bench_write_json(const struct mu_bench_output *o, json_t *doc, struct mu_err *err);
struct mu_picture;
enum mu_status mu_bench_write_svg(const char *path, const struct mu_picture *p, struct mu_err *err);
/* What every document begins with. kind: "steps", "serving", "draft". */
json_t *mu_bench_doc(const char *kind, const struct mu_bench_machine *m, const struct mu_bench_warnings *w,
                     bool interrupted);
void mu_bench_warnings_print(const struct mu_bench_warnings *w);

/* ---- steps ---- */

struct mu_bench_sweep_options {
    const char *model, *quantize; /* quantize: NULL, as in the file */
    const char *hosts;            /* as mu_bench_mpi has them */
    enum mu_kv_type kv;
    bool rough; /* prompts on GPUs: struct mu_serving */
    enum mu_device_wish device;
    int n_split; /* 0: auto, of a rank a NUMA node or of GPUs */
    struct mu_split split[MU_BENCH_MAX_SPLITS];
    struct mu_bench_list prompt, stream, context; /* n 0: none */
    int n_decode, n_thread, n_repeat;             /* n_thread 0: the cores, shared out; n_decode 0: no decode */
    bool local, breakdown;                        /* ranks are threads; per rank, of every case */
    struct mu_bench_output output;
};
enum mu_status mu_bench_sweep(const struct mu_bench_sweep_options *opt, struct mu_err *err);

/* Everything measured, for reports. */
enum mu_bench_state { MU_BENCH_NOT_RUN, MU_BENCH_DONE, MU_BENCH_REFUSED };
struct mu_bench_point {
    enum mu_bench_state state;
    char why[160]; /* it is refused */
    const struct mu_bench_case *c;
    int i_split;
    uint64_t need_bytes;
    struct mu_bench_work work;
    struct mu_bench_result r;
};
struct mu_bench_sweep {
    const struct mu_bench_sweep_options *opt;
    const struct mu_model *model;
    struct mu_plan_node node; /* with its GPUs measured, where they were looked for */
    bool looked;
    int n_split;
    struct mu_split split[MU_BENCH_MAX_SPLITS]; /* the options', or what auto came to */
    char why[MU_PLAN_WHY];
    int n_case, n_point; /* n_point: n_case for each split in turn */
    struct mu_bench_case cases[MU_BENCH_MAX_CASES];
    struct mu_bench_point *point;
    int n_thread[MU_BENCH_MAX_SPLITS];
    struct mu_bench_machine machine;
    struct mu_bench_warnings warnings;
    bool interrupted;
};
/* ---- bench_report.c ---- */
enum mu_status mu_bench_sweep_report(const struct mu_bench_sweep *s, struct mu_err *err);
/* "prompt 512", "decode 4 at 8k". */
void mu_bench_case_name(const struct mu_bench_case *c, char *buf, size_t buf_bytes);
/* Tokens that a case makes or takes. */
double mu_bench_case_tokens(const struct mu_bench_case *c);

#endif
