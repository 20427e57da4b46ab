#include "fake_gang.h"

#include <stdlib.h>
#include <unistd.h>

struct active {
    uint64_t id, seed;
    size_t n, max;
    size_t n_value; /* of an embedding; 0: it generates */
    size_t n_prompt;
    int32_t first; /* of the prompt */
    bool logprobs;
    uint32_t n_top;
};

struct told { /* one request's part of a message */
    Muster__Internal__V1__RequestTokens t;
    int32_t id[SAYS], top_id[20];
    float logprob, top_logprob[20];
};

struct leader {
    struct fake_gang *gang;
    uint64_t epoch;
    unsigned char secret[32];
    char address[128];
    struct mu_rpc_call *call; /* StartGang; retained */
    struct mu_rpc_channel *channel;
    struct mu_rpc_stream *stream;
    pthread_t thread;
    atomic_bool ends, lost; /* lost: the Engine stream is over */
    atomic_bool launched;   /* on_start_gang is done with it */
    pthread_mutex_t lock;
    struct active active[MAX_ACTIVE];
    int n_active;
    struct told told[MAX_ACTIVE]; /* since the last message */
    size_t n_told;
    bool poisoned;
};

int32_t fake_id(uint64_t seed, size_t position)
{
    uint64_t x = (seed + 1) * 0x9e3779b97f4a7c15u ^ (position + 1) * 0xbf58476d1ce4e5b9u;
    x ^= x >> 29;
    return ID_BYTE + 'a' + (int32_t)(x % 26);
}

float fake_value(int32_t first, size_t n, size_t i)
{
    return (float)first + (float)n / 256.0f + (float)i * 1000.0f;
}

float fake_logprob(uint64_t seed, size_t position)
{
    return -(float)(fake_id(seed, position) % 7) - (float)position / 1024.0f;
}

static void up_send(struct leader *l, Muster__Internal__V1__EngineUp *up)
{
    up->epoch = l->epoch;
    if (mu_rpc_stream_send(l->stream, &up->base)) atomic_store(&l->lost, true);
}

/* How many ids the next message has. */
static size_t n_next(const struct leader *l, const struct active *a)
{
    size_t most = a->max - a->n;
    return !atomic_load(&l->gang->says) ? 1 : most < SAYS ? most : SAYS;
}

/* Into the next message. Lock held. */
static void tell(struct leader *l, const struct active *a, size_t first, size_t n, bool finished, enum mu_status error)
{
    struct told *to = &l->told[l->n_told++];
    Muster__Internal__V1__RequestTokens *t = &to->t;
    int32_t says = atomic_load(&l->gang->says);
    muster__internal__v1__request_tokens__init(t);
    to->id[0] = fake_id(a->seed, first);
    for (size_t i = 0; i < n && says; i++) to->id[i] = says;
    for (uint32_t k = 0; k < a->n_top; k++) {
        to->top_id[k] = ID_BYTE + 'A' + (int32_t)k;
        to->top_logprob[k] = -(float)k;
    }
    t->request = a->id;
    t->first_position = (uint32_t)first;
    t->n_id = error ? 0 : n;
    t->id = to->id;
    if (a->logprobs && !error) {
        to->logprob = fake_logprob(a->seed, first);
        t->n_logprob = 1;
        t->logprob = &to->logprob;
        t->n_top_id = t->n_top_logprob = a->n_top;
        t->top_id = to->top_id;
        t->top_logprob = to->top_logprob;
    }
    t->cached_tokens = a->first == atomic_load(&l->gang->cached) ? (uint32_t)a->n_prompt - 1 : fake_cached(a->seed);
    t->finished = finished;
    t->error_code = (uint32_t)error;
    if (error) t->error = (char *)mu_status_text(error);
}

/* Lock held. */
static void told_send(struct leader *l)
{
    Muster__Internal__V1__EngineUp up = MUSTER__INTERNAL__V1__ENGINE_UP__INIT;
    Muster__Internal__V1__EngineTokens tokens = MUSTER__INTERNAL__V1__ENGINE_TOKENS__INIT;
    Muster__Internal__V1__RequestTokens *at[MAX_ACTIVE];
    if (!l->n_told) return;
    for (size_t i = 0; i < l->n_told; i++) at[i] = &l->told[i].t;
    tokens.n_request = l->n_told;
    tokens.request = at;
    up.message_case = MUSTER__INTERNAL__V1__ENGINE_UP__MESSAGE_TOKENS;
    up.tokens = &tokens;
    l->n_told = 0;
    up_send(l, &up);
}

/* Lock held. */
static void tell_vector(struct leader *l, const struct active *a, int bad)
{
    Muster__Internal__V1__EngineUp up = MUSTER__INTERNAL__V1__ENGINE_UP__INIT;
    Muster__Internal__V1__EngineTokens tokens = MUSTER__INTERNAL__V1__ENGINE_TOKENS__INIT;
    Muster__Internal__V1__RequestTokens t = MUSTER__INTERNAL__V1__REQUEST_TOKENS__INIT, *p = &t;
    float value[FAKE_D_MODEL + 1];
    for (size_t i = 0; i <= FAKE_D_MODEL; i++) value[i] = fake_value(a->first, a->n_prompt, i);
    t.request = a->id;
    t.finished = true;
    t.n_vector = bad == 1 || bad == 2 ? 0 : a->n_value + (bad == 3);
    t.vector = value;
    t.error_code = bad == 1 ? MU_ENONFINITE : MU_OK;
    if (bad == 1) t.error = "the test makes it fail";
    tokens.n_request = 1;
    tokens.request = &p;
    up.message_case = MUSTER__INTERNAL__V1__ENGINE_UP__MESSAGE_TOKENS;
    up.tokens = &tokens;
    up_send(l, &up);
}

static void on_down(struct mu_rpc_stream *s, const ProtobufCMessage *msg, void *ctx)
{
    (void)s;
    struct leader *l = ctx;
    struct fake_gang *f = l->gang;
    const Muster__Internal__V1__EngineDown *m = (const Muster__Internal__V1__EngineDown *)msg;
    if (m->epoch != l->epoch) return;
    while (atomic_load(&f->deaf)) mu_sleep_ms(1);
    pthread_mutex_lock(&l->lock);
    if (m->message_case == MUSTER__INTERNAL__V1__ENGINE_DOWN__MESSAGE_SUBMIT) {
        const Muster__Internal__V1__EngineSubmit *q = m->submit;
        pthread_mutex_lock(&f->lock);
        if (f->n_submit < MAX_SUBMITS)
            f->submit[f->n_submit++] = (struct submitted){.epoch = l->epoch,
                                                          .request = q->request,
                                                          .n_prompt = q->n_prompt,
                                                          .n_emitted = q->n_emitted,
                                                          .embed = q->embed ? (int)q->embed->pooling : 0,
                                                          .n_active = l->n_active,
                                                          .repeat_penalty = q->sampling->repeat_penalty,
                                                          .n_bias = q->sampling->n_logit_bias,
                                                          .seed = q->sampling->seed};
        struct submitted *last = &f->submit[f->n_submit - 1];
        last->constraint = (int)q->constraint_case;
        const char *text = "";
        switch (q->constraint_case) {
        case MUSTER__INTERNAL__V1__ENGINE_SUBMIT__CONSTRAINT_JSON_SCHEMA: text = q->json_schema; break;
        case MUSTER__INTERNAL__V1__ENGINE_SUBMIT__CONSTRAINT_REGEX: text = q->regex; break;
        case MUSTER__INTERNAL__V1__ENGINE_SUBMIT__CONSTRAINT_GRAMMAR: text = q->grammar; break;
        default: break;
        }
        snprintf(last->constraint_text, sizeof last->constraint_text, "%s", text);
        pthread_mutex_unlock(&f->lock);
        for (size_t i = 0; i < q->n_prompt; i++)
            if (atomic_load(&f->poison) && q->prompt[i] == atomic_load(&f->poison)) l->poisoned = true;
        if (l->n_active < MAX_ACTIVE)
            l->active[l->n_active++] = (struct active){.id = q->request,
                                                       .seed = q->sampling->seed,
                                                       .n = q->n_emitted,
                                                       .max = q->max_tokens,
                                                       .n_value = !q->embed              ? 0
                                                                  : q->embed->dimensions ? q->embed->dimensions
                                                                                         : FAKE_D_MODEL,
                                                       .n_prompt = q->n_prompt,
                                                       .first = q->prompt[0],
                                                       .logprobs = q->sampling->logprobs,
                                                       .n_top = q->sampling->top_logprobs};
    } else if (m->message_case == MUSTER__INTERNAL__V1__ENGINE_DOWN__MESSAGE_CANCEL) {
        for (int i = 0; i < l->n_active; i++)
            if (l->active[i].id == m->cancel->request) {
                tell(l, &l->active[i], l->active[i].n, 0, true, MU_ECANCELLED);
                told_send(l);
                l->active[i] = l->active[--l->n_active];
                atomic_fetch_add(&f->n_cancel, 1);
                break;
            }
    }
    pthread_mutex_unlock(&l->lock);
}

static void on_down_done(struct mu_rpc_stream *s, enum mu_rpc_code code, const char *text, void *ctx)
{
    (void)s;
    (void)code;
    (void)text;
    atomic_store(&((struct leader *)ctx)->lost, true);
}

static void died(struct leader *l, int culprit, const char *reason)
{
    Muster__Internal__V1__GangEvent e = MUSTER__INTERNAL__V1__GANG_EVENT__INIT;
    Muster__Internal__V1__GangDied d = MUSTER__INTERNAL__V1__GANG_DIED__INIT;
    d.culprit = culprit;
    d.reason = (char *)reason;
    e.epoch = l->epoch;
    e.event_case = MUSTER__INTERNAL__V1__GANG_EVENT__EVENT_DIED;
    e.died = &d;
    struct mu_rpc_call *call = mu_rpc_call_retain(l->call); /* once it is told the next launch may free the leader */
    mu_rpc_call_send(call, &e.base);
    mu_rpc_call_finish(call, MU_RPC_OK, "%s", "");
    mu_rpc_call_release(call);
}

/* One id for everybody, then a moment's rest. */
static void *leader_main(void *arg)
{
    struct leader *l = arg;
    struct fake_gang *f = l->gang;
    while (!atomic_load(&l->ends)) {
        pthread_mutex_lock(&l->lock);
        bool poisoned = l->poisoned;
        for (int i = 0; i < l->n_active && !poisoned && !atomic_load(&f->holds); i++) {
            struct active *a = &l->active[i];
            if (a->n_value) {
                tell_vector(l, a, atomic_load(&f->bad_vector));
                l->active[i--] = l->active[--l->n_active];
                continue;
            }
            size_t skip = atomic_exchange(&f->skip_one, 0) ? 1 : 0;
            if (atomic_load(&f->bad_id) && fake_id(a->seed, a->n) == atomic_load(&f->bad_id)) {
                tell(l, a, a->n, 0, true, MU_ENONFINITE);
                l->active[i--] = l->active[--l->n_active];
                continue;
            }
            size_t n = n_next(l, a);
            bool last = a->n + n >= a->max;
            tell(l, a, a->n + skip, n, last, MU_OK);
            a->n += n;
            if (last) l->active[i--] = l->active[--l->n_active];
        }
        told_send(l);
        pthread_mutex_unlock(&l->lock);
        if (poisoned || atomic_load(&l->lost)) {
            died(l, poisoned ? 0 : -1,
                 poisoned ? "rank 0 was killed by a poisonous prompt" : "the leader lost its stream");
            break;
        }
        mu_sleep_ms(1);
    }
    return NULL;
}

static void leader_free(struct leader *l)
{
    if (!l) return;
    atomic_store(&l->ends, true);
    if (l->thread) pthread_join(l->thread, NULL);
    mu_rpc_channel_close(l->channel);
    if (l->stream) mu_rpc_stream_release(l->stream);
    mu_rpc_call_release(l->call);
    free(l);
}

/* The newest leader is in its place; the one before is returned. */
static struct leader *leader_put(struct fake_gang *f, struct leader *l)
{
    pthread_mutex_lock(&f->lock);
    struct leader *before = f->leader;
    f->leader = l;
    pthread_mutex_unlock(&f->lock);
    return before;
}

static void on_start_gang(struct mu_rpc_call *call, const ProtobufCMessage *msg, void *ctx)
{
    struct fake_gang *f = ctx;
    const Muster__Internal__V1__StartGangRequest *q = (const Muster__Internal__V1__StartGangRequest *)msg;
    struct mu_err err = MU_ERR_INIT;
    leader_free(leader_put(f, NULL));
    struct leader *l = calloc(1, sizeof *l);
    l->gang = f;
    l->epoch = q->epoch;
    memcpy(l->secret, q->secret.data, sizeof l->secret);
    snprintf(l->address, sizeof l->address, "%s", q->engine_address);
    l->call = mu_rpc_call_retain(call);
    pthread_mutex_init(&l->lock, NULL);
    leader_put(f, l);
    atomic_store(&f->epoch, q->epoch);
    atomic_fetch_add(&f->n_launch, 1);
    if (atomic_load(&f->mute)) {
        atomic_store(&l->launched, true);
        return;
    }

    struct mu_rpc_stream_callbacks cb = {on_down, on_down_done, l};
    Muster__Internal__V1__EngineUp up = MUSTER__INTERNAL__V1__ENGINE_UP__INIT;
    Muster__Internal__V1__EngineAttach attach = MUSTER__INTERNAL__V1__ENGINE_ATTACH__INIT;
    attach.gang = q->gang;
    attach.secret = (ProtobufCBinaryData){sizeof l->secret, l->secret};
    attach.max_sequences = (uint32_t)atomic_load(&f->max_sequences);
    up.message_case = MUSTER__INTERNAL__V1__ENGINE_UP__MESSAGE_ATTACH;
    up.attach = &attach;
    if (mu_rpc_channel_open(l->address, &l->channel, &err) ||
        mu_rpc_stream_open(l->channel, "/muster.internal.v1.Engine/Attach",
                           &muster__internal__v1__engine_down__descriptor, 0, MU_FOREVER, mu_now_ns() + 5 * MU_SEC, &cb,
                           &l->stream, &err)) {
        atomic_store(&l->launched, true);
        died(l, -1, err.text);
        return;
    }
    up_send(l, &up);
    Muster__Internal__V1__GangEvent e = MUSTER__INTERNAL__V1__GANG_EVENT__INIT;
    Muster__Internal__V1__GangLaunched launched = MUSTER__INTERNAL__V1__GANG_LAUNCHED__INIT;
    Muster__Internal__V1__GangReady ready = MUSTER__INTERNAL__V1__GANG_READY__INIT;
    launched.mpirun_pid = FAKE_MPIRUN;
    e.epoch = l->epoch;
    e.event_case = MUSTER__INTERNAL__V1__GANG_EVENT__EVENT_LAUNCHED;
    e.launched = &launched;
    mu_rpc_call_send(call, &e.base);
    e.event_case = MUSTER__INTERNAL__V1__GANG_EVENT__EVENT_READY;
    e.ready = &ready;
    mu_rpc_call_send(call, &e.base);
    if (pthread_create(&l->thread, NULL, leader_main, l)) l->thread = 0;
    atomic_store(&l->launched, true);
}

void fake_gang_return(struct fake_gang *f)
{
    struct mu_err err = MU_ERR_INIT;
    const char *addresses[] = {f->address, NULL};
    struct mu_rpc_method m = {.path = "/muster.internal.v1.Worker/StartGang",
                              .request = &muster__internal__v1__start_gang_request__descriptor,
                              .on_message = on_start_gang,
                              .ctx = f};
    struct mu_rpc_server_options o = {.addresses = addresses, .methods = &m, .n_method = 1};
    if (mu_rpc_server_start(&o, &f->server, &err)) fail_msg("%s", err.text);
}

void fake_gang_start(struct fake_gang *f)
{
    *f = (struct fake_gang){.max_sequences = 8};
    pthread_mutex_init(&f->lock, NULL);
    snprintf(f->address, sizeof f->address, "unix:/tmp/mu-fake-worker-%d", (int)getpid());
    fake_gang_return(f);
}

/* Stays until the next launch. */
static struct leader *leader_of(struct fake_gang *f)
{
    pthread_mutex_lock(&f->lock);
    struct leader *l = f->leader;
    pthread_mutex_unlock(&f->lock);
    return l;
}

void fake_gang_kill(struct fake_gang *f, int culprit, const char *reason)
{
    struct leader *l = leader_of(f);
    WAIT_FOR(atomic_load(&l->launched), 5000);
    atomic_store(&l->ends, true);
    died(l, culprit, reason);
}

void fake_gang_count(struct fake_gang *f, uint64_t steps)
{
    struct leader *l = leader_of(f);
    Muster__Internal__V1__EngineUp up = MUSTER__INTERNAL__V1__ENGINE_UP__INIT;
    Muster__Internal__V1__EngineStats stats = MUSTER__INTERNAL__V1__ENGINE_STATS__INIT;
    WAIT_FOR(atomic_load(&l->launched), 5000);
    stats.steps = stats.drafted = stats.drafts_taken = stats.model_drafted = stats.model_drafts_taken = steps;
    up.message_case = MUSTER__INTERNAL__V1__ENGINE_UP__MESSAGE_STATS;
    up.stats = &stats;
    up_send(l, &up);
}

void fake_gang_vanish(struct fake_gang *f)
{
    pthread_mutex_lock(&f->lock); /* a launch may come at this moment, and would free it */
    if (f->leader) atomic_store(&f->leader->ends, true);
    pthread_mutex_unlock(&f->lock);
    mu_rpc_server_stop(f->server, 0);
    f->server = NULL;
}

void fake_gang_stop(struct fake_gang *f)
{
    if (f->server) fake_gang_vanish(f);
    leader_free(leader_put(f, NULL));
    unlink(f->address + 5);
}
