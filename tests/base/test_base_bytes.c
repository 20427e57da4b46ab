/* Readers and writers: layout, every truncated prefix, the bound, stickiness. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/alloc.h"
#include "base/bytes.h"

static const uint8_t layout[] = {
    0x01,                                  /* u8 */
    0x03, 0x02,                            /* u16 */
    0x07, 0x06, 0x05, 0xF4,                /* u32 */
    0xFE, 0xFF, 0xFF, 0xFF,                /* i32 -2 */
    1,    2,    3,    4,    5, 6, 7, 0x88, /* u64 */
    0,    0,    0xC0, 0x3F,                /* f32 1.5 */
    'a',  'b',  'c',
};

static void write_layout(struct mu_writer *w)
{
    mu_write_u8(w, 1);
    mu_write_u16(w, 0x0203);
    mu_write_u32(w, 0xF4050607);
    mu_write_i32(w, -2);
    mu_write_u64(w, 0x8807060504030201);
    mu_write_f32(w, 1.5f);
    mu_write_bytes(w, "abc", 3);
    mu_write_bytes(w, NULL, 0);
}

static void read_layout(struct mu_reader *r, int expect_ok)
{
    uint8_t a = mu_read_u8(r);
    uint16_t b = mu_read_u16(r);
    uint32_t c = mu_read_u32(r);
    int32_t d = mu_read_i32(r);
    uint64_t e = mu_read_u64(r);
    float g = mu_read_f32(r);
    const char *s = mu_read_bytes(r, 3);
    assert_int_equal(r->ok, expect_ok);
    if (!expect_ok) {
        assert_null(s);
        return;
    }
    assert_int_equal(a, 1);
    assert_int_equal(b, 0x0203);
    assert_int_equal(c, 0xF4050607);
    assert_int_equal(d, -2);
    assert_true(e == 0x8807060504030201);
    assert_true(g == 1.5f);
    assert_memory_equal(s, "abc", 3);
    assert_int_equal(mu_reader_left(r), 0);
}

static void layout_is_little_endian(void **state)
{
    (void)state;
    struct mu_writer w;
    mu_writer_init(&w, 1000);
    write_layout(&w);
    assert_true(w.ok);
    assert_int_equal(w.len, sizeof layout);
    assert_memory_equal(w.data, layout, sizeof layout);
    struct mu_reader r = mu_reader_of(layout, sizeof layout);
    read_layout(&r, 1);
    mu_writer_free(&w);
}

/* Each prefix in a heap block of exactly its size, so that AddressSanitizer sees a read beyond it. */
static void every_prefix_is_short(void **state)
{
    (void)state;
    for (size_t len = 0; len < sizeof layout; len++) {
        uint8_t *copy = mu_malloc(len);
        memcpy(copy, layout, len);
        struct mu_reader r = mu_reader_of(copy, len);
        read_layout(&r, 0);
        assert_int_equal(mu_read_u8(&r), 0); /* sticky, even where a byte is left */
        assert_null(mu_read_bytes(&r, 0));
        assert_false(r.ok);
        mu_free(copy);
    }
    struct mu_reader r = mu_reader_of(layout, sizeof layout);
    assert_null(mu_read_bytes(&r, SIZE_MAX));
    assert_false(r.ok);
    r = mu_reader_of(NULL, 0);
    mu_read_bytes(&r, 0);
    assert_true(r.ok);
}

static void every_bound_is_kept(void **state)
{
    (void)state;
    for (size_t max = 0; max <= sizeof layout; max++) {
        struct mu_writer w;
        mu_writer_init(&w, max);
        write_layout(&w);
        assert_int_equal(w.ok, max == sizeof layout);
        assert_true(w.len <= max && w.cap <= max);
        if (w.len) assert_memory_equal(w.data, layout, w.len);
        size_t len = w.len;
        if (!w.ok) mu_write_bytes(&w, "", 0), mu_write_u8(&w, 1);
        assert_int_equal(w.len, w.ok ? sizeof layout : len);
        mu_writer_reset(&w);
        assert_true(w.ok && w.len == 0);
        mu_writer_free(&w);
    }
}

static void a_writer_grows(void **state)
{
    (void)state;
    struct mu_writer w;
    mu_writer_init(&w, SIZE_MAX);
    for (uint32_t i = 0; i < 100000; i++) mu_write_u32(&w, i);
    assert_true(w.ok && w.len == 400000);
    struct mu_reader r = mu_reader_of(w.data, w.len);
    for (uint32_t i = 0; i < 100000; i++) assert_int_equal(mu_read_u32(&r), i);
    mu_write_bytes(&w, "x", SIZE_MAX - 10);
    assert_false(w.ok);
    mu_writer_free(&w);
    mu_writer_init(&w, 1000);
    mu_alloc_fail_at(1);
    mu_write_u8(&w, 1);
    assert_false(w.ok);
    assert_int_equal(w.len, 0);
    mu_alloc_fail_at(0);
    mu_writer_free(&w);
}

static void floats_keep_their_bits(void **state)
{
    (void)state;
    static const uint32_t bits[] = {0, 0x80000000, 1, 0x7F800000, 0xFF800000, 0x7FC00001, 0x7F800001, 0xFFFFFFFF};
    for (size_t i = 0; i < sizeof bits / sizeof bits[0]; i++) {
        struct mu_writer w;
        mu_writer_init(&w, 8);
        float v;
        memcpy(&v, &bits[i], 4);
        mu_write_f32(&w, v);
        assert_memory_equal(w.data, &bits[i], 4);
        struct mu_reader r = mu_reader_of(w.data, w.len);
        v = mu_read_f32(&r);
        assert_memory_equal(&v, &bits[i], 4);
        mu_writer_free(&w);
    }
}

/* Every bit counts, and so do the length and what came before. */
static void test_hash(void **state)
{
    (void)state;
    uint8_t data[21] = {0};
    uint64_t none = mu_hash64(0, data, sizeof data);
    assert_true(mu_hash64(0, data, sizeof data) == none);
    for (size_t i = 0; i < 8 * sizeof data; i++) {
        data[i / 8] ^= (uint8_t)(1u << i % 8);
        assert_true(mu_hash64(0, data, sizeof data) != none);
        data[i / 8] ^= (uint8_t)(1u << i % 8);
    }
    for (size_t n = 0; n < sizeof data; n++) assert_true(mu_hash64(0, data, n) != mu_hash64(0, data, n + 1));
    assert_true(mu_hash64(1, data, 0) != mu_hash64(0, data, 0));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(layout_is_little_endian), cmocka_unit_test(every_prefix_is_short),
        cmocka_unit_test(every_bound_is_kept),     cmocka_unit_test(a_writer_grows),
        cmocka_unit_test(floats_keep_their_bits),  cmocka_unit_test(test_hash),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
