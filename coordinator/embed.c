/* Calls of Embed. See embed.h. */
#include "coordinator/embed.h"

#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "coordinator/request.h"

static size_t n_value_of(const Muster__V1__EmbedRequest *q, const struct mu_config *cfg)
{
    return q->dimensions ? q->dimensions : (size_t)cfg->d_model;
}

static const char *refuse_input(const Muster__V1__EmbedInput *in, size_t max_text_bytes, size_t max_ids)
{
    switch (in->input_case) {
    case MUSTER__V1__EMBED_INPUT__INPUT_TEXT:
        return !*in->text ? "is empty" : strlen(in->text) > max_text_bytes ? "is longer than 4 MiB" : NULL;
    case MUSTER__V1__EMBED_INPUT__INPUT_IDS:
        return !in->ids->n_id ? "is empty" : in->ids->n_id > max_ids ? "has more than 1,048,576 ids" : NULL;
    default: return "has neither text nor ids";
    }
}

bool mu_embed_refuse(const Muster__V1__EmbedRequest *q, const struct mu_config *cfg, size_t max_text_bytes,
                     size_t max_ids, char *text_out, size_t text_bytes)
{
    size_t bytes = n_value_of(q, cfg) * sizeof(float), most = MU_EMBED_MAX_REPLY_BYTES / (bytes ? bytes : 1);
    if (most > MU_EMBED_MAX_INPUTS) most = MU_EMBED_MAX_INPUTS;
    if (most < 1) most = 1;
    if (!q->n_input) {
        snprintf(text_out, text_bytes, "there are no inputs: one at least is needed");
    } else if (q->dimensions > (uint32_t)cfg->d_model) {
        snprintf(text_out, text_bytes, "dimensions is %u, the model has %d", q->dimensions, cfg->d_model);
    } else if (q->n_input > most) {
        snprintf(text_out, text_bytes, "%zu inputs are too many for one reply of %zu values each; send at most %zu",
                 q->n_input, n_value_of(q, cfg), most);
    } else if ((int)q->pooling < MUSTER__V1__POOLING__POOLING_MODEL ||
               (int)q->pooling > MUSTER__V1__POOLING__POOLING_LAST) {
        snprintf(text_out, text_bytes, "pooling %d is not known: 0 is the model's, 1 mean, 2 last", (int)q->pooling);
    } else if (mu_request_refuse_share(q->priority, q->key)) {
        snprintf(text_out, text_bytes, "%s", mu_request_refuse_share(q->priority, q->key));
    } else {
        for (size_t i = 0; i < q->n_input; i++) {
            const char *bad = refuse_input(q->input[i], max_text_bytes, max_ids);
            if (!bad) continue;
            snprintf(text_out, text_bytes, "input %zu %s", i + 1, bad);
            return true;
        }
        return false;
    }
    return true;
}

struct mu_embed_call *mu_embed_call_create(struct mu_rpc_call *call, const Muster__V1__EmbedRequest *q,
                                           const struct mu_config *cfg)
{
    struct mu_embed_call *e = mu_calloc(1, sizeof *e + q->n_input * sizeof *e->input);
    if (!e) return NULL;
    e->call = mu_rpc_call_retain(call);
    e->pooling = q->pooling == MUSTER__V1__POOLING__POOLING_MEAN   ? MU_POOL_MEAN
                 : q->pooling == MUSTER__V1__POOLING__POOLING_LAST ? MU_POOL_LAST
                                                                   : cfg->pooling;
    e->dimensions = q->dimensions;
    e->raw = q->raw;
    snprintf(e->adapter, sizeof e->adapter, "%s", q->adapter);
    e->adapter_scale = q->adapter_scale;
    e->priority = mu_proto_priority(q->priority);
    e->key = mu_fair_key(q->key);
    e->n_value = n_value_of(q, cfg);
    e->n_input = e->n_left = q->n_input;
    e->n_holder = 1;
    e->arrived_ns = mu_now_ns();
    return e;
}

void mu_embed_call_release(struct mu_embed_call *e)
{
    if (!e || --e->n_holder > 0) return;
    for (size_t i = 0; i < e->n_input; i++) {
        mu_free(e->input[i].ids);
        mu_free(e->input[i].value);
    }
    mu_rpc_call_release(e->call);
    mu_free(e);
}

void mu_embed_call_fail(struct mu_embed_call *e, size_t at, enum mu_rpc_code code, const char *text)
{
    if (e->over) return;
    e->over = true;
    mu_rpc_call_finish(e->call, code, "input %zu of %zu: %s", at + 1, e->n_input, text);
}

static void reply(struct mu_embed_call *e)
{
    Muster__V1__EmbedReply r = MUSTER__V1__EMBED_REPLY__INIT;
    Muster__V1__Usage usage = MUSTER__V1__USAGE__INIT;
    Muster__V1__Embedding *one = mu_calloc(e->n_input, sizeof *one), **all = mu_calloc(e->n_input, sizeof(void *));
    int64_t now = mu_now_ns();
    e->over = true;
    for (size_t i = 0; one && all && i < e->n_input; i++) {
        const struct mu_embed_input *in = &e->input[i];
        muster__v1__embedding__init(&one[i]);
        one[i].value = in->value;
        one[i].n_value = e->n_value;
        one[i].tokens = (uint32_t)in->n_ids;
        one[i].truncated = in->cut;
        all[i] = &one[i];
        usage.prompt_tokens += (uint32_t)in->n_ids;
    }
    usage.cached_tokens = e->cached;
    usage.resumed = e->resumed;
    usage.queue_ms = (double)(e->started_ns - e->arrived_ns) / 1e6;
    usage.first_token_ms = (double)(e->first_ns - e->arrived_ns) / 1e6;
    usage.total_ms = (double)(now - e->arrived_ns) / 1e6;
    r.n_embedding = e->n_input;
    r.embedding = all;
    r.usage = &usage;
    if (one && all)
        mu_rpc_call_reply(e->call, &r.base);
    else
        mu_rpc_call_finish(e->call, MU_RPC_RESOURCE_EXHAUSTED, "no memory for %zu vectors", e->n_input);
    mu_free(one);
    mu_free(all);
}

bool mu_embed_call_take(struct mu_embed_call *e, size_t at, const float *value, size_t n_value, unsigned resumed,
                        uint32_t cached)
{
    struct mu_embed_input *in = &e->input[at];
    if (e->over || in->value) return true;
    if (n_value != e->n_value) {
        mu_embed_call_fail(e, at, MU_RPC_INTERNAL, "the leader sent a vector of another length");
        return false;
    }
    in->value = mu_reallocarray(NULL, n_value, sizeof *value);
    if (!in->value) {
        mu_embed_call_fail(e, at, MU_RPC_RESOURCE_EXHAUSTED, "no memory for its vector");
        return false;
    }
    memcpy(in->value, value, n_value * sizeof *value);
    if (!e->first_ns) e->first_ns = mu_now_ns();
    if (resumed > e->resumed) e->resumed = resumed;
    e->cached += cached < in->n_ids ? cached : (uint32_t)in->n_ids;
    if (--e->n_left == 0) reply(e);
    return true;
}
