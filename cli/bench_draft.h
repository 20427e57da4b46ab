/* What a draft model gives: `muster bench MODEL --draft SMALL`.
 *
 * How many guesses are right depends on the text, so nothing here is random ids: prompts that are given are continued as
 * `serve` continues them, by its scheduler and its rule for when guesses pay, three ways in turns:
 *
 *   plain   a token a step                                 `serve --no-speculation`
 *   found   guesses that are found in the text so far      `serve`
 *   draft   those, and the draft model's                   `serve --draft SMALL`
 *
 * All three must say the same ids: anything else ends the benchmark with an error. */
#ifndef MU_CLI_BENCH_DRAFT_H
#define MU_CLI_BENCH_DRAFT_H

#include "cli/bench.h"

struct mu_bench_draft_options {
    const char *model, *draft, *quantize; /* quantize: NULL, as in the file */
    const char *prompts;                  /* a file, a prompt a line; NULL: our own */
    enum mu_kv_type kv;
    struct mu_bench_list stream;
    int n_decode, n_thread, n_repeat; /* n_thread 0: the cores */
    uint64_t seed;
    struct mu_bench_output out;
};
enum mu_status mu_bench_draft(const struct mu_bench_draft_options *opt, struct mu_err *err);

/* ---- what it came to ---- */

enum mu_bench_way { MU_BENCH_PLAIN, MU_BENCH_FOUND, MU_BENCH_DRAFT, MU_BENCH_WAYS };

/* Decoding alone, of one run or of several: from when the last stream had its first token until the last one ended. */
struct mu_bench_counts {
    double seconds;
    uint64_t n_token, n_step;
    uint64_t found, found_right;   /* guesses that were found in the text, and those that were right … */
    uint64_t drafted, draft_right; /* … the draft model's */
    double draft_us, read_us;      /* its steps; reading what lay behind */
    uint64_t n_draft_step, n_read;
};
struct mu_bench_draft_case {
    bool done;
    int n_stream;
    float temperature;
    uint64_t n_id;                             /* of all answers of a run */
    struct mu_bench_counts sum[MU_BENCH_WAYS]; /* of all repeats */
    struct mu_bench_spread rate[MU_BENCH_WAYS];
    struct mu_bench_spread gain, of_plain; /* draft's rate by found's, by plain's, of each repeat */
};
struct mu_bench_drafted {
    const struct mu_bench_draft_options *opt;
    const struct mu_model *model, *draft;
    int n_thread, n_prompt;
    int n_case;
    struct mu_bench_draft_case cases[2 * MU_BENCH_MAX_LIST];
    struct mu_bench_machine machine;
    struct mu_bench_warnings warnings;
    bool interrupted;
};

/* ---- bench_draft_told.c ---- */

/* "1 greedy", "4 at 1.0": streams and temperature. */
void mu_bench_draft_case_name(const struct mu_bench_draft_case *c, char *buf, size_t buf_bytes);
enum mu_status mu_bench_drafted_report(const struct mu_bench_drafted *d, struct mu_err *err);

#endif
