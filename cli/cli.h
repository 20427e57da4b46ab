/* The one binary, `muster`: verbs, and what they share. A verb returns the exit status: 0 fine, 1 failed (one sentence on stderr), 2 wrong usage. */
#ifndef MU_CLI_CLI_H
#define MU_CLI_CLI_H

#include <argp.h>
#include <jansson.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "kernels/types.h"
#include "model/adapter.h"
#include "model/model.h"
#include "model/store.h"
#include "model/tokenizer.h"
#include "shard/plan_fit.h"
#include "shard/plan_where.h"

enum { MU_EXIT_OK = 0, MU_EXIT_FAILED = 1, MU_EXIT_USAGE = 2 };

int mu_cmd_serve(int argc, char **argv);
int mu_cmd_run(int argc, char **argv);
int mu_cmd_embed(int argc, char **argv);
int mu_cmd_logits(int argc, char **argv);
int mu_cmd_tokenize(int argc, char **argv);
int mu_cmd_detokenize(int argc, char **argv);
int mu_cmd_template(int argc, char **argv);
int mu_cmd_perplexity(int argc, char **argv);
int mu_cmd_synth(int argc, char **argv);
int mu_cmd_bench(int argc, char **argv);
int mu_cmd_served(int argc, char **argv); /* serve, for a benchmark: ends with the process that started it */
int mu_cmd_ps(int argc, char **argv);
int mu_cmd_plan(int argc, char **argv);
int mu_cmd_worker(int argc, char **argv);
int mu_cmd_list(int argc, char **argv);
int mu_cmd_show(int argc, char **argv);
int mu_cmd_pull(int argc, char **argv);
int mu_cmd_cp(int argc, char **argv);
int mu_cmd_rm(int argc, char **argv);
int mu_cmd_create(int argc, char **argv);

/* ---- args.c: numbers and lists out of the command line; argp_error() on anything else ---- */

long mu_arg_long(const char *text, long min, long max, const char *what, struct argp_state *state);
double mu_arg_double(const char *text, double min, double max, const char *what, struct argp_state *state);
/* interactive, normal or batch: Muster__V1__Priority. */
int mu_arg_priority(const char *text, struct argp_state *state);
/* "[NAME=]PATH[:SCALE]" of a LoRA adapter; "none": not even the model's own, an empty path called so. */
void mu_arg_adapter(const char *text, struct mu_adapter_spec *spec_out, struct argp_state *state);
/* "1,2,3" or "@FILE" (numbers with commas or white space between). *ids_out is freed with mu_free. */
enum mu_status mu_arg_ids(const char *text, int32_t **ids_out, size_t *n_out, struct mu_err *err);
/* Standard input as a whole, NUL-terminated beyond len_out; freed with mu_free. More than max_bytes: MU_ELIMIT. */
enum mu_status mu_read_stdin(size_t max_bytes, char **text_out, size_t *len_out, struct mu_err *err);
/* What a split is, for the end of --help. */
#define MU_SPLIT_HELP                                                                                              \
    "A split 3:1/1 is a first stage of two ranks with weights 3 and 1, then a stage of one rank; 1@gpu0/1 one on " \
    "GPU 0, then one on processors; 1@gpu0~12 has 12 layers come to GPU 0 from the host's memory in every step.\n"
/* The name of a type that matrices can be quantised to. */
const char *mu_arg_quantize(const char *text, struct argp_state *state);
enum { MU_OPT_QUANTIZE = 1000, MU_OPT_KV, MU_OPT_DEVICE, MU_OPT_GPU_PROMPTS };
#define MU_QUANTIZE_OPTION(group)                                                   \
    {                                                                               \
        "quantize", MU_OPT_QUANTIZE, "TYPE", 0,                                     \
            "quantise F32, F16 and BF16 matrices at load: q8_0, q6_k, q5_k, q4_k, " \
            "q4_0, mxfp4, … (as in the file)",                                      \
            group                                                                   \
    }
/* The name of a format of the cache. */
enum mu_kv_type mu_arg_kv(const char *text, struct argp_state *state);
#define MU_KV_OPTION(group)                                                                       \
    {                                                                                             \
        "kv", MU_OPT_KV, "TYPE", 0, "how the cache keeps keys and values: f16, q8_0 (f16)", group \
    }
/* auto, cpu or gpu. */
enum mu_device_wish mu_arg_device(const char *text, struct argp_state *state);
#define MU_DEVICE_OPTION(group)                                                             \
    {                                                                                       \
        "device", MU_OPT_DEVICE, "auto|cpu|gpu", 0,                                         \
            "GPUs where they hold the model, or some of it; none; GPUs alone (auto)", group \
    }
/* exact: false; rough: true (struct mu_serving). */
bool mu_arg_gpu_prompts(const char *text, struct argp_state *state);
#define MU_GPU_PROMPTS_OPTION(group)                                                                                 \
    {                                                                                                                \
        "gpu-prompts", MU_OPT_GPU_PROMPTS, "exact|rough", 0,                                                         \
            "how GPUs compute prompts: to the bit as processors do, or faster in bf16, close to that (exact)", group \
    }
/* How many threads pay on this machine (base/topo.h), shared among the ranks; at least 1. */
int mu_default_threads(const struct mu_split *split);

/* This machine for the planner: topology, free memory, and its GPUs where they are looked for; these and the processors
 * measured where that is wanted (node_gbps: as for mu_processors_measure, may be NULL). */
enum mu_gpu_look { MU_LOOK_NOT, MU_LOOK, MU_LOOK_MEASURE };
enum mu_status mu_cli_node(enum mu_gpu_look look, struct mu_plan_node *node_out, double *node_gbps, struct mu_err *err);

/* Whether a gang in this process fits the memory there is (shard/plan_fit.h), and can run there, a draft model (or NULL)
 * beside it: settles serving; text (may be NULL) says what it takes. node NULL: this machine is looked at. */
enum mu_status mu_cli_fit(const struct mu_model *model, const struct mu_adapters *adapters,
                          const struct mu_model *draft, const struct mu_split *split, unsigned asked,
                          const struct mu_plan_node *node, struct mu_serving *serving, char text[MU_FIT_TEXT],
                          struct mu_err *err);

/* ---- term.c: what a person sees ---- */

/* Prints "muster VERB: text" on stderr, nothing where mu_out_gone(); returns MU_EXIT_FAILED. */
int mu_cli_fail(const char *verb, const struct mu_err *err);
/* Text to standard output, at once. Full disks and readers that went away are MU_EIO. */
enum mu_status mu_out_write(const char *text, size_t len, struct mu_err *err);
/* Whether the reader of standard output, a pipe, went away before it had all: that is told by the status alone. */
bool mu_out_gone(void);
/* At the end of main: what could not be written is told (not where mu_out_gone()) and turns MU_EXIT_OK into
 * MU_EXIT_FAILED. */
int mu_out_finish(const char *verb, int status);
/* "no server answers at ADDRESS …" with what to do, in place of gRPC's words for it. */
void mu_no_server(const char *address, struct mu_err *err);
/* A terminal that obeys codes (ESC [ …): TERM is set, and not to "dumb". */
bool mu_term_obeys(int fd);
/* A progress bar on stderr, only where that is such a terminal; done ≥ total ends it. Calls are throttled. */
struct mu_bar {
    const char *label;
    int64_t last_ns;
    bool shown;
};
void mu_bar_update(struct mu_bar *bar, uint64_t done, uint64_t total);
void mu_bar_load(uint64_t done, uint64_t total, void *bar); /* as the load_progress callbacks want it */
/* What an inventory says of a GPU, a line: "GPU 0  NVIDIA H100 80GB HBM3, 85.0 GB memory (84.1 GB free)", speeds after
 * it on another where they are known. indent: columns before both. */
void mu_gpu_print(const struct mu_gpu *g, int number, const char *indent);
/* "1.23 GB", "640 MB": decimal units. */
void mu_human_bytes(uint64_t bytes, char *buf, size_t buf_bytes);
/* Text of any origin as JSON: what is not UTF-8 becomes the replacement character, a byte at a time. NULL: text
 * is, or memory ran out. */
json_t *mu_text_json(const char *text);
json_t *mu_text_n_json(const char *text, size_t len);
/* "3 days ago". */
void mu_human_age(int64_t then_s, char *buf, size_t buf_bytes);
/* A table whose columns are as wide as their widest cell is on a terminal. Rows are arrays of n_col strings; the first is
 * the head. right[i]: column i is right-aligned. */
void mu_table_print(const char *const *cells, int n_row, int n_col, const bool *right);

/* ---- signals.c: Ctrl-C stops the generation and not the program, or leaves no partial file ---- */

void mu_signals_tidy(void); /* the signals that end the program remove the file that is being written first */
extern volatile sig_atomic_t mu_interrupted;
void mu_signals_catch(void);      /* SIGINT sets mu_interrupted; a second one within a second ends the program */
void mu_signals_catch_ends(void); /* SIGTERM and SIGHUP like it: for a program that has something to end and to tell */
void mu_signals_stay(void);       /* from now on no SIGINT ends the program: a chat has other ways to leave */
void mu_signals_reset(void);      /* mu_interrupted = 0 */

/* ---- opening what most verbs open ---- */

struct mu_opened {
    struct mu_model *model;
    struct mu_tokenizer *tok;     /* NULL where not asked for */
    struct mu_adapters *adapters; /* NULL until mu_cli_adapt */
    struct mu_store_model *found; /* what the store that it is from says about it */
};
/* name: of a model in a store, or a path. */
enum mu_status mu_cli_open(const char *name, bool want_tokenizer, struct mu_opened *opened_out, struct mu_err *err);
/* The adapter that the store says the model has, called "own"; an empty path: none. */
enum mu_status mu_cli_own_adapter(const struct mu_store_model *m, struct mu_adapter_spec *spec_out, struct mu_err *err);
/* Opens one adapter beside the model, number 1; where nothing is named, the one that the store says the model has, if
 * any. */
enum mu_status mu_cli_adapt(struct mu_opened *o, const struct mu_adapter_spec *spec, struct mu_err *err);
void mu_cli_close(struct mu_opened *o);

#endif
