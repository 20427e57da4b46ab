/* The Engine stream. Owns the channel, the stream, the queue and the outbox. */
#include "worker/engine.h"

#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/fault.h"
#include "base/queue.h"
#include "model/utf8.h"
#include "muster/v1/internal.pb-c.h"
#include "proto/priority.h"
#include "transport/rpc.h"

enum {
    QUEUE_COMMANDS = 16384,
    CONNECT_MS = 10000,
    DOWN_MAX_BYTES = 16 << 20,
    UP_VECTOR_BYTES = 1 << 20, /* of vectors and log probabilities in one message; more go in the next one */
};
static const char attach_path[] = "/muster.internal.v1.Engine/Attach";

struct out_entry { /* one request's part of the next message */
    uint64_t request;
    uint32_t first_position;
    int32_t *ids;
    size_t n_id, cap;
    float *vector; /* [n_vector] */
    size_t n_vector, vector_cap;
    float *logprob;     /* [n_id] where the request wants them */
    int32_t *top_id;    /* [n_id][n_top] */
    float *top_logprob; /* likewise */
    size_t n_logprob, n_top, logprob_cap, top_id_cap, top_logprob_cap;
    uint32_t n_cached;
    bool finished;
    enum mu_status error;
    char text[160];
};

struct mu_engine {
    struct mu_engine_options opt;
    struct mu_rpc_channel *channel;
    struct mu_rpc_stream *stream;
    struct mu_queue *queue; /* outlives the stream, since the channel is closed first */
    atomic_bool over;       /* on_done has been here: code and text are final */
    enum mu_rpc_code code;
    char text[256];
    struct out_entry *out;
    size_t n_out, out_cap;
    Muster__Internal__V1__RequestTokens *msg, **msg_ptr; /* [msg_cap] */
    size_t msg_cap;
};

/* ---- gRPC's thread ---- */

static struct mu_embed embed_of(const Muster__Internal__V1__EngineEmbed *m)
{
    if (!m) return (struct mu_embed){.pooling = MU_POOL_NONE};
    return (struct mu_embed){
        .pooling = m->pooling == MUSTER__V1__POOLING__POOLING_MEAN ? MU_POOL_MEAN : MU_POOL_LAST,
        .dimensions = m->dimensions > INT32_MAX ? 0 : (int)m->dimensions,
        .raw = m->raw,
    };
}

/* Its text is the message's. */
static struct mu_constraint_text constraint_of(const Muster__Internal__V1__EngineSubmit *m)
{
    struct mu_constraint_text t = {.kind = MU_CONSTRAINT_NONE, .text = ""};
    switch (m->constraint_case) {
    case MUSTER__INTERNAL__V1__ENGINE_SUBMIT__CONSTRAINT_JSON_SCHEMA:
        t.kind = MU_CONSTRAINT_JSON_SCHEMA;
        t.text = m->json_schema;
        break;
    case MUSTER__INTERNAL__V1__ENGINE_SUBMIT__CONSTRAINT_REGEX:
        t.kind = MU_CONSTRAINT_REGEX;
        t.text = m->regex;
        break;
    case MUSTER__INTERNAL__V1__ENGINE_SUBMIT__CONSTRAINT_GRAMMAR:
        t.kind = MU_CONSTRAINT_GBNF;
        t.text = m->grammar;
        break;
    case MUSTER__INTERNAL__V1__ENGINE_SUBMIT__CONSTRAINT_JSON:
        if (m->json) t.kind = MU_CONSTRAINT_JSON;
        break;
    default: break;
    }
    t.len = strlen(t.text);
    return t;
}

static struct mu_sampling sampling_of(const Muster__V1__Sampling *m)
{
    struct mu_sampling p = {0};
    if (!m) return p;
#define FIELD(name) p.name = m->name;
    MU_SAMPLING_FIELDS(FIELD)
#undef FIELD
    p.seed = m->seed;
    return p;
}

static struct mu_engine_command *command_of_submit(const Muster__Internal__V1__EngineSubmit *m)
{
    const Muster__V1__Sampling *p = m->sampling;
    struct mu_constraint_text constraint = constraint_of(m);
    size_t n_bias = p ? p->n_logit_bias : 0, n = m->n_prompt + m->n_emitted + m->n_end_ids, bytes, bias_bytes;
    _Static_assert(_Alignof(struct mu_bias) <= _Alignof(int32_t), "biases follow ids");
    if (!mu_mul_size(n, sizeof(int32_t), &bytes) || !mu_mul_size(n_bias, sizeof(struct mu_bias), &bias_bytes) ||
        !mu_add_size(bytes, bias_bytes, &bytes) || !mu_add_size(bytes, constraint.len + 1, &bytes))
        return NULL; /* each is bounded by the message's size */
    struct mu_engine_command *c = mu_malloc(sizeof *c + bytes);
    if (!c) return NULL;
    int32_t *prompt = c->ids, *emitted = prompt + m->n_prompt, *end = emitted + m->n_emitted;
    struct mu_bias *bias = (struct mu_bias *)(end + m->n_end_ids);
    if (m->n_prompt) memcpy(prompt, m->prompt, m->n_prompt * sizeof *prompt);
    if (m->n_emitted) memcpy(emitted, m->emitted, m->n_emitted * sizeof *emitted);
    if (m->n_end_ids) memcpy(end, m->end_ids, m->n_end_ids * sizeof *end);
    for (size_t i = 0; i < n_bias; i++) bias[i] = (struct mu_bias){p->logit_bias[i]->id, p->logit_bias[i]->bias};
    constraint.text = memcpy(bias + n_bias, constraint.text, constraint.len + 1);
    c->kind = MU_ENGINE_SUBMIT;
    c->constraint = constraint;
    c->request = (struct mu_sched_request){
        .id = m->request,
        .prompt = prompt,
        .n_prompt = m->n_prompt,
        .emitted = emitted,
        .n_emitted = m->n_emitted,
        .max_tokens = m->max_tokens,
        .sampling = sampling_of(p),
        .bias = bias,
        .n_bias = n_bias,
        .end_ids = end,
        .n_end = m->n_end_ids,
        .embed = embed_of(m->embed),
        .adapter = m->adapter,
        .adapter_scale = m->adapter_scale,
        .priority = mu_proto_priority(m->priority),
        .key = m->key,
    };
    return c;
}

static struct mu_engine_command *command_of(const Muster__Internal__V1__EngineDown *m)
{
    if (m->message_case == MUSTER__INTERNAL__V1__ENGINE_DOWN__MESSAGE_SUBMIT) return command_of_submit(m->submit);
    struct mu_engine_command *c = mu_calloc(1, sizeof *c);
    if (!c) return NULL;
    c->kind = MU_ENGINE_CANCEL;
    c->request.id = m->cancel->request;
    return c;
}

static void on_message(struct mu_rpc_stream *stream, const ProtobufCMessage *msg, void *ctx)
{
    struct mu_engine *e = ctx;
    const Muster__Internal__V1__EngineDown *m = (const Muster__Internal__V1__EngineDown *)msg;
    if (m->epoch != e->opt.epoch) return;
    if (m->message_case == MUSTER__INTERNAL__V1__ENGINE_DOWN__MESSAGE__NOT_SET) return; /* of a newer coordinator */
    struct mu_engine_command *c = command_of(m);
    if (!c || mu_queue_push(e->queue, c) != MU_OK) {
        /* A request must not get lost: end the stream instead, and all of them are submitted to the next gang. */
        mu_free(c);
        mu_rpc_stream_cancel(stream);
    }
}

static void on_done(struct mu_rpc_stream *stream, enum mu_rpc_code code, const char *text, void *ctx)
{
    (void)stream;
    struct mu_engine *e = ctx;
    e->code = code;
    snprintf(e->text, sizeof e->text, "%s", text ? text : "");
    atomic_store(&e->over, true);
    mu_queue_close(e->queue); /* wakes the leader */
}

/* ---- the stream's life ---- */

static enum mu_status stream_open(struct mu_engine *e, struct mu_err *err)
{
    struct mu_rpc_stream_callbacks cb = {.on_message = on_message, .on_done = on_done, .ctx = e};
    enum mu_status st =
        mu_rpc_stream_open(e->channel, attach_path, &muster__internal__v1__engine_down__descriptor, DOWN_MAX_BYTES,
                           MU_FOREVER, mu_now_ns() + CONNECT_MS * MU_MS, &cb, &e->stream, err);
    if (st != MU_OK) return mu_err_wrap(err, "attaching to the coordinator at %s", e->opt.address);
    Muster__Internal__V1__EngineAttach attach = MUSTER__INTERNAL__V1__ENGINE_ATTACH__INIT;
    Muster__Internal__V1__EngineUp up = MUSTER__INTERNAL__V1__ENGINE_UP__INIT;
    attach.gang = (char *)e->opt.gang;
    attach.secret = (ProtobufCBinaryData){32, (uint8_t *)e->opt.secret};
    attach.max_sequences = e->opt.max_sequences;
    up.epoch = e->opt.epoch;
    up.message_case = MUSTER__INTERNAL__V1__ENGINE_UP__MESSAGE_ATTACH;
    up.attach = &attach;
    st = mu_rpc_stream_send(e->stream, &up.base);
    if (st == MU_OK || st == MU_ECANCELLED) return MU_OK; /* that it is over on_done tells */
    return mu_fail(err, st, "attaching to the coordinator at %s: %s", e->opt.address, mu_status_text(st));
}

enum mu_status mu_engine_open(const struct mu_engine_options *opt, struct mu_engine **engine_out, struct mu_err *err)
{
    struct mu_engine *e = mu_calloc(1, sizeof *e);
    if (!e) return mu_fail(err, MU_ENOMEM, "out of memory for the engine");
    enum mu_status st;
    e->opt = *opt;
    mu_rpc_init();
    MU_TRY(st, mu_queue_create(QUEUE_COMMANDS, &e->queue, err), fail);
    MU_TRY(st, mu_rpc_channel_open(opt->address, &e->channel, err), fail);
    MU_TRY(st, stream_open(e, err), fail);
    *engine_out = e;
    return MU_OK;
fail:
    mu_engine_close(e);
    return st;
}

void mu_engine_close(struct mu_engine *e)
{
    if (!e) return;
    if (e->channel) mu_rpc_channel_close(e->channel); /* on_done of the stream has been called when it returns */
    if (e->stream) mu_rpc_stream_release(e->stream);
    mu_queue_destroy(e->queue, mu_free);
    for (size_t i = 0; i < e->out_cap; i++) {
        mu_free(e->out[i].ids);
        mu_free(e->out[i].vector);
        mu_free(e->out[i].logprob);
        mu_free(e->out[i].top_id);
        mu_free(e->out[i].top_logprob);
    }
    mu_free(e->out);
    mu_free(e->msg);
    mu_free(e->msg_ptr);
    mu_free(e);
    mu_rpc_shutdown();
}

enum mu_status mu_engine_next(struct mu_engine *e, struct mu_engine_command **command_out, struct mu_err *err)
{
    /* First the queue: an end that comes after this look wakes whoever sleeps next. */
    struct mu_engine_command *c = mu_queue_pop(e->queue, 0);
    *command_out = NULL;
    if (atomic_load(&e->over)) { /* MU_EIO: not about another rank, so it is what ended the gang (gang.c) */
        mu_free(c);
        return mu_fail(err, MU_EIO, "the stream to the coordinator at %s ended: %s (%s)", e->opt.address, e->text,
                       mu_rpc_code_name(e->code));
    }
    *command_out = c;
    return MU_OK;
}

bool mu_engine_waiting(struct mu_engine *e)
{
    return mu_queue_len(e->queue) > 0;
}
int mu_engine_fd(const struct mu_engine *e)
{
    return mu_queue_wake_fd(e->queue);
}

/* ---- up ---- */

/* What is heavy in an entry. */
static size_t entry_bytes(const struct out_entry *o)
{
    return (o->n_vector + o->n_logprob * (1 + 2 * o->n_top)) * sizeof(float);
}

/* The request's newest entry, or one more behind it where that is as large as a message may be. */
static struct out_entry *entry_of(struct mu_engine *e, const struct mu_sched_event *ev)
{
    for (size_t i = 0; i < e->n_out; i++)
        if (e->out[i].request == ev->request && !e->out[i].finished && entry_bytes(&e->out[i]) < UP_VECTOR_BYTES)
            return &e->out[i];
    if (e->n_out == e->out_cap) {
        size_t cap = e->out_cap ? 2 * e->out_cap : 64;
        struct out_entry *more = mu_reallocarray(e->out, cap, sizeof *more);
        if (!more) return NULL;
        memset(more + e->out_cap, 0, (cap - e->out_cap) * sizeof *more);
        e->out = more;
        e->out_cap = cap;
    }
    struct out_entry *o = &e->out[e->n_out++];
    o->request = ev->request;
    o->first_position = ev->position;
    o->n_id = 0;
    o->n_vector = 0;
    o->n_logprob = o->n_top = 0;
    o->n_cached = ev->n_cached;
    o->finished = false;
    o->error = MU_OK;
    return o;
}

/* p with room for `need` elements, or NULL: then it is as it was. */
static void *grown(void *p, size_t *cap, size_t need, size_t size)
{
    if (need <= *cap) return p;
    size_t more = need > 2 * *cap ? need + 8 : 2 * *cap;
    p = mu_reallocarray(p, more, size);
    if (p) *cap = more;
    return p;
}

/* The log probabilities of the entry's next id. */
static bool logprobs_add(struct out_entry *o, const struct mu_logprobs *l)
{
    size_t n = o->n_logprob + 1;
    float *logprob = grown(o->logprob, &o->logprob_cap, n, sizeof *logprob);
    if (!logprob) return false;
    o->logprob = logprob;
    o->n_top = l->n_top;
    if (l->n_top > 0) {
        int32_t *id = grown(o->top_id, &o->top_id_cap, n * l->n_top, sizeof *id);
        if (id) o->top_id = id;
        float *top = grown(o->top_logprob, &o->top_logprob_cap, n * l->n_top, sizeof *top);
        if (top) o->top_logprob = top;
        if (!id || !top) return false;
    }
    for (size_t i = 0; i < l->n_top; i++) {
        o->top_id[o->n_logprob * l->n_top + i] = l->top[i].id;
        o->top_logprob[o->n_logprob * l->n_top + i] = l->top[i].logprob;
    }
    o->logprob[o->n_logprob++] = l->chosen;
    return true;
}

enum mu_status mu_engine_put(struct mu_engine *e, const struct mu_sched_event *ev, const struct mu_logprobs *logprobs,
                             const char *error_text, struct mu_err *err)
{
    struct out_entry *o = entry_of(e, ev);
    int32_t *ids = o && ev->id >= 0 ? grown(o->ids, &o->cap, o->n_id + 1, sizeof *ids) : NULL;
    if (ids) o->ids = ids;
    if (!o || (ev->id >= 0 && (!ids || (logprobs && !logprobs_add(o, logprobs)))))
        return mu_fail(err, MU_ENOMEM, "out of memory for tokens that wait for the coordinator");
    if (ev->id >= 0) o->ids[o->n_id++] = ev->id;
    o->finished = ev->finished;
    o->error = ev->error;
    if (ev->error != MU_OK) {
        snprintf(o->text, sizeof o->text, "%s", error_text ? error_text : mu_status_text(ev->error));
        mu_text_repair(o->text);
    }
    return MU_OK;
}

enum mu_status mu_engine_put_vector(struct mu_engine *e, const struct mu_sched_event *ev, const float *state,
                                    int d_model, struct mu_err *err)
{
    struct out_entry *o = entry_of(e, ev);
    size_t n = (size_t)mu_embed_len(&ev->embed, d_model);
    float *vector = !o ? NULL : o->vector_cap >= n ? o->vector : mu_reallocarray(o->vector, n, sizeof *vector);
    if (!vector) return mu_fail(err, MU_ENOMEM, "out of memory for an embedding that waits for the coordinator");
    if (o->vector_cap < n) o->vector_cap = n;
    o->vector = vector;
    if (!mu_embed_finish(&ev->embed, state, ev->n_tok, d_model, vector)) {
        struct mu_sched_event failed = *ev;
        failed.error = MU_ENONFINITE;
        return mu_engine_put(e, &failed, NULL, "the vector's length is not finite", err);
    }
    o->n_vector = n;
    o->finished = true;
    return MU_OK;
}

static bool messages_reserve(struct mu_engine *e)
{
    if (e->msg_cap >= e->n_out) return true;
    void *msg = mu_reallocarray(e->msg, e->out_cap, sizeof *e->msg);
    if (msg) e->msg = msg;
    void *ptr = mu_reallocarray(e->msg_ptr, e->out_cap, sizeof(void *));
    if (ptr) e->msg_ptr = ptr;
    if (!msg || !ptr) return false;
    e->msg_cap = e->out_cap;
    return true;
}

/* Entries [from, *to_out) in one message. */
static enum mu_status entries_send(struct mu_engine *e, size_t from, size_t *to_out)
{
    size_t n = 0, bytes = 0;
    for (size_t i = from; i < e->n_out && (n == 0 || bytes < UP_VECTOR_BYTES); i++, n++) {
        const struct out_entry *o = &e->out[i];
        Muster__Internal__V1__RequestTokens *t = &e->msg[n];
        muster__internal__v1__request_tokens__init(t);
        t->request = o->request;
        t->first_position = o->first_position;
        t->n_id = o->n_id;
        t->id = o->ids;
        t->n_vector = o->n_vector;
        t->vector = o->vector;
        t->n_logprob = o->n_logprob;
        t->logprob = o->logprob;
        t->n_top_id = t->n_top_logprob = o->n_logprob * o->n_top;
        t->top_id = o->top_id;
        t->top_logprob = o->top_logprob;
        t->cached_tokens = o->n_cached;
        t->finished = o->finished;
        t->error_code = (uint32_t)o->error;
        if (o->error != MU_OK) t->error = (char *)o->text;
        e->msg_ptr[n] = t;
        bytes += entry_bytes(o);
    }
    Muster__Internal__V1__EngineTokens tokens = MUSTER__INTERNAL__V1__ENGINE_TOKENS__INIT;
    Muster__Internal__V1__EngineUp up = MUSTER__INTERNAL__V1__ENGINE_UP__INIT;
    tokens.n_request = n;
    tokens.request = e->msg_ptr;
    up.epoch = e->opt.epoch;
    up.message_case = MUSTER__INTERNAL__V1__ENGINE_UP__MESSAGE_TOKENS;
    up.tokens = &tokens;
    *to_out = from + n;
    return mu_rpc_stream_send(e->stream, &up.base);
}

/* The first n are sent; their buffers stay for later entries. */
static void entries_drop(struct mu_engine *e, size_t n)
{
    for (size_t i = n; n > 0 && i < e->n_out; i++) {
        struct out_entry sent = e->out[i - n];
        e->out[i - n] = e->out[i];
        e->out[i] = sent;
    }
    e->n_out -= n;
}

enum mu_status mu_engine_flush(struct mu_engine *e, struct mu_err *err)
{
    if (!e->n_out) return MU_OK;
    if (!messages_reserve(e)) return MU_EAGAIN;
    if (mu_fault_hit("engine.send")) mu_rpc_stream_cancel(e->stream);
    for (size_t from = 0, to; from < e->n_out; from = to) {
        enum mu_status st = entries_send(e, from, &to);
        if (st == MU_OK || st == MU_ECANCELLED) continue;
        entries_drop(e, from);
        if (st == MU_EAGAIN || st == MU_ENOMEM) return MU_EAGAIN;
        return mu_fail(err, MU_EINTERNAL, "a message to the coordinator cannot be sent: %s", mu_status_text(st));
    }
    e->n_out = 0; /* sent, or the stream is over and the next gang gets everything again */
    return MU_OK;
}

void mu_engine_put_stats(struct mu_engine *e, const struct mu_sched_counts *c)
{
    Muster__Internal__V1__EngineStats stats = MUSTER__INTERNAL__V1__ENGINE_STATS__INIT;
    Muster__Internal__V1__EngineUp up = MUSTER__INTERNAL__V1__ENGINE_UP__INIT;
    stats.steps = c->steps;
    stats.drafted = c->drafted;
    stats.drafts_taken = c->drafts_taken;
    stats.model_drafted = c->model_drafted;
    stats.model_drafts_taken = c->model_taken;
    up.epoch = e->opt.epoch;
    up.message_case = MUSTER__INTERNAL__V1__ENGINE_UP__MESSAGE_STATS;
    up.stats = &stats;
    mu_rpc_stream_send(e->stream, &up.base); /* the next ones will do as well */
}
