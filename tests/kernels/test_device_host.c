/* The host as a device: its operations against the tables of kernels where those have the same, and what makes it a
 * device: a queue that is late, memory that ends, graphs, links. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/alloc.h"
#include "kernels/kernels.h"
#include "tests/kernels/values.h"
#include "tests/stubs/device_host.h"

enum { EVERYTHING = MU_DEVICE_MARKS, SOON_MS = 10000 };

static const struct mu_device_ops *ops;
static struct mu_device *dev;

static void must(enum mu_status st, const struct mu_err *err)
{
    if (st != MU_OK) fail_msg("%s", err->text);
}

static int setup(void **state)
{
    struct mu_err err = MU_ERR_INIT;
    (void)state;
    ops = mu_device_host_ops();
    must(ops->open(0, &dev, &err), &err);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    ops->close(dev);
    unsetenv("MUSTER_DEVICE_HOST_MEMORY");
    unsetenv("MUSTER_DEVICE_HOST_LINK");
    unsetenv("MUSTER_DEVICE_HOST_COUNT");
    return 0;
}

static void *on_device(size_t bytes)
{
    struct mu_err err = MU_ERR_INIT;
    void *p;
    must(ops->alloc(dev, bytes, &p, &err), &err);
    return p;
}

static void *pinned(size_t bytes)
{
    struct mu_err err = MU_ERR_INIT;
    void *p;
    must(ops->alloc_host(dev, bytes, &p, &err), &err);
    return p;
}

static void settle(void)
{
    struct mu_err err = MU_ERR_INIT;
    must(ops->wait(dev, EVERYTHING, SOON_MS, "a test", &err), &err);
}

/* The next wait fails, and says this. */
static void fails_with(enum mu_status st, const char *text)
{
    struct mu_err err = MU_ERR_INIT;
    assert_int_equal(ops->wait(dev, EVERYTHING, SOON_MS, "a test", &err), st);
    if (!strstr(err.text, text)) fail_msg("\"%s\" does not have \"%s\"", err.text, text);
}

/* This device's memory is the host's: it may be filled directly. */
static float *floats(size_t n)
{
    float *x = on_device(n * sizeof *x);
    for (size_t i = 0; i < n; i++) x[i] = uniform(-3, 3);
    return x;
}

static struct mu_mat matrix(uint32_t type, int n_row, int n_col)
{
    struct mu_mat m = {type, n_row, n_col, on_device(ops->mat_bytes(type, n_row, n_col))};
    size_t bytes = ops->mat_bytes(type, n_row, n_col);
    uint8_t *raw = on_device(bytes);
    int32_t *bad = on_device(sizeof *bad);
    raw_fill(type, raw, bytes, ORDINARY);
    *bad = 0;
    ops->mat_pack(dev, &m, 0, n_row, raw, bad);
    settle();
    assert_int_equal(*bad, 0);
    return m;
}

static void same(const void *got, const void *want, size_t bytes)
{
    assert_memory_equal(got, want, bytes);
}

/* ---- operations ---- */

/* A gated product with everything that may follow it, against the same in several calls. */
static void test_matmul(void **state)
{
    enum { ROWS = 32, COLS = 64, TOKENS = 3, STRIDE = 40 };
    const struct mu_kernels *k = mu_kernels_available()[0];
    (void)state;
    struct mu_mat gate = matrix(MU_F16, ROWS, COLS), up = matrix(MU_F16, ROWS, COLS);
    float *x = floats(TOKENS * COLS), *out = floats(TOKENS * STRIDE), *bias = floats(ROWS),
          *plus = floats(TOKENS * STRIDE);
    float *lora = floats(TOKENS * ROWS), *lora_scale = floats(TOKENS);
    int8_t *q = on_device(TOKENS * ROWS);
    float *s = on_device(TOKENS * sizeof *s);
    uint16_t *bf16 = on_device(TOKENS * STRIDE * sizeof *bf16);
    lora_scale[1] = 0.0f;
    struct mu_device_job job = {.m = &gate,
                                .up = &up,
                                .out = out,
                                .stride = STRIDE,
                                .bf16 = bf16,
                                .form = {.q = q, .s = s},
                                .bias = bias,
                                .up_bias = bias,
                                .plus = plus,
                                .lora = lora,
                                .lora_scale = lora_scale,
                                .scale = 0.5f,
                                .cap = 2.0f,
                                .act = MU_DEVICE_ACT_SILU};
    struct mu_act act = {.n_tok = TOKENS, .n_col = COLS, .f32 = x};
    ops->matmul(dev, &job, 1, &act, NULL);
    settle();
    for (int t = 0; t < TOKENS; t++) {
        struct mu_act one = {.n_tok = 1, .n_col = COLS, .f32 = x + t * COLS};
        float y[ROWS], u[ROWS], scale;
        int8_t codes[ROWS];
        int16_t sum[2];
        uint16_t half[ROWS];
        k->matmul(&gate, &one, 0, ROWS, y, ROWS);
        k->matmul(&up, &one, 0, ROWS, u, ROWS);
        if (t != 1) k->add_scaled(y, lora + t * ROWS, lora_scale[t], ROWS);
        k->add(y, bias, ROWS, 0);
        k->add(u, bias, ROWS, 0);
        for (int i = 0; i < ROWS; i++) y[i] *= 0.5f;
        k->add(y, plus + t * STRIDE, ROWS, 0);
        k->silu_mul(y, u, ROWS, y);
        k->soft_cap(y, ROWS, 2.0f);
        k->to_bf16(y, ROWS, half);
        assert_true(k->quantize(y, ROWS, codes, &scale, sum));
        same(out + t * STRIDE, y, sizeof y);
        same(bf16 + t * STRIDE, half, sizeof half);
        same(q + t * ROWS, codes, sizeof codes);
        same(s + t, &scale, sizeof scale);
    }
}

/* Two experts, three tokens, one expert each: gate by token, then down by place, then their sum. */
static void test_experts(void **state)
{
    enum { N = 32, TOKENS = 3, EXPERTS = 2 };
    const struct mu_kernels *k = mu_kernels_available()[0];
    (void)state;
    struct mu_mat first = matrix(MU_F32, N * EXPERTS, N), one = {MU_F32, N, N, first.data};
    float *score = on_device(sizeof(float[TOKENS * EXPERTS])), *weight = on_device(sizeof(float[TOKENS]));
    int32_t *chosen = on_device(sizeof(int32_t[TOKENS])), *place = on_device(sizeof(int32_t[TOKENS]));
    int32_t *at = on_device(sizeof(int32_t[TOKENS])), *begin = on_device(sizeof(int32_t[EXPERTS + 1]));
    const float scores[TOKENS * EXPERTS] = {1, 3, 2, 1, 0, 5}; /* experts 1, 0, 1 */
    memcpy(score, scores, sizeof scores);
    struct mu_device_route route = {TOKENS, EXPERTS, 1, score, chosen, place, at, begin, weight};
    ops->route(dev, &route);
    settle();
    same(chosen, (const int32_t[]){1, 0, 1}, sizeof(int32_t[3]));
    same(place, (const int32_t[]){1, 0, 2}, sizeof(int32_t[3]));
    same(at, (const int32_t[]){1, 0, 2}, sizeof(int32_t[3]));
    same(begin, (const int32_t[]){0, 1, 3}, sizeof(int32_t[3]));
    same(weight, (const float[]){1, 1, 1}, sizeof(float[3]));

    float *x = floats(TOKENS * N), *hidden = floats(TOKENS * N), *part = floats(TOKENS * N), *out = floats(TOKENS * N);
    struct mu_device_experts e = {EXPERTS, 1, ops->mat_bytes(MU_F32, N, N), 0, begin, place, false};
    struct mu_act act = {.n_tok = TOKENS, .n_col = N, .f32 = x};
    struct mu_device_job job = {.m = &one, .out = hidden, .stride = N};
    ops->matmul(dev, &job, 1, &act, &e);
    e.by_place = true;
    act.f32 = hidden;
    job.out = part;
    ops->matmul(dev, &job, 1, &act, &e);
    struct mu_device_combine sum = {TOKENS, 1, N, part, weight, NULL, chosen, at, 0.0f, out};
    ops->combine(dev, &sum);
    settle();
    for (int t = 0; t < TOKENS; t++) {
        float h[N], y[N], total[N] = {0};
        struct mu_act v = {.n_tok = 1, .n_col = N, .f32 = x + t * N};
        int row0 = chosen[t] * N;
        k->matmul(&first, &v, row0, row0 + N, h - row0, N);
        v.f32 = h;
        k->matmul(&first, &v, row0, row0 + N, y - row0, N);
        k->add_scaled(total, y, 1.0f, N);
        same(out + t * N, total, sizeof total);
    }
}

static void test_norm(void **state)
{
    enum { N = 64 };
    const struct mu_kernels *k = mu_kernels_available()[0];
    (void)state;
    float *x = floats(3 * N), *y = floats(3 * N), *w = floats(N), *post = floats(N), *out = floats(2 * N),
          want[N] = {0};
    int32_t *row = on_device(sizeof(int32_t[2]));
    row[0] = 2;
    row[1] = 0;
    memcpy(want, x + 2 * N, sizeof want);
    float pending[N] = {0};
    k->add(pending, y + 2 * N, N, 1);
    assert_true(k->rms_norm(pending, post, N, 1e-5f, pending));
    k->add(want, pending, N, 0);
    struct mu_device_norm a = {.n_tok = 2,
                               .n = N,
                               .x = x,
                               .row = row,
                               .keep = true,
                               .y = y,
                               .post = post,
                               .y_round = true,
                               .kind = MU_DEVICE_NORM_RMS,
                               .eps = 1e-5f,
                               .w = w,
                               .form = {.f32 = out}};
    ops->norm(dev, &a);
    settle();
    same(x + 2 * N, want, sizeof want);
    assert_true(k->rms_norm(want, w, N, 1e-5f, want));
    same(out, want, sizeof want);

    x[0] = INFINITY; /* a norm that is not finite is NaN, and its codes are zero */
    int8_t *q = on_device(N);
    float *s = on_device(sizeof(float[N / 32]));
    a = (struct mu_device_norm){
        .n_tok = 1, .n = N, .x = x, .kind = MU_DEVICE_NORM_RMS, .eps = 1e-5f, .w = w, .form = {.q = q, .s = s}};
    ops->norm(dev, &a);
    settle();
    assert_true(isnan(s[0]) && isnan(s[1]) && q[5] == 0);
}

/* Rotation and attention over pages out of order, against the table's own attention. */
static void test_attention(void **state)
{
    enum { D = 32, HEADS = 2, TOKENS = 40, PAGE = 32 };
    const struct mu_kernels *k = mu_kernels_available()[0];
    (void)state;
    size_t page_bytes = 2 * mu_kv_bytes(MU_KV_F16, D, PAGE), row = sizeof(float[HEADS * D]);
    struct mu_device_kv kv = {MU_KV_F16, 1, D, PAGE, 3, 2, page_bytes, on_device(3 * page_bytes), NULL};
    uint32_t *table = on_device(sizeof(uint32_t[4])); /* slot 1: pages 2, 0 */
    table[2] = 2;
    table[3] = 0;
    kv.table = table;
    float *q = floats(TOKENS * HEADS * D), *key = floats(TOKENS * D), *value = floats(TOKENS * D),
          *out = floats(TOKENS * HEADS * D);
    float *freq = floats(D / 2), *turn = on_device(sizeof(float[TOKENS * D])), *norm = floats(D);
    int32_t *pos = on_device(sizeof(int32_t[TOKENS])), *slot = on_device(sizeof(int32_t[TOKENS]));
    for (int t = 0; t < TOKENS; t++) pos[t] = t, slot[t] = 1;
    float *q_want = mu_malloc(TOKENS * row), *want = mu_malloc(TOKENS * row);
    memcpy(q_want, q, TOKENS * row);
    float cos_sin[D];
    for (int t = 0; t < TOKENS; t++) {
        k->rope_table(freq, D / 2, t, 1.0f, cos_sin);
        for (int h = 0; h < HEADS; h++) {
            float *v = q_want + (t * HEADS + h) * D;
            assert_true(k->rms_norm(v, norm, D, 1e-6f, v));
            k->rope(v, 1, D, D, 1, cos_sin);
        }
    }
    ops->rope_table(dev, freq, NULL, NULL, pos, TOKENS, D / 2, 1.0f, turn);
    struct mu_device_rotate r = {.kv = kv,
                                 .n_tok = TOKENS,
                                 .n_head = HEADS,
                                 .n_rot = D,
                                 .neox = 1,
                                 .eps = 1e-6f,
                                 .cos_sin = turn,
                                 .q_norm = norm,
                                 .q = q,
                                 .k = key,
                                 .v = value,
                                 .pos = pos,
                                 .slot = slot};
    ops->rotate(dev, &r);
    settle();
    same(q, q_want, TOKENS * row);

    size_t part_bytes = sizeof(float[HEADS * (D + 2)]);
    struct mu_device_block *block = on_device(sizeof *block);
    *block = (struct mu_device_block){0, TOKENS, 0, 1};
    struct mu_device_attn a = {.kv = kv,
                               .n_head = HEADS,
                               .group = HEADS,
                               .scale = 0.2f,
                               .q = q,
                               .out = out,
                               .n_block = 1,
                               .block = block,
                               .max_pos = TOKENS,
                               .part = on_device(part_bytes),
                               .part_bytes = part_bytes};
    ops->attn(dev, &a);
    settle();
    const char *page[] = {(char *)kv.data + 2 * page_bytes, kv.data};
    const void *keys[] = {page[0], page[1]}, *values[] = {page[0] + page_bytes / 2, page[1] + page_bytes / 2};
    struct mu_attn whole = {.kv = MU_KV_F16,
                            .n_tok = TOKENS,
                            .n_rep = HEADS,
                            .d_head = D,
                            .page_tokens = PAGE,
                            .scale = 0.2f,
                            .q = q,
                            .q_stride = HEADS * D,
                            .out = want,
                            .out_stride = HEADS * D,
                            .k_page = keys,
                            .v_page = values};
    k->attn(&whole);
    same(out, want, TOKENS * row);

    /* one query of it, alone */
    int32_t *query = on_device(sizeof *query);
    *query = 35;
    a.n_block = 0;
    a.n_query = 1;
    a.query = query;
    a.pos = pos;
    a.slot = slot;
    ops->attn(dev, &a);
    settle();
    same(out, want + 35 * HEADS * D, row);
    mu_free(q_want);
    mu_free(want);
}

static void test_pick(void **state)
{
    enum { N = 1500 };
    (void)state;
    float *logits = floats(2 * N);
    struct mu_device_draw *draw = on_device(sizeof(struct mu_device_draw[2]));
    struct mu_device_pick *out = on_device(sizeof(struct mu_device_pick[2]));
    logits[700] = logits[1200] = 9.0f;
    logits[N + 3] = INFINITY;
    draw[0] = draw[1] = (struct mu_device_draw){0};
    ops->pick(dev, logits, N, 2, N, 100, draw, out);
    settle();
    assert_int_equal(out[0].id, 800);
    assert_true(out[0].value == 9.0f);
    assert_int_equal(out[1].id, -2);
    int seen[2] = {0};
    logits[700] = logits[1200] = 30.0f;
    for (uint64_t position = 0; position < 50; position++) {
        draw[0] = (struct mu_device_draw){1.0f, 7, position};
        ops->pick(dev, logits, N, 1, N, 100, draw, out);
        settle();
        seen[0] += out[0].id == 800;
        seen[1] += out[0].id == 1300;
    }
    assert_int_equal(seen[0] + seen[1], 50);
    assert_true(seen[0] > 10 && seen[1] > 10);
}

static void test_moving(void **state)
{
    (void)state;
    uint16_t *h = on_device(4 * sizeof *h);
    float *to = on_device(sizeof(float[6]));
    const float blank[6] = {0};
    memcpy(h, (const uint16_t[]){0x3f80, 0x4000, 0x4040, 0x4080}, 4 * sizeof *h);
    memcpy(to, blank, sizeof blank);
    struct mu_device_part part = {MU_SPREAD_BF16_TO_F32, to, 4, h, 2};
    ops->spread(dev, &part, 1, 2);
    settle();
    same(to, (const float[]){1, 2, 0, 0, 3, 4}, sizeof blank);
    struct mu_device_set *set = on_device(2 * sizeof *set);
    set[0] = (struct mu_device_set){1, 70};
    set[1] = (struct mu_device_set){0, 60};
    uint32_t *table = on_device(2 * sizeof *table);
    ops->set(dev, table, set, 2);
    settle();
    same(table, (const uint32_t[]){60, 70}, 2 * sizeof *table);
}

/* ---- a device ---- */

static void test_queue_is_late(void **state)
{
    (void)state;
    uint8_t *from = pinned(4), *back = pinned(4), *on = on_device(4);
    assert_int_equal(on[0], 0xff);
    memset(from, 1, 4);
    memset(back, 0, 4);
    ops->upload(dev, on, from, 4);
    ops->mark(dev, 3);
    ops->download(dev, back, on, 4);
    assert_int_equal(on[0], 0xff);
    assert_int_equal(ops->test(dev, 3), 1);
    assert_int_equal(on[0], 1);
    assert_int_equal(back[0], 0);
    memset(from, 2, 4); /* after the mark it may be written */
    settle();
    assert_int_equal(back[0], 1);
}

/* A fetch comes as late as it may, and until then nothing of what was there is left. */
static void test_fetches(void **state)
{
    (void)state;
    unsigned char *host = pinned(24), *there = on_device(8);
    memset(host, 7, 24);
    ops->upload(dev, there, host, 8);
    ops->fetch(dev, 1, there, host, 8);
    ops->fetched(dev, 0); /* another one */
    ops->download(dev, host + 8, there, 8);
    ops->fetched(dev, 1);
    ops->download(dev, host + 16, there, 8);
    settle();
    for (int i = 0; i < 8; i++) assert_true(host[8 + i] == 0xff && host[16 + i] == 7);
    ops->record_begin(dev);
    ops->fetch(dev, 0, there, host, 8);
    assert_null(ops->record_end(dev));
    ops->fetch(dev, 0, there, host, 8); /* and nobody waits for it */
    char pageable[8] = {0};
    ops->fetch(dev, 0, there, pageable, 8);
    fails_with(MU_EINVAL, "fetch: ");
}

static void test_graph(void **state)
{
    (void)state;
    uint8_t *from = pinned(4), *a = on_device(4), *b = on_device(4);
    ops->record_begin(dev);
    ops->copy(dev, b, a, 4);
    ops->zero(dev, a, 2);
    struct mu_device_graph *g = ops->record_end(dev);
    assert_non_null(g);
    settle();
    assert_int_equal(b[0], 0xff);
    for (int round = 1; round < 4; round++) {
        memset(from, round, 4);
        ops->upload(dev, a, from, 4);
        ops->replay(dev, g);
        settle();
        assert_int_equal(b[0], round);
        assert_int_equal(a[1], 0);
        assert_int_equal(a[2], round);
    }
    ops->graph_free(dev, g);
    ops->record_begin(dev); /* a host's memory is no part of a graph */
    ops->upload(dev, a, from, 4);
    assert_null(ops->record_end(dev));
    settle();
}

static void test_wrong_pointers(void **state)
{
    (void)state;
    float host[32] = {0}, *x = floats(32);
    struct mu_act_to to = {.f32 = host};
    ops->form(dev, x, 32, 1, 32, &to);
    fails_with(MU_EINVAL, "form.f32");
    assert_int_equal(ops->test(dev, 0), -1);
}

static void test_wrong_sizes(void **state)
{
    (void)state;
    float *x = floats(32), *out = floats(31);
    struct mu_act_to to = {.f32 = out};
    ops->form(dev, x, 32, 1, 32, &to);
    fails_with(MU_EINVAL, "is not 128 bytes of this device's memory");
}

static void test_pageable_source(void **state)
{
    (void)state;
    float host[4], *x = floats(4);
    ops->upload(dev, x, host, sizeof host);
    fails_with(MU_EINVAL, "pinned");
}

static void test_memory_ends(void **state)
{
    struct mu_err err = MU_ERR_INIT;
    struct mu_device_info info;
    void *a, *b;
    (void)state;
    setenv("MUSTER_DEVICE_HOST_MEMORY", "1000", 1);
    must(ops->alloc(dev, 600, &a, &err), &err);
    assert_int_equal(ops->alloc(dev, 401, &b, &err), MU_ENOMEM);
    assert_non_null(strstr(err.text, "401 bytes asked for, 400 of 1000 are free"));
    must(ops->info(0, &info, &err), &err);
    assert_int_equal(info.free_bytes, 400);
    must(ops->info(1, &info, &err), &err);
    assert_int_equal(info.free_bytes, 1000);
    ops->free(dev, a);
    must(ops->alloc(dev, 1000, &b, &err), &err);
    ops->free(dev, b);
}

static void test_count(void **state)
{
    struct mu_err err = MU_ERR_INIT;
    struct mu_device *d;
    (void)state;
    assert_int_equal(ops->count(&err), 2);
    setenv("MUSTER_DEVICE_HOST_COUNT", "1", 1);
    assert_int_equal(ops->count(&err), 1);
    assert_int_equal(ops->open(1, &d, &err), MU_EINVAL);
    setenv("MUSTER_DEVICE_HOST_COUNT", "many", 1);
    assert_int_equal(ops->count(&err), -1);
}

#ifndef __SANITIZE_ADDRESS__ /* which sees the write itself */
static void test_red_zone(void **state)
{
    int status;
    (void)state;
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        char *p = on_device(10);
        fclose(stderr);
        p[10] = 0;
        ops->free(dev, p);
        _exit(0);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
}
#endif

/* ---- links ---- */

struct rank {
    pthread_t thread;
    int rank, n_rank, timeout_ms;
    bool absent; /* opens the link and leaves */
    unsigned char id[MU_DEVICE_LINK_ID];
    enum mu_status st;
    struct mu_err err;
    unsigned char got[3], received;
};

static pthread_barrier_t sent;

static void *rank_run(void *arg)
{
    struct rank *r = arg;
    struct mu_device *d;
    struct mu_device_link *l = NULL;
    void *p;
    const size_t off[] = {0, 1, 2}, len[] = {1, 1, 1};
    r->st = ops->open(r->rank % 2, &d, &r->err);
    if (r->st != MU_OK) return NULL;
    r->st = ops->link_open(d, r->id, r->n_rank, r->rank, r->timeout_ms, &l, &r->err);
    if (r->st == MU_OK && !r->absent && (r->st = ops->alloc(d, 4, &p, &r->err)) == MU_OK) {
        unsigned char *buf = p;
        buf[r->rank] = (unsigned char)(10 + r->rank);
        ops->link_gather(l, buf, off, len);
        if (r->rank != 1) ops->link_send(l, (r->rank + 1) % r->n_rank, buf + r->rank, 1);
        ops->link_recv(l, (r->rank + r->n_rank - 1) % r->n_rank, buf + 3, 1);
        if (r->rank == 1) ops->link_send(l, 2 % r->n_rank, buf + 1, 1);
        r->st = ops->wait(d, EVERYTHING, SOON_MS, "the link", &r->err);
        memcpy(r->got, buf, sizeof r->got);
        r->received = buf[3];
    }
    ops->link_close(l);
    ops->close(d);
    return NULL;
}

static void ranks_run(struct rank *r, int n, int n_started)
{
    struct mu_err err = MU_ERR_INIT;
    setenv("MUSTER_DEVICE_HOST_LINK", "1", 1);
    must(ops->link_id(r[0].id, &err), &err);
    for (int i = 0; i < n; i++) {
        memcpy(r[i].id, r[0].id, sizeof r[i].id);
        r[i].rank = i;
        r[i].n_rank = n;
        if (i < n_started) assert_int_equal(pthread_create(&r[i].thread, NULL, rank_run, &r[i]), 0);
    }
    for (int i = 0; i < n_started; i++) pthread_join(r[i].thread, NULL);
}

static void test_links(void **state)
{
    struct rank r[3] = {{.timeout_ms = SOON_MS}, {.timeout_ms = SOON_MS}, {.timeout_ms = SOON_MS}};
    (void)state;
    ranks_run(r, 3, 3);
    for (int i = 0; i < 3; i++) {
        must(r[i].st, &r[i].err);
        same(r[i].got, (const unsigned char[]){10, 11, 12}, 3);
        assert_int_equal(r[i].received, 10 + (i + 2) % 3);
    }
}

static void test_link_without_a_rank(void **state)
{
    struct rank r[3] = {{.timeout_ms = 50}, {.timeout_ms = 50}, {.timeout_ms = 50}};
    (void)state;
    ranks_run(r, 3, 2);
    assert_int_equal(r[0].st, MU_ETIMEOUT);
    assert_non_null(strstr(r[0].err.text, "rank 2 has not opened the link"));
}

static void test_link_that_is_left(void **state)
{
    struct rank r[3] = {{.timeout_ms = SOON_MS}, {.timeout_ms = SOON_MS, .absent = true}, {.timeout_ms = SOON_MS}};
    (void)state;
    ranks_run(r, 3, 3);
    assert_int_equal(r[0].st, MU_EPEER);
    assert_int_equal(r[2].st, MU_EPEER);
    assert_non_null(strstr(r[0].err.text, "rank 1 has left a gather"));
}

/* Rank 1 is another process. */
static void test_link_of_processes(void **state)
{
    struct rank r[2] = {{.n_rank = 2, .timeout_ms = SOON_MS}, {.rank = 1, .n_rank = 2, .timeout_ms = SOON_MS}};
    struct mu_err err = MU_ERR_INIT;
    int status;
    (void)state;
    setenv("MUSTER_DEVICE_HOST_LINK", "1", 1);
    must(ops->link_id(r[0].id, &err), &err);
    memcpy(r[1].id, r[0].id, sizeof r[1].id);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        rank_run(&r[1]);
        _exit(r[1].st != MU_OK || memcmp(r[1].got, (const unsigned char[]){10, 11}, 2) || r[1].received != 10);
    }
    rank_run(&r[0]);
    assert_int_equal(waitpid(child, &status, 0), child);
    must(r[0].st, &r[0].err);
    assert_int_equal(r[0].received, 11);
    assert_int_equal(status, 0);
}

/* A send is done when it is received, and what was queued after it runs then; a receive is not for ever. */
static void *sends_late(void *arg)
{
    struct rank *r = arg;
    struct mu_device *d;
    struct mu_device_link *l = NULL;
    struct mu_err err = MU_ERR_INIT;
    void *p, *here;
    must(ops->open(r->rank, &d, &err), &err);
    must(ops->link_open(d, r->id, 2, r->rank, r->timeout_ms, &l, &err), &err);
    must(ops->alloc(d, 4, &p, &err), &err);
    must(ops->alloc_host(d, 4, &here, &err), &err);
    unsigned char *buf = p;
    if (r->rank == 0) {
        memcpy(here, "1234", 4);
        ops->upload(d, buf, here, 4);
        ops->mark(d, 0);
        ops->link_send(l, 1, buf, 4);
        ops->zero(d, buf, 4);
        ops->mark(d, 1);
        must(ops->wait(d, 0, SOON_MS, "what is before", &err), &err);
        assert_int_equal(ops->test(d, 1), 0); /* rank 1 does not look before the next line is done */
        assert_int_equal(buf[0], '1');
        pthread_barrier_wait(&sent);
        must(ops->wait(d, 1, SOON_MS, "the send", &err), &err);
        assert_int_equal(ops->test(d, 1), 1);
        assert_int_equal(buf[0], 0);
        pthread_barrier_wait(&sent);
        ops->link_send(l, 1, buf, 4);
        r->st = ops->wait(d, EVERYTHING, SOON_MS, "the second send", &r->err);
    } else {
        pthread_barrier_wait(&sent);
        ops->link_recv(l, 0, buf, 4);
        must(ops->wait(d, EVERYTHING, SOON_MS, "the receive", &err), &err);
        same(buf, (const unsigned char *)"1234", 4);
        pthread_barrier_wait(&sent);
    }
    pthread_barrier_wait(&sent);
    ops->link_close(l);
    ops->close(d);
    return NULL;
}

static void test_sends_end_when_received(void **state)
{
    struct rank r[2] = {{.timeout_ms = 300}, {.rank = 1, .timeout_ms = 300}};
    struct mu_err err = MU_ERR_INIT;
    (void)state;
    setenv("MUSTER_DEVICE_HOST_LINK", "1", 1);
    must(ops->link_id(r[0].id, &err), &err);
    memcpy(r[1].id, r[0].id, sizeof r[1].id);
    pthread_barrier_init(&sent, NULL, 2);
    for (int i = 0; i < 2; i++) assert_int_equal(pthread_create(&r[i].thread, NULL, sends_late, &r[i]), 0);
    for (int i = 0; i < 2; i++) pthread_join(r[i].thread, NULL);
    pthread_barrier_destroy(&sent);
    assert_int_equal(r[0].st, MU_ETIMEOUT);
    assert_non_null(strstr(r[0].err.text, "the second send: link: rank 1 took nothing for 300 ms"));
}

static void test_no_links(void **state)
{
    struct mu_err err = MU_ERR_INIT;
    struct mu_device_info info;
    unsigned char id[MU_DEVICE_LINK_ID];
    (void)state;
    must(ops->info(0, &info, &err), &err);
    assert_false(info.has_link);
    assert_int_equal(ops->link_id(id, &err), MU_EUNSUPPORTED);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_matmul),
        TEST(test_experts),
        TEST(test_norm),
        TEST(test_attention),
        TEST(test_pick),
        TEST(test_moving),
        TEST(test_queue_is_late),
        TEST(test_fetches),
        TEST(test_graph),
        TEST(test_wrong_pointers),
        TEST(test_wrong_sizes),
        TEST(test_pageable_source),
        TEST(test_memory_ends),
        TEST(test_count),
#ifndef __SANITIZE_ADDRESS__
        TEST(test_red_zone),
#endif
        TEST(test_links),
        TEST(test_link_without_a_rank),
        TEST(test_link_that_is_left),
        TEST(test_link_of_processes),
        TEST(test_sends_end_when_received),
        TEST(test_no_links),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
