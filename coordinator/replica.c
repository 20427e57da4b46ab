/* A replica: one gang after another, as the coordinator sees it: launch, attach, ready, death, relaunch.
 *
 *            StartGang            ready event + leader attached
 *   DOWN ──────────────▶ STARTING ─────────────────────────────▶ READY
 *    ▲  ◀── retry_ns ──     │ died, stream lost, no attach            │ died, stream or engine lost
 *    └──────────────────────┴─────────────────────────────────────────┘
 *
 * A gang is never patched: any death ends its epoch, and a new one starts on the same split. The first relaunch is
 * immediate, later ones without a token in between wait longer and longer. Before the gang was ever ready, a death that
 * the worker calls permanent, or the third in a row, ends the server with that reason.
 *
 * An end is often seen twice: a stream breaks, and a moment later the worker, or the process that watches the worker,
 * says why. So a broken stream only sets verdict_ns; who knows more has until then. A worker that is silent but has not
 * ended is asked for (worker_hung) to be replaced: it is stopped or hung, and would hold up every relaunch. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/log.h"
#include "coordinator/constraint.h"
#include "coordinator/epoch.h"
#include "coordinator/hub.h"
#include "coordinator/msg.h"
#include "model/utf8.h"

enum {
    LOAD_TIMEOUT_MS = 30 * 60 * 1000,
    STALL_DEFAULT_MS = 3000,
    ENGINE_GRACE_MS = 2000,   /* for the worker to say why the leader's stream ended */
    WORKER_GRACE_MS = 1000,   /* to say why the worker's connection ended */
    WORKER_REPLACE_MS = 2000, /* for its replacement to be told of */
    MAX_RETRY_MS = 10000,
    FIRST_STARTS = 3,      /* a server whose gang never became ready gives up after so many */
    UNBLAMED_FAILURES = 4, /* so many in a row without a token, and the requests are suspected all the same */
};

/* Callbacks carry the hub; which epoch a stream was for travels in a small box of its own. */
struct gang_watch {
    struct mu_hub *hub;
    uint64_t epoch;
};

static void on_watch_message(struct mu_rpc_stream *s, const ProtobufCMessage *msg, void *ctx)
{
    struct mu_event ev = {.kind = MU_EV_GANG, .msg = mu_msg_copy(msg)};
    if (ev.msg && !mu_hub_post(((struct gang_watch *)ctx)->hub, &ev)) return;
    mu_rpc_message_free(ev.msg);
    mu_rpc_stream_cancel(s); /* an event was lost: the gang's state is unknown, so it ends */
}

static void on_watch_done(struct mu_rpc_stream *s, enum mu_rpc_code code, const char *text, void *ctx)
{
    (void)s;
    struct gang_watch *w = ctx;
    struct mu_event ev = {.kind = MU_EV_GANG_DONE, .epoch = w->epoch, .code = code};
    snprintf(ev.text, sizeof ev.text, "the stream to the worker ended: %.400s (%s)",
             text && *text ? text : "it gave no reason", mu_rpc_code_name(code));
    mu_hub_post(w->hub, &ev);
    mu_free(w);
}

static void schedule_retry(struct mu_hub *h)
{
    struct mu_replica *g = &h->gang;
    int ms = 0;
    if (g->failures > 1) ms = 200 << (g->failures < 8 ? g->failures - 2 : 6);
    if (ms > MAX_RETRY_MS) ms = MAX_RETRY_MS;
    g->retry_ns = mu_now_ns() + ms * MU_MS;
}

/* Borrows the adapters' names and paths; msg and at have room for all. */
static void adapters_tell(const struct mu_hub *h, Muster__Internal__V1__StartGangRequest *q,
                          Muster__Internal__V1__Adapter *msg, Muster__Internal__V1__Adapter **at)
{
    for (int i = 0; h->adapters && i < h->adapters->n; i++) {
        struct mu_adapter_spec *spec = &h->adapters->at[i]->spec;
        at[i] = &msg[i];
        muster__internal__v1__adapter__init(at[i]);
        msg[i].name = spec->name;
        msg[i].path = spec->path;
        msg[i].scale = spec->scale;
        q->n_adapter++;
    }
    q->adapter = at;
}

/* For the worker, which has a working directory of its own. Links stay as they are: a split model's parts find each
 * other by their names, and stores keep those as links to files with other names. NULL: as it is. */
static char *absolute_path(const char *path)
{
    if (path[0] == '/') return NULL;
    char *cwd = getcwd(NULL, 0);
    char *whole = cwd ? mu_asprintf("%s/%s", cwd, path) : NULL;
    free(cwd);
    return whole;
}

void mu_replica_start(struct mu_hub *h)
{
    struct mu_replica *g = &h->gang;
    struct mu_err err = MU_ERR_INIT;
    if (g->state != MU_REPLICA_DOWN || !h->worker_up || h->stopping) return;
    g->epoch++;
    g->rank_ready = g->attached = g->worker_silent = false;
    g->verdict_ns = 0;
    g->mpirun_pid = 0;
    g->steps = g->drafted = g->drafts_taken = g->model_drafted = g->model_drafts_taken = 0;
    g->started_ns = mu_now_ns();
    g->retry_ns = 0;

    Muster__Internal__V1__StartGangRequest q = MUSTER__INTERNAL__V1__START_GANG_REQUEST__INIT;
    q.gang = "g0";
    q.epoch = g->epoch;
    char *path = absolute_path(h->opt->model_path);
    q.model_path = path ? path : (char *)h->opt->model_path;
    char *draft = h->opt->draft_path ? absolute_path(h->opt->draft_path) : NULL;
    q.draft_path = draft ? draft : (char *)(h->opt->draft_path ? h->opt->draft_path : "");
    q.quantize = (char *)(h->opt->quantize ? h->opt->quantize : "");
    q.split = h->split_text;
    q.kv = (char *)mu_kv_type_name(h->serving.kv);
    q.threads = (uint32_t)h->opt->threads;
    q.context = (uint32_t)h->serving.n_ctx;
    q.parallel = (uint32_t)h->serving.n_slot;
    q.kv_pages = h->serving.n_page;
    q.step_tokens = (uint32_t)h->serving.step_tokens;
    q.rough_prompts = h->serving.rough;
    q.no_prefix_cache = h->opt->no_prefix_cache;
    q.no_speculation = h->opt->no_speculation;
    q.engine_address = h->engine_address;
    q.secret = (ProtobufCBinaryData){sizeof g->secret, g->secret};
    q.load_timeout_ms = LOAD_TIMEOUT_MS;
    q.stall_timeout_ms = (uint32_t)(h->opt->stall_timeout_ms ? h->opt->stall_timeout_ms : STALL_DEFAULT_MS);

    Muster__Internal__V1__Adapter adapter[MU_MAX_ADAPTER], *adapter_at[MU_MAX_ADAPTER];
    adapters_tell(h, &q, adapter, adapter_at);

    struct gang_watch *w = mu_malloc(sizeof *w);
    enum mu_status st = w ? MU_OK : mu_fail(&err, MU_ENOMEM, "no memory to start a gang");
    if (!st) {
        *w = (struct gang_watch){h, g->epoch};
        struct mu_rpc_stream_callbacks cb = {on_watch_message, on_watch_done, w};
        st = mu_rpc_stream_open(h->worker, "/muster.internal.v1.Worker/StartGang",
                                &muster__internal__v1__gang_event__descriptor, 0, MU_FOREVER, mu_now_ns() + 5 * MU_SEC,
                                &cb, &g->stream, &err);
        if (st) mu_free(w);
    }
    if (!st) {
        g->state = MU_REPLICA_STARTING;
        char epoch[MU_EPOCH_TEXT];
        mu_info("gang", "epoch %s starts, split %s", mu_epoch_format(g->epoch, epoch), h->split_text);
        if (mu_rpc_stream_send(g->stream, &q.base)) mu_rpc_stream_cancel(g->stream); /* on_done follows */
        mu_rpc_stream_half_close(g->stream);
    } else {
        mu_log_err(MU_LOG_WARN, "gang", &err, "cannot ask the worker for a gang");
        g->failures++;
        schedule_retry(h);
    }
    mu_free(path);
    mu_free(draft);
}

static void forget_engine(struct mu_replica *g, const char *why)
{
    if (!g->engine) return;
    if (why) mu_rpc_call_finish(g->engine, MU_RPC_FAILED_PRECONDITION, "%s", why);
    mu_rpc_call_release(g->engine);
    g->engine = NULL;
}

static void health_set(struct mu_hub *h, bool serving)
{
    mu_rpc_server_set_health(h->front, "", serving);
    mu_rpc_server_set_health(h->front, "muster.v1.Muster", serving);
}

void mu_replica_died(struct mu_hub *h, unsigned how, const char *reason)
{
    struct mu_replica *g = &h->gang;
    char epoch[MU_EPOCH_TEXT];
    bool permanent = how & MU_DEATH_PERMANENT;
    if (g->state == MU_REPLICA_DOWN) return;
    bool was_stopping = g->state == MU_REPLICA_STOPPING;
    g->state = MU_REPLICA_DOWN;
    g->verdict_ns = 0;
    health_set(h, false);
    /* In an orderly stop the worker ends the leader; it need not hear of it from us first. */
    forget_engine(g, was_stopping ? NULL : "the gang is over");
    if (g->stream) {
        mu_rpc_stream_cancel(g->stream);
        mu_rpc_stream_release(g->stream);
        g->stream = NULL;
    }
    mu_rpc_message_free((ProtobufCMessage *)g->ready);
    g->ready = NULL;
    if (was_stopping || h->stopping) return;
    snprintf(g->last_failure, sizeof g->last_failure, "%s", reason);
    mu_text_repair(g->last_failure); /* half a character at the cut could not be told */
    g->failures++;
    if (!g->was_ready && (permanent || g->failures >= FIRST_STARTS)) {
        snprintf(h->fatal, sizeof h->fatal, "%s", reason);
        mu_hub_fail_all(h, MU_RPC_UNAVAILABLE, reason);
        mu_hub_tell_outcome(h, 2);
        return;
    }
    mu_warn("gang", "epoch %s is over: %s", mu_epoch_format(g->epoch, epoch), reason);
    mu_hub_requests_lost(h, how & MU_DEATH_BLAME, reason);
    if (permanent) mu_hub_fail_all(h, MU_RPC_UNAVAILABLE, reason);
    g->relaunches++;
    schedule_retry(h);
}

static void check_ready(struct mu_hub *h)
{
    struct mu_replica *g = &h->gang;
    if (g->state != MU_REPLICA_STARTING || !g->rank_ready || !g->engine) return;
    char epoch[MU_EPOCH_TEXT];
    g->state = MU_REPLICA_READY;
    mu_info("gang", "epoch %s is ready after %.2f s", mu_epoch_format(g->epoch, epoch),
            (double)(mu_now_ns() - g->started_ns) / 1e9);
    health_set(h, true);
    g->was_ready = true;
    mu_hub_tell_outcome(h, 1);
    mu_hub_pump(h);
}

void mu_replica_on_event(struct mu_hub *h, const Muster__Internal__V1__GangEvent *ev)
{
    struct mu_replica *g = &h->gang;
    if (ev->epoch != g->epoch || g->state == MU_REPLICA_DOWN) return;
    switch (ev->event_case) {
    case MUSTER__INTERNAL__V1__GANG_EVENT__EVENT_LAUNCHED: g->mpirun_pid = ev->launched->mpirun_pid; break;
    case MUSTER__INTERNAL__V1__GANG_EVENT__EVENT_READY:
        mu_rpc_message_free((ProtobufCMessage *)g->ready);
        g->ready = (Muster__Internal__V1__GangReady *)mu_msg_copy(&ev->ready->base);
        g->rank_ready = true;
        check_ready(h);
        break;
    case MUSTER__INTERNAL__V1__GANG_EVENT__EVENT_TIMES:
        mu_rpc_message_free((ProtobufCMessage *)g->ready);
        g->ready = (Muster__Internal__V1__GangReady *)mu_msg_copy(&ev->times->base);
        break;
    case MUSTER__INTERNAL__V1__GANG_EVENT__EVENT_DIED:
        mu_replica_died(h,
                        (ev->died->permanent ? MU_DEATH_PERMANENT : 0) |
                            (ev->died->culprit >= 0 || g->failures >= UNBLAMED_FAILURES ? MU_DEATH_BLAME : 0),
                        ev->died->reason);
        break;
    default: break; /* loading progress: the log of the worker has it */
    }
}

/* The sooner of two verdicts counts. */
static void await_verdict(struct mu_replica *g, int ms, const char *verdict)
{
    int64_t until = mu_now_ns() + ms * MU_MS;
    if (g->verdict_ns && g->verdict_ns <= until) return;
    g->verdict_ns = until;
    snprintf(g->verdict, sizeof g->verdict, "%s", verdict);
}

void mu_replica_on_stream_done(struct mu_hub *h, uint64_t epoch, enum mu_rpc_code code, const char *text)
{
    struct mu_replica *g = &h->gang;
    if (epoch != g->epoch || g->state == MU_REPLICA_DOWN) return;
    if (code != MU_RPC_UNAVAILABLE) {
        mu_replica_died(h, 0, text);
        return;
    }
    g->state = MU_REPLICA_STARTING; /* nothing is submitted to it any more */
    g->rank_ready = false;
    g->worker_silent = true;
    await_verdict(g, WORKER_GRACE_MS, text);
}

static bool same_secret(const ProtobufCBinaryData *got, const unsigned char *want, size_t n)
{
    unsigned char diff = got->len != n; /* constant time in the contents */
    for (size_t i = 0; i < n; i++) diff |= (unsigned char)((i < got->len ? got->data[i] : 0) ^ want[i]);
    return !diff;
}

void mu_replica_on_attach(struct mu_hub *h, struct mu_rpc_call *call, const Muster__Internal__V1__EngineUp *up)
{
    struct mu_replica *g = &h->gang;
    const Muster__Internal__V1__EngineAttach *a = up->attach;
    if (!same_secret(&a->secret, g->secret, sizeof g->secret)) {
        mu_rpc_call_finish(call, MU_RPC_PERMISSION_DENIED, "wrong secret for gang '%.64s'", a->gang);
        return;
    }
    /* One attach an epoch: what a broken stream still carried is lost, and with it what the leader believes the
     * coordinator has. */
    if (up->epoch != g->epoch || g->state != MU_REPLICA_STARTING || g->attached) {
        char epoch[MU_EPOCH_TEXT];
        mu_rpc_call_finish(call, MU_RPC_FAILED_PRECONDITION, "epoch %s is over", mu_epoch_format(up->epoch, epoch));
        return;
    }
    g->attached = true;
    g->engine = mu_rpc_call_retain(call);
    g->max_sequences = a->max_sequences ? a->max_sequences : 1;
    check_ready(h);
}

void mu_replica_on_engine_done(struct mu_hub *h, struct mu_rpc_call *call)
{
    struct mu_replica *g = &h->gang;
    if (call != g->engine) return;
    mu_rpc_call_release(g->engine);
    g->engine = NULL;
    /* Mostly the leader died and the worker is about to say so, with the culprit's name. */
    if (g->state == MU_REPLICA_READY || g->state == MU_REPLICA_STARTING) {
        g->state = MU_REPLICA_STARTING;
        await_verdict(g, ENGINE_GRACE_MS, "the leader's stream ended and did not come back");
    }
}

int64_t mu_replica_next_ns(const struct mu_hub *h)
{
    const struct mu_replica *g = &h->gang;
    if (g->state == MU_REPLICA_DOWN) return h->worker_up && g->retry_ns ? g->retry_ns : MU_FOREVER;
    return g->verdict_ns ? g->verdict_ns : MU_FOREVER;
}

void mu_replica_tick(struct mu_hub *h, int64_t now_ns)
{
    struct mu_replica *g = &h->gang;
    if (g->state == MU_REPLICA_DOWN) {
        if (g->retry_ns && now_ns >= g->retry_ns) mu_replica_start(h);
        return;
    }
    if (!g->verdict_ns || now_ns < g->verdict_ns) return;
    bool hung = g->worker_silent && !h->opt->worker; /* our own child, and nobody said that it ended */
    mu_replica_died(h, 0, g->verdict);
    if (!hung) return;
    g->retry_ns = now_ns + WORKER_REPLACE_MS * MU_MS;
    atomic_store(&h->worker_hung, true);
    mu_hub_tell_outcome(h, atomic_load(&h->outcome));
}

bool mu_replica_submit(struct mu_hub *h, struct mu_request *r)
{
    struct mu_replica *g = &h->gang;
    if (g->state != MU_REPLICA_READY) return false;
    Muster__V1__Sampling sampling = MUSTER__V1__SAMPLING__INIT;
    if (r->params && r->params->sampling) sampling = *r->params->sampling; /* its biases are borrowed */
    sampling._seed_case = MUSTER__V1__SAMPLING___SEED_SEED;
    sampling.seed = r->seed;
    Muster__Internal__V1__EngineSubmit s = MUSTER__INTERNAL__V1__ENGINE_SUBMIT__INIT;
    s.request = r->id;
    s.prompt = r->prompt;
    s.n_prompt = r->n_prompt;
    s.emitted = r->emitted;
    s.n_emitted = r->n_emitted;
    s.max_tokens = (uint32_t)r->max_tokens;
    s.sampling = &sampling;
    s.priority = r->priority == MU_PRIORITY_INTERACTIVE ? MUSTER__V1__PRIORITY__PRIORITY_INTERACTIVE
                 : r->priority == MU_PRIORITY_BATCH     ? MUSTER__V1__PRIORITY__PRIORITY_BATCH
                                                        : MUSTER__V1__PRIORITY__PRIORITY_NORMAL;
    s.key = r->key;
    s.end_ids = h->end_ids;
    s.n_end_ids = r->embed || r->params->ignore_end ? 0 : h->n_end_ids;
    Muster__Internal__V1__EngineEmbed embed = MUSTER__INTERNAL__V1__ENGINE_EMBED__INIT;
    if (r->embed) {
        embed.pooling =
            r->embed->pooling == MU_POOL_MEAN ? MUSTER__V1__POOLING__POOLING_MEAN : MUSTER__V1__POOLING__POOLING_LAST;
        embed.dimensions = r->embed->dimensions;
        embed.raw = r->embed->raw;
        s.embed = &embed;
    } else {
        mu_submit_constraint(r->params, &s);
    }
    float scale = r->embed ? r->embed->adapter_scale : r->params->adapter_scale;
    s.adapter = (uint32_t)mu_adapters_find(h->adapters, r->embed ? r->embed->adapter : r->params->adapter);
    s.adapter_scale = scale != 0 ? scale : 1.0f;
    Muster__Internal__V1__EngineDown down = MUSTER__INTERNAL__V1__ENGINE_DOWN__INIT;
    down.epoch = g->epoch;
    down.message_case = MUSTER__INTERNAL__V1__ENGINE_DOWN__MESSAGE_SUBMIT;
    down.submit = &s;
    enum mu_status st = mu_rpc_call_send(g->engine, &down.base);
    if (st == MU_ECANCELLED)
        mu_replica_on_engine_done(h, g->engine);
    else if (st != MU_OK)
        h->pump_again = true;
    return st == MU_OK;
}

bool mu_replica_cancel(struct mu_hub *h, uint64_t request)
{
    struct mu_replica *g = &h->gang;
    if (!g->engine) return false;
    Muster__Internal__V1__EngineCancel c = MUSTER__INTERNAL__V1__ENGINE_CANCEL__INIT;
    c.request = request;
    Muster__Internal__V1__EngineDown down = MUSTER__INTERNAL__V1__ENGINE_DOWN__INIT;
    down.epoch = g->epoch;
    down.message_case = MUSTER__INTERNAL__V1__ENGINE_DOWN__MESSAGE_CANCEL;
    down.cancel = &c;
    return mu_rpc_call_send(g->engine, &down.base) == MU_OK;
}

void mu_replica_stop(struct mu_hub *h)
{
    struct mu_replica *g = &h->gang;
    if (g->state == MU_REPLICA_DOWN) return;
    g->state = MU_REPLICA_STOPPING;
    mu_replica_died(h, 0, "the server is stopping"); /* cancelling the stream ends the gang */
}
