/* Headers of .safetensors files: what is read, and every kind of lie that is refused. */
#include "files_util.h"
#include "kernels/types.h"
#include "model/safetensors.h"

/* A file of this header (its length put before it) and n_data bytes, in a buffer of just its size. */
static enum mu_status read_header_of(const char *header, size_t n_data, struct mu_st_table *table, struct mu_err *err)
{
    uint64_t len = strlen(header);
    uint8_t *file = mu_calloc(1, 8 + len + n_data);
    assert_non_null(file);
    memcpy(file, &len, 8);
    memcpy(file + 8, header, len);
    struct mu_gguf_part part = {.map = file, .size = 8 + len + n_data, .shown = "t.safetensors"};
    enum mu_status st = mu_st_table_read(&part, table, err);
    mu_free(file); /* the table borrows nothing */
    return st;
}

static void test_reads(void **state)
{
    struct mu_err err = MU_ERR_INIT;
    struct mu_st_table t;
    (void)state;
    enum mu_status st = read_header_of("{\"__metadata__\":{\"format\":\"pt\"},"
                                       "\"b\":{\"dtype\":\"F16\",\"shape\":[3],\"data_offsets\":[24,30]},"
                                       "\"\\u00e4.w\":{\"dtype\":\"BF16\",\"shape\":[2,4],\"data_offsets\":[8,24]},"
                                       "\"none\":{\"dtype\":\"F32\",\"shape\":[0,7],\"data_offsets\":[8,8]},"
                                       "\"one\":{\"dtype\":\"I64\",\"shape\":[],\"data_offsets\":[0,8]},"
                                       "\"q\":{\"dtype\":\"F4\",\"shape\":[3],\"data_offsets\":[30,32]}}   ",
                                       32, &t, &err);
    if (st != MU_OK) fail_msg("%s", err.text);
    assert_int_equal(t.n_tensor, 5);
    static const char *const names[] = {"one", "none", "\xc3\xa4.w", "b", "q"};
    for (size_t i = 0; i < 5; i++) assert_string_equal(t.tensor[i].name.p, names[i]);
    assert_int_equal(t.tensor[0].type, MU_ST_NO_TYPE);
    assert_string_equal(t.tensor[0].dtype, "I64");
    assert_int_equal(t.tensor[0].n_dim, 0);
    assert_int_equal(t.tensor[2].type, MU_BF16);
    assert_int_equal(t.tensor[2].n_dim, 2);
    assert_int_equal(t.tensor[2].dim[0], 2);
    assert_int_equal(t.tensor[2].dim[1], 4);
    assert_int_equal(t.tensor[2].bytes, 16);
    assert_int_equal(t.tensor[2].offset - t.tensor[0].offset, 8);
    mu_st_table_free(&t);
}

#define T(name, dtype, shape, from, to) \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":[" from "," to "]}"

static void test_lies(void **state)
{
    static const struct {
        const char *header;
        size_t n_data;
        const char *says;
    } cases[] = {
        {"{" T("a", "F32", "[4]", "0", "16") "}", 15, "within the 15 bytes"},
        {"{" T("a", "F32", "[4]", "16", "0") "}", 16, "found it at 16 to 0"},
        {"{" T("a", "F32", "[4]", "0", "16") "}", 20, "expected the last tensor to end"},
        {"{" T("a", "F32", "[5]", "0", "16") "}", 16, "need other than the bytes"},
        {"{" T("a", "F32", "[2]", "0", "8") "," T("b", "F32", "[3]", "4", "16") "}", 16, "overlaps"},
        {"{" T("a", "F32", "[2]", "0", "8") "," T("b", "F32", "[1]", "12", "16") "}", 16, "gap"},
        {"{" T("a", "F32", "[2]", "0", "8") "," T("a", "F32", "[2]", "8", "16") "}", 16, "uplicate"},
        {"{" T("a", "F32", "[-1]", "0", "16") "}", 16, "whole numbers"},
        {"{" T("a", "F32", "[4.0]", "0", "16") "}", 16, "whole numbers"},
        {"{" T("a", "F32", "[4294967296,4294967296,4]", "0", "16") "}", 16, "larger than any memory"},
        {"{" T("a", "F32", "[1,1,1,1,1,1,1,1,4]", "0", "16") "}", 16, "at most 8 dimensions"},
        {"{" T("a", "F32", "4", "0", "16") "}", 16, "array \"shape\""},
        {"{" T("a", "F32", "[4]", "-1", "16") "}", 16, "data_offsets"},
        {"{" T("a", "F32", "[4]", "0", "99999999999999999999") "}", 16, "JSON"},
        {"{" T("", "F32", "[4]", "0", "16") "}", 16, "name of 1 to"},
        {"{\"a\":7}", 0, "expected an object"},
        {"{\"a\":{\"dtype\":7,\"shape\":[],\"data_offsets\":[0,0]}}", 0, "\"dtype\""},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[]}}", 0, "data_offsets"},
        {"[]", 0, "JSON object"},
        {"{\"a", 0, "expected JSON"},
        {"{\"\\ud800\":1}", 0, "expected JSON"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct mu_err err = MU_ERR_INIT;
        struct mu_st_table t;
        if (read_header_of(cases[i].header, cases[i].n_data, &t, &err) == MU_OK) fail_msg("read: %s", cases[i].header);
        assert_err(&err, MU_EFORMAT, "t.safetensors", cases[i].says, NULL);
    }
}

static void test_lengths(void **state)
{
    static const struct {
        uint64_t len;
        uint64_t size;
    } cases[] = {{0, 0}, {2, 7}, {0, 16}, {1, 16}, {9, 16}, {UINT64_MAX, 16}, {100000001, 16}, {1ull << 63, 8}};
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct mu_err err = MU_ERR_INIT;
        struct mu_st_table t;
        uint8_t *file = mu_calloc(1, cases[i].size + 1), head[8];
        memcpy(head, &cases[i].len, 8);
        memcpy(file, head, cases[i].size < 8 ? cases[i].size : 8);
        struct mu_gguf_part part = {.map = file, .size = cases[i].size, .shown = "t.safetensors"};
        assert_int_equal(mu_st_table_read(&part, &t, &err), MU_EFORMAT);
        assert_err(&err, MU_EFORMAT, "t.safetensors", "header", NULL);
        mu_free(file);
    }
}

/* Depth is bounded, and so is what a header of many empty things takes. */
static void test_deep(void **state)
{
    enum { DEEP = 100000 };
    struct mu_err err = MU_ERR_INIT;
    struct mu_st_table t;
    char *header = mu_malloc(DEEP + 1);
    (void)state;
    memset(header, '[', DEEP);
    header[DEEP] = 0;
    assert_int_equal(read_header_of(header, 0, &t, &err), MU_EFORMAT);
    mu_free(header);
}

static void test_memory(void **state)
{
    (void)state;
    for (long n = 1;; n++) {
        struct mu_err err = MU_ERR_INIT;
        struct mu_st_table t;
        static const char header[] = "{" T("a", "F32", "[2]", "0", "8") "," T("b", "F16", "[2,2]", "8", "16") "}";
        uint8_t file[8 + sizeof header - 1 + 16] = {sizeof header - 1};
        memcpy(file + 8, header, sizeof header - 1);
        struct mu_gguf_part part = {.map = file, .size = sizeof file, .shown = "t.safetensors"};
        mu_alloc_fail_at(n);
        enum mu_status st = mu_st_table_read(&part, &t, &err);
        mu_alloc_fail_at(0);
        if (st == MU_OK) {
            assert_int_equal(n, 3);
            mu_st_table_free(&t);
            return;
        }
        assert_err(&err, MU_ENOMEM, NULL);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reads), cmocka_unit_test(test_lies),   cmocka_unit_test(test_lengths),
        cmocka_unit_test(test_deep),  cmocka_unit_test(test_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
