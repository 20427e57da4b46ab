/* Starting a gang: everything that can be said against it is said before a process exists (the model is opened, the
 * split planned, the memory counted), then its folder is made and mpirun spawned.
 *
 * mpirun gets the environment of the worker without what other launchers and Open MPI installations left in it, and
 * every parameter on its command line; a caller chooses none of them. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/environ.h"
#include "base/fault.h"
#include "base/log.h"
#include "shard/plan_draft.h"
#include "shard/plan_fit.h"
#include "shard/plan_where.h"
#include "worker/gang.h"

enum {
    DEFAULT_CONTEXT = 8192,
    DEFAULT_PARALLEL = 32,
    DEFAULT_STALL_MS = 3000,
    DEFAULT_LOAD_MS = 600000,
    MAX_CONTEXT = 1 << 22,
    MAX_PARALLEL = 1024,
    MAX_STEP_TOKENS = 16384,
    MAX_THREADS = 1024,
    MAX_ARGS = 64,
    GPUS_MS = 20000,    /* for the driver to answer */
    GPU_ROOM_TRIES = 5, /* looks at GPUs whose memory is short: processes that have just ended may still hold it */
    GPU_ROOM_PAUSE_MS = 200,
    SHM_BYTES = 4 << 20, /* of memory that ranks share, for each (Open MPI's btl_vader_segment_size) */
};

/* ---- the request, its defaults filled in ---- */

static enum mu_status range_check(const char *name, uint32_t value, uint32_t least, uint32_t most, struct mu_err *err)
{
    if (value >= least && value <= most) return MU_OK;
    return mu_fail(err, MU_EINVAL, "%s is %u; from %u to %u is possible", name, value, least, most);
}

static enum mu_status defaults_fill(Muster__Internal__V1__StartGangRequest *r, const struct mu_model *model,
                                    const struct mu_split *split, const struct mu_topo *topo, struct mu_err *err)
{
    enum mu_status st;
    int trained = model->cfg.n_ctx_train;
    if (!r->threads) r->threads = (uint32_t)mu_plan_threads(topo, split);
    if (!r->context) r->context = trained > 0 && trained < DEFAULT_CONTEXT ? (uint32_t)trained : DEFAULT_CONTEXT;
    if (!r->parallel) r->parallel = DEFAULT_PARALLEL;
    if (!r->step_tokens) r->step_tokens = (uint32_t)mu_plan_step_tokens(split);
    if (!r->stall_timeout_ms) r->stall_timeout_ms = DEFAULT_STALL_MS;
    if (!r->load_timeout_ms) r->load_timeout_ms = DEFAULT_LOAD_MS;
    if (mu_kv_type_by_name(r->kv) < 0)
        return mu_fail(err, MU_EINVAL, "the cache has no format '%.40s'; f16 and q8_0 are possible", r->kv);
    MU_TRY(st, range_check("the number of threads", r->threads, 1, MAX_THREADS, err), out);
    MU_TRY(st, range_check("the context", r->context, 2, MAX_CONTEXT, err), out);
    MU_TRY(st, range_check("the number of parallel sequences", r->parallel, 1, MAX_PARALLEL, err), out);
    MU_TRY(st, range_check("the token budget of a step", r->step_tokens, 2, MAX_STEP_TOKENS, err), out);
    MU_TRY(st, range_check("the stall timeout in ms", r->stall_timeout_ms, 200, 3600000, err), out);
    MU_TRY(st, range_check("the load timeout in ms", r->load_timeout_ms, 1000, 86400000, err), out);
out:
    return st;
}

/* The machine's free memory and, where the split has any, its GPUs. */
static enum mu_status node_look(const struct mu_model *model, const struct mu_split *split, const struct mu_topo *topo,
                                uint64_t kept_bytes, struct mu_plan_node *node, struct mu_err *err)
{
    *node = (struct mu_plan_node){.memory_bytes = topo->mem_available_bytes + kept_bytes};
    if (!mu_split_has_gpu(split)) return MU_OK;
    char path[PATH_MAX];
    if (!mu_proc_own_path(path, sizeof path)) /* the plugin has no name of its own that it could be compared by */
        return mu_fail(err, MU_EUNSUPPORTED,
                       "the program was replaced since it was started, and so may be the GPU plugin beside it: start "
                       "it again");
    mu_gpus_ask(false, GPUS_MS, &node->gpus);
    return mu_plan_where_check(model, node, split, err);
}

/* The draft model of the request; NULL in *draft_out: it has none. */
static enum mu_status draft_open(const Muster__Internal__V1__StartGangRequest *r, const struct mu_plan *plan,
                                 struct mu_model **draft_out, struct mu_err *err)
{
    *draft_out = NULL;
    if (!*r->draft_path) return MU_OK;
    enum mu_status st = mu_draft_check(plan, err);
    return st == MU_OK ? mu_model_open(r->draft_path, draft_out, err) : st;
}

/* What the ranks take, and a draft model (or NULL) beside them. */
static enum mu_status fit_measure(const struct mu_model *model, const struct mu_plan *plan,
                                  const struct mu_adapters *adapters, const struct mu_model *draft,
                                  const struct mu_serving *v, const struct mu_plan_node *node, struct mu_fit *fit_out,
                                  struct mu_err *err)
{
    mu_fit_measure(model, plan, adapters, v, node, fit_out);
    return draft ? mu_draft_fit(draft, v, fit_out, err) : MU_OK;
}

/* As many pages as were asked for. Where memory has shrunk since the coordinator counted it (a relaunch beside other
 * programs), as many as there is room for, down to one sequence of full length: slower is better than gone. */
static enum mu_status pages_fit(Muster__Internal__V1__StartGangRequest *r, const struct mu_model *model,
                                const struct mu_plan *plan, const struct mu_adapters *adapters,
                                const struct mu_model *draft, struct mu_plan_node *node, struct mu_err *err)
{
    struct mu_serving v = mu_worker_gang_serving(r, model);
    struct mu_fit fit;
    v.lora_rank = adapters->max_rank;
    enum mu_status st = fit_measure(model, plan, adapters, draft, &v, node, &fit, err);
    if (st != MU_OK) return st;
    for (int i = 0; i < GPU_ROOM_TRIES && fit.n_place > 1 && mu_fit_room(&fit) < (v.n_page ? v.n_page : 1); i++) {
        mu_sleep_ms(GPU_ROOM_PAUSE_MS);
        mu_gpus_ask(false, GPUS_MS, &node->gpus);
        if ((st = fit_measure(model, plan, adapters, draft, &v, node, &fit, err)) != MU_OK) return st;
    }
    uint64_t room = mu_fit_room(&fit);
    if (v.n_page > room && room >= mu_fit_pages_of(v.n_ctx)) {
        mu_warn("worker", "there is memory for %llu of %u cache pages: fewer sequences will run at once",
                (unsigned long long)room, v.n_page);
        v.n_page = (uint32_t)room;
    }
    st = mu_fit_settle(&fit, model, plan, MU_FIT_CTX, &v, err);
    if (st == MU_OK) r->kv_pages = v.n_page;
    return st;
}

static void row_fill(const struct mu_model *model, const struct mu_plan *plan, int rank,
                     const struct mu_serving *serving, const struct mu_gpus *gpus, const struct mu_topo *topo,
                     struct mu_worker_gang_rank_row *row)
{
    const struct mu_plan_rank *p = &plan->rank[rank];
    struct mu_range layers = plan->stage[p->stage].layers;
    int device = plan->split.device[rank];
    bool known = device >= 0 && device < gpus->n;
    struct mu_rank_memory m;
    struct mu_place place;
    mu_plan_memory(model, plan, rank, serving, &m);
    mu_plan_place(topo, &plan->split, known ? gpus->gpu[device].numa : -1, serving->n_thread, rank, &place);
    *row = (struct mu_worker_gang_rank_row){
        .stage = p->stage,
        .layer_begin = layers.begin,
        .layer_end = layers.end,
        .heads = mu_range_len(p->heads),
        .ff_rows = mu_range_len(p->ff),
        .leader = rank == plan->leader,
        .threads = place.n_thread,
        .gpu = device,
        .weight_bytes = p->weight_bytes,
        .kv_bytes = m.kv,
        .numa = place.numa,
    };
    mu_place_cpus_text(place.cpu, place.n_cpu, row->cpus, sizeof row->cpus);
    if (known) snprintf(row->gpu_name, sizeof row->gpu_name, "%s", gpus->gpu[device].name);
}

static enum mu_status request_settle(struct mu_worker_gang *g, struct mu_err *err)
{
    enum mu_status st;
    Muster__Internal__V1__StartGangRequest *r = g->req;
    struct mu_split split;
    struct mu_model *model = NULL, *draft = NULL;
    struct mu_adapters *adapters = NULL;
    struct mu_plan *plan = mu_malloc(sizeof *plan);
    struct mu_topo *topo = mu_malloc(sizeof *topo);
    struct mu_plan_node *node = mu_malloc(sizeof *node);
    if (!plan || !topo || !node) {
        st = mu_fail(err, MU_ENOMEM, "out of memory for a plan");
        goto out;
    }
    MU_TRY(st, mu_split_parse(r->split, &split, err), out);
    MU_TRY(st, mu_model_open(r->model_path, &model, err), out);
    MU_TRY(st, mu_model_quantize(model, r->quantize, err), out);
    MU_TRY(st, mu_worker_gang_adapters(r, model, &adapters, err), out);
    MU_TRY(st, mu_plan_build(model, &split, plan, err), out);
    MU_TRY(st, draft_open(r, plan, &draft, err), out);
    mu_kept_prepare(g->kept, model, draft, r->split, r->quantize, plan->n_rank);
    r->kept_fd = g->kept->n_fd ? MU_KEPT_FD : 0;
    MU_TRY(st, mu_topo_read(topo, err), out);
    MU_TRY(st, defaults_fill(r, model, &split, topo, err), out);
    /* weights that are there already are counted among those that are wanted */
    MU_TRY(st, node_look(model, &split, topo, mu_kept_bytes(g->kept), node, err), out);
    MU_TRY(st, pages_fit(r, model, plan, adapters, draft, node, err), out);
    struct mu_serving serving = mu_worker_gang_serving(r, model);
    g->n_rank = plan->n_rank;
    g->layer_ms = mu_rank_layer_ms(model, &split, &serving, (int)r->threads);
    for (int i = 0; i < plan->n_rank; i++) row_fill(model, plan, i, &serving, &node->gpus, topo, &g->row[i]);
out:
    mu_adapters_close(adapters);
    if (model) mu_model_close(model);
    if (draft) mu_model_close(draft);
    mu_free(plan);
    mu_free(topo);
    mu_free(node);
    return st;
}

/* ---- the folder ---- */

static enum mu_status folder_make(const char *parent, unsigned long number, char **path_out, struct mu_err *err)
{
    char *path = mu_asprintf("%s/muster-g%lu", parent, number);
    if (!path) return mu_fail(err, MU_ENOMEM, "out of memory for a folder's name");
    if (mkdir(path, 0700) != 0) {
        enum mu_status st = mu_fail(err, MU_EIO, "cannot create the folder %s: %s", path, strerror(errno));
        mu_free(path);
        return st;
    }
    *path_out = path;
    return MU_OK;
}

/* Open MPI does not begin where there is less than it maps, and a rank that finds no page later gets SIGBUS. A file system
 * without a limit (size=0) tells of no blocks at all: Open MPI takes that for none, and so do we. */
static bool shm_has_room(const char *dir, int n_rank)
{
    struct statvfs v;
    uint64_t room = statvfs(dir, &v) == 0 ? (uint64_t)v.f_bavail * v.f_frsize : 0, wanted = SHM_BYTES;
    wanted *= (uint64_t)n_rank + 1; /* one for the records and for what others take meanwhile */
    if (room >= wanted) return true;
    mu_warn("worker", "%s has %llu MB free, %d ranks want %llu to share: they share files in the run folder", dir,
            (unsigned long long)room >> 20, n_rank, (unsigned long long)wanted >> 20);
    return false;
}

static enum mu_status folder_fill(struct mu_worker_gang *g, struct mu_err *err)
{
    static unsigned long number; /* of gangs started by this worker; only the supervising thread is here */
    enum mu_status st;
    char *shm = NULL;
    number++;
    MU_TRY(st, folder_make(g->place->run_dir, number, &g->folder, err), out);
    if (!(shm = mu_asprintf("%s/shm", g->folder))) return mu_fail(err, MU_ENOMEM, "out of memory for a path");
    if (g->place->shm_dir && shm_has_room(g->place->shm_dir, g->n_rank))
        MU_TRY(st, folder_make(g->place->shm_dir, number, &g->shm_folder, err), out);
    if (g->shm_folder ? symlink(g->shm_folder, shm) != 0 : mkdir(shm, 0700) != 0) {
        st = mu_fail(err, MU_EIO, "cannot create %s: %s", shm, strerror(errno));
        goto out;
    }
    MU_TRY(st, mu_worker_gang_records_open(g->folder, g->n_rank, true, &g->records, err), out);
    MU_TRY(st, mu_worker_gang_file_write(g->folder, g->req, err), out);
out:
    mu_free(shm);
    return st;
}

/* ---- mpirun ---- */

static enum mu_status mpirun_find(const char *wanted, char *path, size_t path_bytes, struct mu_err *err)
{
    if (wanted) {
        if (access(wanted, X_OK) != 0)
            return mu_fail(err, MU_ENOENT, "mpirun was not found at %s: %s", wanted, strerror(errno));
        snprintf(path, path_bytes, "%s", wanted);
        return MU_OK;
    }
    for (const char *p = getenv("PATH"); p && *p;) {
        size_t n = strcspn(p, ":");
        struct stat sb;
        int len = snprintf(path, path_bytes, "%.*s/mpirun", (int)n, p);
        if (n && p[0] == '/' && len > 0 && (size_t)len < path_bytes && access(path, X_OK) == 0 &&
            stat(path, &sb) == 0 && S_ISREG(sb.st_mode))
            return MU_OK;
        p += n + (p[n] == ':');
    }
    return mu_fail(err, MU_ENOENT, "mpirun was not found in PATH; install Open MPI (Debian: openmpi-bin)");
}

struct args {
    const char *v[MAX_ARGS];
    int n;
};

static void arg(struct args *a, const char *text)
{
    if (a->n < MAX_ARGS - 1) a->v[a->n++] = text;
}

static void mca(struct args *a, const char *name, const char *value)
{
    arg(a, "--mca");
    arg(a, name);
    arg(a, value);
}

static void mpirun_args(struct args *a, const char *mpirun, const char *n_rank, const char *folder, const char *shm,
                        const char *own_pid)
{
    arg(a, "muster");
    arg(a, "_launch");
    arg(a, own_pid);
    arg(a, folder);
    arg(a, "--");
    arg(a, mpirun);
    mca(a, "plm", "isolated"); /* this machine only: no ssh is looked for */
    mca(a, "ras", "^slurm");
    mca(a, "odls_base_sigkill_timeout", "0");
    mca(a, "odls_base_num_threads", "0"); /* ranks are spawned by a thread that lives: their parent-death signal */
    mca(a, "oob_tcp_if_include", "lo");
    mca(a, "orte_tmpdir_base", folder);
    mca(a, "pml", "ob1");
    mca(a, "btl", "vader,self");
    mca(a, "btl_vader_eager_limit", "16384");
    mca(a, "btl_vader_backing_directory", shm);
    mca(a, "mpi_yield_when_idle", "1");
    arg(a, "--bind-to");
    arg(a, "none");
    arg(a, "--oversubscribe");
    arg(a, "-np");
    arg(a, n_rank);
}

/* The engine's address must be reachable from inside a private network: only a unix socket is. */
static bool address_is_unix(const char *address)
{
    return strncmp(address, "unix:", 5) == 0;
}

static enum mu_status process_spawn(struct mu_worker_gang *g, const struct args *a, const char **env,
                                    struct mu_err *err)
{
    int out[2];
    if (pipe2(out, O_CLOEXEC) != 0) return mu_fail(err, MU_EIO, "no pipe for mpirun: %s", strerror(errno));
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attr;
    sigset_t none, all;
    sigemptyset(&none);
    sigfillset(&all);
    posix_spawn_file_actions_init(&actions);
    posix_spawnattr_init(&attr);
    posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(&actions, out[1], STDOUT_FILENO);
    posix_spawn_file_actions_adddup2(&actions, out[1], STDERR_FILENO);
    _Static_assert(MU_KEPT_FD == STDERR_FILENO + 1, "what is kept follows the standard streams");
    for (int i = 0; i < g->kept->n_fd; i++) posix_spawn_file_actions_adddup2(&actions, g->kept->fd[i], MU_KEPT_FD + i);
    posix_spawn_file_actions_addclosefrom_np(&actions, MU_KEPT_FD + g->kept->n_fd);
    posix_spawnattr_setsigmask(&attr, &none);
    posix_spawnattr_setsigdefault(&attr, &all);
    /* Its own session: Ctrl-C at the terminal is for the worker, which ends it in order. */
    posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSID);
    pid_t pid;
    int e = mu_fault_hit("worker.spawn")
                ? EAGAIN
                : posix_spawn(&pid, "/proc/self/exe", &actions, &attr, (char *const *)a->v, (char *const *)env);
    posix_spawnattr_destroy(&attr);
    posix_spawn_file_actions_destroy(&actions);
    close(out[1]);
    if (e) {
        close(out[0]);
        return mu_fail(err, MU_EIO, "cannot start a process for mpirun: %s", strerror(e));
    }
    fcntl(out[0], F_SETFL, O_NONBLOCK);
    g->output_fd = out[0];
    if (!mu_proc_open(pid, 0, &g->mpirun)) {
        e = errno;
        kill(pid, SIGKILL); /* our child, not reaped: the number is still its */
        waitpid(pid, NULL, 0);
        return mu_fail(err, MU_EIO, "cannot watch mpirun (pidfd_open: %s); Linux 5.3 or later is needed", strerror(e));
    }
    return MU_OK;
}

static enum mu_status mpirun_start(struct mu_worker_gang *g, struct mu_err *err)
{
    char mpirun[PATH_MAX], tmpdir[PATH_MAX], shm[PATH_MAX], own_pid[16], n_rank[16];
    enum mu_status st = mpirun_find(g->place->mpirun, mpirun, sizeof mpirun, err);
    if (st != MU_OK) return st;
    snprintf(own_pid, sizeof own_pid, "%d", (int)getpid());
    snprintf(n_rank, sizeof n_rank, "%d", g->n_rank);
    snprintf(tmpdir, sizeof tmpdir, "TMPDIR=%s", g->folder);
    snprintf(shm, sizeof shm, "%s", g->shm_folder ? g->shm_folder : g->folder);
    bool private_net = address_is_unix(g->req->engine_address);
    const char *extra[] = {"OMPI_ALLOW_RUN_AS_ROOT=1",
                           "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1",
                           "PMIX_MCA_gds=hash",
                           tmpdir,
                           private_net ? NULL : "MUSTER_PRIVATE_NET=0",
                           NULL};
    struct args a = {0};
    mpirun_args(&a, mpirun, n_rank, g->folder, shm, own_pid);
    const char **env = mu_environ_of_mpirun(extra, NULL);
    if (!env) return mu_fail(err, MU_ENOMEM, "out of memory for mpirun's environment");
    st = process_spawn(g, &a, env, err);
    mu_free(env);
    return st;
}

static enum mu_status request_check(const Muster__Internal__V1__StartGangRequest *r, struct mu_err *err)
{
    if (r->secret.len != MU_GANG_SECRET)
        return mu_fail(err, MU_EINVAL, "a gang's secret has %d bytes, got %zu", (int)MU_GANG_SECRET, r->secret.len);
    if (!r->engine_address[0]) return mu_fail(err, MU_EINVAL, "no engine address");
    if (!r->model_path[0]) return mu_fail(err, MU_EINVAL, "no model");
    return MU_OK;
}

enum mu_status mu_worker_gang_start(const struct mu_worker_gang_place *place, struct mu_rpc_call *call,
                                    Muster__Internal__V1__StartGangRequest *req, struct mu_kept *kept,
                                    struct mu_worker_gang **gang_out, struct mu_err *err)
{
    enum mu_status st;
    struct mu_worker_gang *g = mu_calloc(1, sizeof *g);
    if (!g) {
        muster__internal__v1__start_gang_request__free_unpacked(req, NULL);
        mu_rpc_call_release(call);
        return mu_fail(err, MU_ENOMEM, "out of memory for a gang");
    }
    g->place = place;
    g->kept = kept;
    g->req = req;
    g->call = call;
    g->mpirun.fd = g->output_fd = -1;
    g->mpirun_status = g->told_rank = -1;
    for (int i = 0; i < MU_MAX_RANKS; i++) g->rank[i].fd = -1;
    MU_TRY(st, request_check(req, err), fail);
    MU_TRY(st, request_settle(g, err), fail);
    MU_TRY(st, folder_fill(g, err), fail);
    MU_TRY(st, mpirun_start(g, err), fail);
    g->state = MU_GANG_LOADING;
    g->looked_ns = mu_now_ns();
    g->load_deadline_ns = g->looked_ns + req->load_timeout_ms * MU_MS;
    mu_watch_init(&g->watch, g->n_rank, req->stall_timeout_ms, req->stall_timeout_ms + 4 * g->layer_ms);
    mu_worker_gang_tell_launched(g);
    *gang_out = g;
    return MU_OK;
fail:
    mu_worker_gang_destroy(g);
    return st;
}
