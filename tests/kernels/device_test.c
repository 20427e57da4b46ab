#include "tests/kernels/device_test.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "kernels/kernels.h"
#include "tests/stubs/device_host.h"

enum { MAX_PAIRS = 256, ZONE = 256, ZONE_BYTE = 0xa9, BLANK_BYTE = 0x5b, WAIT_MS = 120000 };

struct dt dt;

static void *library;
static struct staging {
    void *p;
    size_t bytes;
} staging[DT_SIDES];
static struct dt_pair pairs[MAX_PAIRS];
static int n_pairs;

static void must(enum mu_status st, const struct mu_err *err)
{
    if (st != MU_OK) fail_msg("%s", err->text);
}

static void *take(size_t bytes)
{
    void *p = mu_malloc(bytes ? bytes : 1);
    assert_non_null(p);
    return p;
}

/* ---- the devices ---- */

static const struct mu_device_ops *plugin_load(void)
{
    const char *path = getenv("MUSTER_DEVICE_PLUGIN");
    if (!path || !*path) path = DEVICE_TEST_PLUGIN;
    if (!*path || strcmp(path, "none") == 0) {
        print_message(
            "SKIP: no plugin to test: there is no emulated one in this build and MUSTER_DEVICE_PLUGIN is not set\n");
        exit(77);
    }
    library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library) fail_msg("%s", dlerror());
    mu_device_ops_fn *ops = (mu_device_ops_fn *)dlsym(library, MU_DEVICE_SYMBOL);
    if (!ops) fail_msg("%s", dlerror());
    assert_int_equal(ops()->abi, MU_DEVICE_ABI);
    return ops();
}

int dt_open(void **state)
{
    struct mu_err err = MU_ERR_INIT;
    struct mu_device_info info;
    (void)state;
    setenv("MUSTER_DEVICE_HOST_MEMORY", "17179869184", 1); /* nothing of it is touched before it is used */
    dt.ops[DT_HOST] = mu_device_host_ops();
    dt.ops[DT_PLUGIN] = plugin_load();
    int n = dt.ops[DT_PLUGIN]->count(&err);
    if (n < 1) fail_msg("%s has no device: %s", dt.ops[DT_PLUGIN]->name, n < 0 ? err.text : "there are 0");
    for (int i = 0; i < DT_SIDES; i++) must(dt.ops[i]->open(0, &dt.dev[i], &err), &err);
    must(dt.ops[DT_PLUGIN]->info(0, &info, &err), &err);
    print_message("under test: %s, %s\n", dt.ops[DT_PLUGIN]->name, info.name);
    dt.emulated = strstr(info.name, "Emulated") != NULL;
    mu_fp_env_set();
    return 0;
}

int dt_close(void **state)
{
    (void)state;
    for (int i = 0; i < DT_SIDES; i++) {
        if (!dt.dev[i]) continue;
        dt.ops[i]->free_host(dt.dev[i], staging[i].p);
        dt.ops[i]->close(dt.dev[i]);
    }
    return 0; /* the library stays: a leak checker wants its symbols */
}

void dt_wait(const char *what)
{
    struct mu_err err = MU_ERR_INIT;
    for (int i = 0; i < DT_SIDES; i++) must(dt.ops[i]->wait(dt.dev[i], MU_DEVICE_MARKS, WAIT_MS, what, &err), &err);
}

/* ---- pairs ---- */

static void *stage(int side, size_t bytes)
{
    struct staging *s = &staging[side];
    struct mu_err err = MU_ERR_INIT;
    if (s->bytes >= bytes) return s->p;
    dt.ops[side]->free_host(dt.dev[side], s->p);
    s->p = NULL;
    must(dt.ops[side]->alloc_host(dt.dev[side], bytes, &s->p, &err), &err);
    s->bytes = bytes;
    return s->p;
}

static void put(int side, void *to, const void *data, size_t bytes)
{
    if (bytes == 0) return;
    void *p = stage(side, bytes);
    memcpy(p, data, bytes);
    dt.ops[side]->upload(dt.dev[side], to, p, bytes);
    dt_wait("an upload");
}

static void get(int side, void *to, const void *from, size_t bytes)
{
    if (bytes == 0) return;
    void *p = stage(side, bytes);
    dt.ops[side]->download(dt.dev[side], p, from, bytes);
    dt_wait("a download");
    memcpy(to, p, bytes);
}

/* What lies around memory of the plugin is zone; the host's looks after itself. */
static size_t zone_of(int side)
{
    return side == DT_HOST ? 0 : ZONE;
}

struct dt_pair dt_from(const void *data, size_t bytes)
{
    struct dt_pair p = {.bytes = bytes};
    struct mu_err err = MU_ERR_INIT;
    assert_true(n_pairs < MAX_PAIRS);
    unsigned char *whole = take(bytes + 2 * ZONE);
    memset(whole, ZONE_BYTE, bytes + 2 * ZONE);
    if (bytes) memcpy(whole + ZONE, data, bytes);
    for (int i = 0; i < DT_SIDES; i++) {
        size_t zone = zone_of(i);
        void *at;
        must(dt.ops[i]->alloc(dt.dev[i], bytes + 2 * zone, &at, &err), &err);
        put(i, at, whole + ZONE - zone, bytes + 2 * zone);
        p.at[i] = (char *)at + zone;
    }
    mu_free(whole);
    pairs[n_pairs++] = p;
    return p;
}

struct dt_pair dt_blank(size_t bytes)
{
    void *data = take(bytes);
    memset(data, BLANK_BYTE, bytes);
    struct dt_pair p = dt_from(data, bytes);
    mu_free(data);
    return p;
}

void dt_read(struct dt_pair p, int side, void *out)
{
    get(side, out, p.at[side], p.bytes);
}

static void zones_check(struct dt_pair p)
{
    unsigned char zone[2][ZONE];
    for (int i = 0; i < DT_SIDES; i++) {
        if (zone_of(i) == 0) continue;
        get(i, zone[0], (char *)p.at[i] - ZONE, ZONE);
        get(i, zone[1], (char *)p.at[i] + p.bytes, ZONE);
        for (int k = 0; k < ZONE; k++)
            if (zone[0][k] != ZONE_BYTE || zone[1][k] != ZONE_BYTE)
                fail_msg("%s wrote around %zu bytes of memory, %d bytes %s", dt.ops[i]->name, p.bytes,
                         zone[0][k] != ZONE_BYTE ? ZONE - k : k, zone[0][k] != ZONE_BYTE ? "before" : "beyond");
    }
}

void dt_free_all(void)
{
    dt_wait("the end of a test");
    for (int p = 0; p < n_pairs; p++) zones_check(pairs[p]);
    while (n_pairs > 0) {
        n_pairs--;
        for (int i = 0; i < DT_SIDES; i++) dt.ops[i]->free(dt.dev[i], (char *)pairs[n_pairs].at[i] - zone_of(i));
    }
}

/* ---- comparing ---- */

static size_t size_of(enum dt_elements e)
{
    static const size_t size[] = {[DT_BYTES] = 1, [DT_I16] = 2, [DT_I32] = 4, [DT_F32] = 4, [DT_BF16] = 2};
    return size[e];
}

static uint32_t element(const unsigned char *data, enum dt_elements e, size_t i)
{
    uint32_t v = 0;
    memcpy(&v, data + i * size_of(e), size_of(e)); /* little-endian */
    return v;
}

static bool is_nan(enum dt_elements e, uint32_t v)
{
    if (e == DT_F32) return (v & 0x7fffffffu) > 0x7f800000u;
    return e == DT_BF16 && (v & 0x7fffu) > 0x7f80u;
}

static double value_of(enum dt_elements e, uint32_t v)
{
    float f;
    if (e == DT_BF16) v <<= 16;
    if (e != DT_F32 && e != DT_BF16) return e == DT_I16 ? (double)(int16_t)v : (double)(int32_t)v;
    memcpy(&f, &v, sizeof f);
    return (double)f;
}

void dt_same(struct dt_pair p, enum dt_elements e, const char *fmt, ...)
{
    char name[256];
    va_list args;
    va_start(args, fmt);
    vsnprintf(name, sizeof name, fmt, args);
    va_end(args);
    unsigned char *a = take(p.bytes), *b = take(p.bytes);
    dt_wait(name);
    dt_read(p, DT_HOST, a);
    dt_read(p, DT_PLUGIN, b);
    size_t n = p.bytes / size_of(e), first = n, differ = 0;
    for (size_t i = 0; memcmp(a, b, p.bytes) != 0 && i < n; i++) {
        uint32_t u = element(a, e, i), v = element(b, e, i);
        if (u == v || (is_nan(e, u) && is_nan(e, v))) continue;
        if (differ++ == 0) first = i;
    }
    if (differ > 0) {
        uint32_t u = element(a, e, first), v = element(b, e, first);
        fail_msg("%s: element %zu is %g (%08x) on %s and should be %g (%08x); %zu of %zu differ", name, first,
                 value_of(e, v), v, dt.ops[DT_PLUGIN]->name, value_of(e, u), u, differ, n);
    }
    mu_free(a);
    mu_free(b);
}

/* ---- values ---- */

void dt_fill(float *x, size_t n, enum values v)
{
    for (size_t i = 0; i < n; i++) {
        x[i] = uniform(-3, 3);
        if (v == EXTREME && rnd() % 8 == 0) x[i] = rnd() & 1 ? 0.0f : -0.0f;
        if (v == EXTREME && rnd() % 8 == 0) x[i] = ldexpf(x[i], (int)(rnd() % 230) - 115);
        if (v == TINY) x[i] *= rnd() % 4 ? 0x1p-126f : 0x1p-135f;
    }
}

void dt_break(float *x, size_t n, int how_many)
{
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    for (int i = 0; i < how_many && n > 0; i++) x[rnd() % n] = bad[rnd() % 3];
}

struct dt_pair dt_floats(size_t n, enum values v)
{
    float *x = take(n * sizeof *x);
    dt_fill(x, n, v);
    struct dt_pair p = dt_from(x, n * sizeof *x);
    mu_free(x);
    return p;
}

/* The raw rows of one matrix to `to`, in two pieces, the second first. */
static void pack(int side, const struct mu_mat *m, const uint8_t *raw, struct dt_pair rows, struct dt_pair bad)
{
    int split = m->n_row / 2 / MU_ROW_GROUP * MU_ROW_GROUP;
    size_t row_bytes;
    assert_true(mu_type_row_bytes(m->type, (uint64_t)m->n_col, &row_bytes));
    put(side, rows.at[side], raw + (size_t)split * row_bytes, (size_t)(m->n_row - split) * row_bytes);
    dt.ops[side]->mat_pack(dt.dev[side], m, split, m->n_row, rows.at[side], bad.at[side]);
    if (split == 0) return;
    dt_wait("packing");
    put(side, rows.at[side], raw, (size_t)split * row_bytes);
    dt.ops[side]->mat_pack(dt.dev[side], m, 0, split, rows.at[side], bad.at[side]);
    dt_wait("packing");
}

struct dt_mats dt_matrices(int n, uint32_t type, int n_row, int n_col, enum values v)
{
    struct dt_mats mats;
    size_t row_bytes, each;
    int32_t none = 0;
    assert_true(mu_type_row_bytes(type, (uint64_t)n_col, &row_bytes));
    each = (size_t)n_row * row_bytes;
    uint8_t *raw = take((size_t)n * each);
    raw_fill(type, raw, (size_t)n * each, v);
    for (int i = 0; i < DT_SIDES; i++) {
        size_t bytes = dt.ops[i]->mat_bytes(type, n_row, n_col);
        if (bytes == 0 && each > 0) fail_msg("%s has no %s matrices", dt.ops[i]->name, mu_type_info(type)->name);
        mats.bytes[i] = (bytes + 255) / 256 * 256;
    }
    size_t larger = mats.bytes[0] > mats.bytes[1] ? mats.bytes[0] : mats.bytes[1];
    struct dt_pair data = dt_blank((size_t)n * larger), rows = dt_blank(each), bad = dt_from(&none, sizeof none);
    for (int i = 0; i < DT_SIDES; i++) {
        mats.of[i] = (struct mu_mat){type, n_row, n_col, data.at[i]};
        for (int k = 0; k < n; k++) {
            struct mu_mat m = mats.of[i];
            m.data = (uint8_t *)m.data + (size_t)k * mats.bytes[i];
            pack(i, &m, raw + (size_t)k * each, rows, bad);
            dt_wait("packing");
        }
    }
    dt_same(bad, DT_I32, "what packing of %s says of its values", mu_type_info(type)->name);
    mu_free(raw);
    return mats;
}

struct dt_acts dt_inputs_from(const float *x, int n_tok, int n_col)
{
    const struct mu_kernels *ref = mu_kernels_available()[0];
    size_t n = (size_t)n_tok * (size_t)n_col;
    bool blocks = n_col % MU_Q_BLOCK == 0;
    uint16_t *bf16 = take(n * 2);
    int8_t *q = take(n);
    float *s = take(n / 32 * 4);
    int16_t *sum = take(n / 32 * 4);
    ref->to_bf16(x, (int)n, bf16);
    for (size_t i = 0; blocks && i < n; i += MU_Q_BLOCK) {
        if (ref->quantize(x + i, MU_Q_BLOCK, q + i, s + i / 32, sum + i / 16)) continue;
        memset(q + i, 0, MU_Q_BLOCK);
        memset(sum + i / 16, 0, 2 * sizeof *sum);
        s[i / 32] = NAN;
    }
    struct dt_pair px = dt_from(x, n * 4), pb = dt_from(bf16, n * 2), pq = {0}, ps = {0}, pm = {0};
    if (blocks) {
        pq = dt_from(q, n);
        ps = dt_from(s, n / 32 * 4);
        pm = dt_from(sum, n / 32 * 4);
    }
    struct dt_acts acts;
    for (int i = 0; i < DT_SIDES; i++)
        acts.of[i] = (struct mu_act){n_tok, n_col, px.at[i], pb.at[i], pq.at[i], ps.at[i], pm.at[i]};
    mu_free(bf16);
    mu_free(q);
    mu_free(s);
    mu_free(sum);
    return acts;
}

struct dt_acts dt_inputs(int n_tok, int n_col, enum values v)
{
    size_t n = (size_t)n_tok * (size_t)n_col;
    float *x = take(n * sizeof *x);
    dt_fill(x, n, v);
    struct dt_acts acts = dt_inputs_from(x, n_tok, n_col);
    mu_free(x);
    return acts;
}
