/* A serving run: our own server or a running one, then one load after another. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/io.h"
#include "cli/bench_serve.h"
#include "kernels/kernels.h"

enum { MAX_PROMPTS_BYTES = 256 << 20, MAX_PROMPTS = 1 << 20 };

/* Lengths where none were asked for; less where the context is small. */
static const struct mu_bench_range INPUT = {64, 256}, OUTPUT = {16, 64};

enum mu_status mu_bench_prompts_of(const char *text, size_t len, const char *what, struct mu_bench_prompts *p,
                                   struct mu_err *err)
{
    if (strnlen(text, len) != len)
        return mu_fail(err, MU_EINVAL, "%s holds a NUL character at byte %zu", what, strlen(text) + 1);
    size_t n_line = 1;
    for (size_t i = 0; i < len; i++) n_line += text[i] == '\n';
    if (n_line > MAX_PROMPTS + 1) return mu_fail(err, MU_ELIMIT, "%s has more than %d lines", what, MAX_PROMPTS);
    p->text = mu_malloc(len + 1);
    p->line = mu_reallocarray(NULL, n_line, sizeof *p->line);
    if (!p->text || !p->line) return mu_fail(err, MU_ENOMEM, "no memory for the prompts of %s", what);
    memcpy(p->text, text, len);
    p->text[len] = 0;
    char *save = NULL;
    for (char *line = strtok_r(p->text, "\r\n", &save); line; line = strtok_r(NULL, "\r\n", &save))
        p->line[p->n++] = line;
    return p->n ? MU_OK : mu_fail(err, MU_EINVAL, "%s holds no prompts; expected one a line", what);
}

enum mu_status mu_bench_prompts_read(const char *path, struct mu_bench_prompts *p, struct mu_err *err)
{
    size_t len;
    char *text = NULL;
    enum mu_status st = mu_file_read(path, MAX_PROMPTS_BYTES, &text, &len, err);
    if (st == MU_OK) st = mu_bench_prompts_of(text, len, path, p, err);
    mu_free(text);
    return st;
}

void mu_bench_prompts_free(struct mu_bench_prompts *p)
{
    mu_free(p->text);
    mu_free(p->line);
}

/* What fits the context; asked for and too long is refused before anything is sent. */
static enum mu_status lengths_choose(struct mu_bench_served *s, int n_ctx, struct mu_err *err)
{
    const struct mu_bench_serve_options *o = s->opt;
    int room = n_ctx - o->n_prefix;
    s->input = o->input.max ? o->input : INPUT;
    s->output = o->output.max ? o->output : OUTPUT;
    if (!o->output.max && s->output.max > room / 4) s->output = (struct mu_bench_range){1, room / 4 > 1 ? room / 4 : 1};
    if (!o->input.max && s->input.max > room - s->output.max)
        s->input = (struct mu_bench_range){1, room - s->output.max > 1 ? room - s->output.max : 1};
    if (o->prompts) s->input = (struct mu_bench_range){0, 0};
    long most = (long)o->n_prefix + s->input.max + s->output.max;
    if (most <= n_ctx) return MU_OK;
    return mu_fail(
        err, MU_ELIMIT,
        "requests of up to %ld tokens (shared prefix %d, input %d, output %d) do not fit the server's context "
        "of %d: shorter ones, or a larger --ctx",
        most, o->n_prefix, s->input.max, s->output.max, n_ctx);
}

/* The first request finds everything cold: it is not counted. */
static enum mu_status warm_up(struct mu_bench_client *c, const struct mu_bench_load_options *load, struct mu_err *err)
{
    struct mu_bench_serve_options one = *load->opt;
    struct mu_bench_load_options first = *load;
    struct mu_bench_load_result r;
    one.n_request = 1;
    one.duration_ns = 0;
    first.opt = &one;
    first.rate = 0;
    first.concurrency = 1;
    first.seed = ~load->seed;
    return mu_bench_client_load(c, &first, &r, err);
}

/* On an error there may be loads that are done. */
static enum mu_status loads_run(struct mu_bench_served *s, struct mu_bench_client *c,
                                struct mu_bench_load_options *load, struct mu_err *err)
{
    const struct mu_bench_serve_options *o = s->opt;
    int n = o->rate.n ? o->rate.n : o->concurrency.n;
    enum mu_status st = warm_up(c, load, err);
    for (int i = 0; i < n && !st && !mu_interrupted; i++) {
        load->rate = o->rate.n ? o->rate.at[i] : 0;
        load->concurrency = o->rate.n ? 0 : o->concurrency.at[i];
        load->seed =
            o->seed + (uint64_t)i * 7919; /* other prompts than the load's before: a cache shall not know them */
        st = mu_bench_client_load(c, load, &s->load[s->n_load], err);
        if (!st) s->n_load++;
    }
    s->interrupted = mu_interrupted || st;
    if (!st && !s->n_load) st = mu_fail(err, MU_ECANCELLED, "interrupted before the first request was done");
    return st;
}

enum mu_status mu_bench_serve(const struct mu_bench_serve_options *opt, struct mu_err *err)
{
    enum mu_status st, told;
    struct mu_bench_server *server = NULL;
    struct mu_bench_client *client = NULL;
    struct mu_bench_prompts prompts = {0};
    int32_t *pool = NULL;
    int n_ctx = 0;
    struct mu_bench_load_options load = {.opt = opt};
    struct mu_bench_served *s = mu_calloc(1, sizeof *s);
    if (!s) return mu_fail(err, MU_ENOMEM, "no memory for a benchmark");
    s->opt = opt;
    mu_signals_catch_ends();
    if (opt->prompts) MU_TRY(st, mu_bench_prompts_read(opt->prompts, &prompts, err), done);
    MU_TRY(st, mu_kernels_init(NULL, err), done); /* for their name */
    if (!opt->server) MU_TRY(st, mu_bench_server_start(opt, &server, err), done);
    s->address = opt->server ? opt->server : mu_bench_server_address(server);
    MU_TRY(st, mu_bench_client_open(s->address, opt->server ? opt->model : NULL, &client, err), done);
    MU_TRY(st, mu_bench_client_model(client, &n_ctx, s->what, sizeof s->what, err), done);
    MU_TRY(st, lengths_choose(s, n_ctx, err), done);
    if (!opt->prompts) MU_TRY(st, mu_bench_client_ids(client, &pool, &load.n_pool, err), done);
    load.input = s->input;
    load.output = s->output;
    load.pool = pool;
    load.seed = opt->seed;
    load.prompt = prompts.line;
    load.n_prompt = prompts.n;
    st = loads_run(s, client, &load, err);
    if (!s->n_load) goto done;
    mu_bench_served_warn(s);
    told = mu_bench_served_report(s, st ? NULL : err);
    if (!st) st = told;
done:
    mu_bench_client_close(client);
    mu_bench_server_stop(server);
    mu_free(pool);
    mu_bench_prompts_free(&prompts);
    mu_free(s);
    return st;
}
