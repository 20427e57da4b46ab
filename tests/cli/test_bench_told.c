/* What limits a load on a server, by the rule of docs/benchmarking.md, and what it is warned of. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "cli/bench_serve.h"

/* Of a closed loop that nothing limits. */
static struct mu_bench_load_result calm(void)
{
    return (struct mu_bench_load_result){.concurrency = 16,
                                         .n_sent = 20,
                                         .n_ok = 20,
                                         .duration_s = 10,
                                         .send_s = 9,
                                         .ttft = {.mean = 100},
                                         .e2e = {.mean = 1000, .min = 900},
                                         .queue = {.mean = 10},
                                         .lag = {.mean = 1},
                                         .rank_cpus = 4,
                                         .rank_threads = 8,
                                         .n_rank = 1,
                                         .machine = {.n_usable = 16, .n_online = 16, .own_cpus = 0.1}};
}

static void told(const struct mu_bench_load_result *r, const char *limit, const char *word)
{
    const char *name;
    char say[320];
    mu_bench_served_limit(r, &name, say, sizeof say);
    assert_string_equal(name, limit);
    if (!strstr(say, word)) fail_msg("'%s' is not in: %s", word, say);
}

static void limits(void **state)
{
    (void)state;
    struct mu_bench_load_result r = calm();
    told(&r, "load", "have time left");
    r.rank_cpus = -1;
    told(&r, "load", "16 at once, each waiting for its own tokens");
    r.rate = 2;
    told(&r, "load", "keeps up");
    r.send_s = 5;
    told(&r, "server", "pile up");
    r.rank[0].talk = 0.6;
    told(&r, "network", "60%");
    r.queue.mean = 60;
    told(&r, "scheduler", "60%");
    r.lag.mean = 101;
    told(&r, "generator", "101.0 ms late");
}

/* The ranks' cores are the machine's, whatever part of it this program may use. */
static void busy_cores(void **state)
{
    (void)state;
    struct mu_bench_load_result r = calm();
    r.rank_cpus = 7.8;
    told(&r, "machine", "busy 98% of the time");
    r.machine.n_usable = 1; /* taskset -c 0 muster bench --server … */
    told(&r, "machine", "busy 98% of the time");
    r.rank_cpus = 4;
    told(&r, "load", "have time left");
    r.rank_threads = 64; /* more than there are cores */
    r.rank_cpus = 15.2;
    told(&r, "machine", "busy 95% of the time");
}

/* Of several loads each warning says which one it is of; what is of all of them does not. */
static void warnings(void **state)
{
    (void)state;
    static const char *const late[] = {
        "16 at once: this generator sent late: 1% of requests by 25.0 ms or more, 1.0 ms on average",
        "2.5/s: this generator sent late: 1% of requests by 30.0 ms or more, 1.0 ms on average"};
    static struct mu_bench_served s;
    for (int n = 1; n <= 2; n++) {
        s = (struct mu_bench_served){.n_load = n, .load = {calm(), calm()}};
        s.load[0].lag.p99 = 25;
        s.load[0].n_ok = 17;
        s.load[1].lag.p99 = 30;
        s.load[1].rate = 2.5;
        mu_bench_served_warn(&s);
        assert_int_equal(s.warnings.n, n + 1);
        for (int i = 0; i < n; i++) assert_string_equal(s.warnings.text[i], n == 1 ? strstr(late[i], "this") : late[i]);
        assert_string_equal(s.warnings.text[n], "3 requests failed; times are of the others alone");
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(limits), cmocka_unit_test(busy_cores),
                                       cmocka_unit_test(warnings)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
