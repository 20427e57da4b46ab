/* How long the worker keeps what ranks packed: as long as it is asked for the same, a draft model's place included. */
#include "tests/shard/model_util.h"

#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>

#include "worker/kept.h"

enum { N_RANK = 3, BYTES = 8192 };

static struct mu_model *model, *small, *other;
static struct mu_kept kept;

static struct mu_model *model_make(uint64_t seed)
{
    const struct mu_synth spec = {.n_layer = 1,
                                  .n_head = 2,
                                  .n_kv_head = 1,
                                  .d_head = 32,
                                  .d_model = 64,
                                  .d_ff = 64,
                                  .n_vocab = 300,
                                  .n_ctx = 64,
                                  .rope_freq_base = 10000,
                                  .type = MU_Q8_0,
                                  .output_type = MU_Q8_0,
                                  .tied = 1,
                                  .seed = seed};
    return synth_open(&spec);
}

static void prepare(const struct mu_model *draft)
{
    mu_kept_prepare(&kept, model, draft, "1:1:1", "", N_RANK);
}

/* As the ranks and the leader would: all packed. */
static void pack_all(void)
{
    static const char page[BYTES];
    for (int i = 0; i < kept.n_fd; i++) {
        assert_int_equal(pwrite(kept.fd[i], page, BYTES, 0), BYTES);
        assert_int_equal(fcntl(kept.fd[i], F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW), 0);
    }
}

static bool is_open(int fd)
{
    return fcntl(fd, F_GETFD) >= 0;
}

static void test_without(void **state)
{
    (void)state;
    prepare(NULL);
    assert_int_equal(kept.n_fd, N_RANK);
    pack_all();
    assert_int_equal(mu_kept_bytes(&kept), N_RANK * BYTES);
    mu_kept_drop(&kept);
}

static void test_draft_stays(void **state)
{
    (void)state;
    prepare(small);
    assert_int_equal(kept.n_fd, N_RANK + 1);
    pack_all();
    const struct mu_kept before = kept;
    assert_int_equal(mu_kept_bytes(&kept), (N_RANK + 1) * BYTES);
    prepare(small);
    assert_memory_equal(kept.fd, before.fd, sizeof kept.fd[0] * (N_RANK + 1));
    assert_int_equal(mu_kept_bytes(&kept), (N_RANK + 1) * BYTES);
    mu_kept_drop(&kept);
    for (int i = 0; i <= N_RANK; i++) assert_false(is_open(before.fd[i]));
    assert_int_equal(mu_kept_bytes(&kept), 0);
}

/* The leader died while it packed the draft model: the ranks' weights need not go. */
static void test_draft_in_part(void **state)
{
    (void)state;
    static const char page[BYTES];
    prepare(small);
    int draft = kept.n_fd;
    kept.n_fd = N_RANK;
    pack_all();
    kept.n_fd = draft;
    assert_int_equal(pwrite(kept.fd[N_RANK], page, BYTES, 0), BYTES);
    prepare(small);
    assert_int_equal(mu_kept_bytes(&kept), N_RANK * BYTES);
    assert_int_equal(lseek(kept.fd[N_RANK], 0, SEEK_END), 0);
    mu_kept_drop(&kept);
}

static void test_another_draft(void **state)
{
    (void)state;
    const struct mu_model *const next[] = {other, NULL};
    for (int i = 0; i < 2; i++) {
        prepare(small);
        pack_all();
        prepare(next[i]);
        assert_int_equal(kept.n_fd, N_RANK + (next[i] != NULL));
        assert_int_equal(mu_kept_bytes(&kept), 0);
        mu_kept_drop(&kept);
    }
}

static void test_not_wanted(void **state)
{
    (void)state;
    setenv("MUSTER_KEEP_WEIGHTS", "0", 1);
    prepare(small);
    assert_int_equal(kept.n_fd, 0);
    unsetenv("MUSTER_KEEP_WEIGHTS");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_without),       cmocka_unit_test(test_draft_stays), cmocka_unit_test(test_draft_in_part),
        cmocka_unit_test(test_another_draft), cmocka_unit_test(test_not_wanted),
    };
    model = model_make(1);
    small = model_make(2);
    other = model_make(3);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    mu_model_close(model);
    mu_model_close(small);
    mu_model_close(other);
    return failed;
}
