/* Numbers and lists out of the command line. */
#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/io.h"
#include "base/topo.h"
#include "cli/cli.h"
#include "muster/v1/muster.pb-c.h"
#include "shard/plan_draft.h"
#include "worker/measure.h"

long mu_arg_long(const char *text, long min, long max, const char *what, struct argp_state *state)
{
    char *end;
    errno = 0;
    long v = strtol(text, &end, 10);
    if (errno || end == text || *end || v < min || v > max)
        argp_error(state, "%s must be a whole number from %ld to %ld, not '%s'", what, min, max, text);
    return v;
}

double mu_arg_double(const char *text, double min, double max, const char *what, struct argp_state *state)
{
    char *end;
    double v = strtod(text, &end);
    if (end == text || *end || !(v >= min && v <= max))
        argp_error(state, "%s must be a number from %g to %g, not '%s'", what, min, max, text);
    return v;
}

void mu_arg_adapter(const char *text, struct mu_adapter_spec *spec_out, struct argp_state *state)
{
    struct mu_err err = MU_ERR_INIT;
    if (strcmp(text, "none") == 0)
        *spec_out = (struct mu_adapter_spec){.name = "none"};
    else if (mu_adapter_spec_parse(text, spec_out, &err))
        argp_error(state, "--lora: %s", err.text);
}

int mu_arg_priority(const char *text, struct argp_state *state)
{
    if (!strcmp(text, "interactive")) return MUSTER__V1__PRIORITY__PRIORITY_INTERACTIVE;
    if (!strcmp(text, "batch")) return MUSTER__V1__PRIORITY__PRIORITY_BATCH;
    if (strcmp(text, "normal")) argp_error(state, "--priority must be interactive, normal or batch, not '%s'", text);
    return MUSTER__V1__PRIORITY__PRIORITY_NORMAL;
}

enum { MAX_IDS_FILE = 64 << 20 };

enum mu_status mu_arg_ids(const char *text, int32_t **ids_out, size_t *n_out, struct mu_err *err)
{
    enum mu_status st;
    char *file = NULL;
    size_t len = strlen(text);
    const char *name = "IDS";
    int32_t *ids = NULL;
    if (text[0] == '@') {
        name = text + 1;
        MU_TRY(st, mu_file_read(name, MAX_IDS_FILE, &file, &len, err), fail);
        text = file;
    }
    ids = mu_reallocarray(NULL, len / 2 + 1, sizeof *ids); /* an id and what parts it take two bytes at least */
    if (!ids) {
        st = mu_fail(err, MU_ENOMEM, "no memory for the ids of %s", name);
        goto fail;
    }
    size_t n = 0;
    for (const char *p = text; p < text + len;) {
        if (isspace((unsigned char)*p) || *p == ',') {
            p++;
            continue;
        }
        char *end;
        errno = 0;
        long v = strtol(p, &end, 10);
        if (end == p || errno || v < 0 || v > INT32_MAX) {
            st = mu_fail(err, MU_EINVAL,
                         "%s, character %zu: expected token ids (whole numbers with commas or blanks between)", name,
                         (size_t)(p - text) + 1);
            goto fail;
        }
        ids[n++] = (int32_t)v;
        p = end;
    }
    if (!n) {
        st = mu_fail(err, MU_EINVAL, "%s holds no token ids", name);
        goto fail;
    }
    mu_free(file);
    *ids_out = ids;
    *n_out = n;
    return MU_OK;
fail:
    mu_free(file);
    mu_free(ids);
    return st;
}

enum mu_status mu_read_stdin(size_t max_bytes, char **text_out, size_t *len_out, struct mu_err *err)
{
    size_t len = 0, cap = 1 << 16;
    char *buf = mu_malloc(cap);
    while (buf) {
        ssize_t n = read(STDIN_FILENO, buf + len, cap - len - 1);
        if (n < 0) {
            mu_free(buf);
            return mu_fail(err, MU_EIO, "cannot read standard input: %s", strerror(errno));
        }
        len += (size_t)n;
        if (n == 0) {
            buf[len] = 0;
            *text_out = buf;
            *len_out = len;
            return MU_OK;
        }
        if (len > max_bytes) {
            mu_free(buf);
            return mu_fail(err, MU_ELIMIT, "standard input holds more than %zu bytes", max_bytes);
        }
        if (cap - len > 1) continue;
        char *more = mu_reallocarray(buf, cap, 2);
        if (!more) break;
        buf = more;
        cap *= 2;
    }
    mu_free(buf);
    return mu_fail(err, MU_ENOMEM, "no memory for standard input");
}

int mu_default_threads(const struct mu_split *split)
{
    struct mu_topo *topo = mu_calloc(1, sizeof *topo);
    int n = 1;
    if (topo && mu_topo_read(topo, NULL) == MU_OK) n = mu_plan_threads(topo, split);
    mu_free(topo);
    return n;
}

enum mu_device_wish mu_arg_device(const char *text, struct argp_state *state)
{
    int wish = mu_device_wish_by_name(text);
    if (wish < 0) argp_error(state, "--device may be auto, cpu or gpu, not '%s'", text);
    return (enum mu_device_wish)wish;
}

enum { GPUS_MS = 20000, GPUS_MEASURE_MS = 60000 };

enum mu_status mu_cli_node(enum mu_gpu_look look, struct mu_plan_node *node_out, double *node_gbps, struct mu_err *err)
{
    struct mu_topo *topo = mu_calloc(1, sizeof *topo);
    if (!topo) return mu_fail(err, MU_ENOMEM, "no memory for the topology");
    enum mu_status st = mu_topo_read(topo, err);
    if (st == MU_OK) {
        mu_plan_node_of(topo, node_out);
        if (look == MU_LOOK) mu_gpus_ask(false, GPUS_MS, &node_out->gpus);
        if (look == MU_LOOK_MEASURE) mu_gpus_ask(true, GPUS_MEASURE_MS, &node_out->gpus);
        if (look == MU_LOOK_MEASURE)
            st = mu_processors_measure(topo, &node_out->read_gbps, &node_out->int8_gops, node_gbps, err);
    }
    mu_free(topo);
    return st;
}

const char *mu_arg_quantize(const char *text, struct argp_state *state)
{
    uint32_t type;
    struct mu_err err = MU_ERR_INIT;
    if (mu_quantize_type(text, &type, &err) != MU_OK) argp_error(state, "%s", err.text);
    return text;
}

enum mu_kv_type mu_arg_kv(const char *text, struct argp_state *state)
{
    int kv = *text ? mu_kv_type_by_name(text) : -1;
    if (kv < 0) argp_error(state, "--kv may be f16 or q8_0, not '%s'", text);
    return (enum mu_kv_type)kv;
}

bool mu_arg_gpu_prompts(const char *text, struct argp_state *state)
{
    bool rough = strcmp(text, "rough") == 0;
    if (!rough && strcmp(text, "exact") != 0) argp_error(state, "--gpu-prompts may be exact or rough, not '%s'", text);
    return rough;
}

enum mu_status mu_cli_fit(const struct mu_model *model, const struct mu_adapters *adapters,
                          const struct mu_model *draft, const struct mu_split *split, unsigned asked,
                          const struct mu_plan_node *node, struct mu_serving *serving, char text[MU_FIT_TEXT],
                          struct mu_err *err)
{
    enum mu_status st;
    struct mu_fit fit;
    struct mu_plan *plan = mu_calloc(1, sizeof *plan);
    struct mu_plan_node *here = mu_calloc(1, sizeof *here);
    if (!plan || !here) {
        st = mu_fail(err, MU_ENOMEM, "no memory for a plan");
        goto done;
    }
    serving->n_adapter = adapters ? adapters->n : 0;
    serving->lora_rank = adapters ? adapters->max_rank : 0;
    MU_TRY(st, mu_plan_build(model, split, plan, err), done);
    if (!node) MU_TRY(st, mu_cli_node(mu_split_has_gpu(split) ? MU_LOOK : MU_LOOK_NOT, here, NULL, err), done);
    if (!node) node = here;
    MU_TRY(st, mu_plan_where_check(model, node, split, err), done);
    mu_fit_measure(model, plan, adapters, serving, node, &fit);
    if (draft) {
        MU_TRY(st, mu_draft_check(plan, err), done);
        MU_TRY(st, mu_draft_fit(draft, serving, &fit, err), done);
    }
    MU_TRY(st, mu_fit_settle(&fit, model, plan, asked, serving, err), done);
    if (text) mu_fit_describe(&fit, serving, text);
done:
    mu_free(plan);
    mu_free(here);
    return st;
}

enum mu_status mu_cli_open(const char *name, bool want_tokenizer, struct mu_opened *opened_out, struct mu_err *err)
{
    struct mu_opened o = {0};
    enum mu_status st;
    MU_TRY(st, mu_store_find(name, &o.found, err), fail);
    MU_TRY(st, mu_model_open(o.found->path, &o.model, err), fail);
    if (want_tokenizer) MU_TRY(st, mu_tokenizer_open(o.model->gguf, &o.tok, err), fail);
    *opened_out = o;
    return MU_OK;
fail:
    mu_cli_close(&o);
    return st;
}

enum mu_status mu_cli_own_adapter(const struct mu_store_model *m, struct mu_adapter_spec *spec_out, struct mu_err *err)
{
    *spec_out = (struct mu_adapter_spec){.name = "own", .scale = 1};
    if (m->n_adapter == 0) return MU_OK;
    if (m->n_adapter > 1)
        return mu_fail(err, MU_EUNSUPPORTED, "'%s' has %d adapters at once; one at a time is supported", m->entry.name,
                       m->n_adapter);
    if (snprintf(spec_out->path, sizeof spec_out->path, "%s", m->adapter_path[0]) >= (int)sizeof spec_out->path)
        return mu_fail(err, MU_ELIMIT, "the path of the adapter of '%s' is longer than %zu bytes", m->entry.name,
                       sizeof spec_out->path - 1);
    return MU_OK;
}

enum mu_status mu_cli_adapt(struct mu_opened *o, const struct mu_adapter_spec *spec, struct mu_err *err)
{
    struct mu_adapter_spec own;
    if (!spec->name[0]) {
        enum mu_status st = mu_cli_own_adapter(o->found, &own, err);
        if (st != MU_OK) return st;
        spec = &own;
    }
    return spec->path[0] ? mu_adapters_open(o->model, spec, 1, &o->adapters, err) : MU_OK;
}

void mu_cli_close(struct mu_opened *o)
{
    mu_adapters_close(o->adapters);
    mu_tokenizer_close(o->tok);
    mu_model_close(o->model);
    mu_store_model_free(o->found);
    *o = (struct mu_opened){0};
}
