/* Ranks on devices that cannot be: each ends in one clear sentence, and nothing is lost. The device is the host. */
#include "ways_util.h"

#include "base/pool.h"
#include "shard/device.h"
#include "tests/stubs/device_host.h"

static struct mu_model *toy(void)
{
    struct mu_synth spec = odd_llama(1);
    return synth_open(&spec);
}

static enum mu_status open_as(const struct mu_model *m, const char *split, struct mu_err *why)
{
    struct mu_solo *solo = NULL;
    struct mu_solo_options opt = {.model = m, .n_thread = 2, .serving = {.n_ctx = 64, .n_slot = 2, .step_tokens = 16}};
    MUST(mu_split_parse(split, &opt.split, err));
    enum mu_status st = mu_solo_open(&opt, &solo, why);
    if (st != MU_OK) assert_null(solo);
    mu_solo_close(solo);
    return st;
}

static void must_say(const struct mu_err *why, const char *words)
{
    if (!strstr(why->text, words)) fail_msg("'%s' does not say '%s'", why->text, words);
}

static void test_no_such_gpu(void **state)
{
    (void)state;
    struct mu_model *m = toy();
    struct mu_err why = MU_ERR_INIT;
    assert_int_equal(open_as(m, "1/1@gpu7", &why), MU_EINVAL);
    must_say(&why, "rank 1 is to compute on GPU 7, but this machine has 2");
    mu_model_close(m);
}

/* With MUSTER_DEVICE_PLUGIN=none. */
static void test_no_plugin(void **state)
{
    (void)state;
    struct mu_model *m = toy();
    struct mu_err why = MU_ERR_INIT;
    assert_int_not_equal(open_as(m, "1:1@gpu0", &why), MU_OK);
    must_say(&why, "rank 1 is to compute on GPU 0: ");
    must_say(&why, "MUSTER_DEVICE_PLUGIN");
    mu_model_close(m);
}

/* A device that is a little too small at every step of the start: which memory, how much, and how much there was. Then
 * as much as was planned is enough, and what was planned is what is taken. */
static void check_small(const struct mu_model *m, const char *text_of_split)
{
    struct mu_split split;
    struct mu_plan plan;
    struct mu_rank_memory memory;
    const struct mu_serving serving = {.n_ctx = 64, .n_slot = 2, .n_page = 4, .step_tokens = 16, .n_thread = 2};
    MUST(mu_split_parse(text_of_split, &split, err));
    MUST(mu_plan_build(m, &split, &plan, err));
    mu_plan_memory(m, &plan, 0, &serving, &memory);
    size_t whole = memory.weights + memory.kv + memory.scratch, least = 0;
    assert_true(memory.kv > 0 && memory.weights > 0 && memory.scratch > 0 && memory.host > m->embed->bytes);
    unsigned seen = 0;
    for (size_t bytes = whole / 64; least == 0; bytes += whole / 64) {
        char text[32];
        struct mu_err why = MU_ERR_INIT;
        snprintf(text, sizeof text, "%zu", bytes);
        setenv("MUSTER_DEVICE_HOST_MEMORY", text, 1);
        enum mu_status st = open_as(m, text_of_split, &why);
        if (st == MU_OK) {
            least = bytes;
            break;
        }
        assert_int_equal(st, MU_ENOMEM);
        must_say(&why, "no memory on GPU 0");
        must_say(&why, "MB are free");
        seen |= strstr(why.text, "KV pages")  ? 1
                : strstr(why.text, "scratch") ? 2
                : strstr(why.text, "weights") ? 4
                                              : 8;
        assert_true(bytes < 4 * whole);
    }
    unsetenv("MUSTER_DEVICE_HOST_MEMORY");
    assert_int_equal(seen & 7, 7);
    if (!(least <= whole + whole / 16)) fail_msg("%zu bytes are needed, but %zu planned", least, whole);
}

static void test_small_device(void **state)
{
    (void)state;
    struct mu_synth spec = odd_llama(1);
    struct mu_model *m = toy();
    check_small(m, "1@gpu0");
    mu_model_close(m);
    spec.n_layer = 5;
    m = synth_open(&spec);
    check_small(m, "1@gpu0~4");
    mu_model_close(m);
}

static void test_no_memory(void **state)
{
    (void)state;
    struct mu_model *m = toy();
    for (long n = 1;; n++) {
        struct mu_err why = MU_ERR_INIT;
        mu_alloc_fail_at(n);
        enum mu_status st = open_as(m, "1@gpu0~2:1", &why);
        mu_alloc_fail_at(0);
        if (st == MU_OK && n > 20) break;
        if (st != MU_OK && st != MU_ENOMEM) fail_msg("allocation %ld: %s", n, why.text);
        assert_true(n < 1000);
    }
    mu_model_close(m);
}

/* A scale of a matrix in the middle is not finite. */
static void test_bad_weight(void **state)
{
    (void)state;
    struct mu_synth spec = odd_llama(1);
    struct mu_model *m = synth_open(&spec);
    const struct mu_gguf_tensor *t = m->layer[1][MU_T_DOWN];
    struct mu_gguf_tensor bad = *t;
    struct mu_err why = MU_ERR_INIT;
    uint8_t *data = malloc(t->bytes);
    memcpy(data, t->data, t->bytes);
    size_t at = t->row_bytes * (size_t)(t->n_row / 2);
    data[at] = 0; /* an infinity, as an f16 */
    data[at + 1] = 0x7c;
    bad.data = data;
    m->layer[1][MU_T_DOWN] = &bad;
    assert_int_equal(open_as(m, "1@gpu0", &why), MU_EFORMAT);
    must_say(&why, "blk.1.ffn_down.weight");
    must_say(&why, "not finite");
    assert_int_equal(open_as(m, "1:1@gpu0", &why), MU_EFORMAT); /* half of the rows each, and row 0 of its half */
    must_say(&why, "blk.1.ffn_down.weight");
    assert_int_equal(open_as(m, "1@gpu0~2", &why), MU_EFORMAT);
    must_say(&why, "blk.1.ffn_down.weight");
    free(data);
    mu_model_close(m);
}

/* ---- a device that lacks pinned memory, or stops ---- */

static struct mu_device_ops slow;

/* A rank of its own on the host as a device, whose table the test may change. plan and pool are the caller's. */
static struct mu_shard_options options_of(const struct mu_model *m, const char *text, struct mu_plan *plan,
                                          struct mu_pool **pool)
{
    struct mu_split split;
    MUST(mu_split_parse(text, &split, err));
    MUST(mu_plan_build(m, &split, plan, err));
    MUST(mu_pool_create(&(struct mu_pool_options){.n_threads = 1}, pool, err));
    slow = *mu_device_host_ops();
    return (struct mu_shard_options){
        .model = m,
        .plan = plan,
        .serving = {.n_ctx = 64, .n_slot = 2, .n_page = 4, .step_tokens = 16, .n_thread = 1},
        .pool = *pool,
        .device_ops = &slow};
}

static bool stuck;

static enum mu_status slow_wait(struct mu_device *d, int mark, int timeout_ms, const char *what, struct mu_err *err)
{
    if (stuck) return mu_fail(err, MU_ETIMEOUT, "%s was not done within %d ms", what, timeout_ms);
    return mu_device_host_ops()->wait(d, mark, timeout_ms, what, err);
}

/* As on a GPU, where freeing waits for the queue's end. */
static void slow_free(struct mu_device *d, void *p)
{
    assert_false(stuck);
    mu_device_host_ops()->free(d, p);
}

static void slow_free_host(struct mu_device *d, void *p)
{
    assert_false(stuck);
    mu_device_host_ops()->free_host(d, p);
}

static size_t most_pinned;
static enum mu_status little_pinned(struct mu_device *d, size_t bytes, void **p_out, struct mu_err *err)
{
    if (bytes > most_pinned) return mu_fail(err, MU_ENOMEM, "%zu bytes of pinned memory", bytes);
    return mu_device_host_ops()->alloc_host(d, bytes, p_out, err);
}

static void test_little_pinned(void **state)
{
    (void)state;
    struct mu_model *m = toy();
    struct mu_pool *pool = NULL;
    struct mu_shard *shard = NULL;
    struct mu_plan plan;
    unsigned seen = 0;
    struct mu_shard_options opt = options_of(m, "1@gpu1~2", &plan, &pool);
    slow.alloc_host = little_pinned;
    for (most_pinned = 1024; !shard; most_pinned += most_pinned / 8) {
        struct mu_err why = MU_ERR_INIT;
        enum mu_status st = mu_shard_create(&opt, &shard, &why);
        if (st == MU_OK) break;
        assert_int_equal(st, MU_ENOMEM);
        must_say(&why, "no pinned memory ");
        seen |= strstr(why.text, "for steps of 16 tokens")                      ? 1
                : strstr(why.text, "for the 2 layers that rank 0 is to stream") ? 2
                                                                                : 4;
    }
    assert_true(seen & 1 && seen & 2);
    mu_shard_destroy(shard);
    mu_pool_destroy(pool);
    mu_model_close(m);
}

static void test_stuck(void **state)
{
    (void)state;
    struct mu_model *m = toy();
    struct mu_pool *pool = NULL;
    struct mu_shard *shard = NULL;
    struct mu_plan plan;
    struct mu_step *step = NULL;
    struct mu_step_result result;
    struct mu_err why = MU_ERR_INIT;
    struct mu_shard_options opt = options_of(m, "1@gpu1", &plan, &pool);
    opt.device_timeout_ms = 1234;
    slow.wait = slow_wait;
    slow.free = slow_free;
    slow.free_host = slow_free_host;
    stuck = true;
    assert_int_equal(mu_shard_create(&opt, &shard, &why), MU_ETIMEOUT);
    must_say(&why, "rank 0 on GPU 1: weights was not done within 1234 ms");
    stuck = false;
    MUST(mu_shard_create(&opt, &shard, err));
    MUST(mu_step_create(&opt.serving, m->cfg.n_vocab, &step, err));
    step->number = step->n_page = step->n_seq = step->n_tok = 1;
    step->page[0] = (struct mu_step_page){0, 0};
    step->seq[0] = (struct mu_step_seq){.n_tok = 1, .out = MU_OUT_SAMPLE};
    stuck = true;
    assert_int_equal(mu_shard_step(shard, step, &result, &why), MU_ETIMEOUT);
    must_say(&why, "rank 0 on GPU 1: the forward pass was not done within 1234 ms");
    stuck = false;
    mu_shard_destroy(shard);
    mu_free(step);
    mu_pool_destroy(pool);
    mu_model_close(m);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_no_such_gpu),   cmocka_unit_test(test_small_device),
                                       cmocka_unit_test(test_no_memory),     cmocka_unit_test(test_bad_weight),
                                       cmocka_unit_test(test_little_pinned), cmocka_unit_test(test_stuck)};
    const struct CMUnitTest none[] = {cmocka_unit_test(test_no_plugin)};
    (void)argv;
    return argc > 1 ? cmocka_run_group_tests(none, NULL, NULL) : cmocka_run_group_tests(tests, NULL, NULL);
}
