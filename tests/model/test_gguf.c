/* GGUF files that are right: what was written is what is read, in one file and in parts; and what look-ups accept. */
#include "tests/model/files_util.h"

#include <math.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "kernels/types.h"
#include "model/gguf.h"
#include "model/gguf_write.h"

static struct mu_gguf *open_ok(const char *path)
{
    struct mu_gguf *g = NULL;
    struct mu_err err = MU_ERR_INIT;
    if (mu_gguf_open(path, &g, &err) != MU_OK) fail_msg("%s", err.text);
    return g;
}

static struct mu_gguf_writer *writer_ok(const char *path)
{
    struct mu_gguf_writer *w = NULL;
    struct mu_err err = MU_ERR_INIT;
    if (mu_gguf_writer_open(path, &w, &err) != MU_OK) fail_msg("%s", err.text);
    return w;
}

static void close_ok(struct mu_gguf_writer *w)
{
    struct mu_err err = MU_ERR_INIT;
    if (mu_gguf_writer_close(w, 1, &err) != MU_OK) fail_msg("%s", err.text);
}

static void data_ok(struct mu_gguf_writer *w, const void *data, size_t len)
{
    struct mu_err err = MU_ERR_INIT;
    if (mu_gguf_put_data(w, data, len, &err) != MU_OK) fail_msg("%s", err.text);
}

/* A value of every scalar kind, with its extreme. */
static const struct {
    const char *key;
    enum mu_gguf_kind kind;
    int64_t integer; /* what item_i64 gives */
    union {
        uint8_t u8;
        int8_t i8;
        uint16_t u16;
        int16_t i16;
        uint32_t u32;
        int32_t i32;
        uint64_t u64;
        int64_t i64;
        float f;
        double d;
    } v;
} scalars[] = {
    {"k.u8", MU_GGUF_U8, 255, {.u8 = 255}},
    {"k.i8", MU_GGUF_I8, -128, {.i8 = -128}},
    {"k.u16", MU_GGUF_U16, 65535, {.u16 = 65535}},
    {"k.i16", MU_GGUF_I16, -32768, {.i16 = -32768}},
    {"k.u32", MU_GGUF_U32, 4294967295, {.u32 = UINT32_MAX}},
    {"k.i32", MU_GGUF_I32, INT32_MIN, {.i32 = INT32_MIN}},
    {"k.f32", MU_GGUF_F32, 1, {.f = 1.5f}},
    {"k.bool", MU_GGUF_BOOL, 1, {.u8 = 1}},
    {"k.u64", MU_GGUF_U64, INT64_MAX, {.u64 = INT64_MAX}},
    {"k.i64", MU_GGUF_I64, INT64_MIN, {.i64 = INT64_MIN}},
    {"k.f64", MU_GGUF_F64, -2, {.d = -2.25}},
};
enum { N_SCALAR = sizeof scalars / sizeof *scalars };

static void put_everything(struct mu_gguf_writer *w)
{
    static const float floats[3] = {0.5f, -1.0f, 3e38f};
    static const int32_t ints[4] = {1, -2, INT32_MAX, INT32_MIN};
    static const uint8_t bools[3] = {1, 0, 1};
    static const uint16_t shorts[2] = {7, 65535};
    static const double doubles[2] = {1e300, -0.5};
    static const struct mu_str strs[3] = {{"one", 3}, {"", 0}, {"a\0b", 3}};
    for (int i = 0; i < N_SCALAR; i++) mu_gguf_put_scalar(w, scalars[i].key, scalars[i].kind, &scalars[i].v);
    mu_gguf_put_u32(w, "general.alignment", 64);
    mu_gguf_put_str(w, "s.text", "h\xc3\xa9", 3);
    mu_gguf_put_str(w, "s.empty", NULL, 0);
    mu_gguf_put_f32s(w, "a.f32", floats, 3);
    mu_gguf_put_i32s(w, "a.i32", ints, 4);
    mu_gguf_put_array(w, "a.bool", MU_GGUF_BOOL, bools, 3);
    mu_gguf_put_array(w, "a.u16", MU_GGUF_U16, shorts, 2);
    mu_gguf_put_array(w, "a.f64", MU_GGUF_F64, doubles, 2);
    mu_gguf_put_i32s(w, "a.none", NULL, 0);
    mu_gguf_put_strs(w, "a.str", strs, 3);
    mu_gguf_put_strs(w, "a.nostr", NULL, 0);
    mu_gguf_put_bool(w, "b.no", false);
    mu_gguf_put_f32(w, "f.two", 2.0f);
}

static void test_round_trip(void **state)
{
    (void)state;
    static const uint64_t ne_f32[1] = {5}, ne_q8[2] = {64, 3}, ne_i8[4] = {1, 2, 3, 4};
    unsigned char data[3 * 68 + 32];
    for (size_t i = 0; i < sizeof data; i++) data[i] = (unsigned char)(i * 7 + 1);
    const char *path = test_path("all.gguf");
    struct mu_gguf_writer *w = writer_ok(path);
    put_everything(w);
    mu_gguf_put_tensor(w, "vector", MU_F32, 1, ne_f32);
    mu_gguf_put_tensor(w, "matrix", MU_Q8_0, 2, ne_q8);
    mu_gguf_put_tensor(w, "four", MU_I8, 4, ne_i8);
    data_ok(w, data, 20 + 100); /* pieces need not end where tensors do */
    data_ok(w, data + 120, 20 + 3 * 68 - 120);
    data_ok(w, data, 24);
    close_ok(w);

    struct mu_gguf *g = open_ok(path);
    struct stat sb;
    struct mu_err err = MU_ERR_INIT;
    struct mu_str s;
    assert_int_equal(stat(path, &sb), 0);
    assert_int_equal(mu_gguf_file_bytes(g), sb.st_size);
    assert_string_equal(mu_gguf_path(g), path);
    assert_int_equal(mu_gguf_n_value(g), N_SCALAR + 13);
    assert_null(mu_gguf_value_at(g, N_SCALAR + 13));
    for (int i = 0; i < N_SCALAR; i++) {
        const struct mu_gguf_value *v = mu_gguf_find(g, scalars[i].key);
        assert_non_null(v);
        assert_ptr_equal(v, mu_gguf_value_at(g, (size_t)i));
        assert_int_equal(v->kind, scalars[i].kind);
        assert_int_equal(v->n, 1);
        assert_true(mu_gguf_item_i64(v, 0) == scalars[i].integer);
    }
    assert_true(mu_gguf_item_f32(mu_gguf_find(g, "k.f32"), 0) == 1.5f);
    assert_true(mu_gguf_item_f32(mu_gguf_find(g, "k.f64"), 0) == -2.25f);
    assert_true(mu_gguf_item_f32(mu_gguf_find(g, "k.u32"), 0) == 4294967296.0f);
    assert_int_equal(mu_gguf_get_str(g, "s.text", &s, &err), MU_OK);
    assert_true(mu_str_is(s, "h\xc3\xa9"));
    assert_int_equal(mu_gguf_get_str(g, "s.empty", &s, &err), MU_OK);
    assert_true(s.p && s.len == 0);
    assert_int_equal(mu_gguf_get_str(g, "s.absent", &s, &err), MU_OK);
    assert_true(!s.p && s.len == 0);

    const struct mu_gguf_value *v = mu_gguf_find(g, "a.f32");
    assert_true(v->kind == MU_GGUF_ARRAY && v->item_kind == MU_GGUF_F32 && v->n == 3);
    assert_true(mu_gguf_item_f32(v, 2) == 3e38f && mu_gguf_item_f32(v, 3) == 0.0f);
    v = mu_gguf_find(g, "a.i32");
    assert_true(v->n == 4 && mu_gguf_item_i64(v, 1) == -2 && mu_gguf_item_i64(v, 3) == INT32_MIN);
    v = mu_gguf_find(g, "a.bool");
    assert_true(v->n == 3 && mu_gguf_item_i64(v, 0) == 1 && mu_gguf_item_i64(v, 1) == 0);
    v = mu_gguf_find(g, "a.u16");
    assert_true(v->n == 2 && mu_gguf_item_i64(v, 1) == 65535);
    v = mu_gguf_find(g, "a.f64");
    assert_true(v->n == 2 && isinf(mu_gguf_item_f32(v, 0)) && mu_gguf_item_f32(v, 1) == -0.5f);
    assert_true(mu_gguf_item_i64(v, 0) == INT64_MAX);
    assert_int_equal(mu_gguf_find(g, "a.none")->n, 0);
    v = mu_gguf_find(g, "a.str");
    assert_true(v->n == 3 && mu_str_is(v->strings[0], "one") && v->strings[1].len == 0 && v->strings[2].len == 3);
    assert_memory_equal(v->strings[2].p, "a\0b", 3);
    assert_int_equal(mu_gguf_find(g, "a.nostr")->n, 0);
    assert_null(mu_gguf_find(g, "a.st"));
    assert_null(mu_gguf_find(g, "a.str2"));
    assert_null(mu_gguf_find(g, ""));

    assert_int_equal(mu_gguf_n_tensor(g), 3);
    const struct mu_gguf_tensor *t = mu_gguf_tensor(g, "vector");
    assert_ptr_equal(t, mu_gguf_tensor_at(g, 0));
    assert_true(t->type == MU_F32 && t->n_dim == 1 && t->ne[0] == 5 && t->ne[1] == 1 && t->n_row == 1 &&
                t->bytes == 20);
    assert_int_equal(t->offset % 64, 0);
    assert_memory_equal(t->data, data, 20);
    t = mu_gguf_tensor(g, "matrix");
    assert_true(t->row_bytes == 68 && t->bytes == 3 * 68 && t->n_row == 3 && t->offset % 64 == 0);
    assert_memory_equal(t->data, data + 20, 3 * 68);
    t = mu_gguf_tensor(g, "four");
    assert_true(t->n_row == 24 && t->bytes == 24 && t->n_dim == 4 && t->ne[3] == 4);
    assert_memory_equal(t->data, data, 24);
    assert_null(mu_gguf_tensor(g, "fou"));
    assert_null(mu_gguf_tensor_at(g, 3));
    mu_gguf_will_read(g, t->data, t->bytes);
    mu_gguf_will_read(g, data, sizeof data); /* not in the mapping: no harm */
    assert_memory_equal(t->data, data, 24);
    assert_int_equal(data[0], 1);
    mu_gguf_tensor_fail(g, t, MU_ENONFINITE, "a scale is not finite", &err);
    assert_err(&err, MU_ENONFINITE, path, "tensor 'four'", "a scale is not finite", "offset", NULL);
    mu_gguf_close(g);
    mu_gguf_close(NULL);
}

static void test_lookups_check_kind_and_range(void **state)
{
    (void)state;
    const char *path = test_path("get.gguf");
    struct mu_gguf_writer *w = writer_ok(path);
    put_everything(w);
    close_ok(w);
    struct mu_gguf *g = open_ok(path);
    struct mu_err err = MU_ERR_INIT;
    struct mu_str s;
    uint64_t u = 0;
    float f = 0;
    bool b = true;
    assert_int_equal(mu_gguf_get_u64(g, "absent", 0, 9, 7, &u, &err), MU_OK);
    assert_int_equal(u, 7);
    assert_int_equal(mu_gguf_get_u64(g, "k.u8", 0, 255, 7, &u, &err), MU_OK);
    assert_int_equal(u, 255);
    assert_int_equal(mu_gguf_get_u64(g, "k.u64", 0, UINT64_MAX, 7, &u, &err), MU_OK);
    assert_true(u == INT64_MAX);
    u = 99;
    mu_gguf_get_u64(g, "k.u8", 0, 254, 7, &u, &err);
    assert_err(&err, MU_EFORMAT, path, "offset", "'k.u8'", "from 0 to 254", "found 255", NULL);
    mu_gguf_get_u64(g, "k.i8", 0, UINT64_MAX, 7, &u, &err);
    assert_err(&err, MU_EFORMAT, "'k.i8'", "found -128", NULL);
    mu_gguf_get_u64(g, "k.f32", 0, 9, 7, &u, &err);
    assert_err(&err, MU_EFORMAT, "expected an integer", "floating-point", NULL);
    mu_gguf_get_u64(g, "a.i32", 0, 9, 7, &u, &err);
    assert_err(&err, MU_EFORMAT, "expected an integer", "found an array", NULL);
    assert_int_equal(u, 99);
    assert_int_equal(mu_gguf_get_f32(g, "k.f64", 0, &f, &err), MU_OK);
    assert_true(f == -2.25f);
    assert_int_equal(mu_gguf_get_f32(g, "absent", 4.0f, &f, &err), MU_OK);
    assert_true(f == 4.0f);
    assert_int_equal(mu_gguf_get_f32(g, "k.u8", 0, &f, &err), MU_EFORMAT);
    assert_int_equal(mu_gguf_get_bool(g, "b.no", true, &b, &err), MU_OK);
    assert_false(b);
    assert_int_equal(mu_gguf_get_bool(g, "absent", true, &b, &err), MU_OK);
    assert_true(b);
    assert_int_equal(mu_gguf_get_bool(g, "k.u8", true, &b, &err), MU_EFORMAT);
    mu_gguf_get_str(g, "k.bool", &s, &err);
    assert_err(&err, MU_EFORMAT, "'k.bool'", "expected a string", "found a truth value", NULL);
    mu_gguf_close(g);
}

static void test_show_strings(void **state)
{
    (void)state;
    char buf[8];
    assert_string_equal(mu_str_show((struct mu_str){"a\n\x1b[", 4}, buf, sizeof buf), "a??[");
    assert_string_equal(mu_str_show((struct mu_str){"abcdefghij", 10}, buf, sizeof buf), "abcd...");
    assert_string_equal(mu_str_show((struct mu_str){NULL, 0}, buf, sizeof buf), "");
    assert_true(mu_str_compare((struct mu_str){"ab", 2}, (struct mu_str){"abc", 3}) < 0);
    assert_true(mu_str_compare((struct mu_str){"b", 1}, (struct mu_str){"abc", 3}) > 0);
    assert_true(mu_str_compare((struct mu_str){"a\0b", 3}, (struct mu_str){"a\0c", 3}) < 0);
}

static void test_writer_refuses(void **state)
{
    (void)state;
    static const uint64_t ne[1] = {4}, odd[1] = {33};
    const float data[8] = {0};
    struct mu_err err = MU_ERR_INIT;
    const char *path = test_path("never.gguf");
    struct mu_gguf_writer *w = writer_ok(path);
    mu_gguf_put_tensor(w, "a", MU_F32, 1, ne);
    assert_int_equal(mu_gguf_put_data(w, data, 8, &err), MU_OK);
    mu_gguf_writer_close(w, 1, &err);
    assert_err(&err, MU_EINVAL, "data of 1 tensors", NULL);
    assert_int_not_equal(access(path, F_OK), 0);

    w = writer_ok(path);
    mu_gguf_put_tensor(w, "a", MU_F32, 1, ne);
    assert_int_equal(mu_gguf_put_data(w, data, 32, &err), MU_EINVAL);
    assert_int_equal(mu_gguf_writer_close(w, 1, &err), MU_EINVAL);

    w = writer_ok(path);
    mu_gguf_put_tensor(w, "a", MU_Q8_0, 1, odd);
    mu_gguf_writer_close(w, 1, &err);
    assert_err(&err, MU_EINVAL, "tensor 'a'", "33", "Q8_0", NULL);

    w = writer_ok(path);
    mu_gguf_put_tensor(w, "a", MU_F32, 1, ne);
    assert_int_equal(mu_gguf_put_data(w, data, 16, &err), MU_OK);
    mu_gguf_put_u32(w, "late", 1);
    mu_gguf_writer_close(w, 1, &err);
    assert_err(&err, MU_EINVAL, "'late'", NULL);

    w = writer_ok(path);
    mu_gguf_put_u32(w, "general.alignment", 48);
    mu_gguf_writer_close(w, 1, &err);
    assert_err(&err, MU_EINVAL, "alignment 48", NULL);

    w = writer_ok(path);
    mu_gguf_put_u32(w, "fine", 1);
    assert_int_equal(mu_gguf_writer_close(w, 0, &err), MU_OK);
    assert_int_not_equal(access(path, F_OK), 0);
}

/* ---- split models ---- */

static const char *part_name(int no, int count)
{
    static char names[4][64];
    static int next;
    char *name = names[next++ & 3];
    snprintf(name, sizeof names[0], "m-%05d-of-%05d.gguf", no + 1, count);
    return name;
}

/* Part `no` with one tensor (the first has none), whose value is its number. */
static void write_part(const char *name, int no, int count, int n_tensor, const char *tensor)
{
    static const uint64_t ne[1] = {1};
    uint16_t u = (uint16_t)no, c = (uint16_t)count;
    struct mu_gguf_writer *w = writer_ok(test_path(name));
    if (no == 0) mu_gguf_put_u32(w, "only.first", 42);
    mu_gguf_put_scalar(w, "split.no", MU_GGUF_U16, &u);
    mu_gguf_put_scalar(w, "split.count", MU_GGUF_U16, &c);
    mu_gguf_put_scalar(w, "split.tensors.count", MU_GGUF_I32, &n_tensor);
    float f = (float)no;
    if (tensor) mu_gguf_put_tensor(w, tensor, MU_F32, 1, ne);
    if (tensor) data_ok(w, &f, 4);
    close_ok(w);
}

static void write_parts(void)
{
    write_part(part_name(0, 3), 0, 3, 2, NULL);
    write_part(part_name(1, 3), 1, 3, 2, "one");
    write_part(part_name(2, 3), 2, 3, 2, "two");
}

static void test_split_opens_by_any_part(void **state)
{
    (void)state;
    write_parts();
    for (int i = 0; i < 3; i++) {
        struct mu_gguf *g = open_ok(test_path(part_name(i, 3)));
        struct mu_err err = MU_ERR_INIT;
        assert_int_equal(mu_gguf_n_tensor(g), 2);
        assert_non_null(mu_gguf_find(g, "only.first"));
        const struct mu_gguf_tensor *t = mu_gguf_tensor(g, "two");
        float f;
        memcpy(&f, t->data, 4);
        assert_true(f == 2.0f && t->part == 2);
        assert_int_equal(mu_gguf_tensor(g, "one")->part, 1);
        mu_gguf_tensor_fail(g, t, MU_EFORMAT, "x", &err);
        assert_err(&err, MU_EFORMAT, part_name(2, 3), NULL);
        uint64_t bytes = mu_gguf_file_bytes(g), sum = 0;
        for (int k = 0; k < 3; k++) {
            struct stat sb;
            assert_int_equal(stat(test_path(part_name(k, 3)), &sb), 0);
            sum += (uint64_t)sb.st_size;
        }
        assert_int_equal(bytes, sum);
        mu_gguf_close(g);
    }
}

static void expect_open_fails(const char *name, enum mu_status code, const char *a, const char *b)
{
    struct mu_gguf *g = (void *)1;
    struct mu_err err = MU_ERR_INIT;
    assert_int_equal(mu_gguf_open(test_path(name), &g, &err), code);
    assert_ptr_equal(g, (void *)1); /* outputs are set only on success */
    assert_err(&err, code, a, b, NULL);
}

static void test_split_that_does_not_fit(void **state)
{
    (void)state;
    write_parts();
    assert_int_equal(unlink(test_path(part_name(1, 3))), 0);
    expect_open_fails(part_name(2, 3), MU_ENOENT, "part 2 of 3", part_name(1, 3));
    write_parts();
    assert_int_equal(rename(test_path(part_name(0, 3)), test_path("renamed.gguf")), 0);
    expect_open_fails("renamed.gguf", MU_EINVAL, "-00001-of-00003.gguf", "name");
    write_parts();
    write_part(part_name(1, 3), 2, 3, 2, "one");
    expect_open_fails(part_name(0, 3), MU_EFORMAT, "expected part 2 of 3", "found part 3 of 3");
    write_parts();
    write_part(part_name(1, 3), 1, 3, 2, "two");
    expect_open_fails(part_name(0, 3), MU_EFORMAT, "'two' twice", "m-0000");
    write_parts();
    write_part(part_name(0, 3), 0, 3, 5, NULL);
    expect_open_fails(part_name(0, 3), MU_EFORMAT, "expected 5 tensors", "found 2");
    write_parts();
    write_part(part_name(0, 3), 3, 3, 2, NULL);
    expect_open_fails(part_name(0, 3), MU_EFORMAT, "split.no", "found 3");
}

/* ---- memory ---- */

/* Every allocation fails once: an error each time, nothing kept, and in the end success. */
static void test_allocation_failures(void **state)
{
    (void)state;
    const char *whole = test_path("sweep.gguf");
    struct mu_gguf_writer *w = writer_ok(whole);
    put_everything(w);
    close_ok(w);
    write_parts();
    const char *paths[2] = {whole, test_path(part_name(1, 3))};
    for (int i = 0; i < 2; i++) {
        long n = 1;
        for (;; n++) {
            struct mu_gguf *g = NULL;
            struct mu_err err = MU_ERR_INIT;
            mu_alloc_fail_at(n);
            enum mu_status st = mu_gguf_open(paths[i], &g, &err);
            mu_alloc_fail_at(0);
            if (st == MU_OK) {
                mu_gguf_close(g);
                break;
            }
            assert_err(&err, MU_ENOMEM, "memory", NULL);
            assert_true(n < 1000);
        }
        assert_true(n > 5);
    }
}

static void test_writer_allocation_failures(void **state)
{
    (void)state;
    static const uint64_t ne[1] = {4};
    const float data[4] = {1, 2, 3, 4};
    long n = 1;
    for (;; n++) {
        struct mu_gguf_writer *w = NULL;
        struct mu_err err = MU_ERR_INIT;
        const char *path = test_path("written.gguf");
        unlink(path);
        mu_alloc_fail_at(n);
        enum mu_status st = mu_gguf_writer_open(path, &w, &err);
        if (st == MU_OK) {
            put_everything(w);
            mu_gguf_put_tensor(w, "t", MU_F32, 1, ne);
            mu_gguf_put_data(w, data, sizeof data, &err);
            st = mu_gguf_writer_close(w, 1, &err);
        }
        mu_alloc_fail_at(0);
        if (st == MU_OK) {
            mu_gguf_close(open_ok(path));
            break;
        }
        assert_int_equal(st, MU_ENOMEM);
        assert_int_not_equal(access(path, F_OK), 0);
        assert_true(n < 1000);
    }
    assert_true(n > 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_lookups_check_kind_and_range),
        cmocka_unit_test(test_show_strings),
        cmocka_unit_test(test_writer_refuses),
        cmocka_unit_test(test_split_opens_by_any_part),
        cmocka_unit_test(test_split_that_does_not_fit),
        cmocka_unit_test(test_allocation_failures),
        cmocka_unit_test(test_writer_allocation_failures),
    };
    return cmocka_run_group_tests(tests, make_test_dir, remove_test_dir);
}
