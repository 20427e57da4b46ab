/* GGUF files that are wrong: cut at every byte, each field broken by itself, counts and products that overflow, other
 * formats under the name. Each must be refused with a sentence that names the file, what was expected and what was
 * found. */
#include "tests/model/files_util.h"

#include <sys/stat.h>

#include "kernels/types.h"
#include "model/gguf.h"

/* ---- a file, byte by byte ---- */

struct file {
    uint8_t d[1 << 16];
    size_t n;
};

static void put(struct file *f, const void *p, size_t n)
{
    assert_true(f->n + n <= sizeof f->d);
    memcpy(f->d + f->n, p, n);
    f->n += n;
}
static void put8(struct file *f, uint8_t v)
{
    put(f, &v, 1);
}
static void put32(struct file *f, uint32_t v)
{
    put(f, &v, 4);
}
static void put64(struct file *f, uint64_t v)
{
    put(f, &v, 8);
}
static void put_str(struct file *f, const char *s)
{
    put64(f, strlen(s));
    put(f, s, strlen(s));
}

static void header(struct file *f, uint64_t n_tensor, uint64_t n_value)
{
    f->n = 0;
    put(f, "GGUF", 4);
    put32(f, 3);
    put64(f, n_tensor);
    put64(f, n_value);
}

static void key(struct file *f, const char *name, uint32_t kind)
{
    put_str(f, name);
    put32(f, kind);
}

static void tensor1(struct file *f, const char *name, uint64_t ne, uint32_t type, uint64_t offset)
{
    put_str(f, name);
    put32(f, 1);
    put64(f, ne);
    put32(f, type);
    put64(f, offset);
}

static void pad(struct file *f, size_t align, size_t more)
{
    while (f->n % align) put8(f, 0);
    while (more--) put8(f, 0);
}

static struct file file; /* too large for a stack under ASan */

#define REFUSED(code, ...) refused(__LINE__, code, __VA_ARGS__, NULL)

/* Opening `file` fails with that code; the text holds the file's name and both strings. */
static void refused(int line, enum mu_status code, const char *a, ...)
{
    struct mu_gguf *g = NULL;
    struct mu_err err = MU_ERR_INIT;
    const char *path = write_bytes("bad.gguf", file.d, file.n);
    va_list ap;
    if (mu_gguf_open(path, &g, &err) == MU_OK) fail_msg("line %d: a broken file was opened", line);
    if (err.code != code) fail_msg("line %d: found %s: %s", line, mu_status_name(err.code), err.text);
    if (!strstr(err.text, path)) fail_msg("line %d: expected the file's name in: %s", line, err.text);
    va_start(ap, a);
    for (const char *part = a; part; part = va_arg(ap, const char *))
        if (!strstr(err.text, part)) fail_msg("line %d: expected '%s' in: %s", line, part, err.text);
    va_end(ap);
}

static void accepted(void)
{
    struct mu_gguf *g = NULL;
    struct mu_err err = MU_ERR_INIT;
    if (mu_gguf_open(write_bytes("good.gguf", file.d, file.n), &g, &err) != MU_OK) fail_msg("%s", err.text);
    mu_gguf_close(g);
}

/* A small file with a bit of everything; the last tensor ends at the file's end. */
static void small_file(void)
{
    header(&file, 2, 4);
    key(&file, "general.name", MU_GGUF_STRING);
    put_str(&file, "small");
    key(&file, "number", MU_GGUF_U32);
    put32(&file, 7);
    key(&file, "words", MU_GGUF_ARRAY);
    put32(&file, MU_GGUF_STRING);
    put64(&file, 2);
    put_str(&file, "a");
    put_str(&file, "");
    key(&file, "yes", MU_GGUF_BOOL);
    put8(&file, 1);
    tensor1(&file, "first", 8, MU_F32, 0);
    tensor1(&file, "second", 32, MU_Q8_0, 32);
    pad(&file, 32, 32 + 34);
}

static void test_every_prefix_is_refused(void **state)
{
    (void)state;
    small_file();
    accepted();
    size_t whole = file.n;
    for (size_t n = 0; n < whole; n++) {
        struct mu_gguf *g = NULL;
        struct mu_err err = MU_ERR_INIT;
        const char *path = write_bytes("cut.gguf", file.d, n);
        if (mu_gguf_open(path, &g, &err) == MU_OK) fail_msg("opened when cut after %zu of %zu bytes", n, whole);
        assert_err(&err, MU_EFORMAT, path, "expected", NULL);
    }
    file.n = whole - 1;
    char need[64], have[64];
    snprintf(need, sizeof need, "at least %zu bytes", whole);
    snprintf(have, sizeof have, "found %zu", whole - 1);
    REFUSED(MU_EFORMAT, "'second'", need, have, "cut short");
    header(&file, 0, 1);
    put64(&file, 20); /* a key of 20 bytes, of which 6 are there */
    pad(&file, 1, 6);
    REFUSED(MU_EFORMAT, "offset 32", "expected 20 bytes of key, found 6");
}

static void test_header(void **state)
{
    (void)state;
    static const uint64_t counts[] = {1000, 1u << 20, 1ull << 32, 1ull << 61, UINT64_MAX};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        char found[32];
        snprintf(found, sizeof found, "%llu", (unsigned long long)counts[i]);
        small_file();
        memcpy(file.d + 8, &counts[i], 8);
        REFUSED(MU_EFORMAT, "offset 8", "tensors", found);
        small_file();
        memcpy(file.d + 16, &counts[i], 8);
        REFUSED(MU_EFORMAT, "offset 16", "keys", found);
    }
    static const uint32_t versions[] = {0, 4, 1000, UINT32_MAX};
    for (size_t i = 0; i < sizeof versions / sizeof *versions; i++) {
        small_file();
        memcpy(file.d + 4, &versions[i], 4);
        REFUSED(MU_EUNSUPPORTED, "offset 4", "expected GGUF version 2 or 3");
    }
    small_file();
    file.d[4] = 1;
    REFUSED(MU_EUNSUPPORTED, "found 1", "newer file");
    small_file();
    file.d[4] = 2;
    accepted();
    small_file();
    memcpy(file.d + 4, "\0\0\0\3", 4);
    REFUSED(MU_EUNSUPPORTED, "big-endian", "version 3");
    small_file();
    memcpy(file.d, "FUGG", 4);
    REFUSED(MU_EUNSUPPORTED, "big-endian");
    small_file();
    memcpy(file.d, "GGUX", 4);
    REFUSED(MU_EFORMAT, "expected the letters GGUF");
    header(&file, 0, 0);
    accepted();
}

static void one_key(const char *name, uint32_t kind)
{
    header(&file, 0, 1);
    key(&file, name, kind);
}

static void test_values(void **state)
{
    (void)state;
    one_key("k", 13);
    put64(&file, 0);
    REFUSED(MU_EFORMAT, "'k'", "0 to 12", "found 13");
    one_key("", MU_GGUF_U32);
    put32(&file, 0);
    REFUSED(MU_EFORMAT, "offset 24", "key of 1 to 65535 bytes, found 0");
    one_key("k", MU_GGUF_BOOL);
    put8(&file, 2);
    REFUSED(MU_EFORMAT, "'k'", "0 or 1, found 2");
    one_key("k", MU_GGUF_ARRAY);
    put32(&file, MU_GGUF_BOOL);
    put64(&file, 3);
    put(&file, "\0\1\3", 3);
    REFUSED(MU_EFORMAT, "'k'", "0 or 1, found 3");
    one_key("k", MU_GGUF_ARRAY);
    put32(&file, MU_GGUF_ARRAY);
    put64(&file, 1);
    pad(&file, 1, 64);
    REFUSED(MU_EUNSUPPORTED, "'k'", "array of arrays");
    one_key("k", MU_GGUF_ARRAY);
    put32(&file, 99);
    put64(&file, 1);
    pad(&file, 1, 64);
    REFUSED(MU_EFORMAT, "'k'", "found 99");
    one_key("k", MU_GGUF_F64);
    put32(&file, 0);
    REFUSED(MU_EFORMAT, "expected 8 bytes", "found 4");

    static const uint64_t lengths[] = {100,        1ull << 32, 1ull << 61, (1ull << 61) + 1,
                                       1ull << 62, INT64_MAX,  UINT64_MAX};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        one_key("k", MU_GGUF_STRING);
        put64(&file, lengths[i]);
        pad(&file, 1, 32);
        REFUSED(MU_EFORMAT, "a string", "found 32", "cut short");
        for (uint32_t kind = 0; kind <= MU_GGUF_F64; kind++) {
            if (kind == MU_GGUF_ARRAY) continue;
            one_key("k", MU_GGUF_ARRAY);
            put32(&file, kind);
            put64(&file, lengths[i]);
            pad(&file, 1, 32);
            REFUSED(MU_EFORMAT, "'k'", "cut short");
        }
        header(&file, 0, 1);
        put64(&file, lengths[i]);
        pad(&file, 1, 32);
        REFUSED(MU_EFORMAT, "offset 32", "of key");
    }
    header(&file, 0, 2);
    for (int i = 0; i < 2; i++) {
        key(&file, "twin", MU_GGUF_U8);
        put8(&file, 1);
    }
    REFUSED(MU_EFORMAT, "every key once", "'twin' twice");
    /* A key's bytes are shown, never obeyed. */
    header(&file, 0, 1);
    key(&file, "a\n\x1b[31m", 44);
    pad(&file, 1, 8);
    REFUSED(MU_EFORMAT, "'a??[31m'");
}

static void test_alignment(void **state)
{
    (void)state;
    static const uint32_t bad[] = {0, 1, 4, 7, 12, 33, 1u << 21, 1u << 31, UINT32_MAX};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        one_key("general.alignment", MU_GGUF_U32);
        put32(&file, bad[i]);
        REFUSED(MU_EFORMAT, "general.alignment", "expected");
    }
    one_key("general.alignment", MU_GGUF_STRING);
    put_str(&file, "32");
    REFUSED(MU_EFORMAT, "general.alignment", "expected an integer, found a string");
    for (uint32_t align = 8; align <= 4096; align *= 2) {
        header(&file, 2, 1);
        key(&file, "general.alignment", MU_GGUF_U32);
        put32(&file, align);
        tensor1(&file, "a", 1, MU_F32, 0);
        tensor1(&file, "b", 1, MU_F32, align);
        pad(&file, align, align + 4);
        accepted();
        file.n--;
        REFUSED(MU_EFORMAT, "'b'", "cut short");
    }
}

static void one_tensor(uint64_t ne, uint32_t type, uint64_t offset)
{
    header(&file, 1, 0);
    tensor1(&file, "t", ne, type, offset);
    pad(&file, 32, 256);
}

static void test_tensors(void **state)
{
    (void)state;
    one_tensor(64, MU_F32, 0);
    accepted();
    one_tensor(65, MU_F32, 0);
    REFUSED(MU_EFORMAT, "'t'", "cut short");
    one_tensor(64, MU_F32, 16);
    REFUSED(MU_EFORMAT, "'t'", "multiple of 32", "found 16");
    one_tensor(64, MU_F32, 32);
    REFUSED(MU_EFORMAT, "'t'", "cut short");
    one_tensor(1, MU_F32, UINT64_MAX - 31);
    REFUSED(MU_EFORMAT, "'t'", "beyond");
    one_tensor(1, MU_F32, 1ull << 63);
    REFUSED(MU_EFORMAT, "'t'", "expected");
    one_tensor(0, MU_F32, 0);
    REFUSED(MU_EFORMAT, "'t'", "at least 1 in dimension 0");
    one_tensor(UINT64_MAX, MU_F32, 0);
    REFUSED(MU_EFORMAT, "'t'", "expected");
    one_tensor(1ull << 62, MU_F32, 0);
    REFUSED(MU_EFORMAT, "'t'", "expected");
    one_tensor(33, MU_Q8_0, 0);
    REFUSED(MU_EFORMAT, "'t'", "multiple of 32 values of Q8_0, found 33");
    one_tensor(128, MU_Q4_K, 0);
    REFUSED(MU_EFORMAT, "'t'", "multiple of 256 values of Q4_K, found 128");
    static const uint32_t types[] = {4, 5, 31, 40, 1000, UINT32_MAX};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        one_tensor(32, types[i], 0);
        REFUSED(MU_EUNSUPPORTED, "'t'", "known tensor type");
    }
    static const uint32_t dims[] = {0, 5, 1000, UINT32_MAX};
    for (size_t i = 0; i < sizeof dims / sizeof *dims; i++) {
        header(&file, 1, 0);
        put_str(&file, "t");
        put32(&file, dims[i]);
        pad(&file, 32, 256);
        REFUSED(MU_EFORMAT, "'t'", "1 to 4 dimensions");
    }
    /* Each dimension is fine, their product is not. */
    header(&file, 1, 0);
    put_str(&file, "t");
    put32(&file, 4);
    for (int i = 0; i < 4; i++) put64(&file, 1ull << 20);
    put32(&file, MU_F32);
    put64(&file, 0);
    pad(&file, 32, 256);
    REFUSED(MU_EFORMAT, "'t'", "shape", "1048576");
    /* 2^32 · 2^32 rows wrap to 0. */
    header(&file, 1, 0);
    put_str(&file, "t");
    put32(&file, 3);
    put64(&file, 1);
    put64(&file, 1ull << 32);
    put64(&file, 1ull << 32);
    put32(&file, MU_I8);
    put64(&file, 0);
    pad(&file, 32, 256);
    REFUSED(MU_EFORMAT, "'t'", "shape");

    header(&file, 2, 0);
    tensor1(&file, "a", 16, MU_F32, 0);
    tensor1(&file, "b", 8, MU_F32, 32);
    pad(&file, 32, 256);
    REFUSED(MU_EFORMAT, "'b'", "overlaps tensor 'a'");
    header(&file, 2, 0);
    tensor1(&file, "a", 16, MU_F32, 0);
    tensor1(&file, "b", 8, MU_F32, 0);
    pad(&file, 32, 256);
    REFUSED(MU_EFORMAT, "overlaps");
    header(&file, 2, 0);
    tensor1(&file, "a", 8, MU_F32, 0);
    tensor1(&file, "a", 8, MU_F32, 32);
    pad(&file, 32, 256);
    REFUSED(MU_EFORMAT, "'a' twice");
    header(&file, 2, 0); /* data in another order than the table */
    tensor1(&file, "b", 8, MU_F32, 32);
    tensor1(&file, "a", 8, MU_F32, 0);
    pad(&file, 32, 64);
    accepted();
}

static void test_split_keys(void **state)
{
    (void)state;
    header(&file, 0, 1);
    key(&file, "split.count", MU_GGUF_U16);
    put(&file, "\2\0", 2);
    REFUSED(MU_EFORMAT, "split.no", "missing");
    header(&file, 0, 1);
    key(&file, "split.count", MU_GGUF_U64);
    put64(&file, UINT64_MAX);
    REFUSED(MU_EFORMAT, "split.count", "10000");
    header(&file, 0, 1); /* split into one part: whole */
    key(&file, "split.count", MU_GGUF_U16);
    put(&file, "\1\0", 2);
    accepted();
}

static void test_other_formats_are_named(void **state)
{
    (void)state;
    static const struct {
        const char *bytes;
        size_t n;
        const char *says;
    } others[] = {
        {"version https://git-lfs.github.com/spec/v1\noid sha256:", 55, "git lfs pull"},
        {"PK\003\004..............", 16, "ZIP"},
        {"\x80\002}q", 4, "pickle"},
        {" \r\n<!DOCTYPE html><html>", 25, "web page"},
        {"<HTML><body>", 12, "web page"},
        {"\x10\0\0\0\0\0\0\0{\"a\":1}        ", 24, "safetensors"},
        {"{\"a\": 1}", 8, "JSON"},
        {"tjgg\1\0\0\0", 8, "before 2023"},
        {"\x1f\x8b\x08", 3, "gzip"},
        {"\x28\xb5\x2f\xfd....", 8, "zstd"},
    };
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        file.n = 0;
        put(&file, others[i].bytes, others[i].n);
        REFUSED(MU_EUNSUPPORTED, "not a GGUF file", others[i].says);
    }
    file.n = 0;
    put(&file, "x", 1);
    REFUSED(MU_EFORMAT, "expected the letters GGUF");
}

static void expect_error(const char *path, enum mu_status code, const char *says)
{
    struct mu_gguf *g = NULL;
    struct mu_err err = MU_ERR_INIT;
    mu_gguf_open(path, &g, &err);
    assert_err(&err, code, says, NULL);
}

static void test_what_is_no_file(void **state)
{
    (void)state;
    expect_error(test_path("absent.gguf"), MU_ENOENT, "absent.gguf");
    expect_error(test_dir, MU_EINVAL, "name the GGUF file");
    expect_error("/dev/null", MU_EINVAL, "not a regular file");
    expect_error(write_bytes("empty.gguf", "", 0), MU_EFORMAT, "is empty");
    assert_int_equal(mkfifo(test_path("pipe"), 0600), 0);
    expect_error(test_path("pipe"), MU_EINVAL, "not a regular file"); /* and does not wait for a writer */
    char path[3000];                                                  /* too long to be shown whole: its end is */
    memset(path, '/', sizeof path);
    memcpy(path + sizeof path - 12, "/the-end.gg", 12);
    expect_error(path, MU_ENOENT, "/the-end.gg'");
}

/* Any one byte of the file set to its extremes: opened or refused, never worse (ASan and the mapping's end watch). */
static void test_every_byte_broken(void **state)
{
    (void)state;
    static const uint8_t values[] = {0, 1, 0x7f, 0x80, 0xff};
    small_file();
    for (size_t at = 0; at < file.n; at++)
        for (size_t i = 0; i < sizeof values; i++) {
            struct mu_gguf *g = NULL;
            struct mu_err err = MU_ERR_INIT;
            uint8_t was = file.d[at];
            file.d[at] = values[i];
            const char *path = write_bytes("byte.gguf", file.d, file.n);
            if (mu_gguf_open(path, &g, &err) == MU_OK) {
                for (size_t k = 0; k < mu_gguf_n_tensor(g); k++) {
                    const struct mu_gguf_tensor *t = mu_gguf_tensor_at(g, k);
                    assert_true(t->offset + t->bytes <= file.n);
                }
                mu_gguf_close(g);
            } else if (!strstr(err.text, path)) {
                fail_msg("byte %zu: %s", at, err.text);
            }
            file.d[at] = was;
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_prefix_is_refused),
        cmocka_unit_test(test_header),
        cmocka_unit_test(test_values),
        cmocka_unit_test(test_alignment),
        cmocka_unit_test(test_tensors),
        cmocka_unit_test(test_split_keys),
        cmocka_unit_test(test_other_formats_are_named),
        cmocka_unit_test(test_what_is_no_file),
        cmocka_unit_test(test_every_byte_broken),
    };
    return cmocka_run_group_tests(tests, make_test_dir, remove_test_dir);
}
