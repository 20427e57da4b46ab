/* A table of parameters: name, kind, bounds, where the value lives. Everything else walks it. */
#include "cli/params.h"

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/alloc.h"
#include "base/clock.h"

enum kind { REAL, WHOLE, TEXTS };
enum { TEMPERATURE, TOP_K, TOP_P, SEED, NUM_PREDICT, NUM_CTX, STOP, N_PARAM };

static const struct param {
    const char *name;
    enum kind kind;
    double min, max;
    size_t at; /* of the value in struct mu_params */
    const char *meaning;
} table[N_PARAM] = {
    [TEMPERATURE] = {"temperature", REAL, 0, 100, offsetof(struct mu_params, temperature),
                     "how freely it chooses; 0 takes the likeliest token each time"},
    [TOP_K] = {"top_k", WHOLE, 0, 1 << 20, offsetof(struct mu_params, top_k), "among the N likeliest only; 0 is all"},
    [TOP_P] = {"top_p", REAL, 0, 1, offsetof(struct mu_params, top_p),
               "among the likeliest with so much of the probability; 1 is all"},
    [SEED] = {"seed", WHOLE, -1, 9007199254740991.0, offsetof(struct mu_params, seed),
              "the same seed gives the same text; -1 is another one each time"},
    [NUM_PREDICT] = {"num_predict", WHOLE, -2, 1 << 24, offsetof(struct mu_params, num_predict),
                     "most new tokens of an answer; -1 is as many as fit"},
    [NUM_CTX] = {"num_ctx", WHOLE, 2, 1 << 24, offsetof(struct mu_params, num_ctx),
                 "tokens of conversation and answer together"},
    [STOP] = {"stop", TEXTS, 0, 0, 0, "texts before which an answer ends, one or more"},
};

/* Below it logits divided by it may overflow; it is greedy long before. */
static const double MIN_TEMPERATURE = 1e-4;

static bool is_set(const struct mu_params *p, int i)
{
    return p->set >> i & 1;
}

static int find(const char *name, struct mu_err *err)
{
    for (int i = 0; i < N_PARAM; i++)
        if (!strcmp(table[i].name, name)) return i;
    char list[160] = "";
    for (int i = 0; i < N_PARAM; i++) {
        size_t n = strlen(list);
        snprintf(list + n, sizeof list - n, "%s%s", i ? ", " : "", table[i].name);
    }
    mu_fail(err, MU_EINVAL, "there is no parameter '%.60s'; those that there are: %s", name, list);
    return -1;
}

static enum mu_status set_number(struct mu_params *p, int i, const char *text, struct mu_err *err)
{
    const struct param *k = &table[i];
    char *end;
    errno = 0;
    double real = 0;
    long long whole = 0;
    if (k->kind == REAL)
        real = strtod(text, &end);
    else
        whole = strtoll(text, &end, 10);
    double v = k->kind == REAL ? real : (double)whole;
    if (errno || end == text || *end || !(v >= k->min && v <= k->max))
        return mu_fail(err, MU_EINVAL, "%s must be a %s from %.16g to %.16g, not '%.60s'", k->name,
                       k->kind == REAL ? "number" : "whole number", k->min, k->max, text);
    if (i == TEMPERATURE && v > 0 && v < MIN_TEMPERATURE)
        return mu_fail(err, MU_EINVAL, "%s must be 0 or at least %g", k->name, MIN_TEMPERATURE);
    if (k->kind == REAL)
        memcpy((char *)p + k->at, &real, sizeof real);
    else
        memcpy((char *)p + k->at, &(int64_t){whole}, sizeof(int64_t));
    p->set |= 1u << i;
    return MU_OK;
}

static void stops_free(struct mu_params *p)
{
    while (p->n_stop) mu_free(p->stop[--p->n_stop]);
}

enum mu_status mu_params_add_stop(struct mu_params *p, const char *text, struct mu_err *err)
{
    if (p->n_stop == MU_MAX_STOPS) return mu_fail(err, MU_EINVAL, "at most %d stop strings", MU_MAX_STOPS);
    if (!*text) return mu_fail(err, MU_EINVAL, "a stop string must not be empty");
    if (strlen(text) > MU_MAX_STOP_BYTES)
        return mu_fail(err, MU_EINVAL, "a stop string has %d bytes at most", MU_MAX_STOP_BYTES);
    char *copy = mu_strdup(text);
    if (!copy) return mu_fail(err, MU_ENOMEM, "no memory for a stop string");
    p->stop[p->n_stop++] = copy;
    p->set |= 1u << STOP;
    return MU_OK;
}

static enum mu_status set_stops(struct mu_params *p, const char *const *text, int n, struct mu_err *err)
{
    struct mu_params fresh = {0};
    for (int i = 0; i < n; i++) {
        enum mu_status st = mu_params_add_stop(&fresh, text[i], err);
        if (st) {
            stops_free(&fresh);
            return st;
        }
    }
    stops_free(p);
    memcpy(p->stop, fresh.stop, sizeof p->stop);
    p->n_stop = fresh.n_stop;
    p->set |= 1u << STOP;
    return MU_OK;
}

enum mu_status mu_params_set(struct mu_params *p, const char *name, const char *const *value, int n_value,
                             struct mu_err *err)
{
    int i = find(name, err);
    if (i < 0) return MU_EINVAL;
    if (table[i].kind == TEXTS) return set_stops(p, value, n_value, err);
    if (n_value != 1) return mu_fail(err, MU_EINVAL, "%s takes one value, not %d", name, n_value);
    return set_number(p, i, value[0], err);
}

enum mu_status mu_params_set_json(struct mu_params *p, const char *name, const json_t *value, struct mu_err *err)
{
    const char *text[MU_MAX_STOPS];
    char number[40];
    size_t n = 1;
    if (json_is_string(value)) {
        text[0] = json_string_value(value);
    } else if (json_is_number(value)) {
        if (json_is_integer(value))
            snprintf(number, sizeof number, "%lld", (long long)json_integer_value(value));
        else
            snprintf(number, sizeof number, "%.17g", json_real_value(value));
        text[0] = number;
    } else if (json_is_array(value)) {
        n = json_array_size(value);
        if (n > MU_MAX_STOPS) return mu_fail(err, MU_EINVAL, "%.60s has more than %d values", name, MU_MAX_STOPS);
        for (size_t i = 0; i < n; i++)
            if (!(text[i] = json_string_value(json_array_get(value, i))))
                return mu_fail(err, MU_EINVAL, "value %zu of %.60s is not a string", i + 1, name);
    } else {
        return mu_fail(err, MU_EINVAL, "%.60s is neither a number nor a string nor an array of strings", name);
    }
    return mu_params_set(p, name, text, (int)n, err);
}

static double real_of(const struct mu_params *p, int i)
{
    double v;
    memcpy(&v, (const char *)p + table[i].at, sizeof v);
    return v;
}

static int64_t whole_of(const struct mu_params *p, int i)
{
    int64_t v;
    memcpy(&v, (const char *)p + table[i].at, sizeof v);
    return v;
}

json_t *mu_params_to_json(const struct mu_params *p)
{
    json_t *o = json_object();
    for (int i = 0; o && i < N_PARAM; i++) {
        if (!is_set(p, i)) continue;
        json_t *v = NULL;
        if (table[i].kind == REAL) v = json_real(real_of(p, i));
        if (table[i].kind == WHOLE) v = json_integer(whole_of(p, i));
        if (table[i].kind == TEXTS) {
            v = json_array();
            for (int k = 0; v && k < p->n_stop; k++)
                if (json_array_append_new(v, json_string(p->stop[k]))) { /* not UTF-8: cannot be told in JSON */
                    json_decref(v);
                    v = NULL;
                }
        }
        if (json_object_set_new(o, table[i].name, v)) {
            json_decref(o);
            return NULL;
        }
    }
    return o;
}

enum mu_status mu_params_merge(struct mu_params *p, const struct mu_params *over, struct mu_err *err)
{
    for (int i = 0; i < N_PARAM; i++) {
        if (!is_set(over, i)) continue;
        if (table[i].kind == TEXTS) {
            enum mu_status st = set_stops(p, (const char *const *)over->stop, over->n_stop, err);
            if (st) return st;
        } else { /* a double and an int64_t are as large */
            memcpy((char *)p + table[i].at, (const char *)over + table[i].at, sizeof(int64_t));
        }
        p->set |= 1u << i;
    }
    return MU_OK;
}

void mu_params_free(struct mu_params *p)
{
    stops_free(p);
    *p = (struct mu_params){0};
}

int mu_params_print(const struct mu_params *p, const char *indent, FILE *f)
{
    int n = 0;
    for (int i = 0; i < N_PARAM; i++) {
        if (!is_set(p, i)) continue;
        if (table[i].kind == REAL) fprintf(f, "%s%-12s %g\n", indent, table[i].name, real_of(p, i));
        if (table[i].kind == WHOLE) fprintf(f, "%s%-12s %lld\n", indent, table[i].name, (long long)whole_of(p, i));
        for (int k = 0; table[i].kind == TEXTS && k < p->n_stop; k++)
            fprintf(f, "%s%-12s \"%s\"\n", indent, table[i].name, p->stop[k]);
        n += table[i].kind == TEXTS ? p->n_stop : 1;
    }
    return n;
}

void mu_params_help(FILE *f)
{
    for (int i = 0; i < N_PARAM; i++) fprintf(f, "  %-12s %s\n", table[i].name, table[i].meaning);
}

bool mu_params_has_seed(const struct mu_params *p)
{
    return is_set(p, SEED) && p->seed >= 0;
}

struct mu_solo_sampling mu_params_sampling(const struct mu_params *p, bool chat)
{
    struct mu_solo_sampling s = {.temperature = (float)(is_set(p, TEMPERATURE) ? p->temperature
                                                        : chat                 ? 0.8
                                                                               : 0),
                                 .top_k = (uint32_t)(is_set(p, TOP_K) ? p->top_k
                                                     : chat           ? 40
                                                                      : 0),
                                 .top_p = (float)(is_set(p, TOP_P) ? p->top_p
                                                  : chat           ? 0.9
                                                                   : 1)};
    if (mu_params_has_seed(p)) {
        s.seed = (uint64_t)p->seed;
    } else {
        if (getrandom(&s.seed, sizeof s.seed, 0) < 0) s.seed = (uint64_t)mu_now_ns();
        s.seed &= ((uint64_t)1 << 53) - 1; /* so that it can be typed again, and written as JSON */
    }
    return s;
}
