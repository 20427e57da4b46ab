/* muster _rank GANG_FOLDER: one process of a gang, started by mpirun.
 *
 *   record, breath ─► MPI ─► model, plan ─► shard (loads) ─► doorbells ─► barrier ─► ready ─► steps until the end
 *
 * Everything it was told is in the gang's folder; everything it tells is in its record, and, when it ends, in error.N.
 * Nothing is ever written to stdout. Whatever goes wrong ends the process with _exit: mpirun then ends the others,
 * and a new epoch starts; there is nothing to save.
 *
 * Threads: the compute thread (main) owns all of it and is the only one that calls MPI; the breath thread counts up its
 * word of the record, so that the worker can tell a stopped process from a busy one; the leader has gRPC's thread. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/fault.h"
#include "base/log.h"
#include "base/topo.h"
#include "base/watchdog.h"
#include "kernels/kernels.h"
#include "shard/plan_draft.h"
#include "shard/plan_where.h"
#include "worker/device_link.h"
#include "worker/gang_file.h"
#include "worker/leader.h"
#include "worker/rank.h"
#include "worker/seat.h"
#include "worker/shard_comm.h"
#include "worker/spin.h"
#include "worker/worker.h"

enum {
    BREATH_MS = 100,
    BELL_SETUP_MS = 30000,
    ENGINE_OPEN_MS = 10000,
    IDLE_POLL_MS = 10000,
    /* A rank that found another one gone lets that one be noticed first: its connections close before its process
     * ends. */
    LINGER_MS = 300,
    GPU_ROOM_MS = 5000,
};

/* Less of the memory on the rank's NUMA node is worth a warning. */
static const double NUMA_ENOUGH = 0.95;

struct rank {
    const char *folder;
    int rank;
    Muster__Internal__V1__StartGangRequest *req;
    struct mu_rank_record *record; /* our own of the mapped ones */
    struct mu_model *model;
    struct mu_adapters *adapters;
    struct mu_plan plan;
    struct mu_serving serving;
    struct mu_comm *comm;
    struct mu_seat seat;
    struct mu_shard_link *link;
    struct mu_shard_comm ops;
    struct mu_shard *shard;
    struct mu_model *draft; /* the leader's, where the gang has a draft model */
    struct mu_serving draft_serving;
    struct mu_drafter *drafter;
    struct mu_bell *bells[MU_MAX_RANKS]; /* the leader's */
    struct mu_bell *bell;                /* of every other rank */
};

/* ---- start ---- */

/* The number mpirun gave us, before MPI is there to ask: the record must tell our pid as early as possible. */
static int rank_from_environment(int n_rank, struct mu_err *err)
{
    const char *text = getenv("OMPI_COMM_WORLD_RANK");
    char *end;
    long v = text ? strtol(text, &end, 10) : -1;
    if (!text || end == text || *end || v < 0 || v >= n_rank) {
        mu_fail(err, MU_EINVAL, "_rank is for mpirun: OMPI_COMM_WORLD_RANK is '%s'", text ? text : "");
        return -1;
    }
    return (int)v;
}

static void *breath_main(void *arg)
{
    struct mu_rank_record *record = arg;
    for (;;) {
        atomic_fetch_add_explicit(&record->breath, 1, memory_order_relaxed);
        mu_sleep_ms(BREATH_MS);
    }
    return NULL;
}

static enum mu_status breath_start(struct mu_rank_record *record, struct mu_err *err)
{
    pthread_t thread;
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int e = pthread_create(&thread, NULL, breath_main, record);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (e) return mu_fail(err, MU_EAGAIN, "cannot start a thread: %s", strerror(e));
    pthread_detach(thread);
    return MU_OK;
}

/* Dies with mpirun; true: mpirun is still there. */
static bool parent_tie(void)
{
    const char *text = getenv("MUSTER_MPIRUN_PID");
    if (prctl(PR_SET_PDEATHSIG, SIGKILL) != 0) return false;
    return text && getppid() == (pid_t)strtol(text, NULL, 10);
}

static void load_progress(uint64_t done, uint64_t total, void *ctx)
{
    struct mu_rank_record *record = ctx;
    atomic_store_explicit(&record->load_total_bytes, total, memory_order_relaxed);
    atomic_store_explicit(&record->load_done_bytes, done, memory_order_relaxed);
    mu_record_tick(record);
}

/* MUSTER_PIN=0: threads and memory are left to the system. */
static enum mu_status seat_open(struct rank *r, struct mu_err *err)
{
    const char *wanted = getenv("MUSTER_PIN");
    struct mu_topo *topo = mu_malloc(sizeof *topo);
    if (!topo) return mu_fail(err, MU_ENOMEM, "out of memory for the machine's topology");
    enum mu_status st = mu_topo_read(topo, err);
    if (st == MU_OK)
        st = mu_seat_open(topo, &r->plan.split, r->rank, (int)r->req->threads, !(wanted && strcmp(wanted, "0") == 0),
                          &r->seat, err);
    mu_free(topo);
    return st;
}

/* Once everything is loaded: whether our memory is where it should be. The worker tells what the record says. */
static void seat_tell(struct rank *r)
{
    char cpus[64];
    const struct mu_place *p = &r->seat.place;
    double share = mu_shard_numa_share(r->shard);
    if (share < 0) return;
    atomic_store_explicit(&r->record->numa_permille, 1 + (int32_t)(share * 1000), memory_order_relaxed);
    mu_place_cpus_text(p->cpu, p->n_cpu, cpus, sizeof cpus);
    mu_info("rank", "on NUMA node %d, CPUs %s; %.0f%% of its memory is there", p->numa, cpus, 100 * share);
    if (share < NUMA_ENOUGH)
        mu_warn("rank", "%.0f%% of the memory is not on NUMA node %d and slower to read: that node is full",
                100 * (1 - share), p->numa);
}

/* The worker's memory number `at` (worker/kept.h), as mpirun has it; 0: there is none. A GPU's memory ends with its
 * process. */
static int kept_open(const struct rank *r, int at)
{
    char path[64];
    if (!r->req->kept_fd || r->plan.split.device[r->rank] != MU_ON_CPU) return 0;
    snprintf(path, sizeof path, "/proc/%d/fd/%u", (int)getppid(), r->req->kept_fd + (unsigned)at);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd >= 0) return fd;
    mu_warn("rank", "the weights cannot be kept for the next launch, which will pack them again: %s: %s", path,
            strerror(errno));
    return 0;
}

/* Memory of a GPU that a process has just left may not be free yet: waits until there is as much as this rank takes, for
 * a while. Whether it is enough then, creating the shard says, with the numbers. */
static void gpu_room_wait(const struct rank *r)
{
    int device = r->plan.split.device[r->rank];
    const struct mu_device_ops *ops = device == MU_ON_CPU ? NULL : mu_device_load(NULL);
    int64_t until = mu_now_ns() + GPU_ROOM_MS * MU_MS;
    struct mu_device_info info;
    struct mu_rank_memory m;
    mu_plan_memory(r->model, &r->plan, r->rank, &r->serving, &m);
    while (ops && ops->info(device, &info, NULL) == MU_OK && info.free_bytes < m.weights + m.kv + m.scratch &&
           mu_now_ns() < until)
        mu_sleep_ms(50);
}

static int wait_ms(const struct rank *r)
{
    return mu_rank_wait_ms(r->model, &r->plan.split, &r->serving, (int)r->req->threads);
}

static enum mu_status model_load(struct rank *r, struct mu_err *err)
{
    enum mu_status st;
    struct mu_split split;
    mu_record_op(r->record, MU_OP_LOADING, MU_RECORD_NOBODY);
    MU_TRY(st, mu_kernels_init(NULL, err), out);
    MU_TRY(st, mu_model_open(r->req->model_path, &r->model, err), out);
    MU_TRY(st, mu_model_quantize(r->model, r->req->quantize, err), out);
    r->serving = mu_worker_gang_serving(r->req, r->model);
    MU_TRY(st, mu_worker_gang_adapters(r->req, r->model, &r->adapters, err), out);
    MU_TRY(st, mu_split_parse(r->req->split, &split, err), out);
    MU_TRY(st, mu_plan_build(r->model, &split, &r->plan, err), out);
    if (r->comm->n_rank != r->plan.n_rank || r->comm->rank != r->rank)
        return mu_fail(err, MU_EINTERNAL, "mpirun says rank %d of %d; the gang has %d", r->comm->rank, r->comm->n_rank,
                       r->plan.n_rank);
    MU_TRY(st, seat_open(r, err), out);
    MU_TRY(st, mu_shard_link_create(r->comm, &r->plan, &r->link, &r->ops, err), out);
    struct mu_device_link_ids links;
    MU_TRY(st, mu_device_link_agree(r->comm, &r->plan, r->rank, NULL, &links, err), out);
    if (links.have[MU_LINK_BEFORE]) mu_info("rank", "residuals come from GPU to GPU");
    gpu_room_wait(r);
    struct mu_shard_options opt = {
        .model = r->model,
        .plan = &r->plan,
        .rank = r->rank,
        .serving = r->serving,
        .pool = r->seat.pool,
        .numa = r->seat.numa,
        .comm = r->ops,
        .record = r->record,
        .load_progress = load_progress,
        .load_ctx = r->record,
        .adapters = r->adapters,
        .kept_fd = kept_open(r, r->rank),
        .device_timeout_ms = wait_ms(r),
    };
    mu_device_link_use(&links, &opt);
    st = mu_shard_create(&opt, &r->shard, err);
    if (opt.kept_fd > 0) close(opt.kept_fd);
    if (st == MU_OK) seat_tell(r);
out:
    if (st != MU_OK) mu_err_wrap(err, "cannot load %s", r->req->model_path);
    return st;
}

/* The draft model, on the leader. */
static enum mu_status draft_load(struct rank *r, struct mu_err *err)
{
    enum mu_status st;
    if (!*r->req->draft_path || r->rank != r->plan.leader) return MU_OK;
    mu_record_op(r->record, MU_OP_LOADING, MU_RECORD_NOBODY);
    MU_TRY(st, mu_draft_check(&r->plan, err), out);
    MU_TRY(st, mu_model_open(r->req->draft_path, &r->draft, err), out);
    r->draft_serving = mu_draft_serving(r->draft, &r->serving);
    struct mu_drafter_options opt = {.model = r->draft,
                                     .serving = r->draft_serving,
                                     .n_vocab = r->model->cfg.n_vocab,
                                     .pool = r->seat.pool,
                                     .record = r->record,
                                     .kept_fd = kept_open(r, r->plan.n_rank)};
    st = mu_drafter_create(&opt, &r->drafter, err);
    if (opt.kept_fd > 0) close(opt.kept_fd);
out:
    if (st != MU_OK) mu_err_wrap(err, "cannot load the draft model %s", r->req->draft_path);
    return st;
}

static enum mu_status bells_open(struct rank *r, struct mu_err *err)
{
    enum mu_status st;
    uint16_t port = 0;
    int listen_fd = -1;
    size_t max_frame;
    const uint8_t *secret = r->req->secret.data;
    mu_record_op(r->record, MU_OP_EXCHANGE, r->rank == r->plan.leader ? MU_RECORD_NOBODY : r->plan.leader);
    MU_TRY(st, mu_leader_plan_bytes(&r->serving, r->model->cfg.n_vocab, &max_frame, err), out);
    if (r->rank == r->plan.leader) MU_TRY(st, mu_bell_listen(&listen_fd, &port, err), out);
    MU_TRY(st, mu_comm_broadcast(r->comm, r->plan.leader, &port, sizeof port, err), out);
    int64_t deadline = mu_now_ns() + BELL_SETUP_MS * MU_MS;
    if (r->rank == r->plan.leader)
        st = mu_bell_accept_all(listen_fd, r->req->epoch, secret, r->plan.n_rank, r->rank, max_frame, deadline,
                                r->bells, err);
    else
        st = mu_bell_connect(port, r->req->epoch, secret, r->rank, max_frame, deadline, &r->bell, err);
out:
    if (listen_fd >= 0) close(listen_fd);
    return st;
}

/* ---- steps ---- */

/* The next step plan from the doorbell: spins for a moment, then sleeps. An end of the leader ends the wait. A rank
 * whose residual is still on its way does not sleep: large sends move only while their sender looks. */
static enum mu_status plan_wait(struct rank *r, struct mu_step *step, struct mu_err *err)
{
    struct mu_bell_frame frame;
    struct mu_spin spin = mu_spin_start();
    for (int got; (got = mu_bell_poll(r->bell, &frame, err)) != 1;) {
        struct pollfd p = {.fd = mu_bell_fd(r->bell), .events = POLLIN};
        if (got < 0) return err->code;
        int sent = mu_shard_idle(r->shard, err);
        if (sent < 0) return err->code;
        mu_record_op(r->record, MU_OP_IDLE, MU_RECORD_NOBODY); /* whoever does not take it is to blame, not we */
        if (mu_spin_turn(&spin)) continue;
        if (!sent) {
            sched_yield();
            continue;
        }
        if (poll(&p, 1, IDLE_POLL_MS) < 0 && errno != EINTR) return mu_fail(err, MU_EIO, "poll: %s", strerror(errno));
    }
    if (frame.kind != MU_BELL_PLAN) return mu_fail(err, MU_ECANCELLED, "the leader ended the gang");
    struct mu_reader reader = mu_reader_of(frame.payload, frame.len);
    return mu_step_decode(&reader, &r->serving, r->model->cfg.n_vocab, step, err);
}

/* A rank that is not the leader: plans come, steps run, until the leader is gone. */
static enum mu_status follow(struct rank *r, struct mu_err *err)
{
    enum mu_status st;
    struct mu_step *step = NULL;
    struct mu_step_result result;
    MU_TRY(st, mu_step_create(&r->serving, r->model->cfg.n_vocab, &step, err), out);
    for (;;) {
        MU_TRY(st, plan_wait(r, step, err), out);
        atomic_store_explicit(&r->record->step, step->number, memory_order_relaxed);
        mu_record_op(r->record, MU_OP_COMPUTE, MU_RECORD_NOBODY);
        MU_TRY(st, mu_shard_step(r->shard, step, &result, err), out);
        mu_record_tick(r->record);
    }
out:
    mu_free(step);
    return st;
}

static enum mu_status lead(struct rank *r, struct mu_err *err)
{
    struct mu_engine_options eo = {
        .address = r->req->engine_address,
        .gang = r->req->gang,
        .epoch = r->req->epoch,
        .secret = r->req->secret.data,
        .max_sequences = r->req->parallel,
    };
    struct mu_leader_options lo = {
        .model = r->model,
        .plan = &r->plan,
        .serving = r->serving,
        .no_prefix_cache = r->req->no_prefix_cache,
        .no_speculation = r->req->no_speculation,
        .shard = r->shard,
        .drafter = r->drafter,
        .draft_serving = r->draft_serving,
        .bells = r->bells,
        .record = r->record,
    };
    /* gRPC may hang in there where memory is short, while this rank still breathes: no one else would notice. */
    sigset_t none;
    sigemptyset(&none);
    mu_pool_unpin(); /* gRPC's threads are not to share a CPU with our part of the steps */
    enum mu_status st = mu_watchdog_start("muster rank", &none, MU_WATCHDOG_MS, err);
    if (st != MU_OK) return st;
    mu_watchdog_phase("opening the leader's gRPC channel", ENGINE_OPEN_MS);
    st = mu_engine_open(&eo, &lo.engine, err);
    if (st != MU_OK) return st;
    mu_watchdog_phase(NULL, 0);
    mu_pool_repin();
    atomic_store(&r->record->ready, 1);
    st = mu_leader_run(&lo, err);
    for (int i = 0; i < r->plan.n_rank; i++) /* the others need not find out by themselves */
        if (r->bells[i]) mu_bell_send(r->bells[i], MU_BELL_STOP, NULL, 0, mu_now_ns() + 100 * MU_MS, NULL);
    mu_engine_close(lo.engine);
    return st;
}

static enum mu_status rank_run(struct rank *r, struct mu_err *err)
{
    enum mu_status st;
    MU_TRY(st, mu_fault_init(r->rank, err), out);
    MU_TRY(st, breath_start(r->record, err), out);
    MU_TRY(st, mu_comm_mpi_open(&r->comm, err), out);
    r->comm->record = r->record;
    r->comm->timeout_ms = (int)r->req->load_timeout_ms; /* ranks load at different speeds */
    MU_TRY(st, model_load(r, err), out);
    MU_TRY(st, draft_load(r, err), out);
    MU_TRY(st, bells_open(r, err), out);
    MU_TRY(st, mu_comm_barrier(r->comm, err), out); /* opens every connection, which costs up to 0.3 s the first time */
    r->comm->timeout_ms = wait_ms(r);
    mu_record_op(r->record, MU_OP_IDLE, MU_RECORD_NOBODY);
    if (r->rank == r->plan.leader) return lead(r, err);
    atomic_store(&r->record->ready, 1);
    return follow(r, err);
out:
    return st;
}

int mu_rank_main(int argc, char **argv)
{
    struct rank r = {0};
    struct mu_err err = MU_ERR_INIT;
    struct mu_split split;
    struct mu_rank_record *records;
    enum mu_status st;
    char name[32];
    mu_log_init("rank");
    if (argc != 2 || !parent_tie()) {
        mu_error("rank", "_rank is for the worker: expected the gang's folder, and mpirun as the parent");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    r.folder = argv[1];
    r.rank = -1;
    MU_TRY(st, mu_worker_gang_file_read(r.folder, &r.req, &err), out);
    MU_TRY(st, mu_split_parse(r.req->split, &split, &err), out);
    if ((r.rank = rank_from_environment(split.n_rank, &err)) < 0) MU_TRY(st, err.code, out);
    snprintf(name, sizeof name, "rank %d", r.rank);
    mu_log_init(name);
    MU_TRY(st, mu_worker_gang_records_open(r.folder, split.n_rank, false, &records, &err), out);
    r.record = &records[r.rank];
    atomic_store(&r.record->pid, (int32_t)getpid());
    st = rank_run(&r, &err);
out:
    if (st != MU_OK && r.rank >= 0) mu_worker_gang_error_write(r.folder, r.rank, &err);
    if (st != MU_OK && !mu_worker_gang_error_secondary(st)) mu_log_err(MU_LOG_ERROR, "rank", &err, "the gang ends");
    if (mu_worker_gang_error_secondary(st)) mu_sleep_ms(LINGER_MS);
    _exit(st == MU_OK ? 0 : 1);
}
