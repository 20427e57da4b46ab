/* An MPI job of this program: mpirun starts `muster bench` once a rank, with MUSTER_BENCH_RANK naming a folder.
 *
 *   folder/job       the parent's struct mu_bench_job, which rank 0 tells the others
 *   folder/results   results, one struct after another as cases are done, which rank 0 has from the leader; the parent
 *                    reads what is new
 *
 * Parent and ranks are the same binary, so both are plain structs. Rank 0 is on this machine; the others are where
 * hosts say, started by mpirun's own means (ssh, or what OMPI_MCA_plm_rsh_agent names). Ctrl-C reaches mpirun too (one
 * process group), which ends the ranks; the results that are there stay. Where one of us dies by whatever signal, mpirun
 * ends with its parent, and a rank with mpirun. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/environ.h"
#include "base/io.h"
#include "cli/bench.h"
#include "kernels/kernels.h"
#include "transport/comm.h"

enum { POLL_MS = 50, STOP_MS = 3000, MAX_ARGS = 64 };

/* ---- a rank ---- */

static enum mu_status result_append(const struct mu_bench_result *r, int i, void *ctx, struct mu_err *err)
{
    FILE *f = ctx;
    if (fwrite(r, sizeof *r, 1, f) == 1 && !fflush(f)) return MU_OK;
    return mu_fail(err, MU_EIO, "cannot write result %d: %s", i, strerror(errno));
}

static enum mu_status job_read(const char *folder, struct mu_bench_job *job, struct mu_err *err)
{
    char *path = mu_asprintf("%s/job", folder), *data = NULL;
    size_t len;
    enum mu_status st = path ? mu_file_read(path, sizeof *job, &data, &len, err) : mu_fail(err, MU_ENOMEM, "no memory");
    if (!st && len != sizeof *job)
        st = mu_fail(err, MU_EPROTO, "%s has %zu bytes, expected %zu", path, len, sizeof *job);
    if (!st) memcpy(job, data, sizeof *job);
    mu_free(data);
    mu_free(path);
    return st;
}

/* Rank 0's folder has the job. A file's length was checked, so a rank that could not read it ends the MPI job. */
static enum mu_status job_share(struct mu_comm *comm, const char *folder, struct mu_bench_job *job, struct mu_err *err)
{
    enum mu_status st = comm->rank == 0 ? job_read(folder, job, err) : MU_OK;
    return st ? st : mu_comm_broadcast(comm, 0, job, sizeof *job, err);
}

static enum mu_status rank_run(struct mu_comm *comm, const char *folder, struct mu_bench_job *job, struct mu_err *err)
{
    enum mu_status st = job_share(comm, folder, job, err);
    char *path = st ? NULL : mu_asprintf("%s/results", folder);
    FILE *f = path && comm->rank == 0 ? fopen(path, "ab") : NULL;
    if (!st && comm->rank == 0 && !f) st = mu_fail(err, MU_EIO, "cannot open %s/results", folder);
    if (!st) st = mu_kernels_init(NULL, err);
    if (!st) st = mu_bench_rank(job, comm, result_append, f, err);
    if (f) fclose(f);
    mu_free(path);
    return st;
}

int mu_bench_rank_main(const char *folder)
{
    struct mu_err err = MU_ERR_INIT;
    struct mu_comm *comm = NULL;
    struct mu_bench_job *job = mu_calloc(1, sizeof *job);
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* a mpirun that is dead already is an error of MPI_Init */
    enum mu_status st = job ? mu_comm_mpi_open(&comm, &err) : mu_fail(&err, MU_ENOMEM, "no memory for the job");
    if (!st) st = rank_run(comm, folder, job, &err);
    mu_comm_close(comm);
    mu_free(job);
    if (!st) return MU_EXIT_OK;
    mu_cli_fail("bench", &err);
    _exit(MU_EXIT_FAILED); /* mpirun ends the others */
}

/* ---- the parent ---- */

static enum mu_status job_write(const char *folder, const struct mu_bench_job *job, struct mu_err *err)
{
    char *path = mu_asprintf("%s/job", folder);
    enum mu_status st = path ? mu_bench_write(path, (const char *)job, sizeof *job, err)
                             : mu_fail(err, MU_ENOMEM, "no memory for a path");
    mu_free(path);
    return st;
}

/* As posix_spawnp; but that a child ends with its parent it has to ask for itself. An error number, or 0. */
static int mpirun_spawn(char **argv, const char **env, pid_t *pid_out)
{
    int fds[2], e = 0;
    pid_t parent = getpid();
    if (pipe2(fds, O_CLOEXEC)) return errno;
    *pid_out = fork();
    if (*pid_out == 0) {
        int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
        mu_host_name_for_mpirun();
        if (dup2(null, STDIN_FILENO) >= 0 && !prctl(PR_SET_PDEATHSIG, SIGTERM) && getppid() == parent)
            execvpe(argv[0], argv, (char **)env);
        e = errno;
        _exit(write(fds[1], &e, sizeof e) != sizeof e);
    }
    if (*pid_out < 0) e = errno;
    close(fds[1]);
    if (read(fds[0], &e, sizeof e) == sizeof e) waitpid(*pid_out, NULL, 0);
    close(fds[0]);
    return e;
}

static enum mu_status mpirun_start(const char *folder, int n_rank, const char *hosts, pid_t *pid_out,
                                   struct mu_err *err)
{
    static const char *const options[] = {"--oversubscribe",
                                          "--bind-to",
                                          "none",
                                          "--mca",
                                          "pml",
                                          "ob1",
                                          "--mca",
                                          "btl_vader_eager_limit",
                                          "16384",
                                          "--mca",
                                          "mpi_yield_when_idle",
                                          "1",
                                          "--mca",
                                          "odls_base_sigkill_timeout",
                                          "0",
                                          "--mca",
                                          "odls_base_num_threads", /* ranks are the children of a thread that lives */
                                          "0",
                                          "--mca",
                                          "btl_vader_single_copy_mechanism",
                                          "none"};
    char self[4096], np[16], rank[128], tmpdir[128], *argv[MAX_ARGS];
    const char *const extra[] = {"OMPI_ALLOW_RUN_AS_ROOT=1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1", rank, tmpdir, NULL};
    int n = 0;
    ssize_t len = readlink("/proc/self/exe", self, sizeof self - 1);
    if (len < 0) return mu_fail(err, MU_EIO, "cannot find this program's own path: %s", strerror(errno));
    self[len] = 0;
    snprintf(np, sizeof np, "%d", n_rank);
    argv[n++] = "mpirun";
    for (size_t i = 0; i < sizeof options / sizeof *options; i++) argv[n++] = (char *)options[i];
    argv[n++] = "--mca";
    argv[n++] = "btl";
    argv[n++] = hosts ? "tcp,vader,self" : "vader,self";
    argv[n++] = "--mca";
    argv[n++] = "plm";
    argv[n++] = hosts ? "rsh" : "isolated"; /* this machine only: no ssh is looked for */
    if (hosts) {
        argv[n++] = "--host";
        argv[n++] = (char *)hosts;
        argv[n++] = "-x";
        argv[n++] = "MUSTER_BENCH_RANK";
    }
    argv[n++] = "-np";
    argv[n++] = np;
    argv[n++] = self;
    argv[n++] = "bench";
    argv[n] = NULL;
    snprintf(rank, sizeof rank, "MUSTER_BENCH_RANK=%s", folder);
    snprintf(tmpdir, sizeof tmpdir, "TMPDIR=%s", folder);
    /* how other machines are reached is the user's to say: networks, the agent */
    const char **env = mu_environ_of_mpirun(extra, hosts ? "OMPI_MCA_" : NULL);
    if (!env) return mu_fail(err, MU_ENOMEM, "no memory for mpirun's environment");
    int rc = mpirun_spawn(argv, env, pid_out);
    mu_free(env);
    if (rc)
        return mu_fail(err, MU_ENOENT, "cannot start mpirun: %s; install Open MPI (Debian: openmpi-bin)", strerror(rc));
    return MU_OK;
}

/* What the leader has written beyond the first *n results. */
static enum mu_status results_read(int fd, const struct mu_bench_job *job, int *n,
                                   void (*on_result)(const struct mu_bench_result *r, int i, void *ctx), void *ctx,
                                   struct mu_err *err)
{
    struct mu_bench_result r;
    while (*n < job->n_case) {
        ssize_t got = pread(fd, &r, sizeof r, (off_t)*n * (off_t)sizeof r);
        if (got < 0) return mu_fail(err, MU_EIO, "cannot read the MPI job's results: %s", strerror(errno));
        if (got < (ssize_t)sizeof r) return MU_OK;
        if (r.n_rank < 1 || r.n_rank > MU_MAX_RANKS)
            return mu_fail(err, MU_EPROTO, "the MPI job left a result of %d ranks", r.n_rank);
        on_result(&r, (*n)++, ctx);
    }
    return MU_OK;
}

enum mu_status mu_bench_mpi(const struct mu_bench_job *job, int n_rank, const char *hosts,
                            void (*on_result)(const struct mu_bench_result *r, int i, void *ctx), void *ctx,
                            struct mu_err *err)
{
    enum mu_status st;
    char *dir = NULL, *results = NULL;
    int fd = -1, n = 0;
    pid_t pid;
    int64_t killed_ns = 0; /* when mpirun, which was told to end, will be */
    MU_TRY(st, mu_run_dir_create(&dir, err), done);
    MU_TRY(st, job_write(dir, job, err), done);
    results = mu_asprintf("%s/results", dir);
    fd = results ? open(results, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600) : -1;
    if (fd < 0) {
        st = mu_fail(err, MU_EIO, "cannot create %s/results: %s", dir, strerror(errno));
        goto done;
    }
    MU_TRY(st, mpirun_start(dir, n_rank, hosts, &pid, err), done);
    for (;;) {
        pid_t ended = waitpid(pid, NULL, WNOHANG);
        if (!st) st = results_read(fd, job, &n, on_result, ctx, err);
        if (ended == pid) break;
        if ((mu_interrupted || st) && !killed_ns) {
            kill(pid, SIGTERM);
            killed_ns = mu_now_ns() + STOP_MS * MU_MS;
        }
        if (killed_ns && mu_now_ns() > killed_ns) kill(pid, SIGKILL); /* Open MPI 4.1 hangs where it came early */
        mu_sleep_ms(POLL_MS);
    }
    if (!st && n < job->n_case) /* with all results how it ended does not matter */
        st = mu_interrupted ? mu_fail(err, MU_ECANCELLED, "interrupted")
                            : mu_fail(err, MU_EPEER, "the MPI job failed (its messages are above)");
done:
    if (fd >= 0) close(fd);
    mu_free(results);
    if (dir) mu_run_dir_remove(dir);
    mu_free(dir);
    return st;
}
