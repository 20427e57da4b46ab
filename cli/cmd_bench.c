/* muster bench: prompt and decode speed, beside what this machine's memory and arithmetic could do in the same minutes.
 *
 * One rank runs in this process. A split over several runs as an MPI job of this same program: mpirun starts `muster bench` once a rank (MUSTER_BENCH_RANK is set),
 * the leader writes its result to a pipe-like file that the parent reads. Limits are measured before and after by the parent with as many threads as all ranks
 * have together. */
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/io.h"
#include "base/pool.h"
#include "base/topo.h"
#include "cli/cli.h"
#include "kernels/kernels.h"
#include "kernels/peak.h"

extern char **environ;

enum { MAX_REPEATS = 100, MAX_THREADS = 1024 };

struct bench_args {
    struct mu_bench_options o;
    const char *split, *transport;
    bool json;
};

enum { OPT_TRANSPORT = 256, OPT_DEPTH };

static error_t parse(int key, char *arg, struct argp_state *state)
{
    struct bench_args *a = state->input;
    switch (key) {
    case 'p': a->o.n_prompt = (int)mu_arg_long(arg, 1, 1 << 20, "-p", state); return 0;
    case 'n': a->o.n_decode = (int)mu_arg_long(arg, 1, 1 << 20, "-n", state); return 0;
    case 't': a->o.n_thread = (int)mu_arg_long(arg, 1, MAX_THREADS, "-t", state); return 0;
    case 'b': a->o.n_stream = (int)mu_arg_long(arg, 1, 512, "-b", state); return 0;
    case 'r': a->o.n_repeat = (int)mu_arg_long(arg, 1, MAX_REPEATS, "-r", state); return 0;
    case OPT_DEPTH: a->o.n_depth = (int)mu_arg_long(arg, 0, 1 << 20, "--depth", state); return 0;
    case 's': a->split = arg; return 0;
    case OPT_TRANSPORT:
        if (strcmp(arg, "mpi") && strcmp(arg, "local")) argp_error(state, "--transport is mpi or local, not '%s'", arg);
        a->transport = arg;
        return 0;
    case 'o':
        if (strcmp(arg, "json") && strcmp(arg, "table")) argp_error(state, "-o is json or table, not '%s'", arg);
        a->json = !strcmp(arg, "json");
        return 0;
    case MU_OPT_KV: a->o.kv = mu_arg_kv(arg, state); return 0;
    case MU_OPT_QUANTIZE: a->o.quantize = mu_arg_quantize(arg, state); return 0;
    case ARGP_KEY_ARG:
        if (state->arg_num) argp_error(state, "one MODEL only");
        a->o.path = arg;
        return 0;
    case ARGP_KEY_END:
        if (!a->o.path) argp_error(state, "MODEL is missing");
        return 0;
    default: return ARGP_ERR_UNKNOWN;
    }
}

/* ---- the limits of the machine ---- */

static void probe_int8(void *arg, int member, int n)
{
    (void)n;
    ((double *)arg)[member] = mu_peak_int8_gops();
}

/* The int8 peak of so many threads at once; the best of a few rounds raises *best. It hardly moves; the memory's speed does, and is
 * measured between the decodes (bench_load.c). */
static enum mu_status measure_int8(int n_thread, double *best, struct mu_err *err)
{
    enum mu_status st;
    struct mu_pool *pool = NULL;
    struct mu_topo *topo = mu_calloc(1, sizeof *topo);
    double *gops = mu_calloc((size_t)n_thread, sizeof *gops);
    struct mu_pool_options po = {.n_threads = n_thread};
    if (!topo || !gops) {
        st = mu_fail(err, MU_ENOMEM, "no memory to measure %d threads", n_thread);
        goto done;
    }
    MU_TRY(st, mu_topo_read(topo, err), done);
    po.pin = n_thread <= topo->n_core;
    MU_TRY(st, mu_pool_create(&po, &pool, err), done);
    for (int round = 0; round < 3; round++) {
        double sum = 0;
        mu_pool_run(pool, probe_int8, gops);
        for (int i = 0; i < n_thread; i++) sum += gops[i];
        if (sum > *best) *best = sum;
    }
done:
    mu_pool_destroy(pool);
    mu_free(gops);
    mu_free(topo);
    return st;
}

/* ---- an MPI job of ourselves ---- */

/* A rank: runs, and the leader writes the result where the parent said. */
static int rank_main(const struct bench_args *a, const char *result_path)
{
    struct mu_err err = MU_ERR_INIT;
    bool leader = false;
    struct mu_bench_result r;
    struct mu_file_writer *w = NULL;
    enum mu_status st = mu_bench_mpi_rank(&a->o, &leader, &r, &err);
    if (!st && leader && !(st = mu_file_writer_open(result_path, &w, &err))) {
        st = mu_file_writer_write(w, &r, sizeof r, &err);
        enum mu_status closed = mu_file_writer_close(w, !st, st ? NULL : &err);
        if (!st) st = closed;
    }
    if (!st) return MU_EXIT_OK;
    mu_cli_fail("bench", &err);
    _exit(MU_EXIT_FAILED); /* mpirun ends the others */
}

static enum mu_status run_mpi(const struct bench_args *a, struct mu_bench_result *r, struct mu_err *err)
{
    enum mu_status st;
    char *dir = NULL, *result = NULL, *data = NULL;
    size_t len;
    char self[4096], np[16], p[16], n[16], t[16], b[16], rep[16], depth[16];
    ssize_t self_len = readlink("/proc/self/exe", self, sizeof self - 1);
    if (self_len < 0) return mu_fail(err, MU_EIO, "cannot find this program's own path: %s", strerror(errno));
    self[self_len] = 0;
    MU_TRY(st, mu_run_dir_create(&dir, err), done);
    result = mu_asprintf("%s/result", dir);
    if (!result) {
        st = mu_fail(err, MU_ENOMEM, "no memory");
        goto done;
    }
    snprintf(np, sizeof np, "%d", a->o.split.n_rank);
    snprintf(p, sizeof p, "%d", a->o.n_prompt);
    snprintf(n, sizeof n, "%d", a->o.n_decode);
    snprintf(t, sizeof t, "%d", a->o.n_thread);
    snprintf(b, sizeof b, "%d", a->o.n_stream);
    snprintf(rep, sizeof rep, "%d", a->o.n_repeat);
    snprintf(depth, sizeof depth, "%d", a->o.n_depth);
    char *argv[] = {"mpirun",
                    "--oversubscribe",
                    "--bind-to",
                    "none",
                    "--mca",
                    "pml",
                    "ob1",
                    "--mca",
                    "btl",
                    "vader,self",
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
                    "btl_vader_single_copy_mechanism",
                    "none",
                    "-np",
                    np,
                    self,
                    "bench",
                    (char *)a->o.path,
                    "-p",
                    p,
                    "-n",
                    n,
                    "-t",
                    t,
                    "-b",
                    b,
                    "-r",
                    rep,
                    "--depth",
                    depth,
                    "--split",
                    (char *)a->split,
                    "--kv",
                    (char *)mu_kv_type_name(a->o.kv),
                    a->o.quantize ? "--quantize" : NULL,
                    (char *)a->o.quantize,
                    NULL};
    setenv("MUSTER_BENCH_RANK", result, 1);
    setenv("OMPI_ALLOW_RUN_AS_ROOT", "1", 1);
    setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1", 1);
    posix_spawn_file_actions_t fa;
    posix_spawn_file_actions_init(&fa);
    posix_spawn_file_actions_addopen(&fa, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    pid_t pid;
    int rc = posix_spawnp(&pid, "mpirun", &fa, NULL, argv, environ);
    posix_spawn_file_actions_destroy(&fa);
    if (rc) {
        st = mu_fail(err, MU_ENOENT, "cannot start mpirun: %s; install Open MPI (Debian: openmpi-bin)", strerror(rc));
        goto done;
    }
    int status;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {}
    if (!WIFEXITED(status) || WEXITSTATUS(status)) {
        st = mu_fail(err, MU_EPEER, "the MPI job failed (its messages are above)");
        goto done;
    }
    MU_TRY(st, mu_file_read(result, sizeof *r, &data, &len, err), done);
    if (len != sizeof *r) {
        st = mu_fail(err, MU_EPROTO, "the MPI job left a result of %zu bytes, expected %zu", len, sizeof *r);
        goto done;
    }
    memcpy(r, data, sizeof *r);
done:
    mu_free(data);
    mu_free(result);
    if (dir) mu_run_dir_remove(dir);
    mu_free(dir);
    return st;
}

/* ---- telling ---- */

struct figures {
    double prompt_tps, decode_tps, decode_gbps, prompt_gops, int8_fraction;
};

static struct figures figures_of(const struct bench_args *a, const struct mu_model *m, const struct mu_bench_result *r,
                                 double int8_gops)
{
    struct figures f = {.prompt_tps = a->o.n_prompt / r->prompt_s,
                        .decode_tps = (double)a->o.n_decode * a->o.n_stream / r->decode_s};
    int groups = a->o.split.n_stage < a->o.n_stream ? a->o.split.n_stage : a->o.n_stream;
    if (a->o.split.n_rank == 1 || !strcmp(a->transport, "local")) groups = 1; /* as bench_load.c cuts the streams */
    f.decode_gbps = (double)r->weight_bytes * a->o.n_decode * groups / r->decode_s / 1e9;
    uint64_t params = m->n_param; /* the output matrix works for one token of the prompt only, the embedding for none */
    params -= (uint64_t)m->cfg.n_vocab * (uint64_t)m->cfg.d_model * (m->embed == m->output ? 1 : 2);
    f.prompt_gops = 2.0 * (double)params * a->o.n_prompt / r->prompt_s / 1e9;
    f.int8_fraction = int8_gops > 0 ? f.prompt_gops / int8_gops : 0;
    return f;
}

static void print_table(const struct bench_args *a, const struct mu_model *m, const struct mu_bench_result *r,
                        double int8_gops)
{
    struct figures f = figures_of(a, m, r, int8_gops);
    char what[256], c[8][32], name_p[32], name_n[48];
    mu_model_describe(m, what, sizeof what);
    printf("%s\nsplit %s over %s, %d threads a rank, kernels %s, loaded in %.1f s\n", what, a->split,
           a->o.split.n_rank > 1 ? a->transport : "one process", a->o.n_thread, mu_kernels()->name, r->load_s);
    printf("this machine: reads %.1f GB/s, int8 %.0f GOP/s with %d threads\n\n", r->read_gbps, int8_gops,
           a->o.n_thread * a->o.split.n_rank);
    snprintf(name_p, sizeof name_p, "prompt %d", a->o.n_prompt);
    snprintf(name_n, sizeof name_n, "decode %d × %d", a->o.n_decode, a->o.n_stream);
    snprintf(c[0], sizeof c[0], "%.1f", f.prompt_tps);
    snprintf(c[1], sizeof c[1], "%.1f-%.1f", a->o.n_prompt / r->prompt_max_s, a->o.n_prompt / r->prompt_min_s);
    snprintf(c[2], sizeof c[2], "%.0f GOP/s", f.prompt_gops);
    snprintf(c[3], sizeof c[3], "%.0f%% of int8 peak", 100 * f.int8_fraction);
    double n = (double)a->o.n_decode * a->o.n_stream;
    snprintf(c[4], sizeof c[4], "%.1f", f.decode_tps);
    snprintf(c[5], sizeof c[5], "%.1f-%.1f", n / r->decode_max_s, n / r->decode_min_s);
    snprintf(c[6], sizeof c[6], "%.1f GB/s", f.decode_gbps);
    snprintf(c[7], sizeof c[7], "%.0f%% of read", 100 * r->decode_of_read);
    const char *cells[] = {"phase", "tokens/s", "range", "rate", "of the limit", name_p, c[0], c[1],
                           c[2],    c[3],       name_n,  c[4],   c[5],           c[6],   c[7]};
    static const bool right[] = {false, true, true, true, true};
    mu_table_print(cells, 3, 5, right);
}

static int print_json(const struct bench_args *a, const struct mu_model *m, const struct mu_bench_result *r,
                      double int8_gops)
{
    struct figures f = figures_of(a, m, r, int8_gops);
    json_t *doc = json_pack(
        "{s:s, s:s, s:s, s:i, s:i, s:i, s:i, s:i, s:i, s:s, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, "
        "s:f, s:f}",
        "version", MUSTER_VERSION, "model", a->o.path, "split", a->split, "ranks", a->o.split.n_rank,
        "threads_per_rank", a->o.n_thread, "prompt_tokens", a->o.n_prompt, "decode_tokens", a->o.n_decode, "streams",
        a->o.n_stream, "repeats", a->o.n_repeat, "kernels", mu_kernels()->name, "prompt_tokens_per_s", f.prompt_tps,
        "decode_tokens_per_s", f.decode_tps, "prompt_s", r->prompt_s, "prompt_min_s", r->prompt_min_s, "decode_s",
        r->decode_s, "decode_min_s", r->decode_min_s, "load_s", r->load_s, "decode_gbps", f.decode_gbps, "prompt_gops",
        f.prompt_gops, "machine_read_gbps", r->read_gbps, "machine_int8_gops", int8_gops, "decode_of_read",
        r->decode_of_read, "prompt_of_int8", f.int8_fraction);
    int bad = !doc || json_dumpf(doc, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(6));
    json_decref(doc);
    putchar('\n');
    return bad;
}

int mu_cmd_bench(int argc, char **argv)
{
    static const struct argp_option options[] = {
        {"prompt", 'p', "N", 0, "tokens of the prompt (512)", 0},
        {"decode", 'n', "N", 0, "decode steps (128)", 0},
        {"threads", 't', "N", 0, "threads a rank (the cores, shared out)", 0},
        {"streams", 'b', "N", 0, "sequences decoded at once (1)", 0},
        {"depth", OPT_DEPTH, "N", 0, "tokens of context before decoding (0)", 0},
        {"repeat", 'r', "N", 0, "repeats; the median is told (5)", 0},
        {"split", 's', "S", 0, "split over ranks (1)", 0},
        {"transport", OPT_TRANSPORT, "T", 0, "mpi: a process a rank; local: threads (mpi)", 0},
        {"output", 'o', "FORMAT", 0, "table or json (table)", 0},
        MU_QUANTIZE_OPTION(0),
        MU_KV_OPTION(0),
        {0},
    };
    static const struct argp argp = {
        options,
        parse,
        "MODEL",
        "Measures prompt and decode speed, and both as fractions of what this machine's memory and int8 arithmetic "
        "reach in the same minutes."
        "\vExamples:\n"
        "  muster synth --type Q4_0 --out 1b.gguf && muster bench 1b.gguf -p 512 -n 128 -t 2\n"
        "  muster bench 1b.gguf -t 1 --split 1:1\n"
        "  muster bench 1b.gguf -b 32 -o json\n",
        0,
        0,
        0};
    struct bench_args a = {
        .o = {.n_prompt = 512, .n_decode = 128, .n_stream = 1, .n_repeat = 5}, .split = "1", .transport = "mpi"};
    argp_parse(&argp, argc, argv, 0, 0, &a);

    struct mu_err err = MU_ERR_INIT;
    struct mu_bench_result r;
    double int8_gops = 0;
    struct mu_model *model = NULL;
    struct mu_store_model *found = NULL;
    enum mu_status st;
    MU_TRY(st, mu_kernels_init(NULL, &err), done);
    MU_TRY(st, mu_split_parse(a.split, &a.o.split, &err), done);
    if (!a.o.n_thread) a.o.n_thread = mu_default_threads(a.o.split.n_rank);
    const char *result_path = getenv("MUSTER_BENCH_RANK");
    if (result_path) return rank_main(&a, result_path);

    MU_TRY(st, mu_store_find(a.o.path, &found, &err), done);
    a.o.path = found->path; /* ranks get it as it is */
    MU_TRY(st, mu_model_open(a.o.path, &model, &err), done);
    if (a.o.n_thread > MAX_THREADS / a.o.split.n_rank) {
        st = mu_fail(&err, MU_EINVAL, "%d threads on each of %d ranks are more than %d", a.o.n_thread, a.o.split.n_rank,
                     MAX_THREADS);
        goto done;
    }
    int total = a.o.n_thread * a.o.split.n_rank;
    MU_TRY(st, measure_int8(total, &int8_gops, &err), done);
    if (a.o.split.n_rank > 1 && !strcmp(a.transport, "mpi"))
        st = run_mpi(&a, &r, &err);
    else
        st = mu_bench_local(&a.o, &r, &err);
    if (!st) st = measure_int8(total, &int8_gops, &err);
    if (st) goto done;
    if (a.json)
        st = print_json(&a, model, &r, int8_gops) ? mu_fail(&err, MU_ENOMEM, "no memory to print the result") : MU_OK;
    else
        print_table(&a, model, &r, int8_gops);
done:
    mu_model_close(model);
    mu_store_model_free(found);
    return st ? mu_cli_fail("bench", &err) : MU_EXIT_OK;
}
