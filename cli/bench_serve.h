/* Requests to a server, and how long they took: `muster bench --serve`.
 *
 * What is measured, at the client, as vLLM's benchmark_serving (now `vllm bench serve`) defines it:
 *   TTFT   sent → the first reply with a token            TPOT   (E2E - TTFT) / (tokens - 1), of requests with two or more
 *   ITL    between replies with tokens, of all requests   E2E    sent → the last reply with a token
 *   goodput   requests a second that met every target; ITL's is met where 99 of 100 gaps of the request are as short */
#ifndef MU_CLI_BENCH_SERVE_H
#define MU_CLI_BENCH_SERVE_H

#include "cli/bench.h"
#include "transport/rpc.h"

struct mu_bench_serve_options {
    const char *model;                    /* of our own server; with `server` the name that it is asked for, or NULL */
    const char *server;                   /* a running one; NULL: our own */
    const char *split, *quantize, *draft; /* NULL: as serve has it; none */
    enum mu_device_wish device;
    enum mu_kv_type kv;
    bool rough;
    int n_thread, n_ctx, n_parallel;     /* our own server's; 0: its defaults */
    struct mu_bench_rates rate;          /* requests a second, Poisson arrivals; one of the two */
    struct mu_bench_list concurrency;    /* so many at once, the next when one is done */
    int n_request;                       /* of each load; 0: no limit */
    int64_t duration_ns;                 /* no new requests after it; 0: no limit */
    struct mu_bench_range input, output; /* tokens; max 0: chosen by what fits the server's context */
    const char *prompts;                 /* a file, a prompt a line, instead of random ones */
    int n_prefix;                        /* tokens that all prompts begin with, before their input */
    uint64_t seed;
    struct mu_bench_slo slo;
    bool has_slo;
    struct mu_bench_output out;
};
enum mu_status mu_bench_serve(const struct mu_bench_serve_options *opt, struct mu_err *err);

/* ---- prompts, a line each, empty lines left out ---- */

struct mu_bench_prompts {
    char *text, **line; /* [n] */
    int n;
};
/* `what` names it in errors. On failure, too, it is freed by: */
enum mu_status mu_bench_prompts_of(const char *text, size_t len, const char *what, struct mu_bench_prompts *p,
                                   struct mu_err *err);
enum mu_status mu_bench_prompts_read(const char *path, struct mu_bench_prompts *p, struct mu_err *err);
void mu_bench_prompts_free(struct mu_bench_prompts *p);

/* ---- bench_server.c: a server of our own, started as a person would ---- */

struct mu_bench_server;
/* Blocks until it serves. It dies with us. */
enum mu_status mu_bench_server_start(const struct mu_bench_serve_options *opt, struct mu_bench_server **server_out,
                                     struct mu_err *err);
const char *mu_bench_server_address(const struct mu_bench_server *s);
void mu_bench_server_stop(struct mu_bench_server *s); /* NULL is fine */

/* ---- bench_requests.c: one load ---- */

enum { MU_BENCH_KINDS = MU_RPC_UNAUTHENTICATED + 2, MU_BENCH_SHORT = MU_BENCH_KINDS - 1 /* fewer tokens than asked */ };

struct mu_bench_load_options {
    const struct mu_bench_serve_options *opt;
    double rate; /* 0: closed loop of `concurrency` */
    int concurrency;
    uint64_t seed;
    struct mu_bench_range input, output;
    const int32_t *pool; /* ids that prompts are made of */
    int n_pool;
    char *const *prompt; /* [n_prompt] texts instead; NULL: none */
    int n_prompt;
};
/* What a rank did meanwhile, as the server tells: shares of the time. */
struct mu_bench_spent {
    double matrix, attention, sampling, talk,
        idle; /* talk: exchanges, receives and sends, waiting for others included */
};
/* What a load came to. Times in ms. */
struct mu_bench_load_result {
    double rate;
    int concurrency, n_sent, n_ok, n_good, n_resumed;
    int failed[MU_BENCH_KINDS]; /* by gRPC status; the last: MU_BENCH_SHORT */
    int cancelled;              /* by Ctrl-C */
    double duration_s, send_s;  /* first sent → last end; → last sent */
    double in_tokens, out_tokens, tokens_a_reply, mean_active;
    struct mu_bench_spread ttft, tpot, itl, e2e;
    struct mu_bench_spread queue; /* the server's word: until a request's first step */
    struct mu_bench_spread lag;   /* of this generator: sent after it was due */
    double rank_cpus;             /* cores that the server's ranks kept busy; below 0: they are not on this machine */
    int rank_threads;
    int n_rank; /* 0: the server did not tell */
    struct mu_bench_spent rank[MU_MAX_RANKS];
    struct mu_bench_machine machine;
};
struct mu_bench_client;
enum mu_status mu_bench_client_open(const char *address, const char *model, struct mu_bench_client **client_out,
                                    struct mu_err *err);
void mu_bench_client_close(struct mu_bench_client *c);
/* What the server says of its model. */
enum mu_status mu_bench_client_model(struct mu_bench_client *c, int *n_ctx_out, char *what, size_t what_bytes,
                                     struct mu_err *err);
/* Ids of ordinary text, for prompts: freed with mu_free. */
enum mu_status mu_bench_client_ids(struct mu_bench_client *c, int32_t **ids_out, int *n_out, struct mu_err *err);
/* Ctrl-C cancels what runs; the result is of what was done. */
enum mu_status mu_bench_client_load(struct mu_bench_client *c, const struct mu_bench_load_options *load,
                                    struct mu_bench_load_result *result_out, struct mu_err *err);

/* ---- bench_told.c ---- */

struct mu_bench_served {
    const struct mu_bench_serve_options *opt;
    const char *address;
    char what[256];
    bool interrupted;
    struct mu_bench_range input, output;
    int n_load;
    struct mu_bench_load_result load[MU_BENCH_MAX_LIST];
    struct mu_bench_warnings warnings;
};
/* One sentence, by the rule of docs/benchmarking.md. */
void mu_bench_served_limit(const struct mu_bench_load_result *r, const char **name_out, char *buf, size_t buf_bytes);
const char *mu_bench_kind_name(int kind);
/* Of every load, with its name where there are several; settles what part of the machine others had. */
void mu_bench_served_warn(struct mu_bench_served *s);
enum mu_status mu_bench_served_report(const struct mu_bench_served *s, struct mu_err *err);

#endif
