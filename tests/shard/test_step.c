/* Steps on the wire: there and back, and everything that a broken peer could send. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/alloc.h"
#include "shard/step.h"

static const struct mu_serving SERVING = {.n_ctx = 100, .n_slot = 4, .n_page = 16, .step_tokens = 32, .n_adapter = 3};
enum { N_VOCAB = 50 };

static struct mu_step *step_new(void)
{
    struct mu_step *step = NULL;
    struct mu_err err = MU_ERR_INIT;
    if (mu_step_create(&SERVING, &step, &err) != MU_OK) fail_msg("%s", err.text);
    return step;
}

static void step_fill(struct mu_step *s)
{
    s->number = 0x1122334455667788u;
    s->n_free = 2;
    s->free_slot[0] = 3;
    s->free_slot[1] = 1;
    s->n_page = 2;
    s->page[0] = (struct mu_step_page){3, 15};
    s->page[1] = (struct mu_step_page){0, 7};
    s->n_seq = 2;
    s->n_tok = 5;
    s->seq[0] = (struct mu_step_seq){.slot = 3, .pos0 = 10, .n_tok = 4, .tok_off = 0, .out = MU_OUT_ALL, .top_p = 1};
    s->seq[1] = (struct mu_step_seq){.slot = 0,
                                     .pos0 = 99,
                                     .n_tok = 1,
                                     .tok_off = 4,
                                     .out = MU_OUT_SAMPLE,
                                     .far = 1,
                                     .temperature = 0.75f,
                                     .top_k = 40,
                                     .top_p = 0.9f,
                                     .seed = 0xfedcba9876543210u,
                                     .adapter = 3,
                                     .adapter_scale = -0.5f};
    for (int i = 0; i < 5; i++) s->ids[i] = i * 12;
}

static enum mu_status trip(const struct mu_step *in, struct mu_step *out, struct mu_err *err)
{
    struct mu_writer w;
    mu_writer_init(&w, 1 << 16);
    mu_step_encode(in, &w);
    assert_true(w.ok);
    struct mu_reader r = mu_reader_of(w.data, w.len);
    enum mu_status st = mu_step_decode(&r, &SERVING, N_VOCAB, out, err);
    if (st == MU_OK) assert_int_equal(mu_reader_left(&r), 0);
    mu_writer_free(&w);
    return st;
}

static void test_round_trip(void **state)
{
    (void)state;
    struct mu_step *in = step_new(), *out = step_new();
    struct mu_err err = MU_ERR_INIT;
    step_fill(in);
    if (trip(in, out, &err) != MU_OK) fail_msg("%s", err.text);
    assert_true(out->number == in->number && out->n_free == 2 && out->n_page == 2 && out->n_seq == 2 &&
                out->n_tok == 5);
    assert_memory_equal(out->free_slot, in->free_slot, 2 * sizeof *in->free_slot);
    assert_memory_equal(out->page, in->page, 2 * sizeof *in->page);
    assert_memory_equal(out->ids, in->ids, 5 * sizeof *in->ids);
    for (int i = 0; i < 2; i++) {
        const struct mu_step_seq *a = &in->seq[i], *b = &out->seq[i];
        assert_true(a->slot == b->slot && a->pos0 == b->pos0 && a->n_tok == b->n_tok && a->tok_off == b->tok_off &&
                    a->out == b->out && a->far == b->far);
        assert_true(a->temperature == b->temperature && a->top_k == b->top_k && a->top_p == b->top_p &&
                    a->seed == b->seed && a->adapter == b->adapter && a->adapter_scale == b->adapter_scale);
    }
    in->seq[1].slot = in->seq[0].slot; /* the same slot again, where it ended, and where it did not */
    in->seq[1].pos0 = in->seq[0].pos0 + in->seq[0].n_tok;
    if (trip(in, out, &err) != MU_OK) fail_msg("%s", err.text);
    in->seq[1].pos0++;
    assert_int_equal(trip(in, out, &err), MU_EPROTO);
    in->n_free = in->n_page = in->n_seq = in->n_tok = 0; /* an empty step is a step */
    assert_int_equal(trip(in, out, &err), MU_OK);
    mu_free(in);
    mu_free(out);
}

enum { N_BAD = 21 };
static const char *spoil(struct mu_step *s, int k)
{
    switch (k) {
    case 0: s->free_slot[1] = 4; return "freed slot";
    case 1: s->page[0].slot = 9; return "page's slot";
    case 2: s->page[1].page = 16; return "a page is 16";
    case 3: s->seq[0].slot = 4; return "sequence's slot";
    case 4: s->seq[1].slot = 3; return "listed twice";
    case 5: s->seq[0].pos0 = 100; return "first position";
    case 6: s->seq[0].pos0 = 97; return "token count";
    case 7: s->seq[0].pos0 = UINT32_MAX; return "first position";
    case 8: s->seq[0].n_tok = 0; return "no tokens";
    case 9: s->seq[0].n_tok = 6; return "token count";
    case 10: s->seq[0].n_tok = 3; return "5 tokens announced";
    case 11: s->seq[1].out = MU_OUT_COUNT; return "output kind";
    case 12: s->seq[1].temperature = -0.5f; return "temperature";
    case 13: s->seq[1].temperature = NAN; return "temperature";
    case 14: s->seq[1].top_p = 0; return "top_p";
    case 15: s->seq[1].top_p = 1.5f; return "top_p";
    case 16: s->ids[4] = N_VOCAB; return "token id 50";
    case 17: s->ids[0] = -1; return "token id -1";
    case 18: s->seq[1].adapter = 4; return "sequence's adapter is 4";
    case 19: s->seq[1].adapter_scale = INFINITY; return "scale of its adapter";
    case 20: s->seq[0].far = 2; return "mark of length";
    default: return NULL;
    }
}

static void test_refused(void **state)
{
    (void)state;
    struct mu_step *in = step_new(), *out = step_new();
    for (int k = 0; k < N_BAD; k++) {
        struct mu_err err = MU_ERR_INIT;
        step_fill(in);
        const char *says = spoil(in, k);
        assert_int_equal(trip(in, out, &err), MU_EPROTO);
        if (!strstr(err.text, says)) fail_msg("case %d: %s, expected '%s'", k, err.text, says);
        assert_true(out->n_seq == 0 && out->n_tok == 0);
    }
    mu_free(in);
    mu_free(out);
}

/* Every prefix, and counts that would not fit. */
static void test_short_and_huge(void **state)
{
    (void)state;
    struct mu_step *in = step_new(), *out = step_new();
    struct mu_writer w;
    step_fill(in);
    mu_writer_init(&w, 1 << 16);
    mu_step_encode(in, &w);
    for (size_t len = 0; len < w.len; len++) {
        uint8_t *copy = mu_malloc(len ? len : 1); /* its own block, so that a sanitizer sees reads beyond it */
        memcpy(copy, w.data, len);
        struct mu_reader r = mu_reader_of(copy, len);
        struct mu_err err = MU_ERR_INIT;
        assert_int_equal(mu_step_decode(&r, &SERVING, N_VOCAB, out, &err), MU_EPROTO);
        mu_free(copy);
    }
    for (int field = 0; field < 4; field++) {
        uint8_t *copy = mu_malloc(w.len);
        memcpy(copy, w.data, w.len);
        memset(copy + 8 + 4 * field, 0xff, 4);
        struct mu_reader r = mu_reader_of(copy, w.len);
        struct mu_err err = MU_ERR_INIT;
        assert_int_equal(mu_step_decode(&r, &SERVING, N_VOCAB, out, &err), MU_EPROTO);
        assert_non_null(strstr(err.text, "number of"));
        mu_free(copy);
    }
    mu_writer_free(&w);
    mu_free(in);
    mu_free(out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_round_trip), cmocka_unit_test(test_refused),
                                       cmocka_unit_test(test_short_and_huge)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
