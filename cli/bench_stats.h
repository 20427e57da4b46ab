/* Numbers of `muster bench`: lists and lengths out of the command line, percentiles, arrivals. Pure: no clock, no model.
 *
 * Percentiles are numpy's default (linear between neighbours), because benchmark scripts of other servers use that. */
#ifndef MU_CLI_BENCH_STATS_H
#define MU_CLI_BENCH_STATS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

/* ---- texts ---- */

enum { MU_BENCH_MAX_LIST = 32 };
struct mu_bench_list {
    int n, at[MU_BENCH_MAX_LIST];
};
struct mu_bench_rates {
    int n;
    double at[MU_BENCH_MAX_LIST];
};
struct mu_bench_range {
    int min, max; /* both included */
};
/* Targets of a request in ns; 0: none. */
struct mu_bench_slo {
    int64_t ttft_ns, tpot_ns, itl_ns, e2e_ns;
};

/* A length: a whole number, with k for 1,024 or m for 1,048,576. `what` is named in errors (MU_EINVAL). */
enum mu_status mu_bench_length(const char *text, int min, int max, const char *what, int *length_out,
                               struct mu_err *err);
/* "1,2,4" or "1k,4k"; "1,2,4,…,256" (or "..." ) goes on by the ratio of the two before it up to what follows. */
enum mu_status mu_bench_list(const char *text, int min, int max, const char *what, struct mu_bench_list *list_out,
                             struct mu_err *err);
enum mu_status mu_bench_rates(const char *text, const char *what, struct mu_bench_rates *rates_out, struct mu_err *err);
/* "128..2048", or one length. */
enum mu_status mu_bench_range(const char *text, int min, int max, const char *what, struct mu_bench_range *range_out,
                              struct mu_err *err);
/* "ttft=500ms,itl=50ms"; names: ttft, tpot, itl, e2e; units: us, ms, s. */
enum mu_status mu_bench_slo(const char *text, struct mu_bench_slo *slo_out, struct mu_err *err);
/* Machines as mpirun's --host has them: "a,b" or "a:2,b:2", a name with how many ranks it has room for (1). The machine of each
 * of n_rank ranks, numbered from 0 in the list's order, which is how mpirun places them: what there is no room for, one
 * more on each in turn. Returns how many machines ranks are on. */
int mu_bench_hosts(const char *text, int n_rank, int *machine_out);
/* A length as people write it: "4k", "1000". */
void mu_bench_length_format(int n, char *buf, size_t buf_bytes);

/* ---- figures ---- */

struct mu_bench_spread {
    size_t n;
    double mean, median, p99, min, max; /* 0 where n is */
};
/* p from 0 to 100 of n > 0 ascending values. */
double mu_bench_percentile(const double *sorted, size_t n, double p);
/* Sorts v. */
struct mu_bench_spread mu_bench_spread_of(double *v, size_t n);
/* How far apart repeats lie: (max - min) / median; 0 where there are fewer than two. */
double mu_bench_noise(const struct mu_bench_spread *s);

/* Whether a request met the targets; gaps ascending, ms. */
bool mu_bench_slo_met(const struct mu_bench_slo *slo, double ttft_ms, double tpot_ms, double e2e_ms,
                      const double *gap_ms, size_t n_gap);

/* ---- chance, the same on every machine for the same seed (SplitMix64, Steele et al., OOPSLA 2014) ---- */

struct mu_bench_random {
    uint64_t state;
};
uint64_t mu_bench_random_next(struct mu_bench_random *r);
double mu_bench_random_unit(struct mu_bench_random *r); /* above 0, at most 1 */
int mu_bench_random_in(struct mu_bench_random *r, const struct mu_bench_range *range);
/* Arrivals of a Poisson process of `rate` a second: next_ns is when the next one comes, from the start on. Where their
 * number is known all times are stretched so that the last one comes at n / rate, as vLLM's benchmark does it: else few
 * requests would be a per cent or ten off the rate. */
struct mu_bench_arrivals {
    struct mu_bench_random chance;
    double rate, stretch;
    int64_t now_ns;
};
struct mu_bench_arrivals mu_bench_arrivals_begin(double rate, int n, uint64_t seed); /* n 0: not known */
int64_t mu_bench_arrivals_next_ns(struct mu_bench_arrivals *a);

#endif
