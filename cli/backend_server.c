/* Answers from a server. The reply's text goes to the listener from gRPC's poll thread while the caller waits, looking
 * at Ctrl-C ten times a second. */
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "cli/backend.h"
#include "cli/cli.h"
#include "muster/v1/muster.pb-c.h"
#include "transport/rpc.h"

struct server {
    struct mu_card card;
    struct mu_rpc_channel *channel;
    const char *address;
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
    mu_rpc_stream_half_close(s);
    if (st) mu_rpc_stream_cancel(s);
    wait_done(c, s);
    mu_rpc_stream_release(s);
    if (c->unheard.code) {
        if (err) *err = c->unheard;
        return c->unheard.code;
    }
    if (c->code == MU_RPC_OK || c->answer.interrupted) return MU_OK;
    if (c->code == MU_RPC_UNAVAILABLE && !c->told) {
        mu_fail(err, MU_EPEER, "%s", c->text);
        mu_no_server(v->address, err);
        return MU_EPEER;
    }
    return mu_fail(err, mu_status_of_rpc(c->code), "%s answered %s: %s", v->address, mu_rpc_code_name(c->code),
                   c->text);
}

static enum mu_status server_ask(void *self, const struct mu_ask *ask, const struct mu_listener *listener,
                                 struct mu_answer *answer_out, struct mu_err *err)
{
    struct server *v = self;
    struct mu_solo_sampling choice = mu_params_sampling(ask->params, !ask->text);
    Muster__V1__Sampling sampling = MUSTER__V1__SAMPLING__INIT;
    sampling.temperature = choice.temperature;
    sampling.top_k = choice.top_k;
    sampling.top_p = choice.top_p;
    if (mu_params_has_seed(ask->params)) {
        sampling._seed_case = MUSTER__V1__SAMPLING___SEED_SEED;
        sampling.seed = choice.seed;
    }
    Muster__V1__GenerateRequest req = MUSTER__V1__GENERATE_REQUEST__INIT;
    req.model = (char *)v->card.name;
    req.prompt_case = MUSTER__V1__GENERATE_REQUEST__PROMPT_TEXT;
    req.text = (char *)ask->text;
    req.max_tokens = ask->params->num_predict > 0 ? (uint32_t)ask->params->num_predict : 0;
    req.sampling = &sampling;
    req.n_stop = (size_t)ask->params->n_stop;
    req.stop = (char **)ask->params->stop;
    req.ignore_end = ask->ignore_end;
    req.parse_special = ask->special;

    struct call c = {.lock = PTHREAD_MUTEX_INITIALIZER, .listener = listener, .answer = {.start_ns = mu_now_ns()}};
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&c.cond, &attr);
    pthread_condattr_destroy(&attr);
    enum mu_status st = send(v, &c, &req, err);
    pthread_cond_destroy(&c.cond);
    c.answer.end_ns = mu_now_ns();
    *answer_out = c.answer;
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
    mu_rpc_channel_close(v->channel);
    mu_rpc_shutdown();
    mu_free(v);
}

static const struct mu_backend_ops server_ops = {server_ask, server_card, server_set_context, server_close};

enum mu_status mu_backend_server(const char *address, const char *model, struct mu_backend *backend_out,
                                 struct mu_err *err)
{
    struct server *v = mu_calloc(1, sizeof *v);
    if (!v) return mu_fail(err, MU_ENOMEM, "no memory for a connection to %s", address);
    v->address = address;
    v->card.name = model;
    mu_rpc_init();
    enum mu_status st = mu_rpc_channel_open(address, &v->channel, err);
    if (st) {
        server_close(v);
        return st;
    }
    *backend_out = (struct mu_backend){&server_ops, v};
    return MU_OK;
}
