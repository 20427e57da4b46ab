/* The checks before messages are unpacked, and the embedded descriptors. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/alloc.h"
#include "grpc/reflection/v1/reflection.pb-c.h"
#include "muster/v1/internal.pb-c.h"
#include "muster/v1/muster.pb-c.h"
#include "proto/descriptors.h"
#include "proto/limits.h"

/* The definition, one code point at a time, against which the fast one is held. */
static bool utf8_by_definition(const uint8_t *p, size_t len)
{
    for (size_t i = 0; i < len;) {
        uint32_t c = p[i];
        size_t n = c < 0x80 ? 1 : c >= 0xC0 && c < 0xE0 ? 2 : c >= 0xE0 && c < 0xF0 ? 3 : c >= 0xF0 && c < 0xF8 ? 4 : 0;
        if (n == 0 || i + n > len) return false;
        uint32_t v = n == 1 ? c : c & (0xFFu >> (n + 1));
        for (size_t k = 1; k < n; k++) {
            if ((p[i + k] & 0xC0) != 0x80) return false;
            v = v << 6 | (p[i + k] & 0x3F);
        }
        static const uint32_t least[] = {0, 1, 0x80, 0x800, 0x10000};
        if (v < least[n] || v > 0x10FFFF || (v >= 0xD800 && v <= 0xDFFF)) return false;
        i += n;
    }
    return true;
}

static void test_utf8(void **state)
{
    (void)state;
    assert_true(mu_utf8_valid("", 0));
    assert_true(mu_utf8_valid("gr\xc3\xbc\xc3\x9f \xe2\x82\xac \xf0\x9f\x98\x80", 15));
    /* Every sequence of three bytes, and of four where the fourth is an edge; with ASCII before, so that the fast
     * path is left. */
    static const uint8_t edges[] = {0, 1, 0x7F, 0x80, 0xBF, 0xC0, 0xFF};
    uint8_t text[16];
    for (uint32_t v = 0; v < 1u << 24; v++) {
        uint8_t abc[3] = {(uint8_t)(v >> 16), (uint8_t)(v >> 8), (uint8_t)v};
        if (abc[0] < 0x80 && abc[0] > 1) continue; /* one ASCII byte stands for all */
        memcpy(text, "12345678", 8);
        memcpy(text + 8, abc, 3);
        bool expected = utf8_by_definition(text, 11);
        if (mu_utf8_valid(text, 11) != expected) fail_msg("%02x %02x %02x", abc[0], abc[1], abc[2]);
        if (abc[0] < 0xE0) continue;
        for (size_t e = 0; e < sizeof edges; e++) {
            text[11] = edges[e];
            if (mu_utf8_valid(text, 12) != utf8_by_definition(text, 12))
                fail_msg("%02x %02x %02x %02x", abc[0], abc[1], abc[2], edges[e]);
        }
    }
    /* A NUL or a high byte at every place of the eight-byte words. */
    for (size_t at = 0; at < 16; at++) {
        memset(text, 'a', sizeof text);
        assert_true(mu_utf8_valid(text, 16));
        text[at] = 0;
        assert_false(mu_utf8_valid(text, 16));
        text[at] = 0x80;
        assert_false(mu_utf8_valid(text, 16));
        text[at] = 1;
        assert_true(mu_utf8_valid(text, 16));
    }
}

static enum mu_status unpack(const ProtobufCMessageDescriptor *type, const void *data, size_t len, size_t budget,
                             ProtobufCMessage **msg_out)
{
    struct mu_err err = MU_ERR_INIT;
    /* A block of exactly that length, so that a sanitizer sees any read beyond it. */
    void *copy = malloc(len ? len : 1);
    memcpy(copy, data, len);
    enum mu_status st = mu_proto_unpack(type, copy, len, budget, msg_out, &err);
    free(copy);
    return st;
}

static enum mu_status try_request(const char *data, size_t len)
{
    ProtobufCMessage *msg = NULL;
    enum mu_status st = unpack(&muster__v1__generate_request__descriptor, data, len, 0, &msg);
    mu_proto_free(msg);
    return st;
}

static void test_round_trip(void **state)
{
    (void)state;
    Muster__V1__GenerateRequest q = MUSTER__V1__GENERATE_REQUEST__INIT;
    Muster__V1__Sampling sampling = MUSTER__V1__SAMPLING__INIT;
    char *stop[] = {(char *)"a", (char *)"\xe2\x82\xac"};
    q.model = (char *)"m";
    q.prompt_case = MUSTER__V1__GENERATE_REQUEST__PROMPT_TEXT;
    q.text = (char *)"prompt";
    q.stop = stop;
    q.n_stop = 2;
    sampling._seed_case = MUSTER__V1__SAMPLING___SEED_SEED;
    sampling.seed = 0;
    q.sampling = &sampling;
    uint8_t data[256];
    size_t len = protobuf_c_message_pack(&q.base, data);
    ProtobufCMessage *msg;
    assert_int_equal(unpack(&muster__v1__generate_request__descriptor, data, len, 0, &msg), MU_OK);
    const Muster__V1__GenerateRequest *r = (const Muster__V1__GenerateRequest *)msg;
    assert_string_equal(r->text, "prompt");
    assert_int_equal(r->n_stop, 2);
    assert_string_equal(r->stop[1], stop[1]);
    assert_int_equal(r->sampling->_seed_case, MUSTER__V1__SAMPLING___SEED_SEED); /* present though 0 */
    mu_proto_free(msg);
    /* Cut off anywhere: an error or a shorter message, never a read beyond the end. */
    for (size_t n = 0; n < len; n++) {
        msg = NULL;
        enum mu_status st = unpack(&muster__v1__generate_request__descriptor, data, n, 0, &msg);
        assert_true((st == MU_OK) == (msg != NULL));
        assert_true(st == MU_OK || st == MU_EFORMAT);
        mu_proto_free(msg);
    }
    /* Any one byte changed. */
    for (size_t at = 0; at < len; at++) {
        for (int v = 0; v < 256; v++) {
            uint8_t kept = data[at];
            data[at] = (uint8_t)v;
            msg = NULL;
            unpack(&muster__v1__generate_request__descriptor, data, len, 0, &msg);
            mu_proto_free(msg);
            data[at] = kept;
        }
    }
    mu_proto_free(NULL);
}

static void test_malformed(void **state)
{
    (void)state;
    assert_int_equal(try_request("", 0), MU_OK);
    assert_int_equal(try_request("\x12\x01x", 3), MU_OK);
    assert_int_equal(try_request("\x12\x01\xff", 3), MU_EINVAL); /* text */
    assert_int_equal(try_request("\x12\x03x\0y", 5), MU_EINVAL);
    assert_int_equal(try_request("\x32\x01\xff", 3), MU_EINVAL); /* a repeated string */
    assert_int_equal(try_request("\x0a\x02\xc3\x28", 4), MU_EINVAL);
    assert_int_equal(try_request("\x7a\x01\xff", 3), MU_OK);   /* unknown field 15 */
    assert_int_equal(try_request("\x12\x05x", 3), MU_EFORMAT); /* cut off */
    assert_int_equal(try_request("\x12", 1), MU_EFORMAT);
    assert_int_equal(try_request("\x12\xff\xff\xff\xff\xff\xff\xff\xff\x7f", 10), MU_EFORMAT); /* length near 2^63 */
    assert_int_equal(try_request("\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", 12), MU_EFORMAT);
    assert_int_equal(try_request("\x02\x01x", 3), MU_EFORMAT); /* field 0 */
    assert_int_equal(try_request("\x13\x14", 2), MU_EFORMAT);  /* a group */
    assert_int_equal(try_request("\x16", 1), MU_EFORMAT);      /* wire type 6 */
    assert_int_equal(try_request("\x10\x01", 2), MU_EFORMAT);  /* a number where a text is expected */
    assert_int_equal(try_request("\x20\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", 11), MU_EFORMAT); /* endless varint */
    assert_int_equal(try_request("\x2d\x01\x02", 3), MU_EFORMAT); /* 4 bytes announced, 2 here */
    struct mu_err err = MU_ERR_INIT;
    assert_int_equal(mu_proto_check(&muster__v1__generate_request__descriptor, "\x12\x01\xff", 3, &err), MU_EINVAL);
    assert_string_equal(err.text, "muster.v1.GenerateRequest: text is not valid UTF-8 without NUL");
}

/* A text inside submessages is found too. */
static void test_nested(void **state)
{
    (void)state;
    ProtobufCMessage *msg = NULL;
    /* EngineUp{tokens: {request: {error: "\xff"}}} */
    static const char up[] = "\x1a\x05\x0a\x03\x2a\x01\xff";
    assert_int_equal(unpack(&muster__internal__v1__engine_up__descriptor, up, 7, 0, &msg), MU_EINVAL);
    static const char good[] = "\x1a\x05\x0a\x03\x2a\x01x";
    assert_int_equal(unpack(&muster__internal__v1__engine_up__descriptor, good, 7, 0, &msg), MU_OK);
    mu_proto_free(msg);
}

static void test_budget(void **state)
{
    (void)state;
    enum { EMPTY = 1 << 20 };
    uint8_t *data = malloc(2 * EMPTY);
    for (int i = 0; i < EMPTY; i++) memcpy(data + 2 * i, "\x0a\x00", 2); /* EngineTokens.request {} */
    ProtobufCMessage *msg = NULL;
    assert_int_equal(unpack(&muster__internal__v1__engine_tokens__descriptor, data, 2 * EMPTY, 0, &msg), MU_ELIMIT);
    assert_null(msg);
    assert_int_equal(unpack(&muster__internal__v1__engine_tokens__descriptor, data, 200, 0, &msg), MU_OK);
    mu_proto_free(msg);
    assert_int_equal(unpack(&muster__internal__v1__engine_tokens__descriptor, data, 200, 1000, &msg), MU_ELIMIT);
    /* One submessage given again and again is merged each time, with what it held before: quadratic without a budget.
     */
    for (int i = 0; i < EMPTY / 4; i++)
        memcpy(data + 5 * i, "\x1a\x03\x0a\x01\x07", 5); /* GenerateRequest.ids {id: [7]} */
    assert_int_equal(unpack(&muster__v1__generate_request__descriptor, data, 5 * (EMPTY / 4), 0, &msg), MU_ELIMIT);
    free(data);
    /* An honest large message fits: 100,000 ids of three bytes each. */
    Muster__V1__TokenizeReply r = MUSTER__V1__TOKENIZE_REPLY__INIT;
    r.n_ids = 100000;
    r.ids = malloc(r.n_ids * sizeof *r.ids);
    for (size_t i = 0; i < r.n_ids; i++) r.ids[i] = 100000;
    size_t len = protobuf_c_message_get_packed_size(&r.base);
    uint8_t *packed = malloc(len);
    protobuf_c_message_pack(&r.base, packed);
    assert_int_equal(unpack(&muster__v1__tokenize_reply__descriptor, packed, len, 0, &msg), MU_OK);
    assert_int_equal(((Muster__V1__TokenizeReply *)msg)->n_ids, 100000);
    mu_proto_free(msg);
    free(packed);
    free(r.ids);
}

/* The n-th allocation fails, for every n until none does: never taken for a fault of the message. */
static void test_no_memory(void **state)
{
    (void)state;
    static const char data[] =
        "\x0a\x01m\x12\x06prompt\x32\x01x\x32\x01y\x2a\x00"; /* model, text, two stops, sampling */
    long n = 0, made;
    enum mu_status st;
    do {
        ProtobufCMessage *msg = NULL;
        struct mu_err err = MU_ERR_INIT;
        mu_alloc_fail_at(++n);
        st = mu_proto_unpack(&muster__v1__generate_request__descriptor, data, sizeof data - 1, 0, &msg, &err);
        made = mu_alloc_fail_at(0);
        assert_true(st == MU_ENOMEM || (st == MU_OK && made < n));
        mu_proto_free(msg);
    } while (st != MU_OK);
    assert_true(n > 5);
}

/* Files of the embedded set, by the wire form of FileDescriptorSet: field 1 of the set, field 1 (the name) first in
 * each. */
static void test_descriptors(void **state)
{
    (void)state;
    static const char *const expected[] = {"muster/v1/muster.proto", "grpc/health/v1/health.proto",
                                           "grpc/reflection/v1/reflection.proto",
                                           "grpc/reflection/v1alpha/reflection.proto"};
    size_t at = 0, n = 0;
    while (at < mu_descriptor_set_bytes) {
        assert_true(n < 4);
        assert_int_equal(mu_descriptor_set[at++], 0x0a);
        size_t len = 0;
        for (int shift = 0;; shift += 7) {
            len |= (size_t)(mu_descriptor_set[at] & 0x7F) << shift;
            if (!(mu_descriptor_set[at++] & 0x80)) break;
        }
        assert_int_equal(mu_descriptor_set[at], 0x0a);
        assert_int_equal(mu_descriptor_set[at + 1], strlen(expected[n]));
        assert_memory_equal(&mu_descriptor_set[at + 2], expected[n], strlen(expected[n]));
        at += len;
        n++;
    }
    assert_int_equal(at, mu_descriptor_set_bytes);
    assert_int_equal(n, 4);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_utf8),        cmocka_unit_test(test_round_trip), cmocka_unit_test(test_malformed),
        cmocka_unit_test(test_nested),      cmocka_unit_test(test_budget),     cmocka_unit_test(test_no_memory),
        cmocka_unit_test(test_descriptors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
