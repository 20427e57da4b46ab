/* The public service muster.v1.Muster: checks limits, hands on. Nothing here waits. */
#include <string.h>

#include "coordinator/constraint.h"
#include "coordinator/hub.h"

enum { MAX_REQUEST_BYTES = 8 << 20, MAX_TEXT_BYTES = 4 << 20, MAX_IDS = 1 << 20 };

bool mu_hub_is_model(const struct mu_hub *h, const char *name)
{
    if (!name || !*name || !strcmp(name, "default")) return true;
    const char *path = h->opt->model_path, *base = strrchr(path, '/');
    const char *asked = strrchr(name, '/'), *known = h->opt->model_name;
    size_t len = strlen(name); /* a tag may be left out: "llama3.2" asks for "llama3.2:1b" */
    if (known && !strncmp(known, name, len) && (!known[len] || known[len] == ':')) return true;
    return !strcmp(name, h->model->name) || !strcmp(name, path) ||
           !strcmp(asked ? asked + 1 : name, base ? base + 1 : path);
}

/* False where the call was answered already. */
static bool known_model(struct mu_hub *h, struct mu_rpc_call *call, const char *name)
{
    if (mu_hub_is_model(h, name)) return true;
    mu_rpc_call_finish(call, MU_RPC_NOT_FOUND, "model '%.200s' is not served here; this server has '%s'", name,
                       h->model->name);
    return false;
}

/* False where the call was answered already. */
static bool known_adapter(struct mu_hub *h, struct mu_rpc_call *call, const char *name, float scale)
{
    char names[320];
    int number = mu_adapters_find(h->adapters, name);
    if (number < 0)
        mu_rpc_call_finish(call, MU_RPC_INVALID_ARGUMENT, "adapter '%.100s' is not loaded here; loaded: %s", name,
                           mu_adapters_names(h->adapters, names, sizeof names));
    else if (!(scale >= -MU_MAX_LORA_SCALE && scale <= MU_MAX_LORA_SCALE))
        mu_rpc_call_finish(call, MU_RPC_INVALID_ARGUMENT, "adapter_scale must be from -1000 to 1000");
    else if (number == 0 && scale != 0)
        mu_rpc_call_finish(call, MU_RPC_INVALID_ARGUMENT, "adapter_scale is set, but no adapter is named");
    else
        return true;
    return false;
}

static const char *bad_generate(const Muster__V1__GenerateRequest *q)
{
    if (q->prompt_case == MUSTER__V1__GENERATE_REQUEST__PROMPT__NOT_SET)
        return "a prompt is missing: set text, ids or chat";
    if (q->prompt_case == MUSTER__V1__GENERATE_REQUEST__PROMPT_TEXT && strlen(q->text) > MAX_TEXT_BYTES)
        return "the prompt is longer than 4 MiB";
    if (q->prompt_case == MUSTER__V1__GENERATE_REQUEST__PROMPT_IDS && q->ids->n_id > MAX_IDS)
        return "the prompt has more than 1,048,576 ids";
    if (q->prompt_case == MUSTER__V1__GENERATE_REQUEST__PROMPT_CHAT) {
        const Muster__V1__Chat *c = q->chat;
        if (!*c->messages_json) return "a chat needs messages_json: an array of {\"role\": …, \"content\": …}";
        if (strlen(c->messages_json) + strlen(c->tools_json) + strlen(c->variables_json) > MAX_TEXT_BYTES)
            return "the chat is longer than 4 MiB";
    }
    if (q->n_stop > MU_REQ_MAX_STOPS) return "there are more than 16 stop strings";
    for (size_t i = 0; i < q->n_stop; i++) {
        if (!*q->stop[i]) return "a stop string is empty";
        if (strlen(q->stop[i]) > MU_REQ_MAX_STOP_BYTES) return "a stop string is longer than 256 bytes";
    }
    enum mu_constraint_kind kind;
    const char *constraint;
    if (mu_request_constraint(q, &kind, &constraint)) {
        if (strlen(constraint) > MU_CONSTRAINT_TEXT_MAX)
            return "the schema, expression or grammar is longer than 1 MiB";
        if (q->ignore_end) return "ignore_end cannot hold with a constraint: a text that is whole has to end";
    }
    if (q->n > MU_MAX_CHOICES) return "n must be from 1 to 64";
    if (q->sampling && q->max_tokens && q->sampling->min_tokens > q->max_tokens)
        return "min_tokens is larger than max_tokens";
    return mu_request_refuse_share(q->priority, q->key);
}

static bool good_sampling(struct mu_hub *h, struct mu_rpc_call *call, const Muster__V1__Sampling *m)
{
    struct mu_sampling p = {0};
    struct mu_bias bias[MU_MAX_BIASES + 1];
    struct mu_err err = MU_ERR_INIT;
    if (!m) return true;
#define FIELD(name) p.name = m->name;
    MU_SAMPLING_FIELDS(FIELD)
#undef FIELD
    size_t n =
        m->n_logit_bias <= MU_MAX_BIASES ? m->n_logit_bias : MU_MAX_BIASES + 1; /* one more is too many already */
    for (size_t i = 0; i < n; i++) bias[i] = (struct mu_bias){m->logit_bias[i]->id, m->logit_bias[i]->bias};
    if (mu_sampling_check(&p, &err) == MU_OK && mu_biases_check(bias, n, h->model->cfg.n_vocab, &err) == MU_OK)
        return true;
    mu_rpc_call_finish(call, MU_RPC_INVALID_ARGUMENT, "%s", err.text);
    return false;
}

static void on_generate(struct mu_rpc_call *call, const ProtobufCMessage *msg, void *ctx)
{
    const Muster__V1__GenerateRequest *q = (const Muster__V1__GenerateRequest *)msg;
    if (!known_model(ctx, call, q->model)) return;
    const char *bad = bad_generate(q);
    if (bad)
        mu_rpc_call_finish(call, MU_RPC_INVALID_ARGUMENT, "%s", bad);
    else if (good_sampling(ctx, call, q->sampling) && known_adapter(ctx, call, q->adapter, q->adapter_scale))
        mu_text_post(ctx, MU_TEXT_GENERATE, call, mu_rpc_call_take_message(call));
}

static void on_embed(struct mu_rpc_call *call, const ProtobufCMessage *msg, void *ctx)
{
    struct mu_hub *h = ctx;
    const Muster__V1__EmbedRequest *q = (const Muster__V1__EmbedRequest *)msg;
    char bad[160];
    if (!known_model(h, call, q->model)) return;
    if (mu_embed_refuse(q, &h->model->cfg, MAX_TEXT_BYTES, MAX_IDS, bad, sizeof bad))
        mu_rpc_call_finish(call, MU_RPC_INVALID_ARGUMENT, "%s", bad);
    else if (known_adapter(h, call, q->adapter, q->adapter_scale))
        mu_text_post(h, MU_TEXT_EMBED, call, mu_rpc_call_take_message(call));
}

/* Of Generate and Embed. The hub sees for itself which calls are over: one event stands for however many, so that a flood
 * of calls leaves the gang its half of the queue. Where it cannot be posted the hub looks with the next event. */
static void on_call_done(struct mu_rpc_call *call, bool cancelled, void *ctx)
{
    (void)call;
    (void)cancelled;
    struct mu_hub *h = ctx;
    struct mu_event ev = {.kind = MU_EV_CALLS_OVER};
    if (!atomic_exchange(&h->calls_over, true)) mu_hub_post(h, &ev);
}

static void on_tokenize(struct mu_rpc_call *call, const ProtobufCMessage *msg, void *ctx)
{
    const Muster__V1__TokenizeRequest *q = (const Muster__V1__TokenizeRequest *)msg;
    if (!known_model(ctx, call, q->model)) return;
    if (strlen(q->text) > MAX_TEXT_BYTES)
        mu_rpc_call_finish(call, MU_RPC_INVALID_ARGUMENT, "the text is longer than 4 MiB");
    else
        mu_text_post(ctx, MU_TEXT_TOKENIZE, call, mu_rpc_call_take_message(call));
}

static void on_detokenize(struct mu_rpc_call *call, const ProtobufCMessage *msg, void *ctx)
{
    const Muster__V1__DetokenizeRequest *q = (const Muster__V1__DetokenizeRequest *)msg;
    if (!known_model(ctx, call, q->model)) return;
    if (q->n_ids > MAX_IDS)
        mu_rpc_call_finish(call, MU_RPC_INVALID_ARGUMENT, "there are more than 1,048,576 ids");
    else
        mu_text_post(ctx, MU_TEXT_DETOKENIZE, call, mu_rpc_call_take_message(call));
}

static void ask_hub(struct mu_hub *h, enum mu_event_kind kind, struct mu_rpc_call *call)
{
    struct mu_event ev = {.kind = kind, .call = mu_rpc_call_retain(call)};
    enum mu_status st = mu_hub_post_client(h, &ev);
    if (!st) return;
    mu_rpc_call_finish(call, MU_RPC_UNAVAILABLE, "%s",
                       st == MU_ECANCELLED ? "the server is stopping" : "the server is too busy to answer; try again");
    mu_rpc_call_release(call);
}

static void on_cluster_status(struct mu_rpc_call *call, const ProtobufCMessage *msg, void *ctx)
{
    (void)msg;
    ask_hub(ctx, MU_EV_STATUS, call);
}

static void on_model_status(struct mu_rpc_call *call, const ProtobufCMessage *msg, void *ctx)
{
    if (known_model(ctx, call, ((const Muster__V1__ModelStatusRequest *)msg)->model))
        ask_hub(ctx, MU_EV_MODEL_STATUS, call);
}

size_t mu_front_methods(struct mu_hub *h, struct mu_rpc_method *methods_out, size_t max)
{
    const struct mu_rpc_method methods[] = {
        {.path = "/muster.v1.Muster/Generate",
         .request = &muster__v1__generate_request__descriptor,
         .max_request_bytes = MAX_REQUEST_BYTES,
         .on_message = on_generate,
         .on_done = on_call_done,
         .ctx = h},
        {.path = "/muster.v1.Muster/Embed",
         .request = &muster__v1__embed_request__descriptor,
         .max_request_bytes = MAX_REQUEST_BYTES,
         .on_message = on_embed,
         .on_done = on_call_done,
         .ctx = h},
        {.path = "/muster.v1.Muster/Tokenize",
         .request = &muster__v1__tokenize_request__descriptor,
         .max_request_bytes = MAX_REQUEST_BYTES,
         .on_message = on_tokenize,
         .ctx = h},
        {.path = "/muster.v1.Muster/Detokenize",
         .request = &muster__v1__detokenize_request__descriptor,
         .max_request_bytes = MAX_REQUEST_BYTES,
         .on_message = on_detokenize,
         .ctx = h},
        {.path = "/muster.v1.Muster/ModelStatus",
         .request = &muster__v1__model_status_request__descriptor,
         .on_message = on_model_status,
         .ctx = h},
        {.path = "/muster.v1.Muster/ClusterStatus",
         .request = &muster__v1__cluster_status_request__descriptor,
         .on_message = on_cluster_status,
         .ctx = h},
    };
    size_t n = sizeof methods / sizeof *methods;
    if (n > max) n = max;
    memcpy(methods_out, methods, n * sizeof *methods);
    return n;
}
