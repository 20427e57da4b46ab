/* What a draft model came to: a table, sentences; or JSON; or a picture (docs/benchmarking.md). */
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "cli/bench_draft.h"
#include "cli/bench_svg.h"
#include "kernels/kernels.h"

enum { CELL = 40 };

/* ---- figures ---- */

void mu_bench_draft_case_name(const struct mu_bench_draft_case *c, char *buf, size_t buf_bytes)
{
    if (c->temperature > 0)
        snprintf(buf, buf_bytes, "decode %d at %.1f", c->n_stream, (double)c->temperature);
    else
        snprintf(buf, buf_bytes, "decode %d greedy", c->n_stream);
}

static double part(double a, double b)
{
    return b > 0 ? a / b : 0;
}

/* Microseconds of a step of the model without guesses; of one of the draft. */
static double model_us(const struct mu_bench_draft_case *c)
{
    const struct mu_bench_counts *n = &c->sum[MU_BENCH_PLAIN];
    return 1e6 * part(n->seconds, (double)n->n_step);
}
static double draft_us(const struct mu_bench_draft_case *c)
{
    const struct mu_bench_counts *n = &c->sum[MU_BENCH_DRAFT];
    return part(n->draft_us, (double)n->n_draft_step);
}

/* ---- the table ---- */

static void print_head(const struct mu_bench_drafted *d)
{
    const struct mu_bench_draft_options *o = d->opt;
    char what[256];
    mu_model_describe(d->model, what, sizeof what);
    puts(what);
    mu_model_describe(d->draft, what, sizeof what);
    printf("draft: %s\n", what);
    printf("%s, kernels %s, %d thread%s, medians of %d\n", d->machine.cpu, mu_kernels()->name, d->n_thread,
           d->n_thread == 1 ? "" : "s", o->n_repeat);
    printf("%d prompts%s%s, %d tokens each, seed %llu\n\n", d->n_prompt, o->prompts ? " of " : "",
           o->prompts ? o->prompts : "", o->n_decode, (unsigned long long)o->seed);
}

static bool print_cases(const struct mu_bench_drafted *d)
{
    enum { N_COL = 10 };
    static const bool right[N_COL] = {false, true, true, true, true, true, true, true, true, true};
    static const char *const head[N_COL] = {"case",  "plain",  "found", "draft", "gain",
                                            "of it", "tokens", "asked", "right", "step"};
    size_t n_row = (size_t)d->n_case + 1;
    char(*text)[N_COL][CELL] = mu_calloc(n_row, sizeof *text);
    const char **cells = mu_calloc(n_row * N_COL, sizeof *cells);
    int row = 0;
    for (int i = 0; text && cells && i < N_COL; i++) cells[i] = head[i];
    for (int i = 0; text && cells && i < d->n_case; i++) {
        const struct mu_bench_draft_case *c = &d->cases[i];
        const struct mu_bench_counts *n = &c->sum[MU_BENCH_DRAFT];
        if (!c->done) continue;
        char(*t)[CELL] = text[++row];
        mu_bench_draft_case_name(c, t[0], CELL);
        for (int way = 0; way < MU_BENCH_WAYS; way++) mu_chart_number(c->rate[way].median, t[1 + way], CELL);
        snprintf(t[4], CELL, "%.2f", c->gain.median);
        snprintf(t[5], CELL, "%.2f", c->of_plain.median);
        snprintf(t[6], CELL, "%.2f", part((double)n->n_token, (double)n->n_step * c->n_stream));
        snprintf(t[7], CELL, "%.2f", part((double)n->drafted, (double)n->n_step * c->n_stream));
        if (n->drafted) snprintf(t[8], CELL, "%.0f%%", 100 * part((double)n->draft_right, (double)n->drafted));
        if (n->n_draft_step) snprintf(t[9], CELL, "%.1f%%", 100 * part(draft_us(c), model_us(c)));
        for (int k = 0; k < N_COL; k++) cells[row * N_COL + k] = t[k];
    }
    bool ok = text && cells;
    if (ok) mu_table_print(cells, row + 1, N_COL, right);
    mu_free(text);
    mu_free(cells);
    if (ok)
        puts("tokens/s of all streams: plain, without guesses; found, those found in the\n"
             "text, as 'serve' has it; draft, the model's too. gain: draft / found; of it:\n"
             "draft / plain. Of a step and stream: tokens that came, guesses asked of the\n"
             "draft. right: of these. step: one of the draft beside one of the model");
    return ok;
}

/* Both in one sentence: what it gave, and why. */
static void print_says(const struct mu_bench_drafted *d)
{
    putchar('\n');
    for (int i = 0; i < d->n_case; i++) {
        const struct mu_bench_draft_case *c = &d->cases[i];
        const struct mu_bench_counts *n = &c->sum[MU_BENCH_DRAFT];
        char name[CELL];
        if (!c->done) continue;
        mu_bench_draft_case_name(c, name, sizeof name);
        if (!n->drafted)
            printf("%s: the draft was not asked: guesses do not pay here\n", name);
        else
            printf("%s: %llu of %llu guesses right; a step takes %.2f ms, the draft's %.2f ms\n", name,
                   (unsigned long long)n->draft_right, (unsigned long long)n->drafted, model_us(c) / 1e3,
                   draft_us(c) / 1e3);
    }
    puts("all answers had the same ids, with guesses and without");
}

/* ---- JSON ---- */

static json_t *way_json(const struct mu_bench_draft_case *c, enum mu_bench_way way)
{
    const struct mu_bench_counts *n = &c->sum[way];
    const struct mu_bench_spread *s = &c->rate[way];
    return json_pack("{s:f, s:f, s:f, s:f, s:f, s:I, s:I, s:I, s:I, s:I, s:I}", "tokens_per_s", s->median, "min",
                     s->min, "max", s->max, "noise", mu_bench_noise(s), "seconds", n->seconds, "tokens",
                     (json_int_t)n->n_token, "steps", (json_int_t)n->n_step, "found", (json_int_t)n->found,
                     "found_right", (json_int_t)n->found_right, "drafted", (json_int_t)n->drafted, "draft_right",
                     (json_int_t)n->draft_right);
}

static json_t *case_json(const struct mu_bench_draft_case *c)
{
    const struct mu_bench_counts *n = &c->sum[MU_BENCH_DRAFT];
    return json_pack("{s:i, s:f, s:I, s:o, s:o, s:o, s:f, s:f, s:f, s:f, s:f, s:I, s:f, s:I, s:f}", "streams",
                     c->n_stream, "temperature", (double)c->temperature, "ids", (json_int_t)c->n_id, "plain",
                     way_json(c, MU_BENCH_PLAIN), "found", way_json(c, MU_BENCH_FOUND), "draft",
                     way_json(c, MU_BENCH_DRAFT), "gain", c->gain.median, "gain_min", c->gain.min, "gain_max",
                     c->gain.max, "of_plain", c->of_plain.median, "step_us", model_us(c), "draft_steps",
                     (json_int_t)n->n_draft_step, "draft_step_us", draft_us(c), "draft_read", (json_int_t)n->n_read,
                     "draft_read_us", n->read_us);
}

static json_t *model_json(const char *name, const struct mu_model *m)
{
    char what[256];
    mu_model_describe(m, what, sizeof what);
    return json_pack("{s:o, s:s, s:I, s:I}", "name", mu_text_json(name), "description", what, "parameters",
                     (json_int_t)m->n_param, "weight_bytes", (json_int_t)m->weight_bytes);
}

static json_t *drafted_json(const struct mu_bench_drafted *d)
{
    const struct mu_bench_draft_options *o = d->opt;
    json_t *doc = mu_bench_doc("draft", &d->machine, &d->warnings, d->interrupted), *cases = json_array();
    for (int i = 0; i < d->n_case; i++)
        if (d->cases[i].done) json_array_append_new(cases, case_json(&d->cases[i]));
    json_object_set_new(doc, "model", model_json(o->model, d->model));
    json_object_set_new(doc, "draft", model_json(o->draft, d->draft));
    json_object_set_new(doc, "threads", json_integer(d->n_thread));
    json_object_set_new(doc, "repeats", json_integer(o->n_repeat));
    json_object_set_new(doc, "tokens", json_integer(o->n_decode));
    json_object_set_new(doc, "seed", json_integer((json_int_t)o->seed));
    if (o->prompts) json_object_set_new(doc, "prompts", mu_text_json(o->prompts));
    json_object_set_new(doc, "cases", cases);
    return doc;
}

/* ---- the picture ---- */

static enum mu_status drafted_svg(const struct mu_bench_drafted *d, const char *path, struct mu_err *err)
{
    static const char *const names[MU_BENCH_WAYS] = {"without guesses", "found in the text", "with the draft model"};
    struct mu_picture *p = mu_calloc(1, sizeof *p);
    if (!p) return mu_fail(err, MU_ENOMEM, "no memory for the picture");
    char what[256];
    struct mu_chart *c = &p->chart[p->n_chart++];
    mu_model_describe(d->model, what, sizeof what);
    snprintf(p->title, sizeof p->title, "%.*s", (int)strcspn(what, ":"), what);
    snprintf(p->subtitle, sizeof p->subtitle, "muster %s, %s, %d thread%s, medians of %d; draft of %.0fM parameters",
             MUSTER_VERSION, d->machine.cpu, d->n_thread, d->n_thread == 1 ? "" : "s", d->opt->n_repeat,
             (double)d->draft->n_param / 1e6);
    c->kind = MU_CHART_BARS;
    snprintf(c->title, sizeof c->title, "Decoding: all streams together");
    snprintf(c->x_name, sizeof c->x_name, "streams at once, temperature");
    snprintf(c->y_name, sizeof c->y_name, "tokens/s");
    c->n_series = MU_BENCH_WAYS;
    for (int way = 0; way < MU_BENCH_WAYS; way++)
        snprintf(c->series[way].name, sizeof c->series[way].name, "%s", names[way]);
    for (int i = 0; i < d->n_case; i++) {
        if (!d->cases[i].done) continue;
        c->more |= c->n_x == MU_CHART_MAX_X;
        if (c->n_x == MU_CHART_MAX_X) break;
        mu_bench_draft_case_name(&d->cases[i], what, sizeof what);
        snprintf(c->x[c->n_x], sizeof c->x[0], "%.20s", what + strlen("decode "));
        for (int way = 0; way < MU_BENCH_WAYS; way++) c->series[way].y[c->n_x] = d->cases[i].rate[way].median;
        c->n_x++;
    }
    enum mu_status st = mu_bench_write_svg(path, p, err);
    mu_free(p);
    return st;
}

enum mu_status mu_bench_drafted_report(const struct mu_bench_drafted *d, struct mu_err *err)
{
    const struct mu_bench_output *o = &d->opt->out;
    enum mu_status st = MU_OK;
    if (o->svg) st = drafted_svg(d, o->svg, err);
    if (st) return st;
    if (o->format == MU_BENCH_SVG) return drafted_svg(d, o->out, err);
    if (o->format == MU_BENCH_JSON) return mu_bench_write_json(o, drafted_json(d), err);
    print_head(d);
    if (!print_cases(d)) return mu_fail(err, MU_ENOMEM, "no memory for the table");
    print_says(d);
    mu_bench_warnings_print(&d->warnings);
    if (d->interrupted) puts("interrupted: cases that are not in the table did not run");
    return MU_OK;
}
