#include "gang_fixture.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/io.h"
#include "model/model.h"
#include "worker/solo.h"

extern char **environ;

/* ---- the Engine server ---- */

static void engine_message(struct mu_rpc_call *call, const ProtobufCMessage *msg, void *ctx)
{
    struct fixture *f = ctx;
    const Muster__Internal__V1__EngineUp *up = (const Muster__Internal__V1__EngineUp *)msg;
    pthread_mutex_lock(&f->lock);
    if (up->message_case == MUSTER__INTERNAL__V1__ENGINE_UP__MESSAGE_ATTACH) {
        bool good = up->epoch == f->epoch && up->attach->secret.len == 32 &&
                    memcmp(up->attach->secret.data, f->secret, 32) == 0 && strcmp(up->attach->gang, "demo") == 0;
        if (f->engine) mu_rpc_call_release(f->engine);
        f->engine = mu_rpc_call_retain(call);
        f->bad_attach += !good;
    } else if (up->message_case == MUSTER__INTERNAL__V1__ENGINE_UP__MESSAGE_TOKENS && up->epoch == f->epoch) {
        for (size_t i = 0; i < up->tokens->n_request; i++) {
            const Muster__Internal__V1__RequestTokens *t = up->tokens->request[i];
            if (t->request < 1 || t->request > FX_REQUESTS) continue;
            struct fx_request *r = &f->req[t->request - 1];
            if (t->n_id && t->first_position != r->n_got) {
                snprintf(r->error, sizeof r->error, "ids at %u, expected %u", t->first_position, r->n_got);
                r->error_code = MU_EINTERNAL;
            }
            for (size_t k = 0; k < t->n_id && r->n_got < FX_TOKENS; k++) r->got[r->n_got++] = t->id[k];
            f->n_token += t->n_id;
            if (t->finished) r->finished = true;
            if (t->error_code) {
                r->error_code = t->error_code;
                snprintf(r->error, sizeof r->error, "%s", t->error);
            }
        }
    }
    pthread_cond_broadcast(&f->changed);
    pthread_mutex_unlock(&f->lock);
}

static void engine_done(struct mu_rpc_call *call, bool cancelled, void *ctx)
{
    struct fixture *f = ctx;
    (void)cancelled;
    pthread_mutex_lock(&f->lock);
    if (f->engine == call) {
        mu_rpc_call_release(call);
        f->engine = NULL;
    }
    pthread_cond_broadcast(&f->changed);
    pthread_mutex_unlock(&f->lock);
}

static void engine_half_close(struct mu_rpc_call *call, void *ctx)
{
    (void)ctx;
    mu_rpc_call_finish(call, MU_RPC_OK, "%s", "");
}

/* ---- the gang's events ---- */

static void event_message(struct mu_rpc_stream *s, const ProtobufCMessage *msg, void *ctx)
{
    struct fixture *f = ctx;
    (void)s;
    const Muster__Internal__V1__GangEvent *e = (const Muster__Internal__V1__GangEvent *)msg;
    pthread_mutex_lock(&f->lock);
    if (e->event_case == MUSTER__INTERNAL__V1__GANG_EVENT__EVENT_LAUNCHED) {
        f->launched = true;
        f->mpirun_pid = e->launched->mpirun_pid;
    } else if (e->event_case == MUSTER__INTERNAL__V1__GANG_EVENT__EVENT_LOADING) {
        f->loaded_bytes = e->loading->bytes_done;
    } else if (e->event_case == MUSTER__INTERNAL__V1__GANG_EVENT__EVENT_READY) {
        f->ready = true;
        f->n_rank = (int)e->ready->n_rank;
        for (int i = 0; i < f->n_rank; i++) {
            f->rank_pid[i] = e->ready->rank[i]->pid;
            if (e->ready->rank[i]->leader) f->leader = i;
        }
    } else if (e->event_case == MUSTER__INTERNAL__V1__GANG_EVENT__EVENT_DIED) {
        f->died = true;
        f->culprit = e->died->culprit;
        f->permanent = e->died->permanent;
        snprintf(f->reason, sizeof f->reason, "%s", e->died->reason);
    }
    pthread_cond_broadcast(&f->changed);
    pthread_mutex_unlock(&f->lock);
}

static void event_done(struct mu_rpc_stream *s, enum mu_rpc_code code, const char *text, void *ctx)
{
    struct fixture *f = ctx;
    (void)s;
    pthread_mutex_lock(&f->lock);
    f->done = true;
    f->done_code = code;
    snprintf(f->done_text, sizeof f->done_text, "%s", text ? text : "");
    pthread_cond_broadcast(&f->changed);
    pthread_mutex_unlock(&f->lock);
}

/* ---- waiting ---- */

static bool always(struct fixture *f, uint64_t arg)
{
    (void)arg;
    return f->engine != NULL;
}
static bool is_ready(struct fixture *f, uint64_t arg)
{
    (void)arg;
    return f->died || f->done || (f->ready && f->engine);
}
static bool is_launched(struct fixture *f, uint64_t arg)
{
    (void)arg;
    return f->launched || f->done;
}
static bool is_dead(struct fixture *f, uint64_t arg)
{
    (void)arg;
    return f->done;
}
static bool has_tokens(struct fixture *f, uint64_t arg)
{
    return f->n_token >= arg || f->done;
}
static bool is_finished(struct fixture *f, uint64_t arg)
{
    return f->req[arg].finished || f->done;
}

static void wait_for(struct fixture *f, bool (*what)(struct fixture *, uint64_t), uint64_t arg, const char *name)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    t.tv_sec += FX_WAIT_S;
    pthread_mutex_lock(&f->lock);
    int e = 0;
    while (!what(f, arg) && e == 0) e = pthread_cond_timedwait(&f->changed, &f->lock, &t);
    pthread_mutex_unlock(&f->lock);
    if (e) fail_msg("%s did not come within %d s (gang: %s)", name, FX_WAIT_S, f->reason);
}

/* ---- life ---- */

static void worker_spawn(struct fixture *f, const char *path_env)
{
    char pid[16], *argv[] = {(char *)WORKER_MAIN, "worker", f->worker_address, pid, NULL};
    char path[4096], *env[512];
    size_t n = 0;
    snprintf(pid, sizeof pid, "%d", (int)getpid());
    for (size_t i = 0; environ[i] && n < 500; i++)
        if (!path_env || strncmp(environ[i], "PATH=", 5) != 0) env[n++] = environ[i];
    snprintf(path, sizeof path, "PATH=%s", path_env ? path_env : "");
    if (path_env) env[n++] = path;
    env[n] = NULL;
    assert_int_equal(posix_spawn(&f->worker, WORKER_MAIN, NULL, NULL, argv, env), 0);
}

void fx_open(struct fixture *f, const char *path_env)
{
    struct mu_err err = MU_ERR_INIT;
    const char *source = getenv("MUSTER_SOURCE_DIR");
    memset(f, 0, sizeof *f);
    pthread_mutex_init(&f->lock, NULL);
    pthread_cond_init(&f->changed, NULL);
    snprintf(f->model, sizeof f->model, "%s/tests/golden/bard.q8_0.gguf", source ? source : ".");
    if (access(f->model, R_OK) != 0) {
        print_message("skipped: %s is not there\n", f->model);
        exit(77);
    }
    strcpy(f->dir, "/tmp/mu-gang-XXXXXX");
    assert_non_null(mkdtemp(f->dir));
    snprintf(f->worker_address, sizeof f->worker_address, "unix:%s/worker.sock", f->dir);
    snprintf(f->engine_address, sizeof f->engine_address, "unix:%s/engine.sock", f->dir);
    for (int i = 0; i < 32; i++) f->secret[i] = (uint8_t)(17 * i + 3);
    worker_spawn(f, path_env);
    mu_rpc_init();
    const struct mu_rpc_method method = {
        .path = "/muster.internal.v1.Engine/Attach",
        .request = &muster__internal__v1__engine_up__descriptor,
        .client_streams = true,
        .on_message = engine_message,
        .on_half_close = engine_half_close,
        .on_done = engine_done,
        .ctx = f,
    };
    const char *const addresses[] = {f->engine_address, NULL};
    const struct mu_rpc_server_options opt = {.addresses = addresses, .methods = &method, .n_method = 1};
    if (mu_rpc_server_start(&opt, &f->server, &err) != MU_OK) fail_msg("%s", err.text);
    if (mu_rpc_channel_open(f->worker_address, &f->channel, &err) != MU_OK) fail_msg("%s", err.text);
}

int fx_worker_end(struct fixture *f, int sig)
{
    int status = -1;
    kill(f->worker, sig);
    for (int64_t end = mu_now_ns() + 10 * MU_SEC; mu_now_ns() < end; mu_sleep_ms(5))
        if (waitpid(f->worker, &status, WNOHANG) == f->worker) {
            f->worker = 0;
            return status;
        }
    fail_msg("the worker did not end within 10 s");
    return -1;
}

void fx_close(struct fixture *f)
{
    fx_gang_forget(f);
    mu_rpc_channel_close(f->channel);
    mu_rpc_server_stop(f->server, 0);
    if (f->worker) fx_worker_end(f, SIGTERM);
    if (f->engine) mu_rpc_call_release(f->engine);
    mu_rpc_shutdown();
    char path[160];
    snprintf(path, sizeof path, "%s/worker.sock", f->dir);
    unlink(path);
    snprintf(path, sizeof path, "%s/engine.sock", f->dir);
    unlink(path);
    rmdir(f->dir);
}

/* ---- requests ---- */

void fx_requests_reset(struct fixture *f)
{
    pthread_mutex_lock(&f->lock);
    for (int i = 0; i < FX_REQUESTS; i++) {
        struct fx_request *r = &f->req[i];
        r->n_prompt = (uint32_t)(3 + 5 * i);
        for (uint32_t k = 0; k < r->n_prompt; k++)
            r->prompt[k] = (int32_t)((k * 37 + (uint32_t)i * 101 + 11) % 900 + 50);
        r->temperature = i % 2 ? 0.8f : 0.0f;
        r->seed = (uint64_t)i * 7 + 1;
        r->n_got = 0;
        r->finished = false;
        r->error_code = 0;
    }
    pthread_mutex_unlock(&f->lock);
}

void fx_expect(struct fixture *f)
{
    struct mu_err err = MU_ERR_INIT;
    struct mu_model *model;
    struct mu_solo *solo;
    struct mu_solo_options opt = {.n_thread = 1, .serving = {256, 1, 0, 64}};
    fx_requests_reset(f);
    if (mu_model_open(f->model, &model, &err) != MU_OK) fail_msg("%s", err.text);
    assert_int_equal(mu_split_parse("1", &opt.split, &err), MU_OK);
    opt.model = model;
    if (mu_solo_open(&opt, &solo, &err) != MU_OK) fail_msg("%s", err.text);
    for (int i = 0; i < FX_REQUESTS; i++) {
        struct fx_request *r = &f->req[i];
        struct mu_sampling s = {.temperature = r->temperature, .top_p = 1.0f, .seed = r->seed};
        int slot = 0;
        mu_solo_reset(solo, 0);
        if (mu_solo_feed(solo, 0, r->prompt, r->n_prompt, MU_OUT_SAMPLE, &s, NULL, NULL, &r->want[0], &err) != MU_OK)
            fail_msg("%s", err.text);
        for (int k = 1; k < FX_TOKENS; k++)
            if (mu_solo_decode(solo, &slot, &r->want[k - 1], 1, &s, &r->want[k], &err) != MU_OK)
                fail_msg("%s", err.text);
    }
    mu_solo_close(solo);
    mu_model_close(model);
}

static void down_send(struct fixture *f, Muster__Internal__V1__EngineDown *down)
{
    wait_for(f, always, 0, "the leader's attach");
    pthread_mutex_lock(&f->lock);
    down->epoch = f->epoch;
    struct mu_rpc_call *call = f->engine ? mu_rpc_call_retain(f->engine) : NULL;
    pthread_mutex_unlock(&f->lock);
    if (!call) return; /* it went away: whoever waits for the outcome sees that */
    mu_rpc_call_send(call, &down->base);
    mu_rpc_call_release(call);
}

void fx_submit(struct fixture *f, int i)
{
    struct fx_request *r = &f->req[i];
    Muster__Internal__V1__EngineDown down = MUSTER__INTERNAL__V1__ENGINE_DOWN__INIT;
    Muster__Internal__V1__EngineSubmit m = MUSTER__INTERNAL__V1__ENGINE_SUBMIT__INIT;
    Muster__V1__Sampling s = MUSTER__V1__SAMPLING__INIT;
    s.temperature = r->temperature;
    s._seed_case = MUSTER__V1__SAMPLING___SEED_SEED;
    s.seed = r->seed;
    m.request = (uint64_t)i + 1;
    m.n_prompt = r->n_prompt;
    m.prompt = r->prompt;
    m.n_emitted = r->n_got;
    m.emitted = r->got;
    m.max_tokens = FX_TOKENS;
    m.sampling = &s;
    down.message_case = MUSTER__INTERNAL__V1__ENGINE_DOWN__MESSAGE_SUBMIT;
    down.submit = &m;
    down_send(f, &down);
}

void fx_cancel(struct fixture *f, int i)
{
    Muster__Internal__V1__EngineDown down = MUSTER__INTERNAL__V1__ENGINE_DOWN__INIT;
    Muster__Internal__V1__EngineCancel m = MUSTER__INTERNAL__V1__ENGINE_CANCEL__INIT;
    m.request = (uint64_t)i + 1;
    down.message_case = MUSTER__INTERNAL__V1__ENGINE_DOWN__MESSAGE_CANCEL;
    down.cancel = &m;
    down_send(f, &down);
}

void fx_wait_tokens(struct fixture *f, uint64_t n_more)
{
    pthread_mutex_lock(&f->lock);
    uint64_t until = f->n_token + n_more;
    pthread_mutex_unlock(&f->lock);
    wait_for(f, has_tokens, until, "tokens");
}

void fx_wait_finished(struct fixture *f, int i)
{
    wait_for(f, is_finished, (uint64_t)i, "the end of a request");
}

void fx_check(struct fixture *f, int i)
{
    struct fx_request *r = &f->req[i];
    if (r->error_code) fail_msg("request %d: %s", i, r->error);
    if (!r->finished) fail_msg("request %d did not finish: %s", i, f->reason);
    assert_int_equal(r->n_got, FX_TOKENS);
    for (int k = 0; k < FX_TOKENS; k++)
        if (r->got[k] != r->want[k]) fail_msg("request %d: token %d is %d, expected %d", i, k, r->got[k], r->want[k]);
}

/* ---- gangs ---- */

void fx_gang_start(struct fixture *f, uint64_t epoch, const char *split, const char *model)
{
    struct mu_err err = MU_ERR_INIT;
    fx_gang_forget(f);
    pthread_mutex_lock(&f->lock);
    f->epoch = epoch;
    f->leader = -1;
    f->reason[0] = '\0';
    pthread_mutex_unlock(&f->lock);
    Muster__Internal__V1__StartGangRequest q = MUSTER__INTERNAL__V1__START_GANG_REQUEST__INIT;
    q.gang = "demo";
    q.epoch = epoch;
    q.model_path = (char *)(model ? model : f->model);
    q.split = (char *)split;
    q.threads = 1;
    q.context = 256;
    q.parallel = FX_REQUESTS;
    q.step_tokens = f->step_tokens ? f->step_tokens : 64;
    q.kv_pages = f->kv_pages;
    q.engine_address = f->engine_address;
    q.secret = (ProtobufCBinaryData){32, f->secret};
    q.load_timeout_ms = 60000;
    struct mu_rpc_stream_callbacks cb = {event_message, event_done, f};
    if (mu_rpc_stream_open(f->channel, "/muster.internal.v1.Worker/StartGang",
                           &muster__internal__v1__gang_event__descriptor, 0, MU_FOREVER, mu_now_ns() + 30 * MU_SEC, &cb,
                           &f->events, &err) != MU_OK)
        fail_msg("%s", err.text);
    assert_int_equal(mu_rpc_stream_send(f->events, &q.base), MU_OK);
    mu_rpc_stream_half_close(f->events);
}

void fx_wait_ready(struct fixture *f)
{
    wait_for(f, is_ready, 0, "ready");
    if (!f->ready || f->died) fail_msg("the gang died: %s (%s)", f->reason, f->done_text);
    assert_int_equal(f->bad_attach, 0);
}

void fx_wait_launched(struct fixture *f)
{
    wait_for(f, is_launched, 0, "the launch");
}

void fx_wait_died(struct fixture *f)
{
    wait_for(f, is_dead, 0, "died");
}

void fx_gang_forget(struct fixture *f)
{
    if (f->events) {
        mu_rpc_stream_cancel(f->events); /* nothing to one that is over */
        wait_for(f, is_dead, 0, "the end of the stream");
        mu_rpc_stream_release(f->events);
        f->events = NULL;
    }
    pthread_mutex_lock(&f->lock);
    f->launched = f->ready = f->died = f->done = false;
    f->done_text[0] = '\0';
    pthread_mutex_unlock(&f->lock);
}

/* From /proc; 0: it is not there. */
static char process_state(int pid, int *parent_out)
{
    char path[64], buf[512], state = 0;
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    int fd = open(path, O_RDONLY);
    if (fd < 0) return 0;
    ssize_t n = read(fd, buf, sizeof buf - 1);
    close(fd);
    buf[n > 0 ? n : 0] = '\0';
    const char *after = strrchr(buf, ')');
    return after && sscanf(after + 1, " %c %d", &state, parent_out) == 2 ? state : 0;
}

bool fx_alive(int pid)
{
    int parent;
    char state = process_state(pid, &parent);
    return state && state != 'Z' && state != 'X';
}

int fx_children(int pid)
{
    DIR *d = opendir("/proc");
    int n = 0, parent;
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d));) n += process_state(atoi(e->d_name), &parent) && parent == pid;
    closedir(d);
    return n;
}

void fx_nothing_left(struct fixture *f)
{
    int64_t end = mu_now_ns() + 5 * MU_SEC;
    for (int i = -1; i < f->n_rank; i++) {
        int pid = i < 0 ? f->mpirun_pid : f->rank_pid[i];
        while (pid && fx_alive(pid) && mu_now_ns() < end) mu_sleep_ms(5);
        if (pid && fx_alive(pid)) fail_msg("%s %d (pid %d) is still there", i < 0 ? "mpirun" : "rank", i, pid);
    }
    while (f->worker && fx_children(f->worker) && mu_now_ns() < end) mu_sleep_ms(5);
    if (f->worker) assert_int_equal(fx_children(f->worker), 0);
}
