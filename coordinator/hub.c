/* The hub's loop and the requests' life. See hub.h and request.h.
 *
 * Who runs: after a death those whose replay is shortest first, then by whose turn it is (base/fair.h) and of one key by
 * arrival; at most as many as the gang takes at once and a few to keep its queue warm. Of those that the gang has, lower
 * priorities do not count: it makes room for what is more urgent (worker/scheduler.h), and so it must know of it; and of
 * each priority it always has a few, or the lower ones would never get their turn there. A suspect (two gangs died while
 * it ran) runs alone until it proved harmless; where another suspect waits it is then taken back from the leader, so that
 * one after the other is alone for a few tokens only, and then all of them go on together. */
#include "coordinator/hub.h"

#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/log.h"

enum { FIRST_RETRY_S = 5, MAX_RETRY_S = 3600 };

/* A client that reads nothing may answer gRPC's pings all the same; one that was stopped does not, nor one whose machine is gone.
 * Its requests hold memory, and a place in the gang while they run. A minute: a reader that is merely slow takes something
 * now and then, and whoever stopped a program goes on with it. */
enum { UNREAD_TIMEOUT_MS = 60 * 1000 };

enum mu_status mu_hub_post(struct mu_hub *h, const struct mu_event *ev)
{
    struct mu_event *e = mu_malloc(sizeof *e);
    if (!e) return MU_ENOMEM;
    *e = *ev;
    enum mu_status st = mu_queue_push(h->events, e);
    if (st) mu_free(e);
    return st;
}

enum mu_status mu_hub_post_client(struct mu_hub *h, const struct mu_event *ev)
{
    return mu_queue_len(h->events) < MU_HUB_EVENTS / 2 ? mu_hub_post(h, ev) : MU_EAGAIN;
}

void mu_event_free(void *event)
{
    struct mu_event *e = event;
    if (e->call) mu_rpc_call_release(e->call);
    mu_rpc_message_free(e->msg);
    mu_embed_call_release(e->embed);
    mu_free(e->ids);
    mu_free(e);
}

void mu_hub_tell_outcome(struct mu_hub *h, int outcome)
{
    atomic_store(&h->outcome, outcome);
    uint64_t one = 1;
    if (write(h->outcome_fd, &one, sizeof one) < 0) return; /* it was readable already */
}

/* ---- the list of requests ---- */

/* Where a request is, or the first after it, since ids ascend: looked for from `from` on where that is not behind it already. A
 * message of the gang names most of its requests in their order, and all of them cost one walk together. */
static struct mu_request **find(struct mu_hub *h, struct mu_request **from, uint64_t id)
{
    struct mu_request **p = *from && (*from)->id <= id ? from : &h->requests;
    while (*p && (*p)->id < id) p = &(*p)->next;
    return p;
}

static void count(struct mu_hub *h, const struct mu_request *r, int by)
{
    if (r->state == MU_REQ_WAITING) {
        h->n_waiting += (size_t)by;
        h->n_returned += r->resumed ? (size_t)by : 0;
        (by > 0 ? mu_fair_wait : mu_fair_unwait)(&h->fair, r->flow);
    }
    if (r->state != MU_REQ_RUNNING) return;
    h->n_running += (size_t)by;
    h->n_running_of[r->priority] += (size_t)by;
}

static void set_state(struct mu_hub *h, struct mu_request *r, enum mu_request_state state)
{
    count(h, r, -1);
    r->state = state;
    count(h, r, 1);
}

/* A running request has ended: how fast they follow each other, while there are always some. */
static void pace_take(struct mu_hub *h)
{
    int64_t now = mu_now_ns(), gap = now - h->ended_ns;
    if (h->ended_ns) h->pace_ns = h->pace_ns ? (7 * h->pace_ns + gap) / 8 : gap;
    h->ended_ns = h->n_running + h->n_waiting > 1 ? now : 0; /* an idle time is no pace */
}

static void drop(struct mu_hub *h, struct mu_request **p)
{
    struct mu_request *r = *p;
    if (r->state == MU_REQ_RUNNING) {
        pace_take(h);
        if (!r->charged)
            mu_fair_charge(&h->fair, r->flow, r->n_prompt); /* it had a place, and took what others might have had */
    }
    *p = r->next;
    if (!*p) h->end = p;
    count(h, r, -1);
    if (r->flow >= 0) mu_fair_leave(&h->fair, r->flow);
    mu_request_free(r);
}

void mu_hub_fail_all(struct mu_hub *h, enum mu_rpc_code code, const char *text)
{
    while (h->requests) {
        mu_request_fail(h->requests, code, "%s", text);
        drop(h, &h->requests);
    }
}

void mu_hub_requests_lost(struct mu_hub *h, bool blame, const char *reason)
{
    for (struct mu_request **p = &h->requests; *p;) {
        struct mu_request *r = *p;
        if (r->state != MU_REQ_RUNNING) {
            p = &r->next;
            continue;
        }
        r->resumed++;
        r->deaths += blame;
        if (r->alone && blame) {
            mu_warn("hub", "request r%llu is given up: it ran alone and the gang died again",
                    (unsigned long long)r->id);
            mu_request_fail(r, MU_RPC_ABORTED,
                            "%d gangs died while it ran, the last one while it ran alone (%s); it is not tried again",
                            r->deaths, reason);
            drop(h, p);
            continue;
        }
        r->alone = r->leaving = false;
        set_state(h, r, MU_REQ_WAITING);
        p = &r->next;
    }
}

static bool waits(const struct mu_request *r, bool suspect, bool resumed)
{
    return r->state == MU_REQ_WAITING && mu_request_suspect(r) == suspect && (r->resumed > 0) == resumed;
}

/* Of those that a death has sent back. */
static struct mu_request *shortest(struct mu_hub *h, bool suspects)
{
    struct mu_request *best = NULL;
    for (struct mu_request *r = h->n_returned ? h->requests : NULL; r; r = r->next)
        if (waits(r, suspects, true) && (!best || r->n_prompt + r->n_emitted < best->n_prompt + best->n_emitted))
            best = r;
    return best;
}

/* Of the new ones: whose turn it is. */
static struct mu_request *next_new(struct mu_hub *h, size_t most)
{
    bool may[MU_PRIORITY_COUNT], any = false;
    size_t n = 0, few = h->gang.max_sequences / 8 + 1;
    for (int p = 0; p < MU_PRIORITY_COUNT; p++) {
        n += h->n_running_of[p]; /* of this priority and those above */
        may[p] = n < most || h->n_running_of[p] < few;
        any |= may[p] && h->fair.n_waiting[p];
    }
    struct mu_request *best = NULL;
    for (struct mu_request *r = any ? h->requests : NULL; r; r = r->next) /* in order of arrival */
        if (waits(r, false, false) && may[r->priority] && (!best || mu_fair_compare(&h->fair, r->flow, best->flow) < 0))
            best = r;
    return best;
}

static bool submit(struct mu_hub *h, struct mu_request *r, bool alone)
{
    if (!mu_replica_submit(h, r)) return false;
    if (!r->started_ns) r->started_ns = mu_now_ns();
    if (r->embed && !r->embed->started_ns) r->embed->started_ns = r->started_ns;
    if (r->choices && !r->choices->started_ns) r->choices->started_ns = r->started_ns;
    set_state(h, r, MU_REQ_RUNNING);
    r->alone = alone;
    r->leaving = false;
    r->probation_until = r->n_emitted + MU_REQ_PROBATION;
    return true;
}

void mu_hub_pump(struct mu_hub *h)
{
    size_t most = h->gang.max_sequences + h->gang.max_sequences / 4 + 1;
    h->pump_again = false;
    if (h->gang.state != MU_REPLICA_READY || !h->n_waiting) return;
    for (struct mu_request *r = h->n_running == 1 ? h->requests : NULL; r; r = r->next)
        if (r->state == MU_REQ_RUNNING && r->alone) return; /* a suspect is on probation */
    struct mu_request *r = shortest(h, true);
    if (r) {
        if (h->n_running) return; /* it waits until the gang is empty; nobody is sent in front of it */
        mu_info("hub", "request r%llu runs alone: %d gangs died while it ran", (unsigned long long)r->id, r->deaths);
        submit(h, r, true);
        return;
    }
    do {
        r = h->n_running < most ? shortest(h, false) : NULL;
        if (!r) r = next_new(h, most);
    } while (r && submit(h, r, false));
}

/* ---- events ---- */

/* Seconds until an eighth of those that wait will have gone, at the pace of the last ones that ended. */
static unsigned long long retry_s(const struct mu_hub *h)
{
    uint64_t n = h->n_waiting / 8 + 1, s = n * (uint64_t)h->pace_ns / MU_SEC + 1;
    return !h->pace_ns ? FIRST_RETRY_S : s < MAX_RETRY_S ? s : MAX_RETRY_S;
}

/* Whether n more requests may wait; else the call is told. Where nobody waits any call may come, so that many inputs
 * are not refused for ever. */
static bool has_room(struct mu_hub *h, struct mu_rpc_call *call, size_t n, enum mu_priority priority)
{
    size_t most = h->opt->max_waiting ? (size_t)h->opt->max_waiting : MU_HUB_WAITING;
    if (h->n_waiting + n <= mu_hub_places(most, priority) || (n > 1 && !h->n_waiting)) return true;
    mu_rpc_call_finish(call, MU_RPC_RESOURCE_EXHAUSTED,
                       "busy: %zu requests are waiting and %zu running; try again later, in about %llu s", h->n_waiting,
                       h->n_running, retry_s(h));
    return false;
}

/* A chain of new requests at the end of the list; where it is now. */
static struct mu_request **append(struct mu_hub *h, struct mu_request *first)
{
    struct mu_request **p = h->end;
    *p = first;
    for (; *h->end; h->end = &(*h->end)->next) count(h, *h->end, 1);
    return p;
}

/* Of requests that are not in the list, out of the shares. */
static void chain_free(struct mu_hub *h, struct mu_request *first)
{
    while (first) {
        struct mu_request *r = first;
        first = r->next;
        if (r->flow >= 0) mu_fair_leave(&h->fair, r->flow);
        mu_request_free(r);
    }
}

/* Into the shares. */
static bool enter(struct mu_hub *h, struct mu_request *r)
{
    r->flow = mu_fair_enter(&h->fair, r->priority, r->key);
    return r->flow >= 0;
}

static void on_embed(struct mu_hub *h, struct mu_embed_call *e)
{
    if (mu_rpc_call_cancelled(e->call) || !has_room(h, e->call, e->n_input, e->priority)) return;
    struct mu_request *first = NULL, **last = &first;
    for (size_t i = 0; i < e->n_input; i++) {
        struct mu_request *r = mu_request_create_embed(++h->next_request, e, i);
        if (r) {
            *last = r;
            last = &r->next;
        }
        if (!r || !enter(h, r)) {
            mu_embed_call_fail(e, i, MU_RPC_RESOURCE_EXHAUSTED, "no memory for the request");
            break;
        }
    }
    if (e->over) {
        chain_free(h, first);
        return;
    }
    append(h, first);
    mu_hub_pump(h);
}

static void on_generate(struct mu_hub *h, struct mu_event *ev)
{
    const Muster__V1__GenerateRequest *q = (const Muster__V1__GenerateRequest *)ev->msg;
    uint32_t n = mu_choices_n(q);
    if (mu_rpc_call_cancelled(ev->call) || !has_room(h, ev->call, n, mu_proto_priority(q->priority))) return;
    size_t room = (size_t)h->serving.n_ctx - ev->n_ids,
           max = q->max_tokens && q->max_tokens < room ? q->max_tokens : room;
    uint64_t seed = 0;
    if (q->sampling && q->sampling->_seed_case == MUSTER__V1__SAMPLING___SEED_SEED)
        seed = q->sampling->seed;
    else if (getrandom(&seed, sizeof seed, GRND_NONBLOCK) != (ssize_t)sizeof seed)
        seed = (uint64_t)mu_now_ns() * 0x9e3779b97f4a7c15u;
    struct mu_choices *c = mu_choices_create(++h->next_request, ev->call, (Muster__V1__GenerateRequest *)ev->msg,
                                             ev->ids, ev->n_ids, seed);
    ev->call = NULL;
    ev->msg = NULL;
    ev->ids = NULL;
    if (!c) return;
    struct mu_request *first = NULL, **last = &first;
    for (uint32_t i = 0; i < n; i++) {
        uint64_t id = i == 0 ? c->id : ++h->next_request;
        struct mu_request *r = *last = mu_request_create(id, c, i, max, h->tok);
        if (!r || !enter(h, r)) {
            mu_rpc_call_finish(c->call, MU_RPC_RESOURCE_EXHAUSTED, "no memory for %u requests of %zu tokens", n, max);
            chain_free(h, first);
            mu_choices_release(c);
            return;
        }
        last = &r->next;
    }
    mu_choices_release(c); /* its requests hold it */
    struct mu_request **p = append(h, first);
    if (mu_request_flush(first)) /* the id and the seed go out at once */
        drop(h, p);              /* the call is over already; on_done takes back the other choices */
    else
        mu_hub_pump(h);
}

/* All choices, and inputs, of calls that are over. */
static void take_back(struct mu_hub *h)
{
    bool any = false;
    for (struct mu_request **p = &h->requests; *p;) {
        struct mu_request *r = *p;
        bool over = r->embed ? r->embed->over : r->choices->over;
        if (!over && !mu_rpc_call_cancelled(r->embed ? r->embed->call : r->call)) {
            p = &r->next;
            continue;
        }
        if (r->state == MU_REQ_RUNNING) mu_replica_cancel(h, r->id);
        drop(h, p);
        any = true;
    }
    if (any) mu_hub_pump(h);
}

/* Its new ids say something about a suspect: it has run for a while and everybody lives. */
static void clear_suspicion(struct mu_hub *h, struct mu_request *r)
{
    if (r->n_emitted < r->probation_until) return;
    r->deaths = 0;
    r->alone = false;
    /* Where another suspect waits this one is still alone in the gang, and in its way: the leader answers the cancel, and then
     * this one waits again. A cancel that cannot be sent now is sent with the next ids. */
    if (h->n_running == 1 && !r->finish && !r->leaving && shortest(h, true)) r->leaving = mu_replica_cancel(h, r->id);
}

/* The gang has read its prompt, and says what of it was cached: what was spared costs nothing. */
static uint32_t charge_prompt(struct mu_hub *h, struct mu_request *r, const Muster__Internal__V1__RequestTokens *t)
{
    r->charged = true;
    uint32_t cached = t->cached_tokens < r->n_prompt ? t->cached_tokens : (uint32_t)r->n_prompt;
    mu_fair_charge(&h->fair, r->flow, r->n_prompt - cached);
    return cached;
}

/* The end of an input of Embed: its vector, or why there is none. */
static void on_vector(struct mu_hub *h, struct mu_request **p, const Muster__Internal__V1__RequestTokens *t)
{
    struct mu_request *r = *p;
    if (t->n_vector) charge_prompt(h, r, t);
    r->charged = true; /* of one that was refused nothing was read */
    if (t->error && *t->error)
        mu_request_fail(r, mu_rpc_code_of((enum mu_status)t->error_code), "%s", t->error);
    else if (!t->n_vector)
        mu_request_fail(r, MU_RPC_INTERNAL, "the leader ended it without a vector");
    else if (mu_embed_call_take(r->embed, r->embed_at, t->vector, t->n_vector, (unsigned)r->resumed, t->cached_tokens))
        h->gang.failures = 0;
    drop(h, p);
}

/* One request's part of a step's tokens; p: find's. */
static void on_tokens(struct mu_hub *h, struct mu_request **p, const Muster__Internal__V1__RequestTokens *t)
{
    struct mu_request *r = *p;
    if (!r || r->id != t->request || r->state != MU_REQ_RUNNING) {
        /* Cancelled meanwhile: the leader has not heard of it yet, or there was no room to tell it. */
        if (!t->finished) mu_replica_cancel(h, t->request);
        return;
    }
    if (r->embed) {
        on_vector(h, p, t);
        return;
    }
    size_t before = r->n_emitted;
    switch (mu_request_commit(r, t, h->tok)) {
    case MU_COMMIT_OK:
    case MU_COMMIT_OLD: break;
    case MU_COMMIT_GAP: mu_replica_died(h, MU_DEATH_BLAME, "the leader left out a part of a request's tokens"); return;
    case MU_COMMIT_NOMEM:
        mu_request_fail(r, MU_RPC_RESOURCE_EXHAUSTED, "no memory for its text");
        if (!t->finished) mu_replica_cancel(h, r->id);
        drop(h, p);
        return;
    }
    if (r->n_emitted > before) {
        h->gang.failures = 0;
        h->tokens_generated += r->n_emitted - before;
        if (!before) {
            uint32_t cached = charge_prompt(h, r, t);
            if (r->choice == 0) r->choices->n_cached = cached;
        }
        mu_fair_charge(&h->fair, r->flow, r->n_emitted - before);
    }
    if (!t->finished) clear_suspicion(h, r);
    if (!r->finish && r->leaving && t->finished) { /* back from the leader */
        r->leaving = false;
        set_state(h, r, MU_REQ_WAITING);
    } else if (!r->finish && t->error && *t->error) {
        r->charged = true; /* nor of this one, or it was charged before */
        mu_request_fail(r, mu_rpc_code_of((enum mu_status)t->error_code), "%s", t->error);
        drop(h, p);
        return;
    } else if (!r->finish && t->finished) { /* the leader and we disagree about the end: never leave a client hanging */
        mu_request_fail(r, MU_RPC_INTERNAL, "the leader ended it after %zu of %zu tokens", r->n_emitted, r->max_tokens);
        drop(h, p);
        return;
    }
    bool done = mu_request_flush(r);
    /* A stop string, or a client that has gone: the leader does not know it. */
    if ((done || r->finish) && !t->finished) mu_replica_cancel(h, r->id);
    if (done)
        drop(h, p);
    else if (r->finish)
        set_state(h, r, MU_REQ_TELLING); /* the gang has nothing to do with it any more */
}

static void on_engine_up(struct mu_hub *h, const struct mu_event *ev)
{
    const Muster__Internal__V1__EngineUp *up = (const Muster__Internal__V1__EngineUp *)ev->msg;
    if (ev->call != h->gang.engine || up->epoch != h->gang.epoch) return;
    if (up->message_case == MUSTER__INTERNAL__V1__ENGINE_UP__MESSAGE_STATS) {
        h->gang.steps = up->stats->steps;
        h->gang.drafted = up->stats->drafted;
        h->gang.drafts_taken = up->stats->drafts_taken;
        h->gang.model_drafted = up->stats->model_drafted;
        h->gang.model_drafts_taken = up->stats->model_drafts_taken;
    } else if (up->message_case == MUSTER__INTERNAL__V1__ENGINE_UP__MESSAGE_TOKENS) {
        struct mu_request **p = &h->requests;
        for (size_t i = 0; i < up->tokens->n_request && h->gang.state == MU_REPLICA_READY; i++) {
            p = find(h, p, up->tokens->request[i]->request);
            on_tokens(h, p, up->tokens->request[i]);
        }
        mu_hub_pump(h);
    }
}

static const char *state_name(enum mu_replica_state s)
{
    switch (s) {
    case MU_REPLICA_DOWN: return "down";
    case MU_REPLICA_STARTING: return "starting";
    case MU_REPLICA_READY: return "ready";
    case MU_REPLICA_STOPPING: break;
    }
    return "stopping";
}

static void on_status(struct mu_hub *h, struct mu_rpc_call *call)
{
    Muster__V1__ClusterStatusReply reply = MUSTER__V1__CLUSTER_STATUS_REPLY__INIT;
    Muster__V1__Gang gang = MUSTER__V1__GANG__INIT, *gangs = &gang;
    reply.version = MUSTER_VERSION;
    reply.n_node = h->node ? 1 : 0;
    reply.node = &h->node;
    reply.n_gang = 1;
    reply.gang = &gangs;
    reply.waiting = (uint32_t)h->n_waiting;
    reply.running = (uint32_t)h->n_running;
    reply.tokens_generated = h->tokens_generated;
    reply.uptime_s = (double)(mu_now_ns() - h->started_ns) / 1e9;
    gang.epoch = h->gang.epoch;
    gang.state = (char *)state_name(h->gang.state);
    gang.split = h->split_text;
    gang.relaunches = h->gang.relaunches;
    gang.last_failure = h->gang.last_failure;
    gang.mpirun_pid = h->gang.state == MU_REPLICA_DOWN ? 0 : h->gang.mpirun_pid;
    gang.steps = h->gang.steps;
    gang.drafted = h->gang.drafted;
    gang.drafts_taken = h->gang.drafts_taken;
    gang.model_drafted = h->gang.model_drafted;
    gang.model_drafts_taken = h->gang.model_drafts_taken;
    if (h->gang.ready) {
        gang.n_rank = h->gang.ready->n_rank;
        gang.rank = h->gang.ready->rank;
    }
    mu_rpc_call_reply(call, &reply.base);
}

static void on_model_status(struct mu_hub *h, struct mu_rpc_call *call)
{
    Muster__V1__Adapter adapter[MU_MAX_ADAPTER], *adapter_at[MU_MAX_ADAPTER];
    char what[256];
    mu_model_describe(h->model, what, sizeof what);
    Muster__V1__ModelStatusReply reply = MUSTER__V1__MODEL_STATUS_REPLY__INIT;
    reply.model = h->model->name;
    reply.path = (char *)h->opt->model_path;
    reply.description = what;
    reply.architecture = (char *)h->model->arch->name;
    reply.parameters = h->model->n_param;
    reply.weight_bytes = h->model->weight_bytes;
    reply.context = (uint32_t)h->serving.n_ctx;
    reply.ready = h->gang.state == MU_REPLICA_READY;
    for (int i = 0; h->adapters && i < h->adapters->n; i++) {
        struct mu_adapter *ad = h->adapters->at[i];
        adapter_at[i] = &adapter[i];
        muster__v1__adapter__init(&adapter[i]);
        adapter[i].name = ad->spec.name;
        adapter[i].path = ad->spec.path;
        adapter[i].scale = ad->spec.scale;
        adapter[i].rank = (uint32_t)ad->max_rank;
        reply.n_adapter++;
    }
    reply.adapter = adapter_at;
    if (h->adapters && h->adapters->by_default) reply.default_adapter = adapter[h->adapters->by_default - 1].name;
    if (h->chat.source) reply.chat_template = (char *)h->chat.source;
    reply.embedding_length = (uint32_t)h->model->cfg.d_model;
    reply.pooling =
        h->model->cfg.pooling == MU_POOL_MEAN ? MUSTER__V1__POOLING__POOLING_MEAN : MUSTER__V1__POOLING__POOLING_LAST;
    mu_rpc_call_reply(call, &reply.base);
}

/* A worker that was started again is on the same machine: nobody looks for its GPUs once more. */
static void gpus_keep(Muster__V1__Node *old, Muster__V1__Node *now)
{
    if (!old || now->n_gpu) return;
    now->gpu = old->gpu;
    now->n_gpu = old->n_gpu;
    old->gpu = NULL;
    old->n_gpu = 0;
}

static void on_worker(struct mu_hub *h, struct mu_event *ev)
{
    h->worker_up = ev->kind == MU_EV_WORKER_UP;
    if (h->worker_up && ev->msg) {
        gpus_keep(h->node, (Muster__V1__Node *)ev->msg);
        mu_rpc_message_free((ProtobufCMessage *)h->node);
        h->node = (Muster__V1__Node *)ev->msg;
        ev->msg = NULL;
    }
    if (!h->worker_up)
        mu_replica_died(h, 0, ev->text);
    else if (h->gang.state == MU_REPLICA_DOWN)
        mu_replica_start(h);
}

static void handle(struct mu_hub *h, struct mu_event *ev)
{
    switch (ev->kind) {
    case MU_EV_GENERATE: on_generate(h, ev); break;
    case MU_EV_EMBED: on_embed(h, ev->embed); break;
    case MU_EV_CALLS_OVER: break; /* mu_hub_main looks */
    case MU_EV_STATUS: on_status(h, ev->call); break;
    case MU_EV_MODEL_STATUS: on_model_status(h, ev->call); break;
    case MU_EV_ATTACH: mu_replica_on_attach(h, ev->call, (const Muster__Internal__V1__EngineUp *)ev->msg); break;
    case MU_EV_ENGINE_UP: on_engine_up(h, ev); break;
    case MU_EV_ENGINE_DONE: mu_replica_on_engine_done(h, ev->call); break;
    case MU_EV_GANG: mu_replica_on_event(h, (const Muster__Internal__V1__GangEvent *)ev->msg); break;
    case MU_EV_GANG_DONE: mu_replica_on_stream_done(h, ev->epoch, ev->code, ev->text); break;
    case MU_EV_WORKER_UP:
    case MU_EV_WORKER_DOWN: on_worker(h, ev); break;
    case MU_EV_STOP: h->stopping = true; break;
    }
}

int mu_hub_unread_timeout_ms(const struct mu_hub *h)
{
    return h->opt->unread_timeout_ms ? h->opt->unread_timeout_ms : UNREAD_TIMEOUT_MS;
}

/* A blocked request whose client has taken nothing for too long fails. */
static bool give_up(struct mu_hub *h, struct mu_request *r, int64_t now)
{
    const int most_ms = mu_hub_unread_timeout_ms(h);
    size_t queued = mu_rpc_call_queued(r->call);
    if (!r->unread_ns || queued < r->unread_bytes) r->unread_ns = now;
    r->unread_bytes = queued;
    if (now - r->unread_ns < most_ms * MU_MS) return false;
    mu_request_fail(r, MU_RPC_DEADLINE_EXCEEDED, "its client has read nothing for %d s, so it was given up",
                    most_ms / 1000);
    return true;
}

/* Clients that read slowly get the rest when they have room. */
static bool flush_blocked(struct mu_hub *h, int64_t now)
{
    bool any = false, gave_up = false;
    for (struct mu_request **p = &h->requests; *p;) {
        struct mu_request *r = *p;
        if (r->blocked && mu_request_flush(r)) {
            if (r->state == MU_REQ_RUNNING) mu_replica_cancel(h, r->id);
            drop(h, p);
            continue;
        }
        gave_up |= r->blocked && give_up(h, r, now);
        any |= r->blocked;
        p = &r->next;
    }
    if (gave_up) take_back(h);
    return any;
}

/* Whoever still asks is told. */
static void refuse_rest(struct mu_hub *h)
{
    struct mu_event *ev;
    mu_queue_close(h->events);
    while ((ev = mu_queue_pop(h->events, 0))) {
        if (ev->kind == MU_EV_GENERATE || ev->kind == MU_EV_STATUS || ev->kind == MU_EV_MODEL_STATUS)
            mu_rpc_call_finish(ev->call, MU_RPC_UNAVAILABLE, "the server is stopping");
        if (ev->kind == MU_EV_EMBED) mu_rpc_call_finish(ev->embed->call, MU_RPC_UNAVAILABLE, "the server is stopping");
        mu_event_free(ev);
    }
}

enum { BLOCKED_TICK_MS = 50 };

void *mu_hub_main(void *hub)
{
    struct mu_hub *h = hub;
    int64_t flush_ns = 0; /* when slow clients are looked at again */
    bool blocked = false; /* or an event came since they were looked at, which may have blocked one */
    h->end = &h->requests;
    while (!h->stopping) {
        int64_t deadline = mu_replica_next_ns(h), now = mu_now_ns();
        if ((blocked || h->pump_again) && deadline > now + BLOCKED_TICK_MS * MU_MS)
            deadline = now + BLOCKED_TICK_MS * MU_MS;
        struct mu_event *ev = mu_queue_pop(h->events, deadline);
        if (ev) {
            handle(h, ev);
            mu_event_free(ev);
            blocked = true;
        }
        if (atomic_exchange(&h->calls_over, false)) take_back(h);
        now = mu_now_ns();
        mu_replica_tick(h, now);
        if (h->pump_again) mu_hub_pump(h);
        if (!blocked || now < flush_ns) continue;
        flush_ns = now + BLOCKED_TICK_MS * MU_MS;
        blocked = flush_blocked(h, now);
    }
    mu_replica_stop(h);
    mu_hub_fail_all(h, MU_RPC_UNAVAILABLE, "the server is stopping");
    refuse_rest(h);
    mu_fair_free(&h->fair);
    mu_hub_tell_outcome(h, 3);
    return NULL;
}
