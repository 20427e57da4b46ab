/* Answers from a server. The reply's text goes to the listener from gRPC's poll thread while the caller waits, looking
 * at Ctrl-C ten times a second. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "cli/backend.h"
#include "cli/cli.h"
#include "model/chat_template.h"
#include "muster/v1/muster.pb-c.h"
#include "transport/rpc.h"

struct server {
    struct mu_card card;
    struct mu_rpc_channel *channel;
    const char *address, *adapter;
    int priority;                      /* Muster__V1__Priority */
    ProtobufCMessage *status;          /* the server's word on its model, which the card borrows from */
    struct mu_chat_template *template; /* the server's; NULL: it has none */
};

struct call {
    pthread_mutex_t lock; /* guards what follows; the poll thread writes it */
    pthread_cond_t cond;
    const struct mu_listener *listener;
    bool done, told;
    enum mu_rpc_code code;
    char text[MU_ERR_TEXT];
    struct mu_answer answer;
    struct mu_err unheard; /* why the listener takes no more */
};

static void on_reply(struct mu_rpc_stream *s, const ProtobufCMessage *msg, void *ctx)
{
    (void)s;
    struct call *c = ctx;
    const Muster__V1__GenerateReply *reply = (const Muster__V1__GenerateReply *)msg;
    pthread_mutex_lock(&c->lock);
    if (reply->text && *reply->text && !c->unheard.code) {
        if (!c->told) c->answer.first_ns = mu_now_ns();
        c->told = true;
        if (c->listener->text(c->listener->ctx, reply->text, strlen(reply->text), &c->unheard))
            mu_interrupted = 1; /* nobody reads: stop the server's work too */
    }
    if (reply->usage) {
        c->answer.n_prompt = (int)reply->usage->prompt_tokens;
        c->answer.n_new = (int)reply->usage->completion_tokens;
        c->answer.n_kept = (int)reply->usage->cached_tokens;
        c->answer.resumed = (int)reply->usage->resumed;
    }
    if (reply->finish == MUSTER__V1__FINISH__FINISH_LENGTH) c->answer.full = true;
    pthread_mutex_unlock(&c->lock);
}

static void on_done(struct mu_rpc_stream *s, enum mu_rpc_code code, const char *text, void *ctx)
{
    (void)s;
    struct call *c = ctx;
    pthread_mutex_lock(&c->lock);
    c->done = true;
    c->code = code;
    snprintf(c->text, sizeof c->text, "%s", text ? text : "");
    pthread_cond_signal(&c->cond);
    pthread_mutex_unlock(&c->lock);
}

/* Until the call is over; Ctrl-C cancels it. */
static void wait_done(struct call *c, struct mu_rpc_stream *s)
{
    pthread_mutex_lock(&c->lock);
    while (!c->done) {
        int64_t until = mu_now_ns() + 100 * MU_MS;
        struct timespec ts = {until / MU_SEC, until % MU_SEC};
        pthread_cond_timedwait(&c->cond, &c->lock, &ts);
        if (mu_interrupted && !c->answer.interrupted && !c->done) {
            c->answer.interrupted = true;
            pthread_mutex_unlock(&c->lock);
            mu_rpc_stream_cancel(s);
            pthread_mutex_lock(&c->lock);
        }
    }
    pthread_mutex_unlock(&c->lock);
}

static enum mu_status send(struct server *v, struct call *c, Muster__V1__GenerateRequest *req, struct mu_err *err)
{
    struct mu_rpc_stream_callbacks cb = {on_reply, on_done, c};
    struct mu_rpc_stream *s;
    enum mu_status st =
        mu_rpc_stream_open(v->channel, "/muster.v1.Muster/Generate", &muster__v1__generate_reply__descriptor, 0,
                           MU_FOREVER, mu_now_ns() + 10 * MU_SEC, &cb, &s, err);
    if (st) return st;
    st = mu_rpc_stream_send(s, &req->base);
    if (st)
        mu_rpc_stream_cancel(s);
    else
        mu_rpc_stream_half_close(s);
    wait_done(c, s);
    mu_rpc_stream_release(s);
    if (st == MU_EINVAL) return mu_fail(err, st, "a text of the request is not valid UTF-8: convert it first (iconv)");
    if (st && st != MU_ECANCELLED) return mu_fail(err, st, "the request cannot be sent: %s", mu_status_text(st));
    if (c->unheard.code) {
        if (err) *err = c->unheard;
        return c->unheard.code;
    }
    if (c->code == MU_RPC_OK || c->answer.interrupted) return MU_OK;
    if (c->code == MU_RPC_OUT_OF_RANGE) return mu_fail(err, MU_ELIMIT, "%s", c->text);
    if (c->code == MU_RPC_UNAVAILABLE && !c->told) {
        mu_fail(err, MU_EPEER, "%s", c->text);
        mu_no_server(v->address, err);
        return MU_EPEER;
    }
    st = mu_status_of_rpc(c->code);
    if (st == MU_ELIMIT) st = MU_EBUSY; /* RESOURCE_EXHAUSTED is not about the prompt's length */
    return mu_fail(err, st, "%s answered %s: %s", v->address, mu_rpc_code_name(c->code), c->text);
}

/* The conversation as the server will write it, for the listener alone: it tells whether the prompt opens a thought. The
 * server renders for itself; where this fails nobody is told the prompt. */
static void tell_prompt(const struct server *v, const struct mu_ask *ask, const struct mu_listener *listener)
{
    struct mu_chat_input in = {.messages = ask->messages, .variables = ask->variables, .add_generation_prompt = true};
    char *text = NULL;
    size_t len;
    if (!v->template || !listener->prompt || mu_chat_template_render(v->template, &in, &text, &len, NULL)) return;
    listener->prompt(listener->ctx, text, len);
    mu_free(text);
}

static void request_fill(const struct server *v, const struct mu_ask *ask, Muster__V1__GenerateRequest *req)
{
    req->model = (char *)v->card.name;
    req->max_tokens = ask->params->num_predict > 0 ? (uint32_t)ask->params->num_predict : 0;
    req->n_stop = (size_t)ask->params->n_stop;
    req->stop = (char **)ask->params->stop;
    req->ignore_end = ask->ignore_end;
    req->parse_special = ask->special;
    if (v->adapter) req->adapter = (char *)v->adapter;
    req->priority = (Muster__V1__Priority)v->priority;
}

static void constraint_fill(const struct mu_ask *ask, Muster__V1__GenerateRequest *req)
{
    const struct mu_constraint_text *t = ask->constraint;
    if (!t) return;
    switch (t->kind) {
    case MU_CONSTRAINT_JSON:
        req->constraint_case = MUSTER__V1__GENERATE_REQUEST__CONSTRAINT_JSON;
        req->json = true;
        break;
    case MU_CONSTRAINT_JSON_SCHEMA:
        req->constraint_case = MUSTER__V1__GENERATE_REQUEST__CONSTRAINT_JSON_SCHEMA;
        req->json_schema = (char *)t->text;
        break;
    case MU_CONSTRAINT_REGEX:
        req->constraint_case = MUSTER__V1__GENERATE_REQUEST__CONSTRAINT_REGEX;
        req->regex = (char *)t->text;
        break;
    case MU_CONSTRAINT_GBNF:
        req->constraint_case = MUSTER__V1__GENERATE_REQUEST__CONSTRAINT_GRAMMAR;
        req->grammar = (char *)t->text;
        break;
    }
}

struct biases {
    Muster__V1__LogitBias message[MU_PARAMS_MAX_BIASES], *at[MU_PARAMS_MAX_BIASES];
};

static void sampling_fill(const struct mu_ask *ask, Muster__V1__Sampling *sampling, struct biases *biases)
{
    struct mu_sampling choice = mu_params_sampling(ask->params, !ask->text);
#define FIELD(name) sampling->name = choice.name;
    MU_SAMPLING_FIELDS(FIELD)
#undef FIELD
    for (int i = 0; i < ask->params->n_bias; i++) {
        muster__v1__logit_bias__init(&biases->message[i]);
        biases->message[i].id = ask->params->bias[i].id;
        biases->message[i].bias = ask->params->bias[i].bias;
        biases->at[i] = &biases->message[i];
    }
    sampling->n_logit_bias = (size_t)ask->params->n_bias;
    sampling->logit_bias = biases->at;
    if (!mu_params_has_seed(ask->params)) return; /* the server draws one */
    sampling->_seed_case = MUSTER__V1__SAMPLING___SEED_SEED;
    sampling->seed = choice.seed;
}

static enum mu_status call_make(struct server *v, const struct mu_listener *listener, Muster__V1__GenerateRequest *req,
                                struct mu_answer *answer_out, struct mu_err *err)
{
    struct call c = {.lock = PTHREAD_MUTEX_INITIALIZER, .listener = listener, .answer = {.start_ns = mu_now_ns()}};
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&c.cond, &attr);
    pthread_condattr_destroy(&attr);
    enum mu_status st = send(v, &c, req, err);
    pthread_cond_destroy(&c.cond);
    c.answer.end_ns = mu_now_ns();
    *answer_out = c.answer;
    return st;
}

static enum mu_status server_ask(void *self, const struct mu_ask *ask, const struct mu_listener *listener,
                                 struct mu_answer *answer_out, struct mu_err *err)
{
    struct server *v = self;
    Muster__V1__Sampling sampling = MUSTER__V1__SAMPLING__INIT;
    Muster__V1__GenerateRequest req = MUSTER__V1__GENERATE_REQUEST__INIT;
    Muster__V1__Chat chat = MUSTER__V1__CHAT__INIT;
    struct biases biases;
    char *messages = NULL, *variables = NULL;
    enum mu_status st = MU_OK;
    request_fill(v, ask, &req);
    sampling_fill(ask, &sampling, &biases);
    constraint_fill(ask, &req);
    req.sampling = &sampling;
    if (ask->text) {
        req.prompt_case = MUSTER__V1__GENERATE_REQUEST__PROMPT_TEXT;
        req.text = (char *)ask->text;
    } else {
        messages = json_dumps(ask->messages, JSON_COMPACT);
        if (ask->variables) variables = json_dumps(ask->variables, JSON_COMPACT);
        if (!messages || (ask->variables && !variables)) {
            st = mu_fail(err, MU_ENOMEM, "no memory for the conversation");
            goto done;
        }
        chat.messages_json = messages;
        if (variables) chat.variables_json = variables;
        req.prompt_case = MUSTER__V1__GENERATE_REQUEST__PROMPT_CHAT;
        req.chat = &chat;
        req.show_marks = true;
        tell_prompt(v, ask, listener);
    }
    st = call_make(v, listener, &req, answer_out, err);
done:
    free(messages); /* jansson's own */
    free(variables);
    return st;
}

static const struct mu_card *server_card(const void *self)
{
    return &((const struct server *)self)->card;
}

static enum mu_status server_set_context(void *self, int n_ctx, struct mu_err *err)
{
    const struct server *v = self;
    return mu_fail(err, MU_EUNSUPPORTED,
                   "num_ctx is the server's to decide: start the one at %s with 'muster serve --ctx %d'", v->address,
                   n_ctx);
}

static void server_close(void *self)
{
    struct server *v = self;
    if (!v) return;
    mu_rpc_message_free(v->status);
    mu_chat_template_free(v->template);
    mu_rpc_channel_close(v->channel);
    mu_rpc_shutdown();
    mu_free(v);
}

static const struct mu_backend_ops server_ops = {server_ask, NULL, server_card, server_set_context, server_close};

/* What the server says about its model. */
static enum mu_status card_fill(struct server *v, struct mu_err *err)
{
    Muster__V1__ModelStatusRequest req = MUSTER__V1__MODEL_STATUS_REQUEST__INIT;
    req.model = (char *)v->card.name;
    enum mu_status st =
        mu_rpc_unary(v->channel, "/muster.v1.Muster/ModelStatus", &req.base,
                     &muster__v1__model_status_reply__descriptor, mu_now_ns() + 10 * MU_SEC, &v->status, err);
    if (st == MU_EPEER) mu_no_server(v->address, err);
    if (st) return st;
    const Muster__V1__ModelStatusReply *r = (const Muster__V1__ModelStatusReply *)v->status;
    v->card.description = r->description;
    v->card.n_ctx = (int)r->context;
    if (!*r->chat_template) return MU_OK;
    v->card.template_text = r->chat_template;
    v->card.chat = true;
    mu_chat_template_parse(r->chat_template, strlen(r->chat_template), &v->template, NULL); /* the server could */
    return MU_OK;
}

enum mu_status mu_backend_server(const char *address, const char *model, const char *adapter, int priority,
                                 struct mu_backend *backend_out, struct mu_err *err)
{
    struct server *v = mu_calloc(1, sizeof *v);
    enum mu_status st;
    if (!v) return mu_fail(err, MU_ENOMEM, "no memory for a connection to %s", address);
    v->address = address;
    v->adapter = adapter;
    v->priority = priority;
    v->card.name = model;
    mu_rpc_init();
    MU_TRY(st, mu_rpc_channel_open(address, &v->channel, err), fail);
    MU_TRY(st, card_fill(v, err), fail);
    *backend_out = (struct mu_backend){&server_ops, v};
    return MU_OK;
fail:
    server_close(v);
    return st;
}
