/* muster serve: opens the model, plans, opens the doors, starts a worker and then only watches.
 *
 * Threads: main (signals, the worker process), hub (requests, gang), text (tokenizing), gRPC's poll threads of two
 * servers and one channel.
 * Start: model → worker → inventory, GPUs where they matter → plan, memory → public server → internal server (unix
 * socket) → hub starts the gang.
 * Stop, in this order: the hub ends the gang and all requests, and takes no more (calls are answered UNAVAILABLE from
 * here on) → text thread takes no more → worker ends, with it the leader's stream → servers → the rest. A watchdog ends
 * the process where something hangs, at the start as well. */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/io.h"
#include "base/log.h"
#include "base/topo.h"
#include "base/watchdog.h"
#include "coordinator/epoch.h"
#include "coordinator/gpus.h"
#include "coordinator/hub.h"
#include "coordinator/local_worker.h"
#include "coordinator/msg.h"
#include "model/utf8.h"
#include "proto/descriptors.h"
#include "proto/limits.h"
#include "shard/plan_draft.h"
#include "shard/plan_fit.h"
#include "shard/plan_where.h"

enum { MAX_METHODS = 16, DEFAULT_CONTEXT = 8192, DEFAULT_PARALLEL = 32 };
enum {
    WORKER_START_MS = 10000,
    WORKER_ASK_MS = 500,
    GPUS_ASK_MS = 30000, /* a driver that was not used for a while, and a second to measure each */
    WORKER_STOP_MS = 3000,
    WORKER_RESTART_MS = 200,
    GANG_END_MS = 1000, /* for a worker that runs on to end the gang: its leader hears nothing of our end */
    DOORS_LIMIT_MS = 10000
};

struct serve {
    struct mu_hub hub;
    struct mu_rpc_server *front, *internal;
    char *run_dir;
    char worker_address[128];
    pid_t worker_pid;
    int64_t worker_restart_ns; /* 0: none planned */
    pthread_t hub_thread, text_thread;
    bool hub_started, text_started;
    int signal_fd;
    sigset_t signals;
};

/* ---- what fits ---- */

static const char *split_wanted(const struct serve *s)
{
    return s->hub.opt->split ? s->hub.opt->split : "auto";
}

/* Settles context and KV pages, and says what they take. */
static enum mu_status plan_memory(struct serve *s, const struct mu_plan_node *node, struct mu_err *err)
{
    struct mu_hub *h = &s->hub;
    unsigned asked = (h->opt->context ? MU_FIT_CTX : 0u) | (h->opt->parallel ? MU_FIT_SLOTS : 0u);
    int usual = h->serving.n_ctx;
    struct mu_fit fit;
    char text[MU_FIT_TEXT];
    struct mu_plan *plan = mu_calloc(1, sizeof *plan);
    if (!plan) return mu_fail(err, MU_ENOMEM, "no memory for a plan");
    enum mu_status st;
    MU_TRY(st, mu_plan_build(h->model, &h->split, plan, err), done);
    mu_fit_measure(h->model, plan, h->adapters, &h->serving, node, &fit);
    if (h->draft) {
        MU_TRY(st, mu_draft_check(plan, err), done);
        MU_TRY(st, mu_draft_fit(h->draft, &h->serving, &fit, err), done);
    }
    MU_TRY(st, mu_fit_settle(&fit, h->model, plan, asked, &h->serving, err), done);
    mu_fit_describe(&fit, &h->serving, text);
    mu_info("serve", "memory: %s", text);
    if (h->serving.n_ctx < usual)
        mu_warn("serve", "a context of %d tokens instead of %d: more does not fit in memory", h->serving.n_ctx, usual);
done:
    mu_free(plan);
    return st;
}

/* Where ranks run, as far as that is not plain. */
static void say_where(const struct serve *s, const struct mu_plan_node *node, const char *why)
{
    const struct mu_hub *h = &s->hub;
    char text[MU_GPU_TEXT];
    if (node->gpus.n == 0 && node->gpus.broken && h->opt->device != MU_DEVICE_CPU)
        mu_warn("serve", "no GPU is used: %s", node->gpus.why);
    if (why[0]) mu_info("serve", "%s", why);
    for (int i = 0; mu_split_has_gpu(&h->split) && i < h->split.n_rank; i++) {
        mu_plan_where_rank(&node->gpus, &h->split, i, text);
        mu_info("serve", "rank %d: %s", i, text);
    }
}

/* The split, and what fits. worker: its inventory. */
static enum mu_status plan_gang(struct serve *s, const Muster__V1__Node *worker, struct mu_err *err)
{
    struct mu_hub *h = &s->hub;
    const char *text = split_wanted(s);
    char why[MU_PLAN_WHY];
    enum mu_status st;
    struct mu_topo *topo = mu_calloc(1, sizeof *topo);
    struct mu_plan_node *node = mu_calloc(1, sizeof *node);
    if (!topo || !node) {
        st = mu_fail(err, MU_ENOMEM, "no memory for a plan");
        goto done;
    }
    MU_TRY(st, mu_topo_read(topo, err), done);
    mu_plan_node_of(topo, node);
    node->read_gbps = worker->read_gbps;
    node->int8_gops = worker->int8_gops;
    mu_gpus_of_node(worker, &node->gpus);
    MU_TRY(st, mu_plan_where(h->model, h->adapters, node, text, h->opt->device, &h->serving, &h->split, why, err),
           done);
    mu_split_format(&h->split, h->split_text, sizeof h->split_text);
    h->serving.n_thread = h->opt->threads ? h->opt->threads : mu_plan_threads(topo, &h->split);
    say_where(s, node, why);
    h->serving.step_tokens = mu_plan_step_tokens(&h->split);
    if (h->serving.step_tokens < h->serving.n_slot) h->serving.step_tokens = h->serving.n_slot;
    if (h->serving.rough && !mu_split_has_gpu(&h->split)) {
        mu_warn("serve", "no rank is on a GPU, so --gpu-prompts rough makes no difference");
        h->serving.rough = false;
    }
    st = plan_memory(s, node, err);
done:
    mu_free(topo);
    mu_free(node);
    return st;
}

/* The worker has a working directory of its own. Links stay as they are: messages call a folder as its user does. */
static enum mu_status path_make_absolute(struct mu_adapter_spec *spec, struct mu_err *err)
{
    char *cwd = *spec->path == '/' ? NULL : getcwd(NULL, 0), path[sizeof spec->path];
    enum mu_status st = MU_OK;
    if (*spec->path != '/' && !cwd)
        st = mu_fail(err, MU_EIO, "adapter '%.300s': the working directory cannot be read: %s", spec->path,
                     strerror(errno));
    else if (cwd && snprintf(path, sizeof path, "%s/%s", cwd, spec->path) >= (int)sizeof path)
        st = mu_fail(err, MU_EINVAL, "the path of adapter '%s' is too long: '%.150s/%.150s…'", spec->name, cwd,
                     spec->path);
    else if (cwd)
        memcpy(spec->path, path, strlen(path) + 1);
    free(cwd);
    return st;
}

static enum mu_status open_adapters(struct mu_hub *h, struct mu_err *err)
{
    int n = h->opt->n_adapter;
    struct mu_adapter_spec *spec = mu_calloc((size_t)n + 1, sizeof *spec);
    if (!spec) return mu_fail(err, MU_ENOMEM, "no memory for %d adapters", n);
    enum mu_status st = MU_OK;
    for (int i = 0; i < n && st == MU_OK; i++) {
        spec[i] = h->opt->adapter[i];
        st = path_make_absolute(&spec[i], err);
    }
    if (st == MU_OK) st = mu_adapters_open(h->model, spec, n, &h->adapters, err);
    if (st == MU_OK) h->adapters->by_default = h->opt->own_adapter ? 1 : 0;
    mu_free(spec);
    return st;
}

/* The model that guesses, which must mean the same by an id. One that is not much smaller guesses in vain. */
static enum mu_status open_draft(struct mu_hub *h, struct mu_err *err)
{
    const char *path = h->opt->draft_path;
    struct mu_tokenizer *tok = NULL;
    enum mu_status st = MU_OK;
    if (!path) return MU_OK;
    MU_TRY(st, mu_model_open(path, &h->draft, err), fail);
    MU_TRY(st, mu_tokenizer_open(h->draft->gguf, &tok, err), fail);
    st = mu_tokenizer_match(h->tok, tok, err);
    if (st == MU_EINVAL)
        mu_err_wrap(err, "--draft '%s' has another vocabulary than '%s', so what it guesses would mean something else",
                    path, h->opt->model_path);
    if (st == MU_OK && h->serving.n_slot < 2)
        st = mu_fail(err, MU_EINVAL,
                     "--draft needs --parallel 2 or more: guesses take places of a step that requests leave free");
    if (st == MU_OK && 2 * h->draft->n_param > h->model->n_param)
        mu_warn("serve",
                "the draft model has %.2f billion weights and the model %.2f: one that is not much smaller makes "
                "nothing faster",
                (double)h->draft->n_param / 1e9, (double)h->model->n_param / 1e9);
fail:
    mu_tokenizer_close(tok);
    return st;
}

static enum mu_status open_model(struct serve *s, struct mu_err *err)
{
    struct mu_hub *h = &s->hub;
    enum mu_status st;
    MU_TRY(st, mu_plan_where_text(split_wanted(s), h->opt->device, err), done);
    MU_TRY(st, mu_model_open(h->opt->model_path, &h->model, err), done);
    MU_TRY(st, mu_model_quantize(h->model, h->opt->quantize, err), done);
    MU_TRY(st, open_adapters(h, err), done);
    MU_TRY(st, mu_tokenizer_open(h->model->gguf, &h->tok, err), done);
    MU_TRY(st, mu_chat_open(h, err), done);
    for (int id = 0; id < h->model->cfg.n_vocab && h->n_end_ids < sizeof h->end_ids / sizeof *h->end_ids; id++)
        if (mu_tokenizer_is_end(h->tok, id)) h->end_ids[h->n_end_ids++] = id;
    int trained = h->model->cfg.n_ctx_train, ctx = h->opt->context;
    if (ctx > trained)
        return mu_fail(err, MU_EINVAL, "--ctx %d is more than the %d tokens that '%s' was made for", ctx, trained,
                       h->opt->model_path);
    if (!ctx) ctx = trained < DEFAULT_CONTEXT ? trained : DEFAULT_CONTEXT;
    h->serving = (struct mu_serving){.n_ctx = ctx,
                                     .n_slot = h->opt->parallel ? h->opt->parallel : DEFAULT_PARALLEL,
                                     .window = mu_plan_window(h->model),
                                     .kv = h->opt->kv,
                                     .rough = h->opt->rough};
    h->serving.n_adapter = h->adapters->n;
    h->serving.lora_rank = h->adapters->max_rank;
    st = open_draft(h, err);
done:
    return st;
}

/* The worker hears of paths in a message, whose texts are UTF-8. Relative ones are told with the working directory. */
static enum mu_status path_check(const char *what, const char *path, struct mu_err *err)
{
    char *cwd = *path == '/' ? NULL : getcwd(NULL, 0), shown[256];
    const char *bad = !mu_utf8_valid(path, strlen(path)) ? path : NULL;
    enum mu_status st = MU_OK;
    if (!bad && cwd && !mu_utf8_valid(cwd, strlen(cwd))) bad = cwd;
    if (bad)
        st = mu_fail(err, MU_EINVAL, "%s '%s' is not valid UTF-8: rename it, or name a link to it", what,
                     mu_text_show(bad, strlen(bad), shown, sizeof shown));
    free(cwd);
    return st;
}

static enum mu_status paths_check(const struct serve *s, struct mu_err *err)
{
    const struct mu_hub *h = &s->hub;
    enum mu_status st;
    MU_TRY(st, path_check("the model's path", h->opt->model_path, err), fail);
    if (h->opt->draft_path) MU_TRY(st, path_check("the draft model's path", h->opt->draft_path, err), fail);
    for (int i = 0; i < h->adapters->n; i++)
        MU_TRY(st, path_check("an adapter's path", h->adapters->at[i]->spec.path, err), fail);
    st = path_check("the run folder's path (XDG_RUNTIME_DIR, TMPDIR)", s->run_dir, err);
fail:
    return st;
}

/* ---- doors ---- */

static enum mu_status open_doors(struct serve *s, struct mu_err *err)
{
    struct mu_hub *h = &s->hub;
    enum mu_status st;
    struct mu_rpc_method methods[MAX_METHODS];
    const char *public_address[] = {h->opt->listen, NULL}, *internal_address[] = {h->engine_address, NULL};
    struct mu_rpc_server_options front = {.addresses = public_address,
                                          .methods = methods,
                                          .n_method = mu_front_methods(h, methods, MAX_METHODS),
                                          .descriptor_set = mu_descriptor_set,
                                          .descriptor_set_bytes = mu_descriptor_set_bytes,
                                          .silent_ms = mu_hub_unread_timeout_ms(h)};
    MU_TRY(st, mu_rpc_server_start(&front, &s->front, err), fail);
    h->front = s->front;
    mu_rpc_server_set_health(s->front, "muster.v1.Muster", false);
    struct mu_rpc_method engine[MAX_METHODS];
    struct mu_rpc_server_options internal = {
        .addresses = internal_address, .methods = engine, .n_method = mu_engine_methods(h, engine, MAX_METHODS)};
    MU_TRY(st, mu_rpc_server_start(&internal, &s->internal, err), fail);
fail:
    return st;
}

/* ---- the worker ---- */

/* node: taken over; for MU_EV_WORKER_UP, may be NULL. */
static void post_worker(struct serve *s, enum mu_event_kind kind, Muster__V1__Node *node, const char *text)
{
    struct mu_event ev = {.kind = kind, .msg = (ProtobufCMessage *)node};
    snprintf(ev.text, sizeof ev.text, "%s", text);
    if (!mu_hub_post(&s->hub, &ev)) return;
    mu_error("serve", "the hub does not take events any more: %s", text);
    mu_rpc_message_free(ev.msg);
}

/* A signal that ends the server waits in signal_fd; run() will read it. */
static bool stop_wanted(void)
{
    sigset_t pending;
    return !sigpending(&pending) &&
           (sigismember(&pending, SIGINT) || sigismember(&pending, SIGTERM) || sigismember(&pending, SIGHUP));
}

static enum mu_status inventory_ask(struct serve *s, const Muster__Internal__V1__InventoryRequest *q, int timeout_ms,
                                    Muster__V1__Node **node_out, struct mu_err *err)
{
    ProtobufCMessage *msg = NULL;
    enum mu_status st =
        mu_rpc_unary(s->hub.worker, "/muster.internal.v1.Worker/Inventory", &q->base,
                     &muster__internal__v1__inventory_reply__descriptor, mu_now_ns() + timeout_ms * MU_MS, &msg, err);
    if (st != MU_OK) return st;
    const Muster__Internal__V1__InventoryReply *r = (const Muster__Internal__V1__InventoryReply *)msg;
    Muster__V1__Node *node = r->node ? (Muster__V1__Node *)mu_msg_copy(&r->node->base) : NULL;
    mu_rpc_message_free(msg);
    if (!node) return mu_fail(err, MU_EPROTO, "the worker's inventory is empty, or there is no memory for it");
    mu_rpc_message_free((ProtobufCMessage *)*node_out);
    *node_out = node;
    return MU_OK;
}

/* Asks until it answers, has ended, or we shall end. */
static enum mu_status greet_worker(struct serve *s, Muster__V1__Node **node_out, struct mu_err *err)
{
    Muster__Internal__V1__InventoryRequest q = MUSTER__INTERNAL__V1__INVENTORY_REQUEST__INIT;
    int64_t deadline = mu_now_ns() + WORKER_START_MS * MU_MS;
    char text[160];
    for (;;) {
        enum mu_status st = inventory_ask(s, &q, WORKER_ASK_MS, node_out, err);
        if (!st) return MU_OK;
        if (stop_wanted()) return mu_fail(err, MU_ECANCELLED, "stopped by a signal before the worker answered");
        if (mu_local_worker_ended(s->worker_pid, text, sizeof text)) {
            s->worker_pid = 0;
            return mu_fail(err, MU_EPEER, "%s before it answered; the log above says why", text);
        }
        if (mu_now_ns() < deadline) continue;
        if (st == MU_EPEER && s->hub.opt->worker) mu_rpc_nobody("worker", "muster worker", s->worker_address, err);
        return st;
    }
}

/* Replaces its inventory by one with GPUs, where the gang might use some. The planner needs figures only where there is
 * a choice. */
static enum mu_status gpus_ask(struct serve *s, Muster__V1__Node **node, struct mu_err *err)
{
    const char *text = split_wanted(s);
    Muster__Internal__V1__InventoryRequest q = MUSTER__INTERNAL__V1__INVENTORY_REQUEST__INIT;
    if (!mu_plan_where_looks(text, s->hub.opt->device)) return MU_OK;
    q.gpus = true;
    enum mu_status st = inventory_ask(s, &q, GPUS_ASK_MS, node, err);
    if (st || !(*node)->n_gpu || strcmp(text, "auto") != 0) return st;
    q.measure = true;
    return inventory_ask(s, &q, GPUS_ASK_MS, node, err);
}

static enum mu_status start_worker(struct serve *s, Muster__V1__Node **node_out, struct mu_err *err)
{
    enum mu_status st;
    atomic_store(&s->hub.worker_hung, false);
    if (!s->hub.opt->worker) { MU_TRY(st, mu_local_worker_start(s->worker_address, &s->worker_pid, err), fail); }
    if (!s->hub.worker) MU_TRY(st, mu_rpc_channel_open(s->worker_address, &s->hub.worker, err), fail);
    MU_TRY(st, greet_worker(s, node_out, err), fail);
fail:
    return st;
}

static void watch_worker(struct serve *s)
{
    char text[160];
    if (s->worker_pid > 0 && atomic_exchange(&s->hub.worker_hung, false)) {
        mu_warn("serve", "the worker (pid %d) is silent: it is killed and replaced", (int)s->worker_pid);
        mu_local_worker_kill(s->worker_pid);
    }
    if (s->worker_pid > 0 && mu_local_worker_ended(s->worker_pid, text, sizeof text)) {
        s->worker_pid = 0;
        mu_warn("serve", "%s; starting it again", text);
        post_worker(s, MU_EV_WORKER_DOWN, NULL, text);
        s->worker_restart_ns = mu_now_ns() + WORKER_RESTART_MS * MU_MS;
    }
    if (s->worker_restart_ns && mu_now_ns() >= s->worker_restart_ns) {
        struct mu_err err = MU_ERR_INIT;
        Muster__V1__Node *node = NULL;
        s->worker_restart_ns = 0;
        if (!start_worker(s, &node, &err)) {
            post_worker(s, MU_EV_WORKER_UP, node, "");
        } else {
            mu_log_err(MU_LOG_ERROR, "serve", &err, "cannot start the worker");
            mu_local_worker_stop(s->worker_pid, 0);
            s->worker_pid = 0;
            s->worker_restart_ns = mu_now_ns() + MU_SEC;
        }
    }
}

/* ---- start, run, stop ---- */

static enum mu_status start_thread(pthread_t *thread_out, void *(*fn)(void *), struct mu_hub *h, const char *name,
                                   struct mu_err *err)
{
    int rc = pthread_create(thread_out, NULL, fn, h);
    return rc ? mu_fail(err, MU_EAGAIN,
                        "cannot start the %s thread: %s; memory or processes are limited (ulimit -v, -u)", name,
                        strerror(rc))
              : MU_OK;
}

static enum mu_status start(struct serve *s, struct mu_err *err)
{
    struct mu_hub *h = &s->hub;
    Muster__V1__Node *node = NULL;
    enum mu_status st;
    MU_TRY(st, open_model(s, err), fail);
    mu_run_dir_sweep();
    MU_TRY(st, mu_run_dir_create(&s->run_dir, err), fail);
    MU_TRY(st, paths_check(s, err), fail);
    snprintf(h->engine_address, sizeof h->engine_address, "unix:%s/engine", s->run_dir);
    if (h->opt->worker)
        snprintf(s->worker_address, sizeof s->worker_address, "%s", h->opt->worker);
    else
        snprintf(s->worker_address, sizeof s->worker_address, "unix:%s/worker", s->run_dir);
    if (getrandom(h->gang.secret, sizeof h->gang.secret, 0) != (ssize_t)sizeof h->gang.secret) {
        st = mu_fail(err, MU_EIO, "no random bytes for the gang's secret: %s", strerror(errno));
        goto fail;
    }
    h->gang.epoch = mu_epoch_first(time(NULL));
    MU_TRY(st, mu_queue_create(MU_HUB_EVENTS, &h->events, err), fail);
    MU_TRY(st, mu_queue_create(mu_hub_places(MU_HUB_TEXTS, MU_PRIORITY_INTERACTIVE), &h->texts, err), fail);
    h->outcome_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (h->outcome_fd < 0) {
        st = mu_fail(err, MU_EIO, "cannot make an eventfd: %s", strerror(errno));
        goto fail;
    }
    mu_watchdog_phase("waiting for the worker", WORKER_START_MS + 3000);
    MU_TRY(st, start_worker(s, &node, err), fail);
    mu_watchdog_phase("looking for GPUs", 2 * GPUS_ASK_MS + 3000);
    MU_TRY(st, gpus_ask(s, &node, err), fail);
    mu_watchdog_phase("opening the gRPC servers", DOORS_LIMIT_MS);
    MU_TRY(st, plan_gang(s, node, err), fail);
    MU_TRY(st, open_doors(s, err), fail);
    mu_watchdog_phase(NULL, 0);
    h->started_ns = mu_now_ns();
    MU_TRY(st, start_thread(&s->text_thread, mu_text_main, h, "text", err), fail);
    s->text_started = true;
    MU_TRY(st, start_thread(&s->hub_thread, mu_hub_main, h, "hub", err), fail);
    s->hub_started = true;
    post_worker(s, MU_EV_WORKER_UP, node, "");
    node = NULL;
fail:
    mu_rpc_message_free((ProtobufCMessage *)node);
    return st;
}

static void banner(const struct serve *s)
{
    const struct mu_hub *h = &s->hub;
    char address[128];
    const char *listen = h->opt->listen, *colon = strrchr(listen, ':');
    if (!strncmp(listen, "unix:", 5) || !colon)
        snprintf(address, sizeof address, "%s", listen);
    else
        snprintf(address, sizeof address, "%.*s:%d", (int)(colon - listen), listen, mu_rpc_server_port(s->front, 0));
    printf("muster: serving %s on %s, split %s, pid %d\n", h->model->name, address, h->split_text, (int)getpid());
    fflush(stdout);
}

/* Until a signal or a fatal end. */
static enum mu_status run(struct serve *s, struct mu_err *err)
{
    struct mu_hub *h = &s->hub;
    bool told = false;
    for (;;) {
        struct pollfd p[] = {{.fd = s->signal_fd, .events = POLLIN}, {.fd = h->outcome_fd, .events = POLLIN}};
        if (poll(p, 2, 100) < 0 && errno != EINTR) return mu_fail(err, MU_EIO, "poll: %s", strerror(errno));
        struct signalfd_siginfo si;
        if (p[0].revents && read(s->signal_fd, &si, sizeof si) == (ssize_t)sizeof si && si.ssi_signo != SIGCHLD) {
            mu_info("serve", "signal %u: stopping", si.ssi_signo);
            return MU_OK;
        }
        uint64_t n;
        if (p[1].revents && read(h->outcome_fd, &n, sizeof n) < 0 && errno != EAGAIN)
            return mu_fail(err, MU_EIO, "eventfd: %s", strerror(errno));
        int outcome = atomic_load(&h->outcome);
        if (outcome == 2) return mu_fail(err, MU_EINTERNAL, "%s", h->fatal);
        if (mu_rpc_deaf()) /* what runs could go on, but whoever looks after us would see nothing amiss */
            return mu_fail(err, MU_EIO,
                           "no connection can be accepted any more: %s. Start it again; where descriptors are short, "
                           "raise their limit (ulimit -Hn)",
                           mu_rpc_deaf());
        if (outcome == 1 && !told) {
            told = true;
            if (!h->opt->quiet) banner(s);
        }
        watch_worker(s);
    }
}

static void stop(struct serve *s)
{
    struct mu_hub *h = &s->hub;
    if (s->hub_started) {
        struct mu_event ev = {.kind = MU_EV_STOP};
        for (enum mu_status st; (st = mu_hub_post(h, &ev)) && st != MU_ECANCELLED;) mu_sleep_ms(5);
        pthread_join(s->hub_thread, NULL);
    }
    if (h->texts) mu_queue_close(h->texts);
    mu_local_worker_stop(s->worker_pid, WORKER_STOP_MS);
    if (s->text_started) pthread_join(s->text_thread, NULL);
    if (s->front) mu_rpc_server_stop(s->front, 200);
    if (s->internal) mu_rpc_server_stop(s->internal, GANG_END_MS);
    mu_rpc_channel_close(h->worker);
    if (h->events) {
        mu_queue_close(h->events);
        mu_queue_destroy(h->events, mu_event_free);
    }
    if (h->texts) mu_queue_destroy(h->texts, mu_text_job_free);
    mu_rpc_message_free((ProtobufCMessage *)h->node);
    mu_chat_close(&h->chat);
    mu_tokenizer_close(h->tok);
    mu_adapters_close(h->adapters);
    mu_model_close(h->model);
    mu_model_close(h->draft);
    if (h->outcome_fd > 0) close(h->outcome_fd);
    if (s->signal_fd > 0) close(s->signal_fd);
    if (s->run_dir) mu_run_dir_remove(s->run_dir);
    mu_free(s->run_dir);
}

int mu_serve_main(const struct mu_serve_options *opt)
{
    struct mu_err err = MU_ERR_INIT;
    struct serve *s = mu_calloc(1, sizeof *s);
    if (!s) {
        fputs("muster serve: out of memory\n", stderr);
        return 1;
    }
    s->hub.opt = opt;
    s->hub.outcome_fd = -1;
    /* Before any thread starts, so that all inherit it: signals come through signal_fd alone. */
    sigset_t ends;
    mu_watchdog_ends(&ends);
    s->signals = ends;
    sigaddset(&s->signals, SIGCHLD);
    pthread_sigmask(SIG_BLOCK, &s->signals, NULL);
    signal(SIGPIPE, SIG_IGN);
    s->signal_fd = signalfd(-1, &s->signals, SFD_CLOEXEC | SFD_NONBLOCK);
    enum mu_status st = s->signal_fd < 0 ? mu_fail(&err, MU_EIO, "signalfd: %s", strerror(errno))
                                         : mu_watchdog_start("muster serve", &ends, MU_WATCHDOG_MS, &err);
    bool begun = !st;
    if (begun) {
        mu_rpc_init();
        st = start(s, &err);
        if (!st)
            st = run(s, &err);
        else if (st == MU_ECANCELLED && stop_wanted())
            st = MU_OK; /* a signal during the start is an ordinary end */
    }
    mu_watchdog_ending();
    if (st) fprintf(stderr, "muster serve: %s\n", err.text); /* before what might hang */
    stop(s);
    if (begun) mu_rpc_shutdown();
    mu_free(s);
    return st ? 1 : 0;
}
