/* A gang's life after its start, one look at a time.
 *
 *   LOADING ──every rank ready──► READY
 *      │  load timeout, a rank hangs   │  a rank hangs, the stream's client has gone
 *      ├───────────────────────────────┴──────────────► kill, clean up, `died`
 *      └── mpirun or a rank ended ──► ENDING ──► the same: mpirun gets a moment to end by itself and to say who it was
 *
 * What ended it is decided from four witnesses, the best first: how mpirun itself ended (killed by a signal: nobody
 * else is to blame), an error that a rank left and that is not about others, mpirun's sentence about a signal, and
 * which rank was seen to go first. */
#include "worker/gang.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/io.h"
#include "base/log.h"
#include "model/utf8.h"

enum {
    LOADING_TELL_MS = 500,
    TIMES_TELL_MS = 500,
    LAST_WORDS_MS = 500, /* mpirun ends 50 ms after a rank; a busy machine takes longer */
    KILL_MS = 2000,
    REASON = MU_ERR_TEXT + 64,
};

/* ---- events ---- */

static void event_send(struct mu_rpc_call *call, Muster__Internal__V1__GangEvent *e)
{
    /* Fails only where the call is over: then nobody is there to be told. */
    mu_rpc_call_send(call, &e->base);
}

void mu_worker_gang_tell_launched(struct mu_worker_gang *g)
{
    Muster__Internal__V1__GangEvent e = MUSTER__INTERNAL__V1__GANG_EVENT__INIT;
    Muster__Internal__V1__GangLaunched m = MUSTER__INTERNAL__V1__GANG_LAUNCHED__INIT;
    m.mpirun_pid = g->mpirun.pid;
    e.epoch = g->req->epoch;
    e.event_case = MUSTER__INTERNAL__V1__GANG_EVENT__EVENT_LAUNCHED;
    e.launched = &m;
    event_send(g->call, &e);
}

static void tell_loading(struct mu_worker_gang *g)
{
    Muster__Internal__V1__GangEvent e = MUSTER__INTERNAL__V1__GANG_EVENT__INIT;
    Muster__Internal__V1__GangLoading m = MUSTER__INTERNAL__V1__GANG_LOADING__INIT;
    for (int i = 0; i < g->n_rank; i++) {
        m.bytes_done += atomic_load(&g->records[i].load_done_bytes);
        m.bytes_total += atomic_load(&g->records[i].load_total_bytes);
    }
    e.epoch = g->req->epoch;
    e.event_case = MUSTER__INTERNAL__V1__GANG_EVENT__EVENT_LOADING;
    e.loading = &m;
    event_send(g->call, &e);
}

static double seconds(const _Atomic uint64_t *ns)
{
    return (double)atomic_load_explicit(ns, memory_order_relaxed) / 1e9;
}

static void times_of(const struct mu_worker_gang *g, int rank, int64_t now, Muster__V1__RankTimes *t)
{
    const struct mu_rank_record *r = &g->records[rank];
    muster__v1__rank_times__init(t);
    t->ready_s = (double)(now - g->ready_ns) / 1e9;
    t->compute_s = seconds(&r->compute_ns);
    t->attention_s = seconds(&r->attention_ns);
    t->sampling_s = seconds(&r->sampling_ns);
    t->exchange_s = seconds(&r->exchange_ns);
    t->recv_s = seconds(&r->recv_ns);
    t->send_s = seconds(&r->send_ns);
}

/* That the gang is ready, or later, with times, what its ranks have done. */
static void tell_ranks(struct mu_worker_gang *g, bool with_times)
{
    Muster__Internal__V1__GangEvent e = MUSTER__INTERNAL__V1__GANG_EVENT__INIT;
    Muster__Internal__V1__GangReady m = MUSTER__INTERNAL__V1__GANG_READY__INIT;
    Muster__V1__Rank rows[MU_MAX_RANKS], *ptr[MU_MAX_RANKS];
    Muster__V1__RankTimes times[MU_MAX_RANKS];
    int64_t now = mu_now_ns();
    for (int i = 0; i < g->n_rank; i++) {
        const struct mu_worker_gang_rank_row *row = &g->row[i];
        muster__v1__rank__init(&rows[i]);
        rows[i].rank = (uint32_t)i;
        rows[i].stage = (uint32_t)row->stage;
        rows[i].node = (char *)g->place->host;
        rows[i].pid = atomic_load(&g->records[i].pid);
        rows[i].threads = (uint32_t)row->threads;
        if (row->gpu != MU_ON_CPU) {
            rows[i]._gpu_case = MUSTER__V1__RANK___GPU_GPU;
            rows[i].gpu = (uint32_t)row->gpu;
        }
        rows[i].gpu_name = (char *)row->gpu_name;
        rows[i].layer_begin = (uint32_t)row->layer_begin;
        rows[i].layer_end = (uint32_t)row->layer_end;
        rows[i].heads = (uint32_t)row->heads;
        rows[i].ffn_rows = (uint32_t)row->ff_rows;
        rows[i].weight_bytes = row->weight_bytes;
        rows[i].kv_bytes = row->kv_bytes;
        rows[i].leader = row->leader;
        rows[i].cpus = (char *)row->cpus;
        if (row->numa >= 0) {
            rows[i]._numa_case = MUSTER__V1__RANK___NUMA_NUMA;
            rows[i].numa = (uint32_t)row->numa;
        }
        int permille = atomic_load_explicit(&g->records[i].numa_permille, memory_order_relaxed) - 1;
        if (permille >= 0) {
            rows[i]._numa_share_case = MUSTER__V1__RANK___NUMA_SHARE_NUMA_SHARE;
            rows[i].numa_share = permille / 1000.0;
        }
        if (with_times) {
            times_of(g, i, now, &times[i]);
            rows[i].times = &times[i];
        }
        ptr[i] = &rows[i];
    }
    m.n_rank = (size_t)g->n_rank;
    m.rank = ptr;
    e.epoch = g->req->epoch;
    e.event_case =
        with_times ? MUSTER__INTERNAL__V1__GANG_EVENT__EVENT_TIMES : MUSTER__INTERNAL__V1__GANG_EVENT__EVENT_READY;
    if (with_times)
        e.times = &m;
    else
        e.ready = &m;
    event_send(g->call, &e);
}

void mu_worker_gang_died(struct mu_rpc_call *call, uint64_t epoch, int culprit, bool permanent, const char *reason)
{
    Muster__Internal__V1__GangEvent e = MUSTER__INTERNAL__V1__GANG_EVENT__INIT;
    Muster__Internal__V1__GangDied m = MUSTER__INTERNAL__V1__GANG_DIED__INIT;
    char text[REASON];
    snprintf(text, sizeof text, "%s", reason);
    mu_text_repair(text); /* mpirun's words and files' names may be anything, and a text was cut */
    m.culprit = culprit;
    m.permanent = permanent;
    m.reason = text;
    e.epoch = epoch;
    e.event_case = MUSTER__INTERNAL__V1__GANG_EVENT__EVENT_DIED;
    e.died = &m;
    event_send(call, &e);
    mu_rpc_call_finish(call, MU_RPC_OK, "%s", "");
}

/* ---- the end ---- */

static void leftovers_remove(struct mu_worker_gang *g)
{
    mu_worker_gang_records_close(g->records, g->n_rank);
    g->records = NULL;
    mu_run_dir_remove(g->folder);
    mu_run_dir_remove(g->shm_folder);
}

static void processes_end(struct mu_worker_gang *g)
{
    int status;
    if (!mu_proc_kill_tree(&g->mpirun, g->rank, g->n_rank, mu_now_ns() + KILL_MS * MU_MS, &status))
        mu_error("worker", "gang '%s' epoch %llu: a process did not end within %d ms of SIGKILL", g->req->gang,
                 (unsigned long long)g->req->epoch, (int)KILL_MS);
}

void mu_worker_gang_end(struct mu_worker_gang *g, int culprit, bool permanent, const char *reason)
{
    processes_end(g);
    mu_worker_gang_output_read(g);
    leftovers_remove(g);
    mu_info("worker", "gang '%s' epoch %llu has ended: %s", g->req->gang, (unsigned long long)g->req->epoch, reason);
    mu_worker_gang_died(g->call, g->req->epoch, culprit, permanent, reason);
}

void mu_worker_gang_destroy(struct mu_worker_gang *g)
{
    if (!g) return;
    if (g->mpirun.fd >= 0) processes_end(g);
    leftovers_remove(g);
    if (g->output_fd >= 0) close(g->output_fd);
    for (int i = 0; i < g->n_rank; i++) mu_proc_close(&g->rank[i]);
    mu_free(g->folder);
    mu_free(g->shm_folder);
    muster__internal__v1__start_gang_request__free_unpacked(g->req, NULL);
    mu_rpc_call_release(g->call);
    mu_free(g);
}

/* The error of a rank that tells what really happened: the first that is not about another rank; of those that are, one
 * of a rank that was not just told to end. */
static bool error_find(const struct mu_worker_gang *g, bool secondary, struct mu_err *err_out)
{
    struct mu_err err = MU_ERR_INIT;
    bool found = false;
    for (int i = 0; i < g->n_rank; i++)
        if (mu_worker_gang_error_read(g->folder, i, &err) && mu_worker_gang_error_secondary(err.code) == secondary &&
            (!found || err_out->code == MU_ECANCELLED)) {
            *err_out = err;
            found = true;
        }
    return found;
}

static void signal_reason(const struct mu_worker_gang *g, int rank, int sig, char *buf, size_t buf_bytes)
{
    snprintf(buf, buf_bytes, "rank %d (pid %d) was killed by signal %d (%s)", rank,
             (int)atomic_load(&g->records[rank].pid), sig, strsignal(sig));
}

/* Of the ranks that went first, the one that left no word: it was killed. -1: none. */
static int silent_first(const struct mu_worker_gang *g)
{
    struct mu_err err = MU_ERR_INIT;
    for (int i = 0; i < g->n_rank; i++)
        if (g->first_gone >> i & 1 && !mu_worker_gang_error_read(g->folder, i, &err)) return i;
    return -1;
}

/* mpirun has ended, or a rank has and mpirun does not: who was it? */
static void verdict_and_end(struct mu_worker_gang *g)
{
    char reason[REASON];
    struct mu_err err = MU_ERR_INIT;
    int culprit = -1, status = g->mpirun_status;
    bool permanent = false;
    mu_worker_gang_output_read(g);
    if (status != -1 && WIFSIGNALED(status)) {
        snprintf(reason, sizeof reason, "mpirun (pid %d) was killed by signal %d (%s)", (int)g->mpirun.pid,
                 WTERMSIG(status), strsignal(WTERMSIG(status)));
    } else if (error_find(g, false, &err)) {
        culprit = err.rank;
        /* What was ready once can start: whatever it ran into, its requests go on in another gang. One that fails so
         * whenever a request runs ends that request: the coordinator suspects it. */
        permanent = !g->ready_ns && mu_worker_gang_error_permanent(err.code);
        snprintf(reason, sizeof reason, "rank %d: %s", culprit, err.text);
    } else if (g->told_rank >= 0) {
        culprit = g->told_rank;
        signal_reason(g, culprit, g->told_signal, reason, sizeof reason);
    } else if ((culprit = silent_first(g)) >= 0) {
        /* Within MPI_Init it is Open MPI that ends a rank, and says why: no room for what ranks share, say. */
        const char *said = g->ready_ns ? "" : g->banner;
        snprintf(reason, sizeof reason, "rank %d (pid %d) ended%s%.300s", culprit,
                 (int)atomic_load(&g->records[culprit].pid), *said ? ": " : "", said);
    } else if (error_find(g, true, &err)) {
        culprit = err.rank;
        snprintf(reason, sizeof reason, "rank %d: %s", culprit, err.text);
    } else {
        snprintf(reason, sizeof reason, "mpirun ended with status %d: %.300s",
                 status != -1 && WIFEXITED(status) ? WEXITSTATUS(status) : -1,
                 g->banner_len ? g->banner : "it said nothing");
    }
    g->forget = permanent;
    mu_worker_gang_end(g, culprit, permanent, reason);
}

/* ---- one look ---- */

int mu_worker_gang_poll_set(const struct mu_worker_gang *g, struct pollfd *p)
{
    int n = 0;
    if (g->mpirun.fd >= 0) p[n++] = (struct pollfd){.fd = g->mpirun.fd, .events = POLLIN};
    if (g->output_fd >= 0) p[n++] = (struct pollfd){.fd = g->output_fd, .events = POLLIN};
    for (int i = 0; i < g->n_rank && !g->first_gone; i++)
        if (g->rank[i].fd >= 0) p[n++] = (struct pollfd){.fd = g->rank[i].fd, .events = POLLIN};
    return n;
}

/* Ranks tell their pid in their record; what is not mpirun's child is not believed. */
static void ranks_adopt(struct mu_worker_gang *g)
{
    for (int i = 0; i < g->n_rank; i++) {
        pid_t pid = atomic_load(&g->records[i].pid);
        if (pid > 0 && g->rank[i].fd < 0 && !g->first_gone) mu_proc_open(pid, g->mpirun.pid, &g->rank[i]);
    }
}

static void ends_notice(struct mu_worker_gang *g, int64_t now)
{
    uint64_t gone = 0;
    for (int i = 0; i < g->n_rank; i++)
        if (g->rank[i].fd >= 0 && mu_proc_gone(&g->rank[i])) gone |= 1ull << i;
    if (!g->first_gone) g->first_gone = gone;
    if (g->mpirun.fd >= 0 && mu_proc_gone(&g->mpirun)) {
        if (waitpid(g->mpirun.pid, &g->mpirun_status, WNOHANG) != g->mpirun.pid) g->mpirun_status = -1;
        mu_proc_close(&g->mpirun);
    }
    if ((g->first_gone || g->mpirun.fd < 0) && g->state != MU_GANG_ENDING) {
        g->state = MU_GANG_ENDING;
        g->ending_ns = now;
    }
}

static bool all_ready(const struct mu_worker_gang *g)
{
    for (int i = 0; i < g->n_rank; i++)
        if (!atomic_load(&g->records[i].ready) || g->rank[i].fd < 0) return false;
    return true;
}

static void load_timeout_reason(const struct mu_worker_gang *g, char *buf, size_t buf_bytes, int *culprit_out)
{
    char doing[128] = "";
    *culprit_out = -1;
    for (int i = 0; i < g->n_rank && *culprit_out < 0; i++) {
        if (atomic_load(&g->records[i].ready)) continue;
        mu_watch_describe(&g->records[i], doing, sizeof doing);
        *culprit_out = i;
    }
    snprintf(buf, buf_bytes, "the gang was not ready within %u ms; rank %d is still %s", g->req->load_timeout_ms,
             *culprit_out, doing);
}

static bool look_loading(struct mu_worker_gang *g, int64_t now)
{
    char reason[256];
    int culprit;
    if (all_ready(g)) {
        g->state = MU_GANG_READY;
        g->ready_ns = g->times_told_ns = now;
        tell_loading(g);
        tell_ranks(g, false);
        mu_info("worker", "gang '%s' epoch %llu is ready: %d ranks of %u threads, split %s", g->req->gang,
                (unsigned long long)g->req->epoch, g->n_rank, g->req->threads, g->req->split);
        return false;
    }
    if (now >= g->load_deadline_ns) {
        load_timeout_reason(g, reason, sizeof reason, &culprit);
        mu_worker_gang_end(g, culprit, false, reason);
        return true;
    }
    if (now >= g->loading_told_ns) {
        g->loading_told_ns = now + LOADING_TELL_MS * MU_MS;
        tell_loading(g);
    }
    return false;
}

/* Where there were steps since the last time. */
static void look_times(struct mu_worker_gang *g, int64_t now)
{
    uint64_t step = atomic_load_explicit(&g->records[0].step, memory_order_relaxed);
    if (now < g->times_told_ns + TIMES_TELL_MS * MU_MS || step == g->times_told_step) return;
    g->times_told_ns = now;
    g->times_told_step = step;
    tell_ranks(g, true);
}

bool mu_worker_gang_tick(struct mu_worker_gang *g)
{
    int64_t now = mu_now_ns(), elapsed_ms = (now - g->looked_ns) / MU_MS;
    char reason[256];
    mu_worker_gang_output_read(g);
    ranks_adopt(g);
    ends_notice(g, now);
    if (g->state == MU_GANG_ENDING) {
        if (g->mpirun.fd >= 0 && now < g->ending_ns + LAST_WORDS_MS * MU_MS) return false;
        verdict_and_end(g);
        return true;
    }
    if (mu_rpc_call_cancelled(g->call)) {
        g->forget = true;
        mu_worker_gang_end(g, -1, false, "the coordinator has gone");
        return true;
    }
    if (elapsed_ms >= 20) { /* woken by output a moment ago: nothing new to see */
        g->looked_ns = now;
        int culprit =
            mu_watch_look(&g->watch, g->records, elapsed_ms, g->state == MU_GANG_READY, reason, sizeof reason);
        if (culprit >= 0) {
            mu_worker_gang_end(g, culprit, false, reason);
            return true;
        }
    }
    if (g->state == MU_GANG_READY) look_times(g, now);
    return g->state == MU_GANG_LOADING && look_loading(g, now);
}
