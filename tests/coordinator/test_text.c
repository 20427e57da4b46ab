/* Tokenize and Detokenize through the front door: what ids read, and what the longest answers cost. */
#include <stdlib.h>
#include <sys/resource.h>

#include "base/alloc.h"
#include "hub_fixture.h"

/* text_out (may be NULL) is freed with free. */
static enum mu_status detokenize(struct world *w, int32_t *ids, size_t n, char **text_out, struct mu_err *err)
{
    Muster__V1__DetokenizeRequest q = MUSTER__V1__DETOKENIZE_REQUEST__INIT;
    ProtobufCMessage *msg = NULL;
    q.ids = ids;
    q.n_ids = n;
    enum mu_status st = mu_rpc_unary(w->channel, "/muster.v1.Muster/Detokenize", &q.base,
                                     &muster__v1__detokenize_reply__descriptor, mu_now_ns() + 60 * MU_SEC, &msg, err);
    if (!st && text_out) *text_out = strdup(((Muster__V1__DetokenizeReply *)msg)->text);
    mu_rpc_message_free(msg);
    return st;
}

/* Bytes that are no text are shown as a stream shows them. */
static void test_same_as_streamed(void **state)
{
    (void)state;
    struct world *w = world_start(0, 4);
    struct mu_err err = MU_ERR_INIT;
    int32_t ids[] = {1, ID_XYZ, B(0xE2), B(0x82), B('A'), B(0), B('b'), B(0xED), B(0xA0), ID_END, B(0xC3)};
    size_t n = sizeof ids / sizeof *ids, len = 0, cap = 0;
    char *streamed = NULL, *text = NULL;
    struct mu_streamer s;
    mu_streamer_init(&s, w->v.tok, false);
    for (size_t i = 0; i < n; i++) assert_int_equal(mu_streamer_push(&s, ids[i], &streamed, &len, &cap), MU_OK);
    assert_int_equal(mu_streamer_finish(&s, &streamed, &len, &cap), MU_OK);
    if (detokenize(w, ids, n, &text, &err)) fail_msg("%s", err.text);
    assert_string_equal(text, streamed);
    assert_string_equal(text, "xyz\xEF\xBF\xBD"
                              "A\xEF\xBF\xBD"
                              "b\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD");
    free(text);
    assert_int_equal(detokenize(w, NULL, 0, &text, &err), MU_OK);
    assert_string_equal(text, "");
    free(text);
    mu_free(streamed);
    world_stop(w);
}

static long peak_mb(void)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return u.ru_maxrss >> 10;
}

/* 1,048,576 ids of a token of 8,000 bytes would be a text of 8 GB. */
static void test_answers_too_long(void **state)
{
    (void)state;
    enum { IDS = 1 << 20, LARGEST = (4 << 20) / LONG_BYTES };
    struct world *w = world_start(0, 4);
    struct mu_err err = MU_ERR_INIT;
    int32_t *ids = malloc(IDS * sizeof *ids);
    for (size_t i = 0; i < IDS; i++) ids[i] = ID_LONG;
    char *text;
    if (detokenize(w, ids, LARGEST, &text, &err)) fail_msg("%s", err.text);
    assert_int_equal(strlen(text), LARGEST * LONG_BYTES);
    free(text);
    long before = peak_mb();
    assert_int_equal(detokenize(w, ids, LARGEST + 1, NULL, &err), MU_ELIMIT);
    if (!strstr(err.text, "ask for less")) fail_msg("%s", err.text);
    assert_int_equal(detokenize(w, ids, IDS, NULL, &err), MU_ELIMIT);
    printf("%ld MB more\n", peak_mb() - before);
    assert_true(peak_mb() - before < 300); /* the request itself is here several times */
    free(ids);

    /* Every byte of a text that is in no token is an id, and of "é" two bytes of the answer. */
    Muster__V1__TokenizeRequest q = MUSTER__V1__TOKENIZE_REQUEST__INIT;
    ProtobufCMessage *msg = NULL;
    q.text = malloc((3 << 20) + 1);
    for (size_t i = 0; i < 3 << 20; i += 2) memcpy(q.text + i, "\xc3\xa9", 3);
    assert_int_equal(mu_rpc_unary(w->channel, "/muster.v1.Muster/Tokenize", &q.base,
                                  &muster__v1__tokenize_reply__descriptor, mu_now_ns() + 60 * MU_SEC, &msg, &err),
                     MU_ELIMIT);
    if (!strstr(err.text, "ask for less")) fail_msg("%s", err.text);
    free(q.text);
    world_stop(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_as_streamed),
        cmocka_unit_test(test_answers_too_long),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
