/* Synthetic models: they open, their sizes and types are what was asked, their weights are tame, their vocabulary is
 * a vocabulary. */
#include "tests/model/files_util.h"

#include <math.h>

#include "kernels/blocks.h"
#include "kernels/kernels.h"
#include "model/model.h"
#include "model/synth.h"

static const struct mu_synth small = {
    .arch = "llama",
    .n_layer = 2,
    .n_head = 8,
    .n_kv_head = 2,
    .d_head = 32,
    .d_model = 256,
    .d_ff = 512,
    .n_vocab = 2000,
    .n_ctx = 128,
    .rope_freq_base = 10000.0f,
    .type = MU_Q4_0,
    .output_type = MU_Q6_K,
    .seed = 1,
};

static const char *write_ok(const struct mu_synth *s, const char *name)
{
    struct mu_err err = MU_ERR_INIT;
    const char *path = test_path(name);
    if (mu_synth_write(s, path, NULL, NULL, &err) != MU_OK) fail_msg("%s", err.text);
    return path;
}

static struct mu_model *open_ok(const char *path)
{
    struct mu_model *m = NULL;
    struct mu_err err = MU_ERR_INIT;
    if (mu_model_open(path, &m, &err) != MU_OK) fail_msg("%s", err.text);
    return m;
}

/* ---- weights ---- */

/* 256 values from block_values-sized blocks at p; returns the bytes they took. Written apart from the kernels on
 * purpose. */
static size_t values_of(uint32_t type, const uint8_t *p, float *out)
{
    for (int i = 0; i < 256; i++) {
        uint16_t h;
        switch (type) {
        case MU_F32: memcpy(out + i, p + 4 * i, 4); break;
        case MU_F16:
            memcpy(&h, p + 2 * i, 2);
            out[i] = mu_f16_to_f32(h);
            break;
        case MU_BF16:
            memcpy(&h, p + 2 * i, 2);
            out[i] = mu_bf16_to_f32(h);
            break;
        case MU_Q4_0: {
            const struct mu_block_q4_0 *b = (const void *)p;
            b += i / 32;
            int at = i % 32;
            out[i] = mu_f16_to_f32(b->d) * (float)((b->qs[at % 16] >> (at < 16 ? 0 : 4) & 15) - 8);
            break;
        }
        case MU_Q8_0: {
            const struct mu_block_q8_0 *b = (const void *)p;
            assert_int_not_equal(b[i / 32].qs[i % 32], -128);
            out[i] = mu_f16_to_f32(b[i / 32].d) * (float)b[i / 32].qs[i % 32];
            break;
        }
        case MU_Q4_K: {
            const struct mu_block_q4_k *b = (const void *)p;
            uint8_t sc, m;
            mu_k4_scale(b->scales, i / 32, &sc, &m);
            assert_true(sc >= 32 && m >= 31);
            int q = b->qs[32 * (i / 64) + i % 32] >> (i % 64 < 32 ? 0 : 4) & 15;
            out[i] = mu_f16_to_f32(b->d) * (float)(sc * q) - mu_f16_to_f32(b->dmin) * (float)m;
            break;
        }
        case MU_Q6_K: {
            const struct mu_block_q6_k *b = (const void *)p;
            uint32_t four = mu_q6_k_codes(b, i / 32, i % 32 / 4);
            out[i] = mu_f16_to_f32(b->d) * (float)(b->scales[i / 16] * ((int)(four >> 8 * (i % 4) & 63) - 32));
            break;
        }
        default: /* the others by what test_dequant.c holds against fixtures */
            if (i == 0) assert_true(mu_kernels_available()[0]->dequant_row(type, p, 256, out));
        }
    }
    const struct mu_type_info *info = mu_type_info(type);
    return (size_t)(256 / info->block_values) * (size_t)info->block_bytes;
}

static void check_tame(const struct mu_gguf_tensor *t)
{
    double sum = 0, squares = 0, n = (double)(t->ne[0] * t->n_row), sigma = 1 / sqrt((double)t->ne[0]), most = 0;
    float v[256];
    for (size_t at = 0; at < t->bytes;) {
        at += values_of(t->type, t->data + at, v);
        for (int i = 0; i < 256; i++) {
            sum += (double)v[i];
            squares += (double)v[i] * (double)v[i];
            most = fmax(most, fabs((double)v[i]));
        }
    }
    double mean = sum / n, std = sqrt(squares / n);
    if (!(fabs(mean) < 0.05 * sigma && std > 0.9 * sigma && std < 1.1 * sigma && most < 5 * sigma))
        fail_msg("%.*s (%s): mean %g, deviation %g, largest %g; expected a deviation of %g", (int)t->name.len,
                 t->name.p, mu_type_info(t->type)->name, mean, std, most, sigma);
}

static const uint32_t types[] = {MU_F32,  MU_F16,  MU_BF16, MU_Q8_0, MU_Q4_0,   MU_Q4_K,   MU_Q6_K,  MU_Q4_1, MU_Q5_0,
                                 MU_Q5_1, MU_Q2_K, MU_Q3_K, MU_Q5_K, MU_IQ4_NL, MU_IQ4_XS, MU_MXFP4, MU_TQ2_0};
enum { N_TYPES = sizeof types / sizeof *types };

static void test_types(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_TYPES; i++) {
        struct mu_synth s = small;
        s.type = types[i];
        s.output_type = types[(i + 1) % N_TYPES];
        s.tied = i % 2 == 0;
        struct mu_model *m = open_ok(write_ok(&s, "type.gguf"));
        assert_int_equal(m->layer[1][MU_T_DOWN]->type, s.type);
        assert_int_equal(m->embed->type, s.output_type);
        assert_int_equal(m->output->type, s.output_type);
        assert_int_equal(m->output == m->embed, s.tied);
        for (int id = 0; id < MU_T_LAYER_COUNT; id++) {
            if (!m->layer[0][id]) continue;
            if (id != MU_T_ATTN_NORM && id != MU_T_FFN_NORM) {
                check_tame(m->layer[0][id]);
                continue;
            }
            const float *w = (const float *)(const void *)m->layer[0][id]->data;
            for (int k = 0; k < s.d_model; k++) assert_true(w[k] >= 0.9f && w[k] <= 1.1f);
        }
        check_tame(m->embed);
        check_tame(m->output);
        mu_model_close(m);
    }
}

static void test_odd_shapes(void **state)
{
    (void)state;
    struct mu_synth s = {.n_layer = 3,
                         .n_head = 3,
                         .n_kv_head = 1,
                         .d_head = 6,
                         .d_model = 10,
                         .d_ff = 14,
                         .n_vocab = 258,
                         .n_ctx = 7,
                         .rope_freq_base = 5e5f,
                         .type = MU_F16,
                         .output_type = MU_F32};
    struct mu_model *m = open_ok(write_ok(&s, "odd.gguf"));
    const struct mu_config *c = &m->cfg;
    assert_true(c->n_layer == 3 && c->n_head == 3 && c->n_kv_head == 1 && c->d_head == 6 && c->d_model == 10 &&
                c->d_ff == 14);
    assert_true(c->n_vocab == 258 && c->n_ctx_train == 7 && c->rope_freq_base == 5e5f && c->n_rot == 6);
    assert_ptr_not_equal(m->output, m->embed);
    mu_model_close(m);
    s = small;
    s.n_head = 5, s.n_kv_head = 5, s.d_head = 64, s.d_model = 96, s.d_ff = 160, s.output_type = MU_Q8_0;
    m = open_ok(write_ok(&s, "odd.gguf"));
    assert_int_equal(m->layer[0][MU_T_O]->ne[0], 320);
    mu_model_close(m);
}

/* ---- vocabulary ---- */

static int compare_str(const void *a, const void *b)
{
    return mu_str_compare(*(const struct mu_str *)a, *(const struct mu_str *)b);
}

static bool has(const struct mu_str *sorted, size_t n, struct mu_str s)
{
    return bsearch(&s, sorted, n, sizeof s, compare_str) != NULL;
}

static void check_vocab(int n_vocab)
{
    struct mu_synth s = small;
    s.n_vocab = n_vocab;
    s.type = s.output_type = MU_Q4_0;
    s.d_model = s.d_ff = 32;
    struct mu_model *m = open_ok(write_ok(&s, "vocab.gguf"));
    struct mu_err err = MU_ERR_INIT;
    struct mu_str text;
    uint64_t id;
    assert_int_equal(mu_gguf_get_str(m->gguf, "tokenizer.ggml.model", &text, &err), MU_OK);
    assert_true(mu_str_is(text, "gpt2"));
    assert_int_equal(mu_gguf_get_str(m->gguf, "tokenizer.ggml.pre", &text, &err), MU_OK);
    assert_true(mu_str_is(text, "llama-bpe"));
    const struct mu_gguf_value *tokens = mu_gguf_find(m->gguf, "tokenizer.ggml.tokens");
    const struct mu_gguf_value *kinds = mu_gguf_find(m->gguf, "tokenizer.ggml.token_type");
    const struct mu_gguf_value *merges = mu_gguf_find(m->gguf, "tokenizer.ggml.merges");
    size_t n = (size_t)n_vocab;
    assert_true(tokens->n == n && kinds->n == n && merges->n == n - 258);
    struct mu_str *sorted = mu_calloc(n, sizeof *sorted);
    memcpy(sorted, tokens->strings, n * sizeof *sorted);
    qsort(sorted, n, sizeof *sorted, compare_str);
    for (size_t i = 1; i < n; i++) assert_true(compare_str(&sorted[i - 1], &sorted[i]) < 0);
    for (size_t i = 0; i < n; i++) assert_int_equal(mu_gguf_item_i64(kinds, i), i < n - 2 ? 1 : 3);
    assert_true(mu_str_is(tokens->strings[0], "!") && mu_str_is(tokens->strings[93], "~"));
    assert_true(has(sorted, n, (struct mu_str){"\xc4\xa0", 2}) &&
                has(sorted, n, (struct mu_str){"\xc5\x83", 2})); /* 0x20, 0xad */
    for (size_t i = 0; i < merges->n; i++) {
        struct mu_str merge = merges->strings[i];
        const char *space = memchr(merge.p, ' ', merge.len);
        char joined[64];
        assert_non_null(space);
        size_t a = (size_t)(space - merge.p), b = merge.len - a - 1;
        memcpy(joined, merge.p, a);
        memcpy(joined + a, space + 1, b);
        assert_true(has(sorted, n, (struct mu_str){merge.p, a}) && has(sorted, n, (struct mu_str){space + 1, b}) &&
                    mu_str_compare((struct mu_str){joined, a + b}, tokens->strings[256 + i]) == 0);
    }
    assert_int_equal(mu_gguf_get_u64(m->gguf, "tokenizer.ggml.bos_token_id", 0, UINT64_MAX, 0, &id, &err), MU_OK);
    assert_true(id == n - 2 && mu_str_is(tokens->strings[id], "<|begin_of_text|>"));
    assert_int_equal(mu_gguf_get_u64(m->gguf, "tokenizer.ggml.eos_token_id", 0, UINT64_MAX, 0, &id, &err), MU_OK);
    assert_true(id == n - 1 && mu_str_is(tokens->strings[id], "<|end_of_text|>"));
    mu_free(sorted);
    mu_model_close(m);
}

static void test_vocabularies(void **state)
{
    (void)state;
    static const int sizes[] = {258, 259, 300, 961, 128256};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) check_vocab(sizes[i]);
}

/* ---- files ---- */

static void test_seed_decides_every_byte(void **state)
{
    (void)state;
    struct mu_err err = MU_ERR_INIT;
    struct mu_synth s = small;
    char *a, *b, *c;
    size_t n_a, n_b, n_c;
    write_ok(&s, "a.gguf");
    write_ok(&s, "b.gguf");
    s.seed = 2;
    write_ok(&s, "c.gguf");
    assert_int_equal(mu_file_read(test_path("a.gguf"), 1 << 24, &a, &n_a, &err), MU_OK);
    assert_int_equal(mu_file_read(test_path("b.gguf"), 1 << 24, &b, &n_b, &err), MU_OK);
    assert_int_equal(mu_file_read(test_path("c.gguf"), 1 << 24, &c, &n_c, &err), MU_OK);
    assert_true(n_a == n_b && n_a == n_c);
    assert_memory_equal(a, b, n_a);
    assert_memory_not_equal(a, c, n_a);
    mu_free(a);
    mu_free(b);
    mu_free(c);
}

static double deviation(const struct mu_gguf_tensor *t)
{
    double squares = 0;
    float v[256];
    for (size_t at = 0; at < t->bytes;) {
        at += values_of(t->type, t->data + at, v);
        for (int i = 0; i < 256; i++) squares += (double)v[i] * (double)v[i];
    }
    return sqrt(squares / (double)(t->ne[0] * t->n_row));
}

static void check_same(const struct mu_gguf_tensor *a, const struct mu_gguf_tensor *b)
{
    assert_int_equal(a->bytes, b->bytes);
    assert_memory_equal(a->data, b->data, a->bytes);
}

/* The draft is the first layers of the larger model, and embedding and output; the other layers add less. */
static void test_drafts(void **state)
{
    (void)state;
    static const char *const archs[] = {"llama", "gemma2", "qwen3moe"};
    for (size_t i = 0; i < sizeof archs / sizeof *archs; i++) {
        const double later = 0.25;
        struct mu_synth s = small;
        s.arch = archs[i];
        s.n_layer = 5;
        s.n_early = 2;
        s.later = (float)later;
        if (i == 2) s.n_expert = 4, s.n_expert_used = 2;
        struct mu_model *m = open_ok(write_ok(&s, "large.gguf"));
        s.n_layer = s.n_early;
        struct mu_model *draft = open_ok(write_ok(&s, "draft.gguf"));
        assert_int_equal(draft->cfg.n_layer, 2);
        check_same(m->embed, draft->embed);
        check_same(m->output, draft->output);
        check_same(m->out_norm, draft->out_norm);
        assert_memory_not_equal(m->embed->data, m->output->data, 64);
        for (int id = 0; id < MU_T_LAYER_COUNT; id++) {
            const struct mu_gguf_tensor *t = m->layer[4][id];
            if (!t || t->ne[0] * t->n_row % 256 != 0) continue; /* norms of heads */
            for (int layer = 0; layer < 2; layer++) check_same(m->layer[layer][id], draft->layer[layer][id]);
            bool is_norm = id == MU_T_POST_ATTN_NORM || id == MU_T_POST_FFN_NORM;
            double ratio = deviation(t) / deviation(m->layer[1][id]),
                   want = is_norm || id == MU_T_O || id == MU_T_DOWN ? later : 1;
            if (!(fabs(ratio / want - 1) < 0.05))
                fail_msg("%s, %.*s: %g times as much, expected %g", s.arch, (int)t->name.len, t->name.p, ratio, want);
        }
        mu_model_close(m);
        mu_model_close(draft);
    }
}

static void count_progress(uint64_t done, uint64_t total, void *ctx)
{
    uint64_t *last = ctx;
    assert_true(done > last[0] && done <= total);
    last[0] = done;
    last[1] = total;
}

static void test_progress(void **state)
{
    (void)state;
    struct mu_err err = MU_ERR_INIT;
    uint64_t last[2] = {0, 0};
    assert_int_equal(mu_synth_write(&small, test_path("p.gguf"), count_progress, last, &err), MU_OK);
    struct mu_model *m = open_ok(test_path("p.gguf"));
    assert_int_equal(last[0], last[1]);
    assert_int_equal(last[0], m->weight_bytes);
    mu_model_close(m);
}

#define REFUSED(code, says, ...)                                                              \
    do {                                                                                      \
        struct mu_synth s_ = small;                                                           \
        struct mu_err err_ = MU_ERR_INIT;                                                     \
        __VA_ARGS__;                                                                          \
        assert_int_equal(mu_synth_write(&s_, test_path("no.gguf"), NULL, NULL, &err_), code); \
        assert_err(&err_, code, says, NULL);                                                  \
        assert_int_not_equal(access(test_path("no.gguf"), F_OK), 0);                          \
    } while (0)

static void test_refusals(void **state)
{
    (void)state;
    REFUSED(MU_EUNSUPPORTED, "this build runs: llama", s_.arch = "qwen9");
    REFUSED(MU_EINVAL, "rows of 100 values; type Q4_0 needs a multiple of 32", s_.d_model = 100,
            s_.output_type = MU_F32);
    REFUSED(MU_EINVAL, "type Q6_K needs a multiple of 256", s_.d_model = 288);
    REFUSED(MU_EUNSUPPORTED, "not in TQ1_0", s_.type = MU_TQ1_0);
    REFUSED(MU_EUNSUPPORTED, "output type", s_.output_type = 1000);
    REFUSED(MU_EINVAL, "from 258 to", s_.n_vocab = 257);
    REFUSED(MU_EINVAL, "found 8 and 3", s_.n_kv_head = 3);
    REFUSED(MU_EINVAL, "from 1 to 8, found 9", s_.n_kv_head = 9);
    REFUSED(MU_EINVAL, "layers", s_.n_layer = 0);
    REFUSED(MU_EINVAL, "layers of the draft: expected a number from 0 to 2, found 3", s_.n_early = 3);
    REFUSED(MU_EINVAL, "even head size", s_.d_head = 33);
    REFUSED(MU_EINVAL, "limit", s_.n_head = s_.n_kv_head = 4096, s_.d_head = 64);
    REFUSED(MU_EINVAL, "no layers without experts: say how many (--experts N)", s_.arch = "qwen3moe");
    REFUSED(MU_EINVAL, "rotation base", s_.rope_freq_base = NAN);
    struct mu_err err = MU_ERR_INIT;
    assert_int_equal(mu_synth_write(&small, test_path("no/such/folder.gguf"), NULL, NULL, &err), MU_ENOENT);
}

static void test_allocation_failures(void **state)
{
    (void)state;
    struct mu_synth s = small;
    s.n_layer = 1, s.n_vocab = 400;
    for (long n = 1;; n++) {
        struct mu_err err = MU_ERR_INIT;
        mu_alloc_fail_at(n);
        enum mu_status st = mu_synth_write(&s, test_path("mem.gguf"), NULL, NULL, &err);
        mu_alloc_fail_at(0);
        if (st == MU_OK) {
            assert_true(n > 5);
            break;
        }
        assert_err(&err, MU_ENOMEM, "memory", NULL);
        assert_int_not_equal(access(test_path("mem.gguf"), F_OK), 0);
        assert_true(n < 10000);
    }
    mu_model_close(open_ok(test_path("mem.gguf")));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_types),        cmocka_unit_test(test_odd_shapes),
        cmocka_unit_test(test_vocabularies), cmocka_unit_test(test_seed_decides_every_byte),
        cmocka_unit_test(test_drafts),       cmocka_unit_test(test_progress),
        cmocka_unit_test(test_refusals),     cmocka_unit_test(test_allocation_failures),
    };
    return cmocka_run_group_tests(tests, make_test_dir, remove_test_dir);
}
