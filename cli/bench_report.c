/* What a sweep came to: one table, where the time goes, sentences; or JSON; or a picture (docs/benchmarking.md). */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/io.h"
#include "cli/bench.h"
#include "cli/bench_svg.h"
#include "kernels/kernels.h"

enum { CELL = 40, MAX_SVG_BYTES = 4 << 20, FEW_CASES = 4, COLUMN = 12, LEGEND = 48 };

/* ---- writing ---- */

enum mu_status mu_bench_write(const char *path, const char *text, size_t len, struct mu_err *err)
{
    struct mu_file_writer *w;
    if (!path) return mu_out_write(text, len, err);
    enum mu_status st = mu_file_writer_open(path, &w, err);
    if (st) return st;
    st = mu_file_writer_write(w, text, len, err);
    enum mu_status closed = mu_file_writer_close(w, !st, st ? NULL : err);
    return st ? st : closed;
}

enum mu_status mu_bench_write_json(const struct mu_bench_output *o, json_t *doc, struct mu_err *err)
{
    char *text = doc ? json_dumps(doc, JSON_INDENT(2) | JSON_REAL_PRECISION(9)) : NULL;
    enum mu_status st = text ? mu_bench_write(o->out, text, strlen(text), err)
                             : mu_fail(err, MU_ENOMEM, "no memory to print the result");
    if (!st && !o->out) st = mu_out_write("\n", 1, err);
    free(text); /* jansson's own */
    json_decref(doc);
    return st;
}

enum mu_status mu_bench_write_svg(const char *path, const struct mu_picture *p, struct mu_err *err)
{
    struct mu_writer w;
    mu_writer_init(&w, MAX_SVG_BYTES);
    mu_svg_write(p, &w);
    enum mu_status st = w.ok ? mu_bench_write(path, (const char *)w.data, w.len, err)
                             : mu_fail(err, MU_ENOMEM, "no memory for the picture");
    mu_writer_free(&w);
    return st;
}

/* ---- figures ---- */

void mu_bench_case_name(const struct mu_bench_case *c, char *buf, size_t buf_bytes)
{
    char context[16];
    if (c->phase == MU_BENCH_PROMPT) {
        snprintf(buf, buf_bytes, "prompt %d", c->n_tok);
        return;
    }
    mu_bench_length_format(c->n_context, context, sizeof context);
    if (c->n_context)
        snprintf(buf, buf_bytes, "decode %d at %s", c->n_stream, context);
    else
        snprintf(buf, buf_bytes, "decode %d", c->n_stream);
}

double mu_bench_case_tokens(const struct mu_bench_case *c)
{
    return (double)c->n_tok * c->n_stream;
}

static double tokens_per_s(const struct mu_bench_point *p)
{
    return mu_bench_case_tokens(p->c) / p->r.s.median;
}
/* The speed that the bound allows, so that speed / it is the fraction told beside it. */
static double bound_per_s(const struct mu_bench_point *p)
{
    return p->r.of_bound > 0 ? tokens_per_s(p) / p->r.of_bound : 0;
}

static const char *split_name(const struct mu_bench_sweep *s, int i, char buf[MU_SPLIT_TEXT])
{
    mu_split_format(&s->split[i], buf, MU_SPLIT_TEXT);
    return buf;
}

/* At most so many characters: of a longer one its number among the splits, and its beginning. */
static const char *split_short(const struct mu_bench_sweep *s, int i, int most, char buf[MU_SPLIT_TEXT])
{
    char whole[MU_SPLIT_TEXT];
    split_name(s, i, whole);
    int n = (int)strlen(whole) > most ? snprintf(buf, MU_SPLIT_TEXT, "#%d ", i + 1) : 0;
    snprintf(buf + n, (size_t)(most - n + 1), "%s", whole);
    return buf;
}

static const char *transport(const struct mu_bench_sweep *s, int i)
{
    return s->split[i].n_rank == 1 ? "one process" : s->opt->local ? "local" : "mpi";
}

static const struct mu_bench_point *first_done(const struct mu_bench_sweep *s, int i_split)
{
    for (int i = i_split * s->n_case; i < (i_split + 1) * s->n_case; i++)
        if (s->point[i].state == MU_BENCH_DONE) return &s->point[i];
    return NULL;
}

/* ---- tables ---- */

/* Those that a split is on; where they were looked for and there is none, why. */
static void print_gpus(const struct mu_bench_sweep *s)
{
    bool used[MU_MAX_GPUS] = {false};
    for (int i = 0; i < s->n_split; i++)
        for (int k = 0; k < s->split[i].n_rank; k++)
            if (s->split[i].device[k] != MU_ON_CPU) used[s->split[i].device[k]] = true;
    for (int i = 0; i < s->node.gpus.n; i++)
        if (used[i]) mu_gpu_print(&s->node.gpus.gpu[i], i, "");
    if (s->looked && s->node.gpus.n == 0) printf("no GPU: %s\n", s->node.gpus.why);
    if (s->why[0]) printf("%s\n", s->why);
}

static void print_links(const struct mu_bench_result *r)
{
    const struct mu_plan_link *const link[] = {&r->inside, &r->between};
    for (int i = 0; i < 2; i++)
        if (link[i]->gbps > 0)
            printf("  links %s: %.3g µs, %.3g GB/s\n", i ? "between machines" : "inside a machine", link[i]->us,
                   link[i]->gbps);
}

/* Where a rank on processors ran: machines with several NUMA nodes. */
static void print_seat(const struct mu_bench_sweep *s, int i_split, int rank, const struct mu_bench_seat *seat)
{
    if (s->split[i_split].device[rank] != MU_ON_CPU) return;
    printf("  rank %d: ", rank);
    if (seat->numa >= 0)
        printf("NUMA node %d", seat->numa);
    else
        printf("no NUMA node of its own");
    if (seat->cpus[0]) printf(", CPUs %s", seat->cpus);
    if (seat->numa_share >= 0) printf(", %.0f%% of its memory there", 100 * seat->numa_share);
    printf(", reads %.1f GB/s\n", seat->read_gbps);
}

static void print_head(const struct mu_bench_sweep *s)
{
    char what[256], split[MU_SPLIT_TEXT];
    mu_model_describe(s->model, what, sizeof what);
    printf("%s\n%s, kernels %s, medians of %d\n", what, s->machine.cpu, mu_kernels()->name, s->opt->n_repeat);
    for (int i = 0; i < s->n_split; i++) {
        const struct mu_bench_point *p = first_done(s, i);
        if (!p) continue;
        const struct mu_bench_limits *l = &p->r.host;
        printf("split %.60s (%s, %d thread%s a rank)", split_name(s, i, split), transport(s, i), s->n_thread[i],
               s->n_thread[i] == 1 ? "" : "s");
        if (l->read_gbps > 0)
            printf(": this machine reads %.1f GB/s, int8 %.0f GOP/s, f32 %.0f GFLOP/s", l->read_gbps, l->int8_gops,
                   l->f32_gflops);
        putchar('\n');
        print_links(&p->r);
        for (int k = 0; k < p->r.n_rank && s->node.n_numa > 1; k++) print_seat(s, i, k, &p->r.seat[k]);
    }
    print_gpus(s);
    putchar('\n');
}

/* A table of n_col columns that grows row by row. */
struct grid {
    int n_row, n_col, max_row;
    char (*text)[CELL];
};

static bool grid_init(struct grid *g, int max_row, int n_col)
{
    *g = (struct grid){.n_col = n_col, .max_row = max_row};
    g->text = mu_calloc((size_t)max_row * (size_t)n_col, CELL);
    return g->text;
}

static char *grid_cell(struct grid *g, int col)
{
    return g->text[(g->n_row - 1) * g->n_col + col];
}

static void grid_row(struct grid *g, const char *const *cells)
{
    if (g->n_row == g->max_row) return;
    g->n_row++;
    for (int c = 0; c < g->n_col; c++) snprintf(grid_cell(g, c), CELL, "%s", cells[c]);
}

static bool grid_print(struct grid *g, const bool *right)
{
    const char **cells = mu_calloc((size_t)g->n_row * (size_t)g->n_col, sizeof *cells);
    for (int i = 0; cells && i < g->n_row * g->n_col; i++) cells[i] = g->text[i];
    if (cells) mu_table_print(cells, g->n_row, g->n_col, right);
    bool ok = cells;
    mu_free(cells);
    mu_free(g->text);
    return ok;
}

/* At most five characters below a hundred million, so that the table keeps within a terminal of 80. */
static void rate_cell(char *cell, double per_s)
{
    if (per_s >= 99999.5)
        snprintf(cell, CELL, "%.0fk", per_s / 1000);
    else
        mu_chart_number(per_s, cell, CELL);
}

static bool print_points(const struct mu_bench_sweep *s)
{
    enum { N_COL = 9 };
    static const bool right[N_COL] = {false, false, true, true, true, true, true, false, true};
    static const char *const head[N_COL] = {"case",  "tokens/s", "each",   "noise", "bound",
                                            "of it", "limit",    "memory", ""};
    struct grid g;
    char split[MU_SPLIT_TEXT];
    bool many = s->n_split > 1;
    int n_col = many ? N_COL : N_COL - 1; /* the split stands first where there are several */
    const char *cells[N_COL] = {"split"};
    if (!grid_init(&g, s->n_point + 1, n_col)) return false;
    for (int c = many; c < n_col; c++) cells[c] = head[c - many];
    grid_row(&g, cells);
    for (int i = 0; i < s->n_point; i++) {
        const struct mu_bench_point *p = &s->point[i];
        char t[N_COL][CELL] = {{0}};
        char(*v)[CELL] = t + many;
        if (p->state == MU_BENCH_NOT_RUN) continue;
        if (many && i % s->n_case == 0) snprintf(t[0], CELL, "%s", split_short(s, p->i_split, COLUMN, split));
        mu_bench_case_name(p->c, v[0], CELL);
        mu_human_bytes(p->need_bytes, v[7], CELL);
        if (p->state == MU_BENCH_REFUSED) {
            snprintf(v[6], CELL, "does not fit");
        } else {
            rate_cell(v[1], tokens_per_s(p));
            if (p->c->phase == MU_BENCH_DECODE) rate_cell(v[2], tokens_per_s(p) / p->c->n_stream);
            snprintf(v[3], CELL, "%.0f%%", 100 * mu_bench_noise(&p->r.s));
            rate_cell(v[4], bound_per_s(p));
            snprintf(v[5], CELL, "%.0f%%", 100 * p->r.of_bound);
            snprintf(v[6], CELL, "%s", mu_bench_limit_name(mu_bench_limit_of(&p->r)));
        }
        for (int c = 0; c < n_col; c++) cells[c] = t[c];
        grid_row(&g, cells);
    }
    return grid_print(&g, many ? right : right + 1);
}

/* Whether the breakdown of this point is shown: of all where asked or where there are few, else of the longest prompt and
 * of the first and the last decode. */
static bool is_shown(const struct mu_bench_sweep *s, const struct mu_bench_point *p)
{
    const struct mu_bench_point *end = s->point + (p->i_split + 1) * s->n_case;
    if (p->state != MU_BENCH_DONE) return false;
    if (s->opt->breakdown || s->n_case <= FEW_CASES) return true;
    const struct mu_bench_point *before = p > end - s->n_case ? p - 1 : NULL, *after = p + 1 < end ? p + 1 : NULL;
    bool first = !before || before->c->phase != p->c->phase || before->state != MU_BENCH_DONE;
    bool last = !after || after->c->phase != p->c->phase || after->state != MU_BENCH_DONE;
    return p->c->phase == MU_BENCH_PROMPT ? last : first || last;
}

static void percent(char *cell, double part, double whole)
{
    snprintf(cell, CELL, "%.0f%%", whole > 0 ? 100 * part / whole : 0);
}

static bool print_breakdown(const struct mu_bench_sweep *s)
{
    enum { N_COL = 8 };
    static const bool right[N_COL] = {false, true, true, true, true, true, true, true};
    static const char *const head[N_COL] = {"where the time goes", "rank",     "ms a step", "matrices",
                                            "attention",           "sampling", "wire",      "waiting"};
    struct grid g;
    int n_row = 1;
    for (int i = 0; i < s->n_point; i++) n_row += is_shown(s, &s->point[i]) ? s->point[i].r.n_rank : 0;
    if (!grid_init(&g, n_row, N_COL)) return false;
    grid_row(&g, head);
    for (int i = 0; i < s->n_point; i++) {
        const struct mu_bench_point *p = &s->point[i];
        char t[N_COL][CELL], split[MU_SPLIT_TEXT];
        if (!is_shown(s, p)) continue;
        for (int k = 0; k < p->r.n_rank; k++) {
            const struct mu_bench_times *x = &p->r.rank[k];
            const char *cells[N_COL];
            double sum = x->matrix_s + x->attention_s + x->sampling_s + x->wire_s + x->wait_s;
            t[0][0] = 0;
            if (k == 0) mu_bench_case_name(p->c, t[0], CELL);
            if (k == 0 && s->n_split > 1) {
                size_t len = strlen(t[0]);
                snprintf(t[0] + len, CELL - len, ", %s", split_short(s, p->i_split, COLUMN, split));
            }
            snprintf(t[1], CELL, "%d", k);
            mu_chart_number(1e3 * p->r.s.median / p->r.n_step, t[2], CELL);
            percent(t[3], x->matrix_s, sum);
            percent(t[4], x->attention_s, sum);
            percent(t[5], x->sampling_s, sum);
            percent(t[6], x->wire_s, sum);
            percent(t[7], x->wait_s, sum);
            for (int c = 0; c < N_COL; c++) cells[c] = t[c];
            grid_row(&g, cells);
        }
    }
    putchar('\n');
    return grid_print(&g, right);
}

/* What the planner's model says, beside what it took. */
static bool print_predictions(const struct mu_bench_sweep *s)
{
    enum { N_COL = 4 };
    static const bool right[N_COL] = {false, true, true, true};
    static const char *const head[N_COL] = {"predicted", "ms", "took", "more"};
    struct grid g;
    bool any = false;
    if (!grid_init(&g, s->n_point + 1, N_COL)) return false;
    grid_row(&g, head);
    for (int i = 0; i < s->n_point; i++) {
        const struct mu_bench_point *p = &s->point[i];
        char t[N_COL][CELL], split[MU_SPLIT_TEXT];
        if (!is_shown(s, p) || !(p->r.predicted_s > 0)) continue;
        mu_bench_case_name(p->c, t[0], CELL);
        size_t len = strlen(t[0]);
        snprintf(t[0] + len, CELL - len, ", %s", split_short(s, p->i_split, COLUMN, split));
        mu_chart_number(1e3 * p->r.predicted_s / p->r.n_step, t[1], CELL);
        mu_chart_number(1e3 * p->r.s.median / p->r.n_step, t[2], CELL);
        snprintf(t[3], CELL, "%+.0f%%", 100 * (p->r.s.median / p->r.predicted_s - 1));
        grid_row(&g, (const char *const[]){t[0], t[1], t[2], t[3]});
        any = true;
    }
    if (any) putchar('\n');
    if (any) return grid_print(&g, right);
    mu_free(g.text);
    return true;
}

/* A sentence wherever the limit is another than the line's above. */
static void print_limits(const struct mu_bench_sweep *s)
{
    const struct mu_bench_point *before = NULL;
    putchar('\n');
    for (int i = 0; i < s->n_point; i++) {
        const struct mu_bench_point *p = &s->point[i];
        char name[64], say[320], split[MU_SPLIT_TEXT];
        if (p->state != MU_BENCH_DONE) continue;
        bool same = before && before->i_split == p->i_split && before->c->phase == p->c->phase &&
                    mu_bench_limit_of(&before->r) == mu_bench_limit_of(&p->r);
        before = p;
        if (same) continue;
        mu_bench_case_name(p->c, name, sizeof name);
        mu_bench_limit_say(&p->r, &p->work, say, sizeof say);
        if (s->n_split > 1) printf("split %.60s, ", split_name(s, p->i_split, split));
        printf("%s: %s\n", name, say);
    }
    for (int i = 0; i < s->n_point; i++) {
        const struct mu_bench_point *p = &s->point[i];
        char name[64];
        if (p->state != MU_BENCH_DONE || p->c->phase != MU_BENCH_PROMPT || !(p->r.of_bf16 > 0)) continue;
        mu_bench_case_name(p->c, name, sizeof name);
        printf("%s: %.0f%% of the bf16 rate of the tensor cores, %.0f of %.0f TFLOP/s\n", name, 100 * p->r.of_bf16,
               p->r.of_bf16 * p->r.limits.bf16_gflops / 1e3, p->r.limits.bf16_gflops / 1e3);
    }
    for (int i = 0; i < s->n_point; i++) {
        char name[64];
        if (s->point[i].state != MU_BENCH_REFUSED) continue;
        mu_bench_case_name(s->point[i].c, name, sizeof name);
        printf("%s: does not fit: %s\n", name, s->point[i].why);
    }
}

void mu_bench_warnings_print(const struct mu_bench_warnings *w)
{
    for (int i = 0; i < w->n; i++) printf("warning: %s\n", w->text[i]);
}

/* ---- JSON ---- */

json_t *mu_bench_doc(const char *kind, const struct mu_bench_machine *m, const struct mu_bench_warnings *w,
                     bool interrupted)
{
    return json_pack("{s:s, s:i, s:s, s:b, s:o, s:o}", "muster", MUSTER_VERSION, "arithmetic", MU_ARITHMETIC_VERSION,
                     "benchmark", kind, "interrupted", interrupted, "machine", mu_bench_machine_json(m), "warnings",
                     mu_bench_warnings_json(w));
}

static json_t *ranks_json(const struct mu_bench_result *r)
{
    json_t *all = json_array();
    for (int i = 0; i < r->n_rank; i++)
        json_array_append_new(all,
                              json_pack("{s:i, s:f, s:f, s:f, s:f, s:f, s:i, s:f, s:s, s:f}", "rank", i, "matrix_s",
                                        r->rank[i].matrix_s, "attention_s", r->rank[i].attention_s, "sampling_s",
                                        r->rank[i].sampling_s, "wire_s", r->rank[i].wire_s, "wait_s", r->rank[i].wait_s,
                                        "numa", r->seat[i].numa, "numa_share", r->seat[i].numa_share, "cpus",
                                        r->seat[i].cpus, "read_gbps", r->seat[i].read_gbps));
    return all;
}

static json_t *links_json(const struct mu_bench_result *r)
{
    return json_pack("{s:{s:f, s:f}, s:{s:f, s:f}}", "inside", "us", r->inside.us, "gbps", r->inside.gbps, "between",
                     "us", r->between.us, "gbps", r->between.gbps);
}

static void measured_json(const struct mu_bench_point *p, json_t *to)
{
    const struct mu_bench_result *r = &p->r;
    char say[320];
    mu_bench_limit_say(r, &p->work, say, sizeof say);
    json_object_update_new(
        to,
        json_pack("{s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:o, s:o, s:o, s:o, s:o, s:s, s:s, s:o}", "tokens_per_s",
                  tokens_per_s(p), "tokens_per_s_each", tokens_per_s(p) / p->c->n_stream, "noise",
                  mu_bench_noise(&r->s), "delayed", r->delayed, "of_bound", r->of_bound, "of_bf16", r->of_bf16,
                  "load_s", r->load_s, "predicted_s", r->predicted_s, "links", links_json(r), "seconds",
                  json_pack("{s:i, s:f, s:f, s:f, s:f}", "n", (int)r->s.n, "median", r->s.median, "mean", r->s.mean,
                            "min", r->s.min, "max", r->s.max),
                  "work",
                  json_pack("{s:f, s:f, s:f, s:f}", "weight_bytes", p->work.weight_bytes, "kv_bytes", p->work.kv_bytes,
                            "int8_ops", p->work.int8_ops, "f32_ops", p->work.f32_ops),
                  "rates",
                  json_pack("{s:f, s:f, s:f, s:f}", "read_gbps", r->limits.read_gbps, "int8_gops", r->limits.int8_gops,
                            "f32_gflops", r->limits.f32_gflops, "bf16_gflops", r->limits.bf16_gflops),
                  "bound",
                  json_pack("{s:f, s:f, s:f, s:f, s:f}", "read_s", r->bound.read_s, "int8_s", r->bound.int8_s, "f32_s",
                            r->bound.f32_s, "seconds", r->bound.s, "tokens_per_s", bound_per_s(p)),
                  "limit", mu_bench_limit_name(mu_bench_limit_of(r)), "limit_text", say, "ranks", ranks_json(r)));
}

static json_t *point_json(const struct mu_bench_sweep *s, const struct mu_bench_point *p)
{
    static const char *const states[] = {"not run", "done", "refused"};
    char split[MU_SPLIT_TEXT];
    json_t *to = json_pack(
        "{s:s, s:i, s:i, s:s, s:s, s:i, s:i, s:i, s:I, s:s}", "split", split_name(s, p->i_split, split), "n_rank",
        s->split[p->i_split].n_rank, "threads_per_rank", s->n_thread[p->i_split], "transport", transport(s, p->i_split),
        "phase", p->c->phase == MU_BENCH_PROMPT ? "prompt" : "decode", "tokens", p->c->n_tok, "streams", p->c->n_stream,
        "context", p->c->n_context, "memory_bytes", (json_int_t)p->need_bytes, "state", states[p->state]);
    if (p->state == MU_BENCH_REFUSED) json_object_set_new(to, "why", mu_text_json(p->why));
    if (p->state == MU_BENCH_DONE) measured_json(p, to);
    return to;
}

static json_t *gpus_json(const struct mu_gpus *gpus)
{
    json_t *all = json_array();
    for (int i = 0; i < gpus->n; i++) {
        const struct mu_gpu *g = &gpus->gpu[i];
        json_array_append_new(
            all, json_pack("{s:s, s:s, s:i, s:i, s:b, s:I, s:I, s:f, s:f, s:f, s:f, s:f, s:f}", "name", g->name, "pci",
                           g->pci, "numa", g->numa, "capability", g->capability, "has_link", g->has_link,
                           "memory_bytes", (json_int_t)g->memory_bytes, "free_bytes", (json_int_t)g->free_bytes,
                           "read_gbps", g->read_gbps, "up_gbps", g->up_gbps, "down_gbps", g->down_gbps, "int8_gops",
                           g->int8_gops, "bf16_gops", g->bf16_gops, "f32_gops", g->f32_gops));
    }
    return all;
}

static json_t *sweep_json(const struct mu_bench_sweep *s)
{
    char what[256];
    json_t *doc = mu_bench_doc("steps", &s->machine, &s->warnings, s->interrupted), *points = json_array();
    mu_model_describe(s->model, what, sizeof what);
    for (int i = 0; i < s->n_point; i++) json_array_append_new(points, point_json(s, &s->point[i]));
    json_object_set_new(doc, "model",
                        json_pack("{s:o, s:s, s:I, s:I, s:s*}", "name", mu_text_json(s->opt->model), "description",
                                  what, "parameters", (json_int_t)s->model->n_param, "weight_bytes",
                                  (json_int_t)s->model->weight_bytes, "quantize", s->opt->quantize));
    json_object_set_new(doc, "gpus", gpus_json(&s->node.gpus));
    json_object_set_new(doc, "repeats", json_integer(s->opt->n_repeat));
    json_object_set_new(doc, "points", points);
    return doc;
}

/* ---- pictures ---- */

/* Which series a point is of: its split's, of all with as many streams (or so much context). */
static int64_t series_id(const struct mu_bench_point *p, int of)
{
    return (int64_t)p->i_split << 32 | of;
}

static void chart_put(struct mu_chart *c, const char *x, int64_t id, const char *series, double y, double limit)
{
    int i = 0, k = 0;
    while (i < c->n_x && strcmp(c->x[i], x)) i++;
    while (k < c->n_series && c->series[k].id != id) k++;
    c->more |= i == MU_CHART_MAX_X || k == MU_CHART_MAX_SERIES;
    if (i == MU_CHART_MAX_X || k == MU_CHART_MAX_SERIES) return;
    if (i == c->n_x) {
        snprintf(c->x[i], sizeof c->x[i], "%s", x);
        for (int s = 0; s < MU_CHART_MAX_SERIES; s++) c->series[s].y[i] = -1;
        c->n_x++;
    }
    if (k == c->n_series) {
        snprintf(c->series[k].name, sizeof c->series[k].name, "%s", series);
        c->series[c->n_series++].id = id;
    }
    c->series[k].y[i] = y;
    c->series[k].limit[i] = limit;
}

static struct mu_chart *chart_begin(struct mu_picture *p, enum mu_chart_kind kind, const char *title,
                                    const char *x_name)
{
    struct mu_chart *c = &p->chart[p->n_chart++];
    c->kind = kind;
    snprintf(c->title, sizeof c->title, "%s", title);
    snprintf(c->x_name, sizeof c->x_name, "%s", x_name);
    snprintf(c->y_name, sizeof c->y_name, "tokens/s");
    snprintf(c->limit_name, sizeof c->limit_name, "what this machine allows");
    return c;
}

static void prompts_chart(const struct mu_bench_sweep *s, struct mu_picture *p)
{
    struct mu_chart *c = NULL;
    for (int i = 0; i < s->n_point; i++) {
        const struct mu_bench_point *at = &s->point[i];
        char x[24], split[MU_SPLIT_TEXT], series[64];
        if (at->state != MU_BENCH_DONE || at->c->phase != MU_BENCH_PROMPT) continue;
        if (!c) c = chart_begin(p, MU_CHART_BARS, "Reading a prompt", "tokens of the prompt");
        snprintf(x, sizeof x, "%d", at->c->n_tok);
        snprintf(series, sizeof series, "split %s", split_short(s, at->i_split, LEGEND, split));
        chart_put(c, x, series_id(at, 0), series, tokens_per_s(at), bound_per_s(at));
    }
}

/* Decoding by streams, or by context: whichever is swept; the other one and the split name the series. */
static void decode_chart(const struct mu_bench_sweep *s, bool by_stream, enum mu_chart_kind kind, struct mu_picture *p)
{
    struct mu_chart *c = NULL;
    for (int i = 0; i < s->n_point; i++) {
        const struct mu_bench_point *at = &s->point[i];
        char x[24], split[MU_SPLIT_TEXT], context[16], series[64], streams[24];
        if (at->state != MU_BENCH_DONE || at->c->phase != MU_BENCH_DECODE) continue;
        if (!c)
            c = chart_begin(p, kind, by_stream ? "Decoding: all streams together" : "Decoding at a context",
                            by_stream ? "streams at once" : "tokens of context");
        mu_bench_length_format(at->c->n_context, context, sizeof context);
        snprintf(streams, sizeof streams, "%d stream%s", at->c->n_stream, at->c->n_stream == 1 ? "" : "s");
        snprintf(x, sizeof x, "%.16s", context);
        if (by_stream) snprintf(x, sizeof x, "%d", at->c->n_stream);
        bool alone = by_stream && s->opt->context.n == 1;
        split_short(s, at->i_split, alone ? LEGEND : COLUMN, split);
        if (alone)
            snprintf(series, sizeof series, "split %.48s", split);
        else if (by_stream)
            snprintf(series, sizeof series, "context %.8s%s%.12s", context, s->n_split > 1 ? ", split " : "",
                     s->n_split > 1 ? split : "");
        else
            snprintf(series, sizeof series, "%.20s%s%.12s", streams, s->n_split > 1 ? ", split " : "",
                     s->n_split > 1 ? split : "");
        chart_put(c, x, series_id(at, by_stream ? at->c->n_context : at->c->n_stream), series, tokens_per_s(at),
                  bound_per_s(at));
    }
}

static enum mu_status sweep_svg(const struct mu_bench_sweep *s, const char *path, struct mu_err *err)
{
    struct mu_picture *p = mu_calloc(1, sizeof *p);
    if (!p) return mu_fail(err, MU_ENOMEM, "no memory for the picture");
    char what[256];
    mu_model_describe(s->model, what, sizeof what);
    snprintf(p->title, sizeof p->title, "%.*s", (int)strcspn(what, ":"), what);
    snprintf(p->subtitle, sizeof p->subtitle, "muster %s, %s, kernels %s, %d thread%s a rank, medians of %d",
             MUSTER_VERSION, s->machine.cpu, mu_kernels()->name, s->n_thread[0], s->n_thread[0] == 1 ? "" : "s",
             s->opt->n_repeat);
    prompts_chart(s, p);
    if (s->opt->stream.n > 1) decode_chart(s, true, MU_CHART_LINES, p);
    if (s->opt->context.n > 1) decode_chart(s, false, MU_CHART_LINES, p);
    if (s->opt->stream.n == 1 && s->opt->context.n == 1) decode_chart(s, true, MU_CHART_BARS, p);
    enum mu_status st = mu_bench_write_svg(path, p, err);
    mu_free(p);
    return st;
}

enum mu_status mu_bench_sweep_report(const struct mu_bench_sweep *s, struct mu_err *err)
{
    const struct mu_bench_output *o = &s->opt->output;
    enum mu_status st = MU_OK;
    if (o->svg) st = sweep_svg(s, o->svg, err);
    if (st) return st;
    if (o->format == MU_BENCH_SVG) return sweep_svg(s, o->out, err);
    if (o->format == MU_BENCH_JSON) return mu_bench_write_json(o, sweep_json(s), err);
    print_head(s);
    if (!print_points(s) || !print_breakdown(s) || !print_predictions(s))
        return mu_fail(err, MU_ENOMEM, "no memory for the table");
    print_limits(s);
    mu_bench_warnings_print(&s->warnings);
    if (s->interrupted) puts("interrupted: cases that are not in the table did not run");
    return MU_OK;
}
