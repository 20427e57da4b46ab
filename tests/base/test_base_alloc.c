/* Memory: alignment, overflow, and the sweep that fails every allocation of base/ in turn. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/alloc.h"
#include "base/arena.h"
#include "base/bytes.h"
#include "base/io.h"
#include "base/pool.h"
#include "base/queue.h"
#include "base/topo.h"

static void products_are_checked(void **state)
{
    (void)state;
    size_t v = 42;
    assert_true(mu_mul_size(6, 7, &v) && v == 42);
    assert_false(mu_mul_size(SIZE_MAX / 2, 3, &v));
    assert_false(mu_add_size(SIZE_MAX, 1, &v));
    assert_int_equal(v, 42);
    assert_true(mu_add_size(SIZE_MAX, 0, &v) && v == SIZE_MAX);
    assert_null(mu_calloc(SIZE_MAX / 2, 3));
    assert_null(mu_reallocarray(NULL, SIZE_MAX / 2, 3));
    assert_null(mu_pages_alloc(SIZE_MAX));
    assert_null(mu_pages_alloc(SIZE_MAX - (4 << 20)));
}

static void zero_bytes_are_memory_too(void **state)
{
    (void)state;
    void *p[] = {mu_malloc(0), mu_calloc(0, 8), mu_aligned_alloc(64, 0), mu_reallocarray(NULL, 0, 8)};
    for (int i = 0; i < 4; i++) {
        assert_non_null(p[i]);
        p[i] = mu_reallocarray(p[i], 0, 4);
        assert_non_null(p[i]);
        mu_free(p[i]);
    }
    mu_free(NULL);
}

static void strings(void **state)
{
    (void)state;
    char *a = mu_strdup("weights"), *b = mu_strndup("weights", 3), *c = mu_asprintf("%s-%05d", "x", 42);
    assert_string_equal(a, "weights");
    assert_string_equal(b, "wei");
    assert_string_equal(c, "x-00042");
    mu_free(a), mu_free(b), mu_free(c);
}

static void alignment(void **state)
{
    (void)state;
    for (size_t align = sizeof(void *); align <= 8192; align *= 2) {
        char *p = mu_aligned_alloc(align, 100);
        assert_non_null(p);
        assert_int_equal((uintptr_t)p % align, 0);
        memset(p, 1, 100);
        mu_free(p);
    }
    static const size_t sizes[] = {1, 4096, 5000, (2 << 20) - 1, 2 << 20, (5 << 20) + 7};
    for (int i = 0; i < 6; i++) {
        char *p = mu_pages_alloc(sizes[i]);
        assert_non_null(p);
        assert_int_equal((uintptr_t)p % (2 << 20), 0);
        assert_int_equal(p[0] | p[sizes[i] / 2] | p[sizes[i] - 1], 0);
        memset(p, 1, sizes[i]);
        mu_pages_free(p, sizes[i]);
    }
    mu_pages_free(NULL, 100);
}

static void the_nth_fails_once(void **state)
{
    (void)state;
    mu_alloc_fail_at(3);
    void *p[5] = {mu_malloc(8), mu_calloc(1, 8), mu_aligned_alloc(16, 8), mu_pages_alloc(8),
                  mu_reallocarray(NULL, 1, 8)};
    assert_int_equal(mu_alloc_fail_at(0), 5);
    for (int i = 0; i < 5; i++) assert_int_equal(p[i] == NULL, i == 2);
    mu_pages_free(p[3], 8);
    mu_free(p[0]), mu_free(p[1]), mu_free(p[4]);
    assert_int_equal(mu_alloc_fail_at(0), 0);
}

static void *allocate_1000(void *failures)
{
    for (int i = 0; i < 1000; i++) {
        void *p = mu_malloc(16);
        if (!p) atomic_fetch_add((atomic_int *)failures, 1);
        mu_free(p);
    }
    return NULL;
}

static void one_of_many_threads_fails(void **state)
{
    (void)state;
    atomic_int failures = 0;
    pthread_t threads[4];
    mu_alloc_fail_at(2500);
    for (int i = 0; i < 4; i++) assert_int_equal(pthread_create(&threads[i], NULL, allocate_1000, &failures), 0);
    for (int i = 0; i < 4; i++) pthread_join(threads[i], NULL);
    assert_int_equal(mu_alloc_fail_at(0), 4000);
    assert_int_equal(failures, 1);
}

static void do_nothing(void *arg, int member, int n)
{
    (void)arg, (void)member, (void)n;
}

/* Everything of base/ that allocates, once. MU_OK, or the first error; nothing stays allocated either way. */
static enum mu_status scenario(const char *dir, struct mu_err *err)
{
    enum mu_status st;
    struct mu_queue *q = NULL;
    struct mu_pool *pool = NULL;
    struct mu_file_writer *w = NULL;
    struct mu_topo *topo = NULL;
    char *run_dir = NULL, *path = NULL, *data = NULL;
    size_t len;
    struct mu_writer bytes;
    mu_writer_init(&bytes, 1 << 20);
    struct mu_arena *arena = mu_arena_create(0);
    if (!arena || !mu_arena_alloc(arena, 100) || !mu_arena_calloc(arena, 100, 100) ||
        !mu_arena_strndup(arena, "x", 1)) {
        st = mu_fail(err, MU_ENOMEM, "arena");
        goto fail;
    }
    for (int i = 0; i < 200; i++) mu_write_u64(&bytes, 1);
    if (!bytes.ok) {
        st = mu_fail(err, MU_ENOMEM, "writer");
        goto fail;
    }
    MU_TRY(st, mu_queue_create(4, &q, err), fail);
    struct mu_pool_options opt = {.n_threads = 2, .pin = 1};
    MU_TRY(st, mu_pool_create(&opt, &pool, err), fail);
    mu_pool_run(pool, do_nothing, NULL);
    MU_TRY(st, mu_run_dir_create(&run_dir, err), fail);
    path = mu_asprintf("%s/file", dir);
    if (!path) {
        st = mu_fail(err, MU_ENOMEM, "path");
        goto fail;
    }
    MU_TRY(st, mu_file_writer_open(path, &w, err), fail);
    MU_TRY(st, mu_file_writer_write(w, bytes.data, bytes.len, err), fail);
    struct mu_file_writer *closing = w;
    w = NULL;
    MU_TRY(st, mu_file_writer_close(closing, 1, err), fail);
    MU_TRY(st, mu_file_read(path, 1 << 20, &data, &len, err), fail);
    assert_int_equal(len, 1600);
    topo = mu_malloc(sizeof *topo);
    st = topo ? mu_topo_read(topo, err) : mu_fail(err, MU_ENOMEM, "topo");
fail:
    mu_free(topo);
    mu_free(data);
    mu_file_writer_close(w, 0, NULL);
    mu_free(path);
    mu_run_dir_remove(run_dir);
    mu_free(run_dir);
    mu_pool_destroy(pool);
    mu_queue_destroy(q, NULL);
    mu_writer_free(&bytes);
    mu_arena_destroy(arena);
    return st;
}

/* Some allocations are benign to lose: a control group's file that cannot be read limits nothing, and a folder that
 * cannot be synced is only less durable. So success is allowed in the sweep; any error but ENOMEM is not. */
static void sweep(void **state)
{
    (void)state;
    struct mu_err err = MU_ERR_INIT;
    char *dir;
    assert_int_equal(mu_run_dir_create(&dir, &err), MU_OK);
    mu_alloc_fail_at(0);
    assert_int_equal(scenario(dir, &err), MU_OK);
    long n_alloc = mu_alloc_fail_at(0);
    assert_true(n_alloc > 15);
    int n_failed = 0;
    for (long n = 1; n <= n_alloc; n++) {
        mu_alloc_fail_at(n);
        enum mu_status st = scenario(dir, &err);
        mu_alloc_fail_at(0);
        assert_true(st == MU_OK || st == MU_ENOMEM);
        n_failed += st == MU_ENOMEM;
    }
    assert_true(n_failed >= 15);
    assert_int_equal(scenario(dir, &err), MU_OK);
    mu_run_dir_remove(dir);
    mu_free(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(products_are_checked),
        cmocka_unit_test(zero_bytes_are_memory_too),
        cmocka_unit_test(strings),
        cmocka_unit_test(alignment),
        cmocka_unit_test(the_nth_fails_once),
        cmocka_unit_test(one_of_many_threads_fails),
        cmocka_unit_test(sweep),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
