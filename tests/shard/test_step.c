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

/* 12 window pages; a sequence has two of them at most. */
static const struct mu_serving SERVING = {
    .n_ctx = 100, .n_slot = 4, .n_page = 16, .step_tokens = 32, .n_adapter = 3, .window = 1};
enum { N_VOCAB = 50 };

static struct mu_step *step_new(void)
{
    struct mu_step *step = NULL;
    struct mu_err err = MU_ERR_INIT;
    if (mu_step_create(&SERVING, N_VOCAB, &step, &err) != MU_OK) fail_msg("%s", err.text);
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
    s->n_window = 2;
    s->window[0] = (struct mu_step_window){3, 3, 11};
    s->window[1] = (struct mu_step_window){1, 0, 2};
    s->n_seq = 2;
    s->n_tok = 5;
    s->seq[0] = (struct mu_step_seq){.slot = 3, .pos0 = 10, .n_tok = 4, .tok_off = 0, .out = MU_OUT_ALL};
    s->seq[1] = (struct mu_step_seq){.slot = 0,
                                     .pos0 = 99,
                                     .n_tok = 1,
                                     .tok_off = 4,
                                     .out = MU_OUT_SAMPLE,
                                     .far = 1,
                                     .rough = 1,
                                     .sampling = {.temperature = 0.75f,
                                                  .top_k = 40,
                                                  .top_p = 0.9f,
                                                  .min_p = 0.05f,
                                                  .typical_p = 0.8f,
                                                  .repeat_penalty = 1.1f,
                                                  .presence_penalty = -0.5f,
                                                  .frequency_penalty = 0.25f,
                                                  .logprobs = true,
                                                  .top_logprobs = 20,
                                                  .seed = 0xfedcba9876543210u},
                                     .n_adjust = 2,
                                     .adjust_off = 1,
                                     .adapter = 3,
                                     .adapter_scale = -0.5f};
    for (int i = 0; i < 5; i++) s->ids[i] = i * 12;
    s->seq[0].n_adjust = 1;
    s->n_adjust = 3;
    s->adjust[0] = (struct mu_step_adjust){49, -1000, 0, MU_ADJUST_FORBID};
    s->adjust[1] = (struct mu_step_adjust){0, 0.5f, 7, MU_ADJUST_SEEN};
    s->adjust[2] = (struct mu_step_adjust){4, 0, UINT32_MAX, MU_ADJUST_SEEN | MU_ADJUST_FORBID};
    s->n_mask = 0; /* the second sequence's is the first */
    memcpy(mu_step_mask(s, &s->seq[1]), "\x12\x34\x56\x78\x9a\xbc\x03", 7);
    memcpy(mu_step_mask(s, &s->seq[0]), "\xff\xfe\xfd\xfc\xfb\xfa\xf9", 7);
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
    assert_int_equal(out->n_window, 2);
    assert_memory_equal(out->window, in->window, 2 * sizeof *in->window);
    assert_memory_equal(out->ids, in->ids, 5 * sizeof *in->ids);
    for (int i = 0; i < 2; i++) {
        const struct mu_step_seq *a = &in->seq[i], *b = &out->seq[i];
        assert_true(a->slot == b->slot && a->pos0 == b->pos0 && a->n_tok == b->n_tok && a->tok_off == b->tok_off &&
                    a->out == b->out && a->far == b->far && a->rough == b->rough);
#define SAME(name) assert_true(a->sampling.name == b->sampling.name);
        MU_SAMPLING_FIELDS(SAME)
        SAME(seed)
        assert_true(a->adapter == b->adapter && a->adapter_scale == b->adapter_scale);
        assert_true(b->n_adjust == a->n_adjust && b->adjust_off == a->adjust_off && b->mask == (uint32_t)i + 1);
        assert_memory_equal(mu_step_mask(out, &out->seq[i]), mu_step_mask(in, &in->seq[i]), 7);
    }
    assert_true(out->n_adjust == 3 && out->n_mask == 2);
    for (int i = 0; i < 3; i++) {
        const struct mu_step_adjust *a = &in->adjust[i], *b = &out->adjust[i];
        assert_true(a->id == b->id && a->bias == b->bias && a->n_generated == b->n_generated && a->flags == b->flags);
    }
    in->seq[1].slot = in->seq[0].slot; /* the same slot again, where it ended, and where it did not */
    in->seq[1].pos0 = in->seq[0].pos0 + in->seq[0].n_tok;
    if (trip(in, out, &err) != MU_OK) fail_msg("%s", err.text);
    in->seq[1].pos0++;
    assert_int_equal(trip(in, out, &err), MU_EPROTO);
    mu_step_clear(in); /* an empty step is a step */
    assert_int_equal(trip(in, out, &err), MU_OK);
    mu_free(in);
    mu_free(out);
}

enum { N_BAD = 39 };
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
    case 12: s->seq[1].sampling.temperature = -0.5f; return "temperature";
    case 13: s->seq[1].sampling.temperature = NAN; return "temperature";
    case 14: s->seq[1].sampling.top_p = -0.1f; return "top_p";
    case 15: s->seq[1].sampling.top_p = 1.5f; return "top_p";
    case 16: s->ids[4] = N_VOCAB; return "token id 50";
    case 17: s->ids[0] = -1; return "token id -1";
    case 18: s->seq[1].adapter = 4; return "sequence's adapter is 4";
    case 19: s->seq[1].adapter_scale = INFINITY; return "scale of its adapter";
    case 20: s->seq[0].far = 2; return "mark of length";
    case 21: s->seq[1].sampling.min_p = NAN; return "min_p";
    case 22: s->seq[1].sampling.typical_p = 2; return "typical_p";
    case 23: s->seq[1].sampling.repeat_penalty = 1e-3f; return "repeat_penalty";
    case 24: s->seq[1].sampling.presence_penalty = INFINITY; return "presence_penalty";
    case 25: s->seq[1].sampling.frequency_penalty = -2.5f; return "frequency_penalty";
    case 26: s->seq[1].sampling.top_logprobs = 21; return "top_logprobs";
    case 27: s->seq[1].n_adjust = 3; return "number of adjustments is 3, expected at most 2";
    case 28: s->seq[0].n_adjust = 0; return "3 adjustments announced";
    case 29: s->adjust[2].id = 0; return "an adjustment of id 0, expected one from 1 to 49";
    case 30: s->adjust[0].id = N_VOCAB; return "an adjustment of id 50";
    case 31: s->adjust[1].bias = NAN; return "bias";
    case 32: s->adjust[1].flags = 4; return "flags 4";
    case 33: s->n_mask = 1; return "with a mask is 2, expected at most 1";
    case 34: s->window[1].slot = 4; return "a window page's slot is 4";
    case 35: s->window[0].at = 4; return "a window page's place is 4";
    case 36: s->window[1].page = 12; return "a window page is 12";
    case 37: s->n_window = 9; return "number of window pages is 9, expected at most 8";
    case 38: s->seq[1].rough = 2; return "mark of roughness";
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
        assert_true(out->n_seq == 0 && out->n_tok == 0 && out->n_window == 0);
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
    for (int field = 0; field < 7; field++) {
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

/* Bytes changed at random: taken or refused, and nothing is read or written out of bounds (what the sanitizers see). What
 * is taken is a step that encodes again. */
static void test_spoiled_bytes(void **state)
{
    (void)state;
    struct mu_step *in = step_new(), *out = step_new();
    struct mu_writer w, again;
    uint32_t x = 12345;
    int n_taken = 0;
    step_fill(in);
    mu_writer_init(&w, 1 << 16);
    mu_writer_init(&again, mu_step_max_bytes(&SERVING, N_VOCAB));
    mu_step_encode(in, &w);
    for (int i = 0; i < 60000; i++) {
        uint8_t *copy = mu_malloc(w.len);
        memcpy(copy, w.data, w.len);
        for (int k = 0; k <= i % 3; k++) {
            x = x * 1664525u + 1013904223u;
            copy[(x >> 8) % w.len] ^= (uint8_t)(1u << (x >> 29));
        }
        struct mu_reader r = mu_reader_of(copy, w.len);
        struct mu_err err = MU_ERR_INIT;
        enum mu_status st = mu_step_decode(&r, &SERVING, N_VOCAB, out, &err);
        mu_free(copy);
        assert_true(st == MU_OK || st == MU_EPROTO);
        if (st != MU_OK) continue;
        n_taken++;
        mu_writer_reset(&again);
        mu_step_encode(out, &again);
        assert_true(again.ok && again.len <= w.len);
    }
    assert_true(n_taken > 1000);
    mu_writer_free(&again);
    mu_writer_free(&w);
    mu_free(in);
    mu_free(out);
}

/* A step as large as any: it fits, and exactly. */
static void test_largest(void **state)
{
    (void)state;
    const struct {
        struct mu_serving v;
        int n_vocab;
    } c[] = {{SERVING, N_VOCAB},
             {{.n_ctx = 40, .n_slot = 9, .n_page = 18, .step_tokens = 4}, 3001},
             {{.n_ctx = 70, .n_slot = 3, .n_page = 9, .step_tokens = 50, .window = 40}, 1}};
    for (size_t k = 0; k < 3; k++) {
        const struct mu_serving *v = &c[k].v;
        struct mu_step *s = NULL, *out = NULL;
        struct mu_err err = MU_ERR_INIT;
        struct mu_writer w;
        uint32_t n_adjust = mu_step_max_adjust(v, c[k].n_vocab);
        assert_int_equal(mu_step_create(v, c[k].n_vocab, &s, &err), MU_OK);
        assert_int_equal(mu_step_create(v, c[k].n_vocab, &out, &err), MU_OK);
        s->number = 1;
        for (uint32_t i = 0; i < (uint32_t)v->n_slot; i++) s->free_slot[s->n_free++] = i;
        for (uint32_t i = 0; i < v->n_page; i++) s->page[s->n_page++] = (struct mu_step_page){0, i};
        for (uint32_t i = 0; i < mu_step_max_window(v); i++)
            s->window[s->n_window++] = (struct mu_step_window){0, 1, i};
        assert_int_equal(s->n_window, k == 0 ? 8 : 0); /* no window, or none that is shorter than the context */
        uint32_t n_seq = (uint32_t)(v->n_slot < v->step_tokens ? v->n_slot : v->step_tokens);
        for (uint32_t i = 0; i < n_seq; i++) {
            uint32_t n_tok = i + 1 < n_seq ? 1 : (uint32_t)v->step_tokens - s->n_tok;
            struct mu_step_seq *q = &s->seq[s->n_seq++];
            *q = (struct mu_step_seq){.slot = i,
                                      .n_tok = n_tok,
                                      .tok_off = s->n_tok,
                                      .out = MU_OUT_SAMPLE,
                                      .n_adjust = n_adjust,
                                      .adjust_off = s->n_adjust};
            s->n_tok += n_tok;
            for (uint32_t a = 0; a < n_adjust; a++) s->adjust[s->n_adjust++].id = (int32_t)a;
            memset(mu_step_mask(s, q), 0xff, s->mask_bytes);
        }
        mu_writer_init(&w, mu_step_max_bytes(v, c[k].n_vocab));
        mu_step_encode(s, &w);
        assert_true(w.ok);
        assert_int_equal(w.len, mu_step_max_bytes(v, c[k].n_vocab));
        struct mu_reader r = mu_reader_of(w.data, w.len);
        if (mu_step_decode(&r, v, c[k].n_vocab, out, &err) != MU_OK) fail_msg("%s", err.text);
        assert_int_equal(out->n_adjust, s->n_adjust);
        assert_memory_equal(out->mask, s->mask, n_seq * s->mask_bytes);
        mu_writer_free(&w);
        mu_free(s);
        mu_free(out);
    }
    assert_true(mu_step_max_bytes(&(struct mu_serving){.n_ctx = 1 << 17, .n_slot = 64, .n_page = 1, .step_tokens = 512},
                                  1 << 17) < 120u << 20);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_round_trip), cmocka_unit_test(test_refused),
                                       cmocka_unit_test(test_short_and_huge), cmocka_unit_test(test_spoiled_bytes),
                                       cmocka_unit_test(test_largest)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
