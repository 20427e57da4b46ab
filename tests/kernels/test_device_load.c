/* Finding a plugin, and what runs on a device whatever its kernels: how devices are counted and refused, memory, marks,
 * deadlines, recordings. On the emulated device; every case in a process of its own, as a plugin is looked for once. */
#include "tests/kernels/child.h"

#include <pthread.h>
#include <stdlib.h>

#include "base/clock.h"
#include "kernels/device.h"

static void refused(const char *plugin, enum mu_status code, const char *words)
{
    struct mu_err err = MU_ERR_INIT;
    CHECK(setenv("MUSTER_DEVICE_PLUGIN", plugin, 1) == 0);
    CHECK(mu_device_load(&err) == NULL);
    CHECK(err.code == code);
    CHECK_SAYS(&err, words);
    /* Again: the same answer, whatever the variable is now. */
    struct mu_err again = MU_ERR_INIT;
    CHECK(unsetenv("MUSTER_DEVICE_PLUGIN") == 0);
    CHECK(mu_device_load(&again) == NULL && again.code == code && strcmp(again.text, err.text) == 0);
    CHECK(mu_device_load(NULL) == NULL);
}

static const struct mu_device_ops *emulated(void)
{
    struct mu_err err = MU_ERR_INIT;
    CHECK(setenv("MUSTER_DEVICE_PLUGIN", EMULATED, 1) == 0);
    const struct mu_device_ops *o = mu_device_load(&err);
    if (!o) fprintf(stderr, "%s\n", err.text);
    CHECK(o != NULL);
    return o;
}

static struct mu_device *opened(const struct mu_device_ops *o)
{
    struct mu_err err = MU_ERR_INIT;
    struct mu_device *d = NULL;
    if (o->open(0, &d, &err) != MU_OK) fprintf(stderr, "%s\n", err.text);
    CHECK(d != NULL);
    return d;
}

/* ---- loading ---- */

static void none(void)
{
    refused("none", MU_ENOENT, "MUSTER_DEVICE_PLUGIN is \"none\"");
}
static void missing(void)
{
    refused("/nowhere/libplugin.so", MU_ENOENT, "there is no GPU plugin /nowhere/libplugin.so");
}
static void no_library(void)
{
    refused("/proc/self/status", MU_EUNSUPPORTED, "does not load");
}
static void no_plugin(void)
{
    refused("libc.so.6", MU_EUNSUPPORTED, "has no muster_device_ops");
}
static void other_abi(void)
{
    char words[80];
    snprintf(words, sizeof words, "version %d of its interface, this program version %d", MU_DEVICE_ABI + 1,
             MU_DEVICE_ABI);
    refused(OTHER_ABI, MU_EUNSUPPORTED, words);
}

static void test_refused(void **state)
{
    (void)state;
    in_child(none);
    in_child(missing);
    in_child(no_library);
    in_child(no_plugin);
    in_child(other_abi);
}

static void *load_too(void *arg)
{
    struct mu_err err = MU_ERR_INIT;
    *(const struct mu_device_ops **)arg = mu_device_load(&err);
    return NULL;
}

static void by_many_threads(void)
{
    const struct mu_device_ops *got[8] = {0};
    pthread_t t[8];
    CHECK(setenv("MUSTER_DEVICE_PLUGIN", EMULATED, 1) == 0);
    for (int i = 0; i < 8; i++) CHECK(pthread_create(&t[i], NULL, load_too, &got[i]) == 0);
    for (int i = 0; i < 8; i++) CHECK(pthread_join(t[i], NULL) == 0);
    for (int i = 0; i < 8; i++) CHECK(got[i] && got[i] == got[0]);
    CHECK(strcmp(got[0]->name, "cuda") == 0);
}

static void test_threads(void **state)
{
    (void)state;
    in_child(by_many_threads);
}

/* What nvcc built: loads with or without a driver, and says which. */
static void real(void)
{
    struct mu_err err = MU_ERR_INIT;
    CHECK(setenv("MUSTER_DEVICE_PLUGIN", REAL, 1) == 0);
    const struct mu_device_ops *o = mu_device_load(&err);
    if (!o) fprintf(stderr, "%s\n", err.text);
    CHECK(o != NULL);
    int n = o->count(&err);
    if (n < 0) {
        CHECK(err.code == MU_EUNSUPPORTED);
        CHECK_SAYS(&err, "driver");
        struct mu_device *d;
        CHECK(o->open(0, &d, &err) == MU_EUNSUPPORTED);
    }
    fprintf(stderr, "the plugin counts %d GPUs %s\n", n, n < 0 ? err.text : "");
}

static void test_real(void **state)
{
    (void)state;
    if (!*REAL) skip(); /* no nvcc where this was built, or a sanitizer */
    in_child(real);
}

/* ---- devices ---- */

static void no_driver(void)
{
    struct mu_err err = MU_ERR_INIT;
    CHECK(setenv("MUSTER_CUDA_EMULATED_DRIVER", "0", 1) == 0);
    CHECK(emulated()->count(&err) == -1);
    CHECK_SAYS(&err, "no NVIDIA driver is installed");
}
static void old_driver(void)
{
    struct mu_err err = MU_ERR_INIT;
    struct mu_device *d;
    CHECK(setenv("MUSTER_CUDA_EMULATED_DRIVER", "12040", 1) == 0);
    CHECK(emulated()->count(&err) == -1);
    CHECK_SAYS(&err, "driver is one for CUDA 12.4 and this build needs CUDA 13.0");
    CHECK(emulated()->open(0, &d, &err) == MU_EUNSUPPORTED);
}
static void no_devices(void)
{
    struct mu_err err = MU_ERR_INIT;
    struct mu_device *d;
    CHECK(setenv("MUSTER_CUDA_EMULATED_DEVICES", "0", 1) == 0);
    CHECK(emulated()->count(&err) == 0);
    CHECK(emulated()->open(0, &d, &err) == MU_ENOENT);
    CHECK_SAYS(&err, "there is no GPU 0 here: there are 0");
}
static void old_device(void)
{
    struct mu_err err = MU_ERR_INIT;
    struct mu_device *d;
    CHECK(setenv("MUSTER_CUDA_EMULATED_CAPABILITY", "75", 1) == 0);
    CHECK(emulated()->open(0, &d, &err) == MU_EUNSUPPORTED);
    CHECK_SAYS(&err, "GPU 0 (Emulated GPU) has compute capability 7.5");
}
static void several(void)
{
    struct mu_err err = MU_ERR_INIT;
    struct mu_device_info info;
    struct mu_device *d[3];
    void *p[3];
    CHECK(setenv("MUSTER_CUDA_EMULATED_DEVICES", "3", 1) == 0);
    CHECK(setenv("MUSTER_CUDA_EMULATED_MEMORY", "2097152", 1) == 0);
    const struct mu_device_ops *o = emulated();
    CHECK(o->count(&err) == 3);
    for (int i = 0; i < 3; i++) {
        CHECK(o->open(i, &d[i], &err) == MU_OK);
        CHECK(o->alloc(d[i], 1000000, &p[i], &err) == MU_OK); /* each has memory of its own */
    }
    CHECK(o->info(2, &info, &err) == MU_OK);
    CHECK(strcmp(info.name, "Emulated GPU") == 0 && strcmp(info.pci, "0000:03:00.0") == 0);
    CHECK(info.free_bytes < 1097152 && info.free_bytes > 500000); /* an opened device needs some itself */
    CHECK(info.memory_bytes == 2097152 && info.capability == 90);
    CHECK(o->info(3, &info, &err) == MU_ENOENT);
    for (int i = 0; i < 3; i++) o->close(d[i]);
    CHECK(o->info(2, &info, &err) == MU_OK && info.free_bytes == 2097152);
}
static void measured(void)
{
    struct mu_err err = MU_ERR_INIT;
    struct mu_device_speed s = {0};
    const struct mu_device_ops *o = emulated();
    struct mu_device *d = opened(o);
    CHECK(o->measure(d, &s, &err) == MU_OK);
    CHECK(s.read_gbps > 0 && s.up_gbps > 0 && s.down_gbps > 0 && s.int8_gops > 0 && s.bf16_gops > 0 && s.f32_gops > 0);
    o->close(d);
}

static void test_devices(void **state)
{
    (void)state;
    in_child(no_driver);
    in_child(old_driver);
    in_child(no_devices);
    in_child(old_device);
    in_child(several);
    in_child(measured);
}

/* ---- memory ---- */

static void memory_full(void)
{
    struct mu_err err = MU_ERR_INIT;
    void *p = NULL, *all;
    CHECK(setenv("MUSTER_CUDA_EMULATED_MEMORY", "8388608", 1) == 0);
    const struct mu_device_ops *o = emulated();
    struct mu_device *d = opened(o);
    CHECK(o->alloc(d, 6 << 20, &all, &err) == MU_OK);
    CHECK(o->alloc(d, 3 << 20, &p, &err) == MU_ENOMEM && p == NULL);
    CHECK_SAYS(&err, "GPU 0 (Emulated GPU): no 3.0 MiB of memory: 1.5 of its 8.0 MiB are free");
    o->free(d, all);
    CHECK(o->alloc(d, 3 << 20, &p, &err) == MU_OK); /* the refusal has broken nothing */
    o->zero(d, p, 3 << 20);
    CHECK(o->wait(d, MU_DEVICE_MARKS, 1000, "it", &err) == MU_OK);
    o->free(d, NULL);
    o->close(d); /* with p */
}

static void moves(void)
{
    struct mu_err err = MU_ERR_INIT;
    const struct mu_device_ops *o = emulated();
    struct mu_device *d = opened(o);
    void *host, *a, *b;
    CHECK(o->alloc_host(d, 64, &host, &err) == MU_OK);
    CHECK(o->alloc(d, 32, &a, &err) == MU_OK && o->alloc(d, 32, &b, &err) == MU_OK);
    for (int i = 0; i < 32; i++) ((char *)host)[i] = (char)i;
    o->upload(d, a, host, 32);
    o->copy(d, b, a, 32);
    o->zero(d, (char *)b + 8, 8);
    o->download(d, (char *)host + 32, b, 32);
    CHECK(o->wait(d, MU_DEVICE_MARKS, 1000, "it", &err) == MU_OK);
    for (int i = 0; i < 32; i++) CHECK(((char *)host)[32 + i] == (i / 8 == 1 ? 0 : i));
    o->free_host(d, host);
    o->free(d, b);
    o->close(d);
}

static void test_memory(void **state)
{
    (void)state;
    in_child(memory_full);
    in_child(moves);
}

/* ---- the queue ---- */

static void marks(void)
{
    struct mu_err err = MU_ERR_INIT;
    const struct mu_device_ops *o = emulated();
    struct mu_device *d = opened(o);
    char *host;
    void *a;
    CHECK(o->alloc_host(d, 2, (void **)&host, &err) == MU_OK && o->alloc(d, 1, &a, &err) == MU_OK);
    host[0] = host[1] = 7;
    CHECK(o->test(d, 3) == 1); /* never set: nothing is before it */
    CHECK(setenv("MUSTER_CUDA_EMULATED_LATE", "1", 1) == 0);
    o->upload(d, a, host, 1);
    o->mark(d, 3);
    o->download(d, host + 1, a, 1);
    o->mark(d, MU_DEVICE_MARKS - 1);
    host[0] = 9; /* what a caller must not do: late as the queue is, it sees */
    CHECK(setenv("MUSTER_CUDA_EMULATED_STUCK", "1", 1) == 0);
    CHECK(o->test(d, 3) == 0 && o->test(d, MU_DEVICE_MARKS - 1) == 0 && o->test(d, MU_DEVICE_MARKS) == 0);
    int64_t start = mu_now_ns();
    CHECK(o->wait(d, 3, 50, "layer 5", &err) == MU_ETIMEOUT);
    CHECK(mu_now_ns() - start >= 50 * MU_MS && mu_now_ns() - start < 5 * MU_SEC);
    CHECK_SAYS(&err, "GPU 0 (Emulated GPU) is not done with layer 5 after 0.1 s");
    CHECK(host[1] == 7);
    CHECK(unsetenv("MUSTER_CUDA_EMULATED_STUCK") == 0);
    CHECK(o->wait(d, 3, 1000, "layer 5", &err) == MU_OK); /* a deadline alone breaks nothing */
    CHECK(o->wait(d, MU_DEVICE_MARKS, 1000, "the rest", &err) == MU_OK);
    CHECK(host[1] == 9 && o->test(d, MU_DEVICE_MARKS - 1) == 1);
    o->close(d);
}

/* Stuck for good: close comes back. */
static void stuck(void)
{
    struct mu_err err = MU_ERR_INIT;
    const struct mu_device_ops *o = emulated();
    struct mu_device *d = opened(o);
    void *a;
    CHECK(o->alloc(d, 100, &a, &err) == MU_OK);
    CHECK(setenv("MUSTER_CUDA_EMULATED_STUCK", "1", 1) == 0);
    o->zero(d, a, 100);
    o->close(d);
}

/* A kernel fails: the next wait says in what, and so do all later ones; close still works. */
static void failing(void)
{
    struct mu_err err = MU_ERR_INIT;
    struct mu_device_speed s;
    const struct mu_device_ops *o = emulated();
    struct mu_device *d = opened(o);
    void *a;
    CHECK(setenv("MUSTER_CUDA_EMULATED_FAULT", "1", 1) == 0);
    CHECK(o->measure(d, &s, &err) == MU_EINTERNAL);
    CHECK_SAYS(&err, "GPU 0 (Emulated GPU): ");
    CHECK_SAYS(&err, "unspecified launch failure (cudaErrorLaunchFailure)");
    CHECK(unsetenv("MUSTER_CUDA_EMULATED_FAULT") == 0);
    CHECK(o->test(d, 0) == -1);
    CHECK(o->wait(d, 0, 1000, "it", &err) == MU_EINTERNAL);
    CHECK(o->alloc(d, 8, &a, &err) == MU_EINTERNAL);
    o->close(d);
}

/* Copies beside the queue: not before what was queued before them, not after what waits for them. */
static void fetches(bool late)
{
    struct mu_err err = MU_ERR_INIT;
    CHECK(setenv("MUSTER_CUDA_EMULATED_LATE", late ? "1" : "0", 1) == 0);
    const struct mu_device_ops *o = emulated();
    struct mu_device *d = opened(o);
    char *host, *a;
    CHECK(o->alloc_host(d, 64, (void **)&host, &err) == MU_OK && o->alloc(d, 32, (void **)&a, &err) == MU_OK);
    for (int i = 0; i < 64; i++) host[i] = (char)i;
    o->fetched(d, 1); /* none was put: nothing to wait for */
    for (int i = 0; i < 3; i++) {
        o->fetch(d, 0, a, host + 8 * i, 8);
        o->fetch(d, 1, a + 16, host + 8 * i + 4, 4);
        o->fetched(d, 0);
        o->download(d, host + 32 + 8 * i, a, 8);
        o->zero(d, a, 8); /* the next comes behind this */
    }
    o->fetched(d, 1);
    o->download(d, host + 56, a + 16, 4);
    CHECK(o->wait(d, MU_DEVICE_MARKS, 1000, "them", &err) == MU_OK);
    for (int i = 0; i < 24; i++) CHECK(host[32 + i] == i);
    for (int i = 0; i < 4; i++) CHECK(host[56 + i] == 20 + i);
    o->fetch(d, 0, a, host, 8); /* under way at the end */
    o->record_begin(d);
    o->fetched(d, 0);
    CHECK(o->record_end(d) == NULL);
    o->close(d);
}
static void fetches_early(void)
{
    fetches(false);
}
static void fetches_late(void)
{
    fetches(true);
}

static void test_queue(void **state)
{
    (void)state;
    in_child(marks);
    in_child(fetches_early);
    in_child(fetches_late);
    in_child(stuck);
    in_child(failing);
}

/* ---- recordings ---- */

static void recordings(void)
{
    struct mu_err err = MU_ERR_INIT;
    const struct mu_device_ops *o = emulated();
    struct mu_device *d = opened(o);
    char *host;
    char *a;
    CHECK(o->alloc_host(d, 12, (void **)&host, &err) == MU_OK && o->alloc(d, 12, (void **)&a, &err) == MU_OK);
    memcpy(host, "abcdefghijkl", 12);
    o->upload(d, a, host, 12);
    o->record_begin(d);
    o->copy(d, a, a + 4, 4);
    o->zero(d, a + 4, 2);
    struct mu_device_graph *g = o->record_end(d);
    CHECK(g != NULL);
    o->download(d, host, a, 12);
    CHECK(o->wait(d, MU_DEVICE_MARKS, 1000, "it", &err) == MU_OK);
    CHECK(memcmp(host, "abcdefghijkl", 12) == 0); /* recorded, not run */
    o->replay(d, g);
    o->download(d, host, a, 12);
    CHECK(o->wait(d, MU_DEVICE_MARKS, 1000, "it", &err) == MU_OK);
    CHECK(memcmp(host, "efgh\0\0ghijkl", 12) == 0);
    o->replay(d, g);
    o->replay(d, g);
    o->download(d, host, a, 12);
    CHECK(o->wait(d, MU_DEVICE_MARKS, 1000, "it", &err) == MU_OK);
    CHECK(memcmp(host, "\0\0gh\0\0ghijkl", 12) == 0);

    /* A mark cannot be recorded: no graph, and the device is as before. */
    o->record_begin(d);
    o->zero(d, a, 12);
    o->mark(d, 0);
    CHECK(o->record_end(d) == NULL);
    CHECK(o->record_end(d) == NULL); /* nor is there one without a beginning */
    o->download(d, host, a, 12);
    CHECK(o->wait(d, MU_DEVICE_MARKS, 1000, "it", &err) == MU_OK);
    CHECK(memcmp(host, "\0\0gh\0\0ghijkl", 12) == 0);
    o->graph_free(d, g);
    o->graph_free(d, NULL);

    o->record_begin(d); /* closed in the middle of one */
    o->zero(d, a, 12);
    o->close(d);
}

static void test_recordings(void **state)
{
    (void)state;
    in_child(recordings);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refused),    cmocka_unit_test(test_threads), cmocka_unit_test(test_real),
        cmocka_unit_test(test_devices),    cmocka_unit_test(test_memory),  cmocka_unit_test(test_queue),
        cmocka_unit_test(test_recordings),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
