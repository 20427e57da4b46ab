/* Weights that outlive a process: packed once, mapped afterwards, never used where anything about them is in doubt. */
#include "forward_util.h"

#include <fcntl.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "base/alloc.h"
#include "base/bytes.h"
#include "kernels/kernels.h"
#include "model/synth.h"
#include "shard/parts.h"

enum { N_TOK = 5, N_VOCAB = 300, PAGE = 4096, CHECK = sizeof(uint64_t) };

static char path[300];
static struct mu_model *model;
static struct mu_pool *pool;
static float want[N_VOCAB];

/* One rank of a split; its logits where it is the only one. */
static struct mu_shard *shard_of(const struct mu_model *m, const char *split, int rank, int fd,
                                 void (*progress)(uint64_t, uint64_t, void *))
{
    static struct mu_plan plan;
    struct mu_split parsed;
    struct mu_shard *s = NULL;
    MUST(mu_split_parse(split, &parsed, err));
    MUST(mu_plan_build(m, &parsed, &plan, err));
    struct mu_shard_options opt = {.model = m,
                                   .plan = &plan,
                                   .rank = rank,
                                   .pool = pool,
                                   .serving = {.n_ctx = 64, .n_slot = 1, .n_page = 2, .step_tokens = 8},
                                   .load_progress = progress,
                                   .kept_fd = fd};
    MUST(mu_shard_create(&opt, &s, err));
    return s;
}

static void logits_of(struct mu_shard *s, float *out)
{
    struct mu_step *step = NULL;
    struct mu_step_result result;
    MUST(mu_step_create(&s->serving, s->cfg.n_vocab, &step, err));
    step->number = 1;
    step->n_page = 1;
    step->page[0] = (struct mu_step_page){0, 0};
    step->n_seq = 1;
    step->n_tok = N_TOK;
    step->seq[0] = (struct mu_step_seq){.n_tok = N_TOK, .out = MU_OUT_LOGITS};
    for (int i = 0; i < N_TOK; i++) step->ids[i] = 3 * i + 1;
    MUST(mu_shard_step(s, step, &result, err));
    memcpy(out, result.logits, N_VOCAB * sizeof *out);
    mu_free(step);
}

/* Creates a rank with this memory; whether it found it complete. Its logits must be right in any case. */
static bool found(int fd)
{
    float got[N_VOCAB];
    struct mu_shard *s = shard_of(model, "1", 0, fd, NULL);
    bool full = s->kept_full;
    logits_of(s, got);
    assert_memory_equal(got, want, sizeof want);
    mu_shard_destroy(s);
    return full;
}

static int memory(void)
{
    int fd = memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    assert_true(fd > 0);
    return fd;
}

static bool sealed(int fd)
{
    return fcntl(fd, F_GET_SEALS) & F_SEAL_WRITE;
}

static void seal(int fd, int seals)
{
    assert_int_equal(fcntl(fd, F_ADD_SEALS, seals), 0);
}

/* The bytes of a complete memory. */
static uint8_t *content(size_t *n_out)
{
    struct stat sb;
    int fd = memory();
    assert_false(found(fd));
    assert_int_equal(fstat(fd, &sb), 0);
    *n_out = (size_t)sb.st_size;
    uint8_t *p = malloc(*n_out);
    assert_int_equal(pread(fd, p, *n_out, 0), sb.st_size);
    close(fd);
    return p;
}

static int memory_of(const uint8_t *p, size_t n, int seals)
{
    int fd = memory();
    assert_int_equal(write(fd, p, n), (ssize_t)n);
    if (seals) seal(fd, seals);
    return fd;
}

enum { ALL_SEALS = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL };

static void test_once(void **state)
{
    (void)state;
    int fd = memory();
    assert_false(found(fd));
    assert_true(sealed(fd));
    assert_true(found(fd));
    assert_true(found(fd));
    char byte = 0;
    assert_int_equal(pwrite(fd, &byte, 1, 0), -1); /* nobody can change it */
    assert_int_equal(ftruncate(fd, 0), -1);
    assert_true(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) == MAP_FAILED);
    close(fd);
}

/* A header that is not, in every byte, what this rank would write: damaged, or whole and of something else. */
static void test_tampered(void **state)
{
    (void)state;
    size_t n;
    uint8_t *p = content(&n), *header = p + n - PAGE;
    uint32_t header_bytes;
    memcpy(&header_bytes, header + 16, sizeof header_bytes);
    assert_true(header_bytes > 64 && header_bytes < PAGE);
    int fd = memory_of(p, n, ALL_SEALS);
    assert_true(found(fd)); /* a copy is as good */
    close(fd);
    for (int whole = 0; whole < 2; whole++) {
        for (uint32_t at = 0; at < header_bytes - (whole ? CHECK : 0); at += at < 96 ? 1 : 13) {
            uint8_t *copy = malloc(n);
            memcpy(copy, p, n);
            copy[n - PAGE + at] ^= 0x10;
            uint64_t check = mu_hash64(0, copy + n - PAGE, header_bytes - CHECK);
            if (whole) memcpy(copy + n - PAGE + header_bytes - CHECK, &check, sizeof check);
            fd = memory_of(copy, n, ALL_SEALS);
            if (found(fd)) fail_msg("byte %u of the header was changed, and nobody saw it", at);
            close(fd);
            free(copy);
        }
    }
    fd = memory_of(p, n - 1, ALL_SEALS); /* too short, too long, or not fixed */
    assert_false(found(fd));
    close(fd);
    uint8_t *more = calloc(1, n + PAGE);
    memcpy(more, p, n);
    fd = memory_of(more, n + PAGE, ALL_SEALS);
    assert_false(found(fd));
    close(fd);
    fd = memory_of(p, n, F_SEAL_WRITE);
    assert_false(found(fd));
    close(fd);
    free(more);
    free(p);
}

/* What is not sealed is packed again, whatever is in it. */
static void test_incomplete(void **state)
{
    (void)state;
    size_t n;
    uint8_t *p = content(&n);
    memset(p, 0x55, n / 2);
    int fd = memory_of(p, n, 0); /* a whole header, even */
    assert_false(found(fd));
    assert_true(found(fd));
    close(fd);
    free(p);
}

static void die(uint64_t done, uint64_t total, void *ctx)
{
    (void)ctx;
    if (done >= total / 4) _exit(done < total ? 7 : 8);
}

static void test_killed_while_packing(void **state)
{
    (void)state;
    struct stat sb;
    int fd = memory(), status;
    pid_t pid = fork();
    if (pid == 0) { /* the pool's threads stay behind: a pool of one */
        struct mu_pool_options one = {.n_threads = 1};
        if (mu_pool_create(&one, &pool, NULL) == MU_OK) shard_of(model, "1", 0, fd, die);
        _exit(9);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 7);
    assert_int_equal(fstat(fd, &sb), 0);
    assert_true(sb.st_blocks > 0);
    assert_false(sealed(fd));
    assert_false(found(fd));
    assert_true(found(fd));
    close(fd);
}

static bool found_by(const struct mu_model *m, const char *split, int rank, int fd)
{
    struct mu_shard *s = shard_of(m, split, rank, fd, NULL);
    bool full = s->kept_full;
    mu_shard_destroy(s);
    return full;
}

static void test_other_weights(void **state)
{
    (void)state;
    int fd = memory();
    assert_false(found(fd));
    assert_false(found_by(model, "1:1", 0, fd));
    assert_false(found_by(model, "1/1", 1, fd));
    struct mu_model *m = NULL;
    MUST(mu_model_open(path, &m, err));
    assert_true(found_by(m, "1", 0, fd)); /* the same file, opened again */
    mu_model_close(m);
    MUST(mu_model_open(path, &m, err));
    MUST(mu_model_quantize(m, "q8_0", err));
    assert_false(found_by(m, "1", 0, fd));
    mu_model_close(m);
    const struct timespec times[2] = {{.tv_sec = 1000000000}, {.tv_sec = 1000000000}};
    assert_int_equal(utimensat(AT_FDCWD, path, times, 0), 0); /* changed in place */
    MUST(mu_model_open(path, &m, err));
    assert_false(found_by(m, "1", 0, fd));
    mu_model_close(m);
    const char *best = mu_kernels()->name;
    if (strcmp(best, "ref") != 0) {
        MUST(mu_kernels_init("ref", err));
        assert_false(found_by(model, "1", 0, fd));
        MUST(mu_kernels_init(best, err));
    }
    assert_true(found(fd));
    close(fd);
}

static void test_no_memory_of_that_kind(void **state)
{
    (void)state;
    char name[320];
    int ends[2];
    snprintf(name, sizeof name, "%s.file", path);
    int fd = open(name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    assert_true(fd > 0);
    unlink(name);
    assert_false(found(fd)); /* F_SEAL_SEAL or no seals at all, as the file system likes */
    assert_false(found(fd));
    close(fd);
    assert_int_equal(pipe(ends), 0);
    assert_false(found(ends[0]));
    close(ends[0]);
    close(ends[1]);
    fd = memfd_create("test", MFD_CLOEXEC); /* cannot be sealed: good once */
    assert_false(found(fd));
    assert_false(found(fd));
    close(fd);
}

static void test_memory_runs_out(void **state)
{
    (void)state;
    static struct mu_plan plan;
    struct mu_split parsed;
    MUST(mu_split_parse("1", &parsed, err));
    MUST(mu_plan_build(model, &parsed, &plan, err));
    for (int round = 0; round < 2; round++) {
        int fd = memory();
        if (round == 1) found(fd); /* once while it is packed, once while it is found */
        for (long n = 1;; n++) {
            struct mu_shard *s = NULL;
            struct mu_err err = MU_ERR_INIT;
            struct mu_shard_options opt = {.model = model,
                                           .plan = &plan,
                                           .pool = pool,
                                           .serving = {.n_ctx = 64, .n_slot = 1, .n_page = 2, .step_tokens = 8},
                                           .kept_fd = fd};
            mu_alloc_fail_at(n);
            enum mu_status st = mu_shard_create(&opt, &s, &err);
            bool over = mu_alloc_fail_at(0) < n;
            if (st == MU_OK) mu_shard_destroy(s);
            if (st != MU_OK) assert_int_equal(st, MU_ENOMEM);
            if (over) break;
        }
        assert_true(found(fd));
        close(fd);
    }
}

static int setup(void **state)
{
    (void)state;
    const struct mu_synth spec = {.arch = "llama",
                                  .n_layer = 2,
                                  .n_head = 4,
                                  .n_kv_head = 2,
                                  .d_head = 32,
                                  .d_model = 256,
                                  .d_ff = 512,
                                  .n_vocab = N_VOCAB,
                                  .n_ctx = 256,
                                  .rope_freq_base = 10000,
                                  .type = MU_F16,
                                  .output_type = MU_F16,
                                  .seed = 6};
    const char *tmp = getenv("TMPDIR");
    struct mu_pool_options two = {.n_threads = 2};
    snprintf(path, sizeof path, "%s/muster-kept-%d.gguf", tmp ? tmp : "/tmp", (int)getpid());
    MUST(mu_kernels_init(NULL, err));
    MUST(mu_synth_write(&spec, path, NULL, NULL, err));
    MUST(mu_model_open(path, &model, err));
    MUST(mu_pool_create(&two, &pool, err));
    struct mu_shard *s = shard_of(model, "1", 0, 0, NULL);
    logits_of(s, want);
    mu_shard_destroy(s);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    mu_pool_destroy(pool);
    mu_model_close(model);
    unlink(path);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_once),
        cmocka_unit_test(test_tampered),
        cmocka_unit_test(test_incomplete),
        cmocka_unit_test(test_killed_while_packing),
        cmocka_unit_test(test_no_memory_of_that_kind),
        cmocka_unit_test(test_memory_runs_out),
        cmocka_unit_test(test_other_weights),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
