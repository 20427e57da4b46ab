/* Running one model in many ways that must give the same bytes, and models of shapes that divide badly. */
#ifndef MU_TESTS_WAYS_UTIL_H
#define MU_TESTS_WAYS_UTIL_H

#include "forward_util.h"

#include "base/alloc.h"
#include "kernels/device.h"
#include "kernels/kernels.h"

static inline void same(const float *got, const float *want, size_t n_row, int n_vocab, const char *what)
{
    size_t n = n_row * (size_t)n_vocab;
    if (memcmp(got, want, n * sizeof *got) == 0) return;
    for (size_t i = 0; i < n; i++)
        if (memcmp(got + i, want + i, sizeof *got) != 0)
            fail_msg("%s: position %zu, id %zu: %.9g, expected %.9g", what, i / (size_t)n_vocab, i % (size_t)n_vocab,
                     (double)got[i], (double)want[i]);
}

static inline void ids_fill(int32_t *ids, size_t n, int n_vocab, uint32_t seed)
{
    for (size_t i = 0; i < n; i++) {
        seed = seed * 1664525u + 1013904223u;
        ids[i] = (int32_t)((seed >> 8) % (uint32_t)n_vocab);
    }
}

/* The sequence in chunks of `chunk`, all logits. */
static inline float *logits_chunked(const struct mu_model *m, struct how how, const int32_t *ids, size_t n,
                                    size_t chunk)
{
    struct mu_solo *solo = solo_of(m, how);
    struct rows rows = {.at = malloc(n * (size_t)m->cfg.n_vocab * sizeof(float)), .n_vocab = m->cfg.n_vocab};
    for (size_t at = 0; at < n; at += chunk)
        MUST(mu_solo_feed(solo, 1, ids + at, n - at < chunk ? n - at : chunk, MU_OUT_ALL, NULL, rows_take, &rows, NULL,
                          err));
    assert_int_equal(rows.n, n);
    mu_solo_close(solo);
    return rows.at;
}

/* All logits of sequence 0 of 8 that run in the same steps, each with its own pace. */
static inline float *logits_in_company(const struct mu_model *m, struct how how, const int32_t *ids, size_t n)
{
    enum { N_SEQ = 8, MAX_STEP = 64 };
    how.n_slot = N_SEQ;
    if (!how.step_tokens) how.step_tokens = MAX_STEP;
    struct mu_solo *solo = solo_of(m, how);
    const struct mu_serving *serving = mu_solo_serving(solo);
    struct mu_step *step = NULL;
    MUST(mu_step_create(serving, m->cfg.n_vocab, &step, err));
    size_t n_vocab = (size_t)m->cfg.n_vocab, done[N_SEQ] = {0};
    uint32_t page = 0, pages[N_SEQ] = {0}, each = mu_plan_window_pages(serving) / N_SEQ;
    int32_t other[256];
    float *out = malloc(n * n_vocab * sizeof *out);
    ids_fill(other, 256, m->cfg.n_vocab, 99);
    while (done[0] < n) {
        step->number++;
        step->n_page = step->n_window = step->n_seq = step->n_tok = 0;
        uint32_t at = 0; /* of sequence 0 among the step's rows of logits */
        uint32_t rows_before = 0, n_mine = 0;
        for (int k = 0; k < N_SEQ; k++) { /* sequence 0 goes last */
            int slot = (k + 1) % N_SEQ;
            uint32_t take = slot == 0 ? 3 + (uint32_t)(step->number % 5) : (uint32_t)((slot + (int)step->number) % 4);
            if (how.rough && slot == 2) take = 9; /* a block that is exact */
            const int32_t *from = slot == 0 ? ids : other + slot;
            size_t limit = slot == 0 ? n : 200;
            if (take > limit - done[slot]) take = (uint32_t)(limit - done[slot]);
            if (take == 0) continue;
            for (; pages[slot] * MU_PAGE_TOKENS < done[slot] + take; pages[slot]++) {
                step->page[step->n_page++] = (struct mu_step_page){(uint32_t)slot, page++};
                if (each) /* in turn */
                    step->window[step->n_window++] = (struct mu_step_window){
                        (uint32_t)slot, pages[slot], (uint32_t)slot * each + pages[slot] % each};
            }
            uint8_t kind = slot == 0 ? MU_OUT_ALL : (uint8_t)(slot % 3); /* none, sample, logits */
            if (kind == MU_OUT_LOGITS) rows_before++;
            if (slot == 0) {
                at = rows_before;
                n_mine = take;
            }
            step->seq[step->n_seq++] = (struct mu_step_seq){.slot = (uint32_t)slot,
                                                            .pos0 = (uint32_t)done[slot],
                                                            .n_tok = take,
                                                            .tok_off = step->n_tok,
                                                            .out = kind,
                                                            .rough = how.rough && slot % 2 == 0 && slot != 2};
            memcpy(step->ids + step->n_tok, from + done[slot], take * sizeof *from);
            step->n_tok += take;
            done[slot] += take;
        }
        struct mu_step_result result;
        MUST(mu_solo_step(solo, step, &result, err));
        assert_int_equal(result.n_logit_row, at + n_mine);
        memcpy(out + (done[0] - n_mine) * n_vocab, result.logits + at * n_vocab, n_mine * n_vocab * sizeof *out);
    }
    mu_free(step);
    mu_solo_close(solo);
    return out;
}

/* With window pages, of which a sequence has fewer than it has tokens for: other sequences, or later positions of it, have
 * written over what is out of sight. */
static inline void check_windows(const struct mu_model *m, const char *name, const char *split, enum mu_kv_type kv,
                                 const int32_t *ids, const float *want, size_t n)
{
    struct how how = {.split = split, .windows = true, .n_thread = 2, .step_tokens = 20, .kv = kv};
    char what[200];
    for (int way = 0; way < 3; way++) {
        struct mu_solo *solo = solo_of(m, how); /* as each of the ways opens it */
        assert_true(mu_plan_window_pages(mu_solo_serving(solo)) < mu_solo_serving(solo)->n_page * 3 / 4);
        mu_solo_close(solo);
        float *got = way == 0   ? logits_all(m, how, ids, n)
                     : way == 1 ? logits_chunked(m, how, ids, n, 7)
                                : logits_in_company(m, how, ids, n);
        snprintf(what, sizeof what, "%s, split %s, window pages, way %d", name, split, way);
        same(got, want, n, m->cfg.n_vocab, what);
        free(got);
    }
}

/* The split for as many devices as there are: a machine with one has all ranks on that. */
static inline const char *split_here(const char *split)
{
    static char text[64];
    struct mu_err why = MU_ERR_INIT;
    const struct mu_device_ops *ops = mu_device_load(&why);
    int n = ops ? ops->count(&why) : -1;
    if (n < 1) fail_msg("no device: %s", why.text);
    snprintf(text, sizeof text, "%s", split);
    for (char *at = text; n == 1 && (at = strstr(at, "gpu1")); at++) at[3] = '0';
    return text;
}

/* Shapes that divide badly: heads that cut blocks of 32, hidden rows that are no multiple of 256, more ranks than KV
 * heads. */
static const struct mu_synth odd_llamas[] = {
    {.n_head = 6, .n_kv_head = 3, .d_head = 48, .d_model = 288, .d_ff = 352, .n_vocab = 600, .type = MU_Q4_0},
    {.n_head = 4,
     .n_kv_head = 2,
     .d_head = 80,
     .d_model = 320,
     .d_ff = 480,
     .n_vocab = 520,
     .type = MU_Q8_0,
     .tied = 1},
    {.n_head = 6, .n_kv_head = 3, .d_head = 48, .d_model = 272, .d_ff = 200, .n_vocab = 400, .type = MU_F16},
    {.n_head = 3, .n_kv_head = 3, .d_head = 80, .d_model = 240, .d_ff = 168, .n_vocab = 400, .type = MU_BF16},
    {.n_head = 16,
     .n_kv_head = 4,
     .d_head = 16,
     .d_model = 256,
     .d_ff = 768,
     .n_vocab = 17000,
     .type = MU_Q4_K,
     .output_type = MU_Q6_K},
};
enum { N_ODD_LLAMA = sizeof odd_llamas / sizeof *odd_llamas };
static inline struct mu_synth odd_llama(size_t i)
{
    struct mu_synth spec = odd_llamas[i];
    spec.arch = "llama";
    spec.n_layer = 2;
    spec.n_ctx = 256;
    spec.rope_freq_base = 10000;
    spec.seed = i + 1;
    if (spec.output_type == MU_F32) spec.output_type = spec.type;
    return spec;
}

/* The same of every family: windows that cut pages, heads of 48 and 80 that turn in part, one key head for many ranks,
 * feed-forward rows that are no multiple of 32. */
static const struct mu_synth odd_families[] = {
    {.arch = "qwen2", .n_head = 6, .n_kv_head = 3, .d_head = 48, .d_model = 288, .d_ff = 352, .type = MU_Q4_0},
    {.arch = "llama",
     .n_head = 6,
     .n_kv_head = 3,
     .d_head = 48,
     .d_model = 288,
     .d_ff = 352,
     .n_expert = 5,
     .n_expert_used = 3,
     .window = 9,
     .type = MU_Q4_0},
    {.arch = "qwen3moe",
     .n_head = 5,
     .n_kv_head = 1,
     .d_head = 80,
     .d_model = 208,
     .d_ff = 72,
     .n_expert = 7,
     .n_expert_used = 2,
     .type = MU_F16},
    {.arch = "qwen3moe",
     .n_head = 4,
     .n_kv_head = 2,
     .d_head = 64,
     .d_model = 256,
     .d_ff = 32,
     .n_expert = 40,
     .n_expert_used = 8,
     .type = MU_Q8_0},
    {.arch = "qwen3", .n_head = 5, .n_kv_head = 1, .d_head = 80, .d_model = 208, .d_ff = 200, .type = MU_F16},
    {.arch = "phi2",
     .n_head = 3,
     .n_kv_head = 3,
     .d_head = 80,
     .d_model = 240,
     .d_ff = 168,
     .n_rot = 32,
     .type = MU_BF16},
    {.arch = "phi2",
     .n_head = 4,
     .n_kv_head = 4,
     .d_head = 72,
     .d_model = 288,
     .d_ff = 416,
     .n_rot = 28,
     .type = MU_Q8_0},
    {.arch = "phi3",
     .n_head = 6,
     .n_kv_head = 2,
     .d_head = 48,
     .d_model = 288,
     .d_ff = 352,
     .window = 9,
     .type = MU_Q8_0},
    {.arch = "phi3",
     .n_head = 5,
     .n_kv_head = 5,
     .d_head = 48,
     .d_model = 240,
     .d_ff = 136,
     .n_rot = 36,
     .n_ctx_short = 64,
     .tied = 1,
     .type = MU_F16},
    {.arch = "gemma",
     .n_head = 3,
     .n_kv_head = 1,
     .d_head = 96,
     .d_model = 224,
     .d_ff = 320,
     .tied = 1,
     .type = MU_Q4_0},
    {.arch = "gemma2",
     .n_head = 6,
     .n_kv_head = 3,
     .d_head = 48,
     .d_model = 288,
     .d_ff = 352,
     .window = 11,
     .tied = 1,
     .type = MU_Q8_0},
    {.arch = "gemma3",
     .n_layer = 7,
     .n_head = 3,
     .n_kv_head = 1,
     .d_head = 80,
     .d_model = 176,
     .d_ff = 104,
     .window = 5,
     .type = MU_F32},
    {.arch = "falcon",
     .n_head = 5,
     .n_kv_head = 1,
     .d_head = 48,
     .d_model = 240,
     .d_ff = 160,
     .tied = 1,
     .type = MU_F16},
    {.arch = "gpt-oss",
     .n_layer = 3,
     .n_head = 6,
     .n_kv_head = 2,
     .d_head = 48,
     .d_model = 288,
     .d_ff = 96,
     .n_expert = 7,
     .n_expert_used = 3,
     .window = 9,
     .n_ctx_short = 16,
     .yarn_factor = 32,
     .type = MU_MXFP4},
    {.arch = "gpt-oss",
     .n_head = 5,
     .n_kv_head = 1,
     .d_head = 64,
     .d_model = 208,
     .d_ff = 72,
     .n_expert = 5,
     .n_expert_used = 2,
     .window = 12,
     .type = MU_BF16},
    {.arch = "mistral3",
     .n_head = 6,
     .n_kv_head = 3,
     .d_head = 48,
     .d_model = 288,
     .d_ff = 352,
     .n_ctx_short = 10,
     .yarn_factor = 16,
     .type = MU_Q4_0},
    {.arch = "smollm3",
     .n_layer = 5,
     .n_head = 3,
     .n_kv_head = 1,
     .d_head = 80,
     .d_model = 176,
     .d_ff = 104,
     .type = MU_F16},
    {.arch = "granite",
     .n_head = 6,
     .n_kv_head = 3,
     .d_head = 48,
     .d_model = 288,
     .d_ff = 352,
     .tied = 1,
     .type = MU_Q8_0},
    {.arch = "granitemoe",
     .n_head = 5,
     .n_kv_head = 1,
     .d_head = 80,
     .d_model = 208,
     .d_ff = 72,
     .n_expert = 6,
     .n_expert_used = 3,
     .type = MU_F16},
    {.arch = "falcon",
     .n_head = 6,
     .n_kv_head = 2,
     .d_head = 80,
     .d_model = 480,
     .d_ff = 416,
     .tied = 1,
     .type = MU_Q4_0},
};
enum { N_ODD_FAMILY = sizeof odd_families / sizeof *odd_families };
static inline struct mu_synth odd_family(size_t i)
{
    struct mu_synth spec = odd_families[i];
    if (!spec.n_layer) spec.n_layer = 2;
    spec.n_ctx = 256;
    spec.n_vocab = 400;
    spec.rope_freq_base = 10000;
    spec.output_type = spec.type;
    spec.seed = i + 1;
    return spec;
}
/* Its model, and a name for messages. */
static inline struct mu_model *odd_family_open(size_t i, char name[60])
{
    struct mu_synth spec = odd_family(i);
    snprintf(name, 60, "odd %s (%zu)", spec.arch, i);
    return synth_open(&spec);
}

#endif
