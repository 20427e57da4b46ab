/* What loads on a server came to: a table, JSON, a picture, and what limited each (docs/benchmarking.md). */
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "cli/bench_serve.h"
#include "cli/bench_svg.h"

enum { CELL = 32 };

static double per_s(const struct mu_bench_load_result *r, double n)
{
    return r->duration_s > 0 ? n / r->duration_s : 0;
}

static int n_failed(const struct mu_bench_load_result *r)
{
    return r->n_sent - r->n_ok - r->cancelled;
}

const char *mu_bench_kind_name(int kind)
{
    return kind == MU_BENCH_SHORT ? "FEWER_TOKENS" : mu_rpc_code_name((enum mu_rpc_code)kind);
}

static void load_name(const struct mu_bench_load_result *r, char *buf, size_t buf_bytes)
{
    if (r->rate > 0)
        snprintf(buf, buf_bytes, "%g/s", r->rate);
    else
        snprintf(buf, buf_bytes, "%d at once", r->concurrency);
}

/* ---- the rule ---- */

void mu_bench_served_limit(const struct mu_bench_load_result *r, const char **name_out, char *buf, size_t buf_bytes)
{
    static const double LATE = 0.1, OWN_CPUS = 0.8, QUEUED = 0.5, TALK = 0.5, BUSY = 0.9, KEPT_UP = 0.8;
    double queued = r->ttft.mean > 0 ? r->queue.mean / r->ttft.mean : 0, done = per_s(r, r->n_ok);
    double kept_up = r->duration_s > 0 ? (r->send_s + r->e2e.min / 1e3) / r->duration_s : 0;
    double talk = 0;
    for (int i = 0; i < r->n_rank; i++) talk += r->rank[i].talk / r->n_rank;
    double all = r->machine.n_online, cores = r->rank_threads < all ? r->rank_threads : all; /* not those we may use */
    if (r->lag.mean > LATE * r->e2e.mean || r->machine.own_cpus > OWN_CPUS) {
        *name_out = "generator";
        snprintf(buf, buf_bytes, "generator: it sent requests %.1f ms late on average and used %.1f cores itself",
                 r->lag.mean, r->machine.own_cpus);
    } else if (queued > QUEUED) {
        *name_out = "scheduler";
        snprintf(
            buf, buf_bytes,
            "scheduler: requests wait %.0f ms for a place in a step, %.0f%% of their time to the first token; less "
            "load, more --parallel where memory allows, or more machines",
            r->queue.mean, 100 * queued);
    } else if (talk > TALK) {
        *name_out = "network";
        snprintf(buf, buf_bytes,
                 "network: ranks spend %.0f%% of the time in exchanges, moving bytes and waiting for each "
                 "other; 'muster bench MODEL --splits ...' tells the two apart",
                 100 * talk);
    } else if (r->rank_cpus > BUSY * cores) {
        *name_out = "machine";
        snprintf(buf, buf_bytes,
                 "machine: the ranks keep their cores busy %.0f%% of the time, with arithmetic or waiting for memory; "
                 "'muster bench MODEL --streams %.0f' says which",
                 100 * r->rank_cpus / cores, r->mean_active < 1 ? 1 : r->mean_active);
    } else if (r->rate > 0 && kept_up > KEPT_UP) {
        *name_out = "load";
        snprintf(buf, buf_bytes, "load: the server keeps up with %g requests/s (%.2f done a second)", r->rate, done);
    } else if (r->rate > 0) {
        *name_out = "server";
        snprintf(
            buf, buf_bytes,
            "server: requests pile up: sending %g a second took %.1f s, answering them %.1f s (or the run is short "
            "beside a request)",
            r->rate, r->send_s, r->duration_s);
    } else {
        *name_out = "load";
        snprintf(buf, buf_bytes, "load: %d at once, each waiting for its own tokens%s", r->concurrency,
                 r->rank_cpus >= 0 ? "; the ranks' cores have time left" : "");
    }
}

/* ---- warnings ---- */

void mu_bench_served_warn(struct mu_bench_served *s)
{
    static const double MOST_LAG_MS = 20, MOST_OWN_CPUS = 0.8;
    int failed = 0;
    for (int i = 0; i < s->n_load; i++) {
        struct mu_bench_load_result *r = &s->load[i];
        if (s->n_load > 1) load_name(r, s->warnings.of, sizeof s->warnings.of);
        if (r->lag.p99 > MOST_LAG_MS)
            mu_bench_warn(&s->warnings,
                          "this generator sent late: 1%% of requests by %.1f ms or more, %.1f ms on average",
                          r->lag.p99, r->lag.mean);
        if (r->machine.own_cpus > MOST_OWN_CPUS)
            mu_bench_warn(&s->warnings, "this generator used %.1f cores: it may be the limit", r->machine.own_cpus);
        if (r->rank_cpus >= 0) { /* the coordinator stays among the others; it does little */
            r->machine.others = r->machine.busy - (r->rank_cpus + r->machine.own_cpus) / r->machine.n_online;
            if (r->machine.others < 0) r->machine.others = 0;
        }
        mu_bench_machine_warn(&r->machine, r->rank_cpus >= 0, &s->warnings);
        failed += r->n_sent - r->n_ok - r->cancelled;
    }
    s->warnings.of[0] = 0;
    if (failed) mu_bench_warn(&s->warnings, "%d requests failed; times are of the others alone", failed);
}

/* ---- tables ---- */

static void print_failures(const struct mu_bench_load_result *r)
{
    for (int i = 0; i < MU_BENCH_KINDS; i++)
        if (r->failed[i]) printf("failed       %d × %s\n", r->failed[i], mu_bench_kind_name(i));
    if (r->cancelled) printf("cancelled    %d by Ctrl-C\n", r->cancelled);
}

static void slo_words(const struct mu_bench_slo *slo, char *buf, size_t buf_bytes)
{
    const struct {
        const char *name;
        int64_t ns;
    } target[] = {{"TTFT", slo->ttft_ns}, {"TPOT", slo->tpot_ns}, {"ITL", slo->itl_ns}, {"E2E", slo->e2e_ns}};
    size_t len = 0;
    buf[0] = 0;
    for (size_t i = 0; i < sizeof target / sizeof *target; i++)
        if (target[i].ns && len < buf_bytes)
            len += (size_t)snprintf(buf + len, buf_bytes - len, "%s%s ≤ %g ms", len ? ", " : "", target[i].name,
                                    (double)target[i].ns / 1e6);
}

static void print_one(const struct mu_bench_served *s, const struct mu_bench_load_result *r)
{
    enum { N_COL = 6, N_ROW = 7 };
    static const bool right[N_COL] = {false, true, true, true, true, true};
    const struct {
        const char *name;
        const struct mu_bench_spread *s;
    } row[N_ROW - 1] = {{"TTFT", &r->ttft}, {"TPOT", &r->tpot},   {"ITL", &r->itl},
                        {"E2E", &r->e2e},   {"queue", &r->queue}, {"lag", &r->lag}};
    static char text[N_ROW][N_COL][CELL];
    const char *cells[N_ROW * N_COL] = {"ms", "mean", "median", "P99", "max", "n"};
    char slo[160];
    printf("requests     %d done, %d failed in %.1f s: %.2f/s", r->n_ok, n_failed(r), r->duration_s, per_s(r, r->n_ok));
    if (r->rate > 0) printf(" of %g/s sent", r->rate);
    printf(", %.1f at once on average\n", r->mean_active);
    print_failures(r);
    printf("tokens       in %.1f/s, out %.1f/s, together %.1f/s\n", per_s(r, r->in_tokens), per_s(r, r->out_tokens),
           per_s(r, r->in_tokens + r->out_tokens));
    if (s->opt->has_slo) {
        slo_words(&s->opt->slo, slo, sizeof slo);
        printf("goodput      %.2f requests/s, %d of %d: %s\n", per_s(r, r->n_good), r->n_good, r->n_ok, slo);
    }
    putchar('\n');
    for (int i = 1; i < N_ROW; i++) {
        const struct mu_bench_spread *v = row[i - 1].s;
        mu_chart_number(v->mean, text[i][0], CELL);
        mu_chart_number(v->median, text[i][1], CELL);
        mu_chart_number(v->p99, text[i][2], CELL);
        mu_chart_number(v->max, text[i][3], CELL);
        snprintf(text[i][4], CELL, "%zu", v->n);
        cells[i * N_COL] = row[i - 1].name;
        for (int c = 1; c < N_COL; c++) cells[i * N_COL + c] = text[i][c - 1];
    }
    mu_table_print(cells, N_ROW, N_COL, right);
    puts("queue: the server's word, until a request's first step; lag: of this generator");
}

/* Of each load with several, which would be long, the means over ranks. */
static void print_spent(const struct mu_bench_served *s)
{
    enum { N_COL = 7 };
    static const bool right[N_COL] = {false, true, true, true, true, true, true};
    static char text[MU_MAX_RANKS + 1][N_COL][CELL];
    static const char *cells[(MU_MAX_RANKS + 1) * N_COL] = {
        "where the time goes", "rank", "matrices", "attention", "sampling", "talk", "idle"};
    int n = 0;
    for (int i = 0; i < s->n_load; i++)
        for (int k = 0; k < (s->n_load > 1 && s->load[i].n_rank ? 1 : s->load[i].n_rank); k++, n++) {
            const struct mu_bench_load_result *r = &s->load[i];
            struct mu_bench_spent mean = {0};
            char(*t)[CELL] = text[n + 1];
            for (int m = 0; m < r->n_rank; m++) {
                const struct mu_bench_spent *one = &r->rank[s->n_load > 1 ? m : k];
                mean.matrix += one->matrix / r->n_rank;
                mean.attention += one->attention / r->n_rank;
                mean.sampling += one->sampling / r->n_rank;
                mean.talk += one->talk / r->n_rank;
                mean.idle += one->idle / r->n_rank;
            }
            if (k == 0) load_name(r, t[0], CELL);
            snprintf(t[1], CELL, "%d", k);
            if (s->n_load > 1) snprintf(t[1], CELL, "all");
            const double share[] = {mean.matrix, mean.attention, mean.sampling, mean.talk, mean.idle};
            for (int c = 0; c < 5; c++) snprintf(t[2 + c], CELL, "%.0f%%", 100 * share[c]);
            for (int c = 0; c < N_COL; c++) cells[(n + 1) * N_COL + c] = t[c];
        }
    if (!n) return;
    putchar('\n');
    mu_table_print(cells, n + 1, N_COL, right);
}

static void print_many(const struct mu_bench_served *s)
{
    enum { N_COL = 11 };
    static const bool right[N_COL] = {false, true, true, true, true, true, true, true, true, true, false};
    static char text[MU_BENCH_MAX_LIST + 1][N_COL][CELL];
    static const char *cells[(MU_BENCH_MAX_LIST + 1) * N_COL] = {"load",    "req/s", "out/s",  "TTFT",   "P99",  "TPOT",
                                                                 "ITL P99", "E2E",   "good/s", "failed", "limit"};
    for (int i = 0; i < s->n_load; i++) {
        const struct mu_bench_load_result *r = &s->load[i];
        char(*t)[CELL] = text[i + 1];
        const char *limit;
        char say[320];
        load_name(r, t[0], CELL);
        snprintf(t[1], CELL, "%.2f", per_s(r, r->n_ok));
        mu_chart_number(per_s(r, r->out_tokens), t[2], CELL);
        mu_chart_number(r->ttft.median, t[3], CELL);
        mu_chart_number(r->ttft.p99, t[4], CELL);
        mu_chart_number(r->tpot.median, t[5], CELL);
        mu_chart_number(r->itl.p99, t[6], CELL);
        mu_chart_number(r->e2e.median, t[7], CELL);
        if (s->opt->has_slo) snprintf(t[8], CELL, "%.2f", per_s(r, r->n_good));
        snprintf(t[9], CELL, "%d", n_failed(r));
        mu_bench_served_limit(r, &limit, say, sizeof say);
        snprintf(t[10], CELL, "%s", limit);
        for (int c = 0; c < N_COL; c++) cells[(i + 1) * N_COL + c] = t[c];
    }
    mu_table_print(cells, s->n_load + 1, N_COL, right);
    puts("times in ms: medians, and P99 where it says so");
}

static void print_table(const struct mu_bench_served *s)
{
    const struct mu_bench_serve_options *o = s->opt;
    const char *before = "";
    printf("%s\n%s at %s; ", s->what, o->server ? "a running server" : "a server of our own", s->address);
    if (o->prompts)
        printf("prompts of %s", o->prompts);
    else
        printf("input %d..%d tokens", s->input.min, s->input.max);
    if (o->n_prefix) printf(" after %d shared ones", o->n_prefix);
    printf(", output %d..%d, seed %llu\n\n", s->output.min, s->output.max, (unsigned long long)o->seed);
    if (s->n_load == 1)
        print_one(s, &s->load[0]);
    else
        print_many(s);
    print_spent(s);
    putchar('\n');
    for (int i = 0; i < s->n_load; i++) {
        char say[320], name[CELL];
        const char *limit;
        mu_bench_served_limit(&s->load[i], &limit, say, sizeof say);
        if (strcmp(limit, before) == 0) continue; /* of a run of loads with the same limit the first one */
        before = limit;
        load_name(&s->load[i], name, sizeof name);
        printf("%s: %s\n", name, say);
    }
    mu_bench_warnings_print(&s->warnings);
    if (s->interrupted) puts("interrupted: figures are of what was done until then");
}

/* ---- JSON ---- */

static json_t *spread_json(const struct mu_bench_spread *s)
{
    return json_pack("{s:I, s:f, s:f, s:f, s:f, s:f}", "n", (json_int_t)s->n, "mean", s->mean, "median", s->median,
                     "p99", s->p99, "min", s->min, "max", s->max);
}

static json_t *ranks_json(const struct mu_bench_load_result *r)
{
    json_t *all = json_array();
    for (int i = 0; i < r->n_rank; i++)
        json_array_append_new(all, json_pack("{s:i, s:f, s:f, s:f, s:f, s:f}", "rank", i, "matrix", r->rank[i].matrix,
                                             "attention", r->rank[i].attention, "sampling", r->rank[i].sampling, "talk",
                                             r->rank[i].talk, "idle", r->rank[i].idle));
    return all;
}

static json_t *load_json(const struct mu_bench_served *s, const struct mu_bench_load_result *r)
{
    json_t *failed = json_object();
    const char *limit;
    char say[320];
    mu_bench_served_limit(r, &limit, say, sizeof say);
    for (int i = 0; i < MU_BENCH_KINDS; i++)
        if (r->failed[i]) json_object_set_new(failed, mu_bench_kind_name(i), json_integer(r->failed[i]));
    json_t *to = json_pack(
        "{s:i, s:i, s:i, s:i, s:i, s:o, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:i, s:s, s:s}", "sent",
        r->n_sent, "done", r->n_ok, "failed", n_failed(r), "cancelled", r->cancelled, "resumed", r->n_resumed,
        "failures", failed, "duration_s", r->duration_s, "requests_per_s", per_s(r, r->n_ok), "input_tokens",
        r->in_tokens, "output_tokens", r->out_tokens, "input_tokens_per_s", per_s(r, r->in_tokens),
        "output_tokens_per_s", per_s(r, r->out_tokens), "total_tokens_per_s", per_s(r, r->in_tokens + r->out_tokens),
        "mean_active", r->mean_active, "tokens_a_reply", r->tokens_a_reply, "rank_cpus", r->rank_cpus, "rank_threads",
        r->rank_threads, "limit", limit, "limit_text", say);
    if (!to) return NULL;
    if (r->rate > 0) json_object_set_new(to, "rate", json_real(r->rate));
    if (r->rate <= 0) json_object_set_new(to, "concurrency", json_integer(r->concurrency));
    if (s->opt->has_slo) {
        json_object_set_new(to, "good", json_integer(r->n_good));
        json_object_set_new(to, "goodput_per_s", json_real(per_s(r, r->n_good)));
    }
    const struct {
        const char *name;
        const struct mu_bench_spread *s;
    } spread[] = {{"ttft_ms", &r->ttft}, {"tpot_ms", &r->tpot},   {"itl_ms", &r->itl},
                  {"e2e_ms", &r->e2e},   {"queue_ms", &r->queue}, {"generator_lag_ms", &r->lag}};
    for (size_t i = 0; i < sizeof spread / sizeof *spread; i++)
        json_object_set_new(to, spread[i].name, spread_json(spread[i].s));
    json_object_set_new(to, "ranks", ranks_json(r));
    json_object_set_new(to, "machine", mu_bench_machine_json(&r->machine));
    return to;
}

static json_t *served_json(const struct mu_bench_served *s)
{
    const struct mu_bench_serve_options *o = s->opt;
    json_t *doc = mu_bench_doc("serving", &s->load[s->n_load - 1].machine, &s->warnings, s->interrupted);
    json_t *loads = json_array();
    for (int i = 0; i < s->n_load; i++) json_array_append_new(loads, load_json(s, &s->load[i]));
    json_object_set_new(doc, "model", json_pack("{s:o*, s:s}", "name", mu_text_json(o->model), "description", s->what));
    json_object_set_new(doc, "server", json_pack("{s:o, s:b}", "address", mu_text_json(s->address), "own", !o->server));
    json_object_set_new(doc, "requests",
                        json_pack("{s:i, s:f, s:i, s:i, s:i, s:i, s:i, s:I, s:o*}", "count", o->n_request, "seconds",
                                  (double)o->duration_ns / 1e9, "input_min", s->input.min, "input_max", s->input.max,
                                  "output_min", s->output.min, "output_max", s->output.max, "shared_prefix",
                                  o->n_prefix, "seed", (json_int_t)o->seed, "prompts", mu_text_json(o->prompts)));
    if (o->has_slo)
        json_object_set_new(doc, "slo_ms",
                            json_pack("{s:f, s:f, s:f, s:f}", "ttft", (double)o->slo.ttft_ns / 1e6, "tpot",
                                      (double)o->slo.tpot_ns / 1e6, "itl", (double)o->slo.itl_ns / 1e6, "e2e",
                                      (double)o->slo.e2e_ns / 1e6));
    json_object_set_new(doc, "loads", loads);
    return doc;
}

/* ---- pictures ---- */

static struct mu_chart *chart_begin(struct mu_picture *p, enum mu_chart_kind kind, const char *title,
                                    const char *x_name, const char *y_name, const char *limit_name)
{
    struct mu_chart *c = &p->chart[p->n_chart++];
    c->kind = kind;
    snprintf(c->title, sizeof c->title, "%s", title);
    snprintf(c->x_name, sizeof c->x_name, "%s", x_name);
    snprintf(c->y_name, sizeof c->y_name, "%s", y_name);
    snprintf(c->limit_name, sizeof c->limit_name, "%s", limit_name);
    return c;
}

static void series_put(struct mu_chart *c, int series, const char *name, int x, double y, double limit)
{
    snprintf(c->series[series].name, sizeof c->series[series].name, "%s", name);
    c->series[series].y[x] = y;
    c->series[series].limit[x] = limit;
    if (series >= c->n_series) c->n_series = series + 1;
}

static void spread_bars(struct mu_chart *c, const char *x, const struct mu_bench_spread *v, int64_t target_ns)
{
    double target = (double)target_ns / 1e6;
    snprintf(c->x[c->n_x], sizeof c->x[0], "%s", x);
    series_put(c, 0, "mean", c->n_x, v->mean, target);
    series_put(c, 1, "median", c->n_x, v->median, target);
    series_put(c, 2, "P99", c->n_x, v->p99, target);
    c->n_x++;
}

/* One load: how long things took. Long and short times have charts of their own. */
static void bars(const struct mu_bench_served *s, const struct mu_bench_load_result *r, struct mu_picture *p)
{
    const struct mu_bench_slo *slo = &s->opt->slo;
    struct mu_chart *c =
        chart_begin(p, MU_CHART_BARS, "A request", "", "ms", slo->ttft_ns || slo->e2e_ns ? "target" : "");
    spread_bars(c, "to the first token", &r->ttft, slo->ttft_ns);
    spread_bars(c, "to the last token", &r->e2e, slo->e2e_ns);
    c = chart_begin(p, MU_CHART_BARS, "A token", "", "ms", slo->tpot_ns || slo->itl_ns ? "target" : "");
    spread_bars(c, "TPOT", &r->tpot, slo->tpot_ns);
    spread_bars(c, "ITL", &r->itl, slo->itl_ns);
}

/* Several: what becomes of them as the load grows. */
static void lines(const struct mu_bench_served *s, struct mu_picture *p)
{
    const char *x_name = s->opt->rate.n ? "requests a second, sent" : "requests at once";
    const struct mu_bench_slo *slo = &s->opt->slo;
    struct mu_chart *tokens = chart_begin(p, MU_CHART_LINES, "Throughput", x_name, "tokens/s", "");
    struct mu_chart *good =
        chart_begin(p, MU_CHART_LINES, "Requests", x_name, "requests/s", s->opt->rate.n ? "sent" : "");
    struct mu_chart *ttft =
        chart_begin(p, MU_CHART_LINES, "To the first token", x_name, "ms", slo->ttft_ns ? "target" : "");
    struct mu_chart *itl =
        chart_begin(p, MU_CHART_LINES, "Between tokens", x_name, "ms", slo->itl_ns || slo->tpot_ns ? "target" : "");
    struct mu_chart *const all[] = {tokens, good, ttft, itl};
    for (int i = 0; i < s->n_load; i++) {
        const struct mu_bench_load_result *r = &s->load[i];
        for (size_t c = 0; c < sizeof all / sizeof *all; c++) {
            snprintf(all[c]->x[i], sizeof all[c]->x[i], "%g", r->rate > 0 ? r->rate : r->concurrency);
            all[c]->n_x = i + 1;
        }
        series_put(tokens, 0, "out", i, per_s(r, r->out_tokens), 0);
        series_put(tokens, 1, "in", i, per_s(r, r->in_tokens), 0);
        series_put(good, 0, "done", i, per_s(r, r->n_ok), r->rate);
        if (s->opt->has_slo) series_put(good, 1, "within the targets", i, per_s(r, r->n_good), 0);
        series_put(ttft, 0, "median", i, r->ttft.median, 0);
        series_put(ttft, 1, "P99", i, r->ttft.p99, (double)slo->ttft_ns / 1e6);
        series_put(itl, 0, "TPOT, median", i, r->tpot.median, (double)slo->tpot_ns / 1e6);
        series_put(itl, 1, "ITL, P99", i, r->itl.p99, (double)slo->itl_ns / 1e6);
    }
}

static enum mu_status served_svg(const struct mu_bench_served *s, const char *path, struct mu_err *err)
{
    struct mu_picture *p = mu_calloc(1, sizeof *p);
    if (!p) return mu_fail(err, MU_ENOMEM, "no memory for the picture");
    const struct mu_bench_load_result *r = &s->load[0];
    char name[CELL];
    load_name(r, name, sizeof name);
    snprintf(p->title, sizeof p->title, "%.*s", (int)strcspn(s->what, ":"), s->what);
    if (s->n_load == 1)
        snprintf(p->subtitle, sizeof p->subtitle, "muster %s; %s: %.2f requests/s, %.1f tokens/s in, %.1f out",
                 MUSTER_VERSION, name, per_s(r, r->n_ok), per_s(r, r->in_tokens), per_s(r, r->out_tokens));
    else
        snprintf(p->subtitle, sizeof p->subtitle, "muster %s; input %d..%d tokens, output %d..%d", MUSTER_VERSION,
                 s->input.min, s->input.max, s->output.min, s->output.max);
    if (s->n_load == 1)
        bars(s, r, p);
    else
        lines(s, p);
    enum mu_status st = mu_bench_write_svg(path, p, err);
    mu_free(p);
    return st;
}

enum mu_status mu_bench_served_report(const struct mu_bench_served *s, struct mu_err *err)
{
    const struct mu_bench_output *o = &s->opt->out;
    enum mu_status st = MU_OK;
    if (o->svg) st = served_svg(s, o->svg, err);
    if (st) return st;
    if (o->format == MU_BENCH_SVG) return served_svg(s, o->out, err);
    if (o->format == MU_BENCH_JSON) return mu_bench_write_json(o, served_json(s), err);
    print_table(s);
    return MU_OK;
}
