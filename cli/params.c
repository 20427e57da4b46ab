/* A table of parameters: name, kind, bounds, where the value lives. Everything else walks it. */
#include "cli/params.h"

#include <errno.h>
#include <float.h>
#include <inttypes.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/alloc.h"
#include "base/clock.h"

enum kind { REAL, WHOLE, TEXTS, BIASES };
enum {
    TEMPERATURE,
    TOP_K,
    TOP_P,
    MIN_P,
    TYPICAL_P,
    REPEAT_PENALTY,
    REPEAT_LAST_N,
    PRESENCE_PENALTY,
    FREQUENCY_PENALTY,
    LOGIT_BIAS,
    MIN_TOKENS,
    SEED,
    NUM_PREDICT,
    NUM_CTX,
    STOP,
    N_PARAM
};
enum { MAX_VALUES = MU_PARAMS_MAX_BIASES, DEFAULT_LAST_N = 64 };

static const struct param {
    const char *name;
    enum kind kind;
    int64_t min, max; /* of a whole number; a real one's are mu_sampling_check's */
    size_t at;        /* of the value in struct mu_params */
    const char *meaning;
} table[N_PARAM] = {
    [TEMPERATURE] = {"temperature", REAL, 0, 0, offsetof(struct mu_params, temperature),
                     "how freely it chooses; 0 takes the likeliest token each time"},
    [TOP_K] = {"top_k", WHOLE, 0, 1 << 20, offsetof(struct mu_params, top_k), "among the N likeliest only; 0 is all"},
    [TOP_P] = {"top_p", REAL, 0, 0, offsetof(struct mu_params, top_p),
               "among the likeliest with so much of the probability; 1 is all"},
    [MIN_P] = {"min_p", REAL, 0, 0, offsetof(struct mu_params, min_p),
               "among those at least so many times as likely as the likeliest; 0 is all"},
    [TYPICAL_P] = {"typical_p", REAL, 0, 0, offsetof(struct mu_params, typical_p),
                   "among the least surprising with so much of the probability; 1 is all"},
    [REPEAT_PENALTY] = {"repeat_penalty", REAL, 0, 0, offsetof(struct mu_params, repeat_penalty),
                        "how much tokens that were there lately are held back; 1 is not at all"},
    [REPEAT_LAST_N] = {"repeat_last_n", WHOLE, -1, 1 << 24, offsetof(struct mu_params, repeat_last_n),
                       "tokens that repeat_penalty looks back (64); -1 is all"},
    [PRESENCE_PENALTY] = {"presence_penalty", REAL, 0, 0, offsetof(struct mu_params, presence_penalty),
                          "taken from a token's logit if it was generated before"},
    [FREQUENCY_PENALTY] = {"frequency_penalty", REAL, 0, 0, offsetof(struct mu_params, frequency_penalty),
                           "and for each time that it was"},
    [LOGIT_BIAS] = {"logit_bias", BIASES, 0, 0, 0, "ID=X, one or more: X is added to token ID's logit"},
    [MIN_TOKENS] = {"min_tokens", WHOLE, 0, 1 << 24, offsetof(struct mu_params, min_tokens),
                    "least new tokens of an answer"},
    [SEED] = {"seed", WHOLE, -1, 9007199254740991, offsetof(struct mu_params, seed),
              "the same seed gives the same text; -1 is another one each time"},
    [NUM_PREDICT] = {"num_predict", WHOLE, -2, 1 << 24, offsetof(struct mu_params, num_predict),
                     "most new tokens of an answer; -1 is as many as fit"},
    [NUM_CTX] = {"num_ctx", WHOLE, 2, 1 << 24, offsetof(struct mu_params, num_ctx),
                 "tokens of conversation and answer together"},
    [STOP] = {"stop", TEXTS, 0, 0, 0, "texts before which an answer ends, one or more"},
};

static bool is_set(const struct mu_params *p, int i)
{
    return p->set >> i & 1;
}

static int find(const char *name, struct mu_err *err)
{
    for (int i = 0; i < N_PARAM; i++)
        if (!strcmp(table[i].name, name)) return i;
    char list[320] = "";
    for (int i = 0; i < N_PARAM; i++) {
        size_t n = strlen(list);
        snprintf(list + n, sizeof list - n, "%s%s", i ? ", " : "", table[i].name);
    }
    mu_fail(err, MU_EINVAL, "there is no parameter '%.60s'; those that there are: %s", name, list);
    return -1;
}

static struct mu_sampling sampling_of(const struct mu_params *p, bool chat);

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
    bool number = !errno && end != text && !*end;
    if (k->kind == REAL && !number) return mu_fail(err, MU_EINVAL, "%s must be a number, not '%.60s'", k->name, text);
    if (k->kind == WHOLE && !(number && whole >= k->min && whole <= k->max))
        return mu_fail(err, MU_EINVAL, "%s must be a whole number from %" PRId64 " to %" PRId64 ", not '%.60s'",
                       k->name, k->min, k->max, text);
    struct mu_params fresh = *p; /* its stop strings stay p's */
    if (k->kind == REAL)
        memcpy((char *)&fresh + k->at, &real, sizeof real);
    else
        memcpy((char *)&fresh + k->at, &(int64_t){whole}, sizeof(int64_t));
    fresh.set |= 1u << i;
    struct mu_sampling s = sampling_of(&fresh, false);
    enum mu_status st = mu_sampling_check(&s, err);
    if (st == MU_OK) *p = fresh;
    return st;
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

enum mu_status mu_params_add_bias(struct mu_params *p, const char *text, struct mu_err *err)
{
    char *id_end, *end = NULL;
    errno = 0;
    long id = strtol(text, &id_end, 10);
    double bias = *id_end == '=' ? strtod(id_end + 1, &end) : 0;
    if (errno || id_end == text || id < 0 || id > INT32_MAX || !end || end == id_end + 1 || *end ||
        !(bias >= -MU_SAMPLING_MAX_BIAS && bias <= MU_SAMPLING_MAX_BIAS))
        return mu_fail(err, MU_EINVAL,
                       "logit_bias must be ID=X, a token's number and a value from -%d to %d, not '%.60s'",
                       (int)MU_SAMPLING_MAX_BIAS, (int)MU_SAMPLING_MAX_BIAS, text);
    int i = 0;
    while (i < p->n_bias && p->bias[i].id != (int32_t)id) i++;
    if (i == MU_PARAMS_MAX_BIASES)
        return mu_fail(err, MU_EINVAL, "logit_bias takes at most %d tokens here", (int)MU_PARAMS_MAX_BIASES);
    if (i == p->n_bias) p->n_bias++;
    p->bias[i] = (struct mu_bias){(int32_t)id, (float)bias};
    p->set |= 1u << LOGIT_BIAS;
    return MU_OK;
}

static enum mu_status set_biases(struct mu_params *p, const char *const *text, int n, struct mu_err *err)
{
    struct mu_params fresh = *p;
    fresh.n_bias = 0;
    for (int i = 0; i < n; i++) {
        enum mu_status st = mu_params_add_bias(&fresh, text[i], err);
        if (st) return st;
    }
    *p = fresh;
    p->set |= 1u << LOGIT_BIAS;
    return MU_OK;
}

enum mu_status mu_params_set(struct mu_params *p, const char *name, const char *const *value, int n_value,
                             struct mu_err *err)
{
    int i = find(name, err);
    if (i < 0) return MU_EINVAL;
    if (table[i].kind == TEXTS) return set_stops(p, value, n_value, err);
    if (table[i].kind == BIASES) return set_biases(p, value, n_value, err);
    if (n_value != 1) return mu_fail(err, MU_EINVAL, "%s takes one value, not %d", name, n_value);
    return set_number(p, i, value[0], err);
}

enum mu_status mu_params_set_json(struct mu_params *p, const char *name, const json_t *value, struct mu_err *err)
{
    const char *text[MAX_VALUES];
    char number[40];
    size_t n = 1;
    if (find(name, err) < 0) return MU_EINVAL;
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
        if (n > MAX_VALUES) return mu_fail(err, MU_EINVAL, "%.60s has more than %d values", name, (int)MAX_VALUES);
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
        if (table[i].kind == BIASES) {
            v = json_array();
            for (int k = 0; v && k < p->n_bias; k++)
                json_array_append_new(v, json_sprintf("%d=%.9g", p->bias[k].id, (double)p->bias[k].bias));
            if (json_array_size(v) != (size_t)p->n_bias) { /* out of memory */
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
        } else if (table[i].kind == BIASES) {
            memcpy(p->bias, over->bias, sizeof p->bias);
            p->n_bias = over->n_bias;
        } else { /* a double and an int64_t are as large */
            memcpy((char *)p + table[i].at, (const char *)over + table[i].at, sizeof(int64_t));
        }
        p->set |= 1u << i;
    }
    return MU_OK;
}

void mu_params_forget_context(struct mu_params *p)
{
    p->num_ctx = 0;
    p->set &= ~(1u << NUM_CTX);
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
        if (table[i].kind == REAL) fprintf(f, "%s%-17s %g\n", indent, table[i].name, real_of(p, i));
        if (table[i].kind == WHOLE) fprintf(f, "%s%-17s %lld\n", indent, table[i].name, (long long)whole_of(p, i));
        for (int k = 0; table[i].kind == TEXTS && k < p->n_stop; k++)
            fprintf(f, "%s%-17s \"%s\"\n", indent, table[i].name, p->stop[k]);
        for (int k = 0; table[i].kind == BIASES && k < p->n_bias; k++)
            fprintf(f, "%s%-17s %d=%g\n", indent, table[i].name, p->bias[k].id, (double)p->bias[k].bias);
        n += table[i].kind == TEXTS ? p->n_stop : table[i].kind == BIASES ? p->n_bias : 1;
    }
    return n;
}

void mu_params_help(FILE *f)
{
    for (int i = 0; i < N_PARAM; i++) fprintf(f, "  %-17s %s\n", table[i].name, table[i].meaning);
}

bool mu_params_has_seed(const struct mu_params *p)
{
    return is_set(p, SEED) && p->seed >= 0;
}

/* A share of the probability. 0 leaves the first alone, as with llama.cpp and Ollama; to the sampler 0 is no cut. */
static float share_of(const struct mu_params *p, int i, double otherwise)
{
    float share = (float)(is_set(p, i) ? real_of(p, i) : otherwise);
    return share == 0 ? FLT_MIN : share;
}

static struct mu_sampling sampling_of(const struct mu_params *p, bool chat)
{
    int64_t last_n = is_set(p, REPEAT_LAST_N) ? p->repeat_last_n : DEFAULT_LAST_N;
    struct mu_sampling s = {.temperature = (float)(is_set(p, TEMPERATURE) ? p->temperature
                                                   : chat                 ? 0.8
                                                                          : 0),
                            .top_k = (uint32_t)(is_set(p, TOP_K) ? p->top_k
                                                : chat           ? 40
                                                                 : 0),
                            .top_p = share_of(p, TOP_P, chat ? 0.9 : 1),
                            .min_p = (float)p->min_p,
                            .typical_p = share_of(p, TYPICAL_P, 1),
                            .repeat_penalty = (float)(last_n ? p->repeat_penalty : 0),
                            .repeat_last_n = last_n > 0 ? (uint32_t)last_n : 0,
                            .presence_penalty = (float)p->presence_penalty,
                            .frequency_penalty = (float)p->frequency_penalty,
                            .min_tokens = (uint32_t)p->min_tokens};
    return s;
}

struct mu_sampling mu_params_sampling(const struct mu_params *p, bool chat)
{
    struct mu_sampling s = sampling_of(p, chat);
    if (mu_params_has_seed(p)) {
        s.seed = (uint64_t)p->seed;
    } else {
        if (getrandom(&s.seed, sizeof s.seed, 0) < 0) s.seed = (uint64_t)mu_now_ns();
        s.seed &= ((uint64_t)1 << 53) - 1; /* so that it can be typed again, and written as JSON */
    }
    return s;
}
