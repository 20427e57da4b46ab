/* One load on a server: who asks what, and when (bench_serve.h).
 *
 *   main thread          sleeps until a request is due → makes its prompt → opens its stream
 *                        open loop: at the times of a Poisson process, whatever the server does
 *                        closed loop: when one of `concurrency` is done
 *   gRPC's poll threads  write down when replies come, each into its own request; the end goes to a list under the lock
 *
 * Prompts are made before they are due, so that sending is all that is left. How late requests were sent all the same
 * is reported (lag): where that or this process's share of a core is large, the figures are the generator's and not the
 * server's. Several connections, for one poll thread would be a limit, and so that no request waits in another's TCP
 * window. */
#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/fault.h"
#include "cli/bench_serve.h"
#include "muster/v1/muster.pb-c.h"

enum {
    CHANNELS = 4,
    CALL_MS = 10000,
    REQUEST_MS = 3600000,
    INTERRUPT_MS = 100,
    MAX_REQUESTS = 1000000,
    REQUESTS_STEP = 256
};

struct mu_bench_client {
    char model[256];
    struct mu_rpc_channel *channel[CHANNELS];
};

struct request {
    struct load *load;
    struct request *next; /* of the finished list */
    struct mu_rpc_stream *stream;
    int64_t due_ns, sent_ns, first_ns, last_ns;
    int n_want, n_in, n_out, n_reply, n_resumed;
    float *gap_ms; /* [n_want], the first n_reply - 1 are filled */
    double queue_ms;
    enum mu_rpc_code code;
    bool full; /* ended because it had all its tokens, or the model ended */
    char text[MU_ERR_TEXT];
};

struct load {
    const struct mu_bench_load_options *o;
    struct mu_bench_client *client;
    struct mu_bench_random chance;
    struct mu_bench_arrivals arrivals;
    int32_t *ids; /* of the prompt that is sent next */
    struct request **request;
    int n_request;
    int64_t start_ns;
    int n_active;
    bool cancelling;
    struct mu_bar bar;
    pthread_mutex_t lock; /* guards what follows */
    pthread_cond_t cond;
    struct request *finished; /* not reaped yet */
    int64_t freed_ns;         /* when the last one ended */
};

/* ---- a client ---- */

enum mu_status mu_bench_client_open(const char *address, const char *model, struct mu_bench_client **client_out,
                                    struct mu_err *err)
{
    struct mu_bench_client *c = mu_calloc(1, sizeof *c);
    if (!c) return mu_fail(err, MU_ENOMEM, "no memory for a connection to %s", address);
    mu_rpc_init();
    snprintf(c->model, sizeof c->model, "%s", model ? model : "");
    for (int i = 0; i < CHANNELS; i++) {
        enum mu_status st = mu_rpc_channel_open(address, &c->channel[i], err);
        if (!st) continue;
        mu_bench_client_close(c);
        return st;
    }
    *client_out = c;
    return MU_OK;
}

void mu_bench_client_close(struct mu_bench_client *c)
{
    if (!c) return;
    for (int i = 0; i < CHANNELS; i++) mu_rpc_channel_close(c->channel[i]);
    mu_rpc_shutdown();
    mu_free(c);
}

enum mu_status mu_bench_client_model(struct mu_bench_client *c, int *n_ctx_out, char *what, size_t what_bytes,
                                     struct mu_err *err)
{
    Muster__V1__ModelStatusRequest req = MUSTER__V1__MODEL_STATUS_REQUEST__INIT;
    ProtobufCMessage *msg;
    req.model = c->model;
    enum mu_status st =
        mu_rpc_unary(c->channel[0], "/muster.v1.Muster/ModelStatus", &req.base,
                     &muster__v1__model_status_reply__descriptor, mu_now_ns() + CALL_MS * MU_MS, &msg, err);
    if (st == MU_EPEER) mu_no_server(mu_rpc_channel_address(c->channel[0]), err);
    if (st) return st;
    const Muster__V1__ModelStatusReply *r = (const Muster__V1__ModelStatusReply *)msg;
    snprintf(what, what_bytes, "%s", r->description);
    *n_ctx_out = r->context < 1u << 30 ? (int)r->context : 1 << 30;
    mu_rpc_message_free(msg);
    return MU_OK;
}

enum mu_status mu_bench_client_ids(struct mu_bench_client *c, int32_t **ids_out, int *n_out, struct mu_err *err)
{
    static const char text[] =
        "When the old man looked up from his letters the boats were already far out, small and grey under the "
        "morning rain, and nobody in the harbour could say which of the 27 crews had taken the long way round. "
        "\"Bring me water,\" she said; then, after a while: \"no, bread first.\" Between 1840 and 1912 they sold "
        "salt, rope, copper and lamp oil; by winter every house had a stove. def area(width, height): return width * "
        "height. The quick question is simple: who pays for it, how often, and what happens if they do not?";
    Muster__V1__TokenizeRequest req = MUSTER__V1__TOKENIZE_REQUEST__INIT;
    ProtobufCMessage *msg;
    req.model = c->model;
    req.text = (char *)text;
    enum mu_status st = mu_rpc_unary(c->channel[0], "/muster.v1.Muster/Tokenize", &req.base,
                                     &muster__v1__tokenize_reply__descriptor, mu_now_ns() + CALL_MS * MU_MS, &msg, err);
    if (st) return st;
    const Muster__V1__TokenizeReply *r = (const Muster__V1__TokenizeReply *)msg;
    int32_t *ids = r->n_ids ? mu_reallocarray(NULL, r->n_ids, sizeof *ids) : NULL;
    if (ids) memcpy(ids, r->ids, r->n_ids * sizeof *ids);
    *ids_out = ids;
    *n_out = (int)r->n_ids;
    mu_rpc_message_free(msg);
    return ids ? MU_OK : mu_fail(err, MU_EPROTO, "the server made no tokens of a text");
}

/* ---- the server's ranks, where they are processes of this machine ---- */

struct ranks {
    int n, n_thread; /* threads of all */
    int64_t at_ns;
    struct {
        int32_t pid;
        double cpu_s;                                               /* below 0: there is no such rank here */
        double ready_s, compute_s, attention_s, sampling_s, talk_s; /* ready_s 0: not told */
    } rank[MU_MAX_RANKS];
};

/* The numbers of a server in a container, or on another machine, are those of other processes here. */
static bool is_rank(int32_t pid)
{
    static const char verb[] = "\0_rank"; /* behind the program's path */
    char path[64], text[PATH_MAX + sizeof verb];
    snprintf(path, sizeof path, "/proc/%d/cmdline", pid);
    FILE *f = fopen(path, "re");
    size_t n = f ? fread(text, 1, sizeof text, f) : 0, len = strnlen(text, n);
    if (f) fclose(f);
    return n - len >= sizeof verb && !memcmp(text + len, verb, sizeof verb);
}

static double cpu_of(int32_t pid)
{
    char path[64], text[1024], *after;
    double ticks[2];
    if (!is_rank(pid)) return -1;
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    FILE *f = fopen(path, "re");
    size_t n = f ? fread(text, 1, sizeof text - 1, f) : 0;
    if (f) fclose(f);
    text[n] = 0;
    after = strrchr(text, ')'); /* the command's name may hold anything */
    if (!after) return -1;
    if (sscanf(after + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lf %lf", &ticks[0], &ticks[1]) != 2) return -1;
    return (ticks[0] + ticks[1]) / (double)sysconf(_SC_CLK_TCK);
}

static enum mu_status ranks_read(struct mu_bench_client *c, struct ranks *out)
{
    Muster__V1__ClusterStatusRequest req = MUSTER__V1__CLUSTER_STATUS_REQUEST__INIT;
    ProtobufCMessage *msg;
    enum mu_status st =
        mu_rpc_unary(c->channel[0], "/muster.v1.Muster/ClusterStatus", &req.base,
                     &muster__v1__cluster_status_reply__descriptor, mu_now_ns() + CALL_MS * MU_MS, &msg, NULL);
    if (st) return st;
    const Muster__V1__ClusterStatusReply *r = (const Muster__V1__ClusterStatusReply *)msg;
    *out = (struct ranks){.at_ns = mu_now_ns()};
    for (size_t g = 0; g < r->n_gang; g++)
        for (size_t i = 0; i < r->gang[g]->n_rank && out->n < MU_MAX_RANKS; i++, out->n++) {
            const Muster__V1__Rank *rank = r->gang[g]->rank[i];
            const Muster__V1__RankTimes *t = rank->times;
            out->n_thread += (int)rank->threads;
            out->rank[out->n].pid = rank->pid;
            out->rank[out->n].cpu_s = cpu_of(rank->pid);
            if (!t) continue;
            out->rank[out->n].ready_s = t->ready_s;
            out->rank[out->n].compute_s = t->compute_s;
            out->rank[out->n].attention_s = t->attention_s;
            out->rank[out->n].sampling_s = t->sampling_s;
            out->rank[out->n].talk_s = t->exchange_s + t->recv_s + t->send_s;
        }
    mu_rpc_message_free(msg);
    return MU_OK;
}

/* Cores that they kept busy between the two; below 0 where they are not the same, or not here. */
static double ranks_used(const struct ranks *before, const struct ranks *after)
{
    double used = 0;
    if (before->n != after->n || after->at_ns <= before->at_ns) return -1;
    for (int i = 0; i < after->n; i++) {
        if (before->rank[i].pid != after->rank[i].pid || before->rank[i].cpu_s < 0) return -1;
        used += after->rank[i].cpu_s - before->rank[i].cpu_s;
    }
    return used / ((double)(after->at_ns - before->at_ns) / 1e9);
}

/* Between the two times that the server told; none where it told nothing new or the ranks are others. */
static void ranks_spent(const struct ranks *before, const struct ranks *after, struct mu_bench_load_result *r)
{
    if (before->n != after->n) return;
    for (int i = 0; i < after->n; i++) {
        double all = after->rank[i].ready_s - before->rank[i].ready_s;
        if (before->rank[i].pid != after->rank[i].pid || !(all > 0)) return;
        double compute = after->rank[i].compute_s - before->rank[i].compute_s;
        struct mu_bench_spent s = {.attention = (after->rank[i].attention_s - before->rank[i].attention_s) / all,
                                   .sampling = (after->rank[i].sampling_s - before->rank[i].sampling_s) / all,
                                   .talk = (after->rank[i].talk_s - before->rank[i].talk_s) / all};
        s.matrix = compute / all - s.attention - s.sampling;
        s.idle = 1 - compute / all - s.talk;
        if (s.idle < 0) s.idle = 0;
        r->rank[i] = s;
    }
    r->n_rank = after->n;
}

/* ---- replies, on poll threads ---- */

static void on_reply(struct mu_rpc_stream *s, const ProtobufCMessage *msg, void *ctx)
{
    const Muster__V1__GenerateReply *reply = (const Muster__V1__GenerateReply *)msg;
    struct request *r = ctx;
    int64_t now = mu_now_ns();
    (void)s;
    if (reply->n_ids) {
        if (!r->n_reply)
            r->first_ns = now;
        else if (r->n_reply <= r->n_want)
            r->gap_ms[r->n_reply - 1] = (float)((double)(now - r->last_ns) / 1e6);
        r->n_reply++;
        r->n_out += (int)reply->n_ids;
        r->last_ns = now;
    }
    if (reply->usage) {
        r->n_in = (int)reply->usage->prompt_tokens;
        r->n_resumed = (int)reply->usage->resumed;
        r->queue_ms = reply->usage->queue_ms;
        r->full = reply->finish != MUSTER__V1__FINISH__FINISH_LENGTH || r->n_out >= r->n_want;
    }
}

static void on_done(struct mu_rpc_stream *s, enum mu_rpc_code code, const char *text, void *ctx)
{
    struct request *r = ctx;
    struct load *l = r->load;
    (void)s;
    r->code = code;
    snprintf(r->text, sizeof r->text, "%s", text ? text : "");
    pthread_mutex_lock(&l->lock);
    r->next = l->finished;
    l->finished = r;
    l->freed_ns = mu_now_ns();
    pthread_cond_signal(&l->cond);
    pthread_mutex_unlock(&l->lock);
}

/* ---- requests ---- */

static struct request *request_new(struct load *l, struct mu_err *err)
{
    if (l->n_request % REQUESTS_STEP == 0) {
        struct request **more = mu_reallocarray(l->request, (size_t)l->n_request + REQUESTS_STEP, sizeof *more);
        if (more) l->request = more;
        if (!more || l->n_request >= MAX_REQUESTS) {
            mu_fail(err, more ? MU_ELIMIT : MU_ENOMEM, "no room for more than %d requests", l->n_request);
            return NULL;
        }
    }
    struct request *r = mu_fault_hit("bench.request") ? NULL : mu_calloc(1, sizeof *r);
    if (r) {
        r->load = l;
        r->n_want = mu_bench_random_in(&l->chance, &l->o->output);
        r->gap_ms = mu_calloc((size_t)r->n_want, sizeof *r->gap_ms);
    }
    if (!r || !r->gap_ms) {
        mu_free(r);
        mu_fail(err, MU_ENOMEM, "no memory for request %d", l->n_request + 1);
        return NULL;
    }
    l->request[l->n_request++] = r;
    return r;
}

/* The shared beginning is made of the seed alone, so that every load and run of a seed shares it. */
static int ids_make(struct load *l)
{
    const struct mu_bench_load_options *o = l->o;
    struct mu_bench_random shared = {o->opt->seed};
    int n = o->opt->n_prefix, own = mu_bench_random_in(&l->chance, &o->input);
    for (int i = 0; i < n + own; i++)
        l->ids[i] = o->pool[mu_bench_random_next(i < n ? &shared : &l->chance) % (uint64_t)o->n_pool];
    return n + own;
}

/* Everything but the sending, which waits until it is due. */
static void request_make(struct load *l, struct request *r, Muster__V1__GenerateRequest *req, Muster__V1__Ids *ids)
{
    muster__v1__generate_request__init(req);
    muster__v1__ids__init(ids);
    req->model = l->client->model;
    req->max_tokens = (uint32_t)r->n_want;
    req->return_ids = true;
    if (l->o->prompt) {
        req->prompt_case = MUSTER__V1__GENERATE_REQUEST__PROMPT_TEXT;
        req->text = l->o->prompt[(l->n_request - 1) % l->o->n_prompt];
        return;
    }
    req->ignore_end = true; /* random prompts: a model may end them where it likes */
    req->prompt_case = MUSTER__V1__GENERATE_REQUEST__PROMPT_IDS;
    req->ids = ids;
    ids->n_id = (size_t)ids_make(l);
    ids->id = l->ids;
    r->n_in = (int)ids->n_id;
}

static enum mu_status request_send(struct load *l, struct request *r, const Muster__V1__GenerateRequest *req,
                                   struct mu_err *err)
{
    struct mu_rpc_stream_callbacks cb = {on_reply, on_done, r};
    r->sent_ns = mu_now_ns();
    enum mu_status st = mu_rpc_stream_open(l->client->channel[l->n_request % CHANNELS], "/muster.v1.Muster/Generate",
                                           &muster__v1__generate_reply__descriptor, 0, r->sent_ns + REQUEST_MS * MU_MS,
                                           mu_now_ns() + CALL_MS * MU_MS, &cb, &r->stream, err);
    if (st) return st;
    l->n_active++;
    st = mu_rpc_stream_send(r->stream, &req->base);
    if (st)
        mu_rpc_stream_cancel(r->stream);
    else
        mu_rpc_stream_half_close(r->stream);
    if (!st || st == MU_ECANCELLED) return MU_OK; /* its end tells why */
    return mu_fail(err, st, "request %d cannot be sent: %s", l->n_request,
                   st == MU_EINVAL ? "its prompt is not valid UTF-8" : mu_status_text(st));
}

/* Takes the finished ones off the list. */
static void reap(struct load *l)
{
    pthread_mutex_lock(&l->lock);
    struct request *r = l->finished;
    l->finished = NULL;
    pthread_mutex_unlock(&l->lock);
    for (; r; r = r->next) {
        l->n_active--;
        mu_rpc_stream_release(r->stream);
        r->stream = NULL;
    }
}

static void progress(struct load *l, int64_t now)
{
    const struct mu_bench_serve_options *o = l->o->opt;
    int64_t left_ns = l->start_ns + o->duration_ns - now;
    if (o->n_request)
        mu_bar_update(&l->bar, (uint64_t)(l->n_request - l->n_active),
                      (uint64_t)o->n_request + 1); /* never whole here */
    else
        mu_bar_update(&l->bar, (uint64_t)(left_ns > 0 ? o->duration_ns - left_ns : o->duration_ns - 1),
                      (uint64_t)o->duration_ns);
}

/* Sleeps until then, or until fewer than `below` are active; false: Ctrl-C. */
static bool wait_until(struct load *l, int64_t until_ns, int below)
{
    for (;;) {
        reap(l);
        int64_t now = mu_now_ns(), look = now + INTERRUPT_MS * MU_MS;
        if (mu_interrupted || l->n_active < below || now >= until_ns) return !mu_interrupted;
        progress(l, now);
        if (look > until_ns) look = until_ns;
        struct timespec ts = {look / MU_SEC, look % MU_SEC};
        pthread_mutex_lock(&l->lock);
        if (!l->finished) pthread_cond_timedwait(&l->cond, &l->lock, &ts);
        pthread_mutex_unlock(&l->lock);
    }
}

static void cancel_all(struct load *l)
{
    for (int i = 0; i < l->n_request; i++)
        if (l->request[i]->stream) mu_rpc_stream_cancel(l->request[i]->stream);
}

static enum mu_status requests_run(struct load *l, struct mu_err *err)
{
    const struct mu_bench_load_options *o = l->o;
    int64_t stop_ns = o->opt->duration_ns ? l->start_ns + o->opt->duration_ns : MU_FOREVER;
    int64_t due = l->start_ns;
    enum mu_status st = MU_OK;
    for (int i = 0; !st && (!o->opt->n_request || i < o->opt->n_request); i++) {
        Muster__V1__GenerateRequest req;
        Muster__V1__Ids ids;
        struct request *r = request_new(l, err);
        if (!r) {
            st = err->code;
            break;
        }
        request_make(l, r, &req, &ids);
        if (o->rate > 0) {
            due = l->start_ns + mu_bench_arrivals_next_ns(&l->arrivals);
            bool go = due < stop_ns && wait_until(l, due, 0);
            if (!go) break;
        } else {
            if (!wait_until(l, stop_ns, o->concurrency) || mu_now_ns() >= stop_ns) break;
            pthread_mutex_lock(&l->lock);
            due = i < o->concurrency ? mu_now_ns() : l->freed_ns;
            pthread_mutex_unlock(&l->lock);
        }
        r->due_ns = due;
        st = request_send(l, r, &req, err);
    }
    if (st || !wait_until(l, MU_FOREVER, 1)) { /* drain; Ctrl-C gives up what runs */
        bool interrupted = mu_interrupted;
        l->cancelling = true;
        cancel_all(l);
        do mu_signals_reset();
        while (!wait_until(l, MU_FOREVER, 1));
        mu_interrupted = interrupted;
    }
    return st;
}

/* ---- figures ---- */

struct figures { /* [requests]; gaps of all */
    double *ttft, *tpot, *itl, *e2e, *queue, *lag, *own;
    size_t n_ttft, n_tpot, n_itl, n_queue, n_lag;
    double n_reply; /* of the requests that count */
};

static void request_count(const struct load *l, const struct request *r, struct figures *f,
                          struct mu_bench_load_result *out)
{
    size_t n_gap = r->n_reply > 1 ? (size_t)(r->n_reply - 1) : 0;
    if (n_gap > (size_t)r->n_want) n_gap = (size_t)r->n_want;
    f->lag[f->n_lag++] = (double)(r->sent_ns - r->due_ns) / 1e6;
    out->n_sent++;
    if (r->code == MU_RPC_CANCELLED && l->cancelling) {
        out->cancelled++;
        return;
    }
    if (r->code != MU_RPC_OK || !r->n_reply || !r->full) {
        int kind = r->code == MU_RPC_OK ? MU_BENCH_SHORT : (int)r->code;
        out->failed[kind >= 0 && kind < MU_BENCH_KINDS ? kind : MU_RPC_UNKNOWN]++;
        return;
    }
    double ttft = (double)(r->first_ns - r->sent_ns) / 1e6, e2e = (double)(r->last_ns - r->sent_ns) / 1e6;
    double tpot = r->n_out > 1 ? (e2e - ttft) / (r->n_out - 1) : 0;
    for (size_t i = 0; i < n_gap; i++) f->itl[f->n_itl++] = f->own[i] = r->gap_ms[i];
    mu_bench_spread_of(f->own, n_gap); /* sorts them */
    f->ttft[f->n_ttft] = ttft;
    f->e2e[f->n_ttft++] = e2e;
    if (r->n_out > 1) f->tpot[f->n_tpot++] = tpot;
    f->queue[f->n_queue++] = r->queue_ms;
    out->n_ok++;
    out->n_good += mu_bench_slo_met(&l->o->opt->slo, ttft, tpot, e2e, f->own, n_gap);
    out->n_resumed += r->n_resumed > 0;
    out->in_tokens += r->n_in;
    out->out_tokens += r->n_out;
    f->n_reply += r->n_reply;
    out->mean_active += e2e / 1e3;
}

static bool figures_alloc(struct figures *f, const struct load *l)
{
    size_t n = (size_t)l->n_request + 1, gaps = 1, most = 1;
    for (int i = 0; i < l->n_request; i++) {
        gaps += (size_t)l->request[i]->n_want;
        if ((size_t)l->request[i]->n_want > most) most = (size_t)l->request[i]->n_want;
    }
    double **const one[] = {&f->ttft, &f->tpot, &f->e2e, &f->queue, &f->lag};
    bool ok = true;
    for (size_t i = 0; i < sizeof one / sizeof *one; i++) ok = (*one[i] = mu_calloc(n, sizeof(double))) && ok;
    ok = (f->itl = mu_calloc(gaps, sizeof(double))) && ok;
    return (f->own = mu_calloc(most, sizeof(double))) && ok;
}

static void figures_free(struct figures *f)
{
    double *const all[] = {f->ttft, f->tpot, f->itl, f->e2e, f->queue, f->lag, f->own};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) mu_free(all[i]);
}

static enum mu_status load_sum(struct load *l, struct mu_bench_load_result *out, struct mu_err *err)
{
    struct figures f = {0};
    int64_t first = INT64_MAX, last = 0, last_sent = 0;
    *out = (struct mu_bench_load_result){.rate = l->o->rate, .concurrency = l->o->concurrency};
    if (!figures_alloc(&f, l)) {
        figures_free(&f);
        return mu_fail(err, MU_ENOMEM, "no memory for the figures of %d requests", l->n_request);
    }
    for (int i = 0; i < l->n_request; i++) {
        const struct request *r = l->request[i];
        if (!r->sent_ns) continue;
        if (r->sent_ns < first) first = r->sent_ns;
        if (r->sent_ns > last_sent) last_sent = r->sent_ns;
        if (r->last_ns > last) last = r->last_ns;
        request_count(l, r, &f, out);
    }
    out->duration_s = last > first ? (double)(last - first) / 1e9 : 0;
    out->send_s = last_sent > first ? (double)(last_sent - first) / 1e9 : 0;
    out->ttft = mu_bench_spread_of(f.ttft, f.n_ttft);
    out->e2e = mu_bench_spread_of(f.e2e, f.n_ttft);
    out->tpot = mu_bench_spread_of(f.tpot, f.n_tpot);
    out->itl = mu_bench_spread_of(f.itl, f.n_itl);
    out->queue = mu_bench_spread_of(f.queue, f.n_queue);
    out->lag = mu_bench_spread_of(f.lag, f.n_lag);
    out->tokens_a_reply = f.n_reply > 0 ? out->out_tokens / f.n_reply : 0;
    out->mean_active = out->duration_s > 0 ? out->mean_active / out->duration_s : 0;
    figures_free(&f);
    return MU_OK;
}

/* Every failure was the same word of the server: nothing was measured, and that is the reason. */
static enum mu_status all_failed(const struct load *l, const struct mu_bench_load_result *out, struct mu_err *err)
{
    if (out->n_ok || mu_interrupted) return MU_OK;
    for (int i = 0; i < l->n_request; i++)
        if (l->request[i]->sent_ns && l->request[i]->code != MU_RPC_OK)
            return mu_fail(err, mu_status_of_rpc(l->request[i]->code), "all %d requests failed, the first with %s: %s",
                           out->n_sent, mu_rpc_code_name(l->request[i]->code), l->request[i]->text);
    return out->n_sent ? mu_fail(err, MU_EPROTO, "all %d requests ended with fewer tokens than asked for", out->n_sent)
                       : mu_fail(err, MU_EINVAL,
                                 "no request was due within the time given: more --seconds, or a higher --rate");
}

enum mu_status mu_bench_client_load(struct mu_bench_client *c, const struct mu_bench_load_options *o,
                                    struct mu_bench_load_result *result_out, struct mu_err *err)
{
    struct load l = {
        .o = o, .client = c, .bar = {.label = "serving"}, .chance = {o->seed}, .lock = PTHREAD_MUTEX_INITIALIZER};
    struct mu_bench_watch *watch = NULL;
    struct mu_bench_machine machine = {0};
    struct ranks before = {0}, after;
    pthread_condattr_t attr;
    enum mu_status st;
    l.ids = mu_reallocarray(NULL, (size_t)o->opt->n_prefix + (size_t)o->input.max + 1, sizeof *l.ids);
    if (!l.ids) return mu_fail(err, MU_ENOMEM, "no memory for a prompt");
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&l.cond, &attr);
    pthread_condattr_destroy(&attr);
    int n_known = o->opt->duration_ns ? 0 : o->opt->n_request;
    if (o->rate > 0) l.arrivals = mu_bench_arrivals_begin(o->rate, n_known, ~o->seed);
    st = ranks_read(c, &before);
    if (st) before.n = 0; /* a server that does not say where its ranks are */
    st = mu_bench_watch_begin(&watch, err);
    l.start_ns = mu_now_ns();
    if (!st) st = requests_run(&l, err);
    mu_bar_update(&l.bar, 1, 1);
    mu_bench_watch_end(watch, &machine);
    if (!st) st = load_sum(&l, result_out, err);
    if (!st) st = all_failed(&l, result_out, err);
    if (!st) {
        result_out->machine = machine;
        result_out->rank_cpus = -1;
        if (before.n && ranks_read(c, &after) == MU_OK) {
            result_out->rank_cpus = ranks_used(&before, &after);
            ranks_spent(&before, &after, result_out);
        }
        result_out->rank_threads = before.n_thread;
    }
    for (int i = 0; i < l.n_request; i++) {
        mu_free(l.request[i]->gap_ms);
        mu_free(l.request[i]);
    }
    mu_free(l.request);
    mu_free(l.ids);
    pthread_cond_destroy(&l.cond);
    return st;
}
