/* The pass against a second one, written plainly from the arithmetic contract: one token at a time, whole matrices, the
 * reference kernels, no ranks, no threads, no pages but one. It shares nothing with shard/ but the kernels.
 *
 * MUSTER_TEST_REDUCED: a quarter of the types and of the models (for sanitizers). */
#include "base/alloc.h"
#include "lora_util.h"

enum { N_POS = 40, MAX = 1024 };

struct plain {
    const struct mu_model *m;
    const struct mu_kernels *k;
    struct mu_mat mat[8][MU_T_LAYER_COUNT], out;
    uint16_t *k_cache[8][16], *v_cache[8][16]; /* [layer][KV head]: one page of 64 positions */
    float freq[256];
    const struct mu_adapter *ad; /* what every token is computed with, or NULL */
    float strength;              /* the request's */
};

static struct mu_mat pack(const struct plain *p, const struct mu_gguf_tensor *t)
{
    struct mu_mat m = {.type = t->type, .n_row = (int)t->n_row, .n_col = (int)t->ne[0]};
    m.data = mu_aligned_alloc(64, p->k->mat_bytes(m.type, m.n_row, m.n_col));
    assert_true(p->k->mat_pack(&m, 0, m.n_row, t->data));
    return m;
}

static float lora_value(const uint8_t *row, uint32_t type, int i)
{
    uint16_t h;
    float f;
    memcpy(&h, row + 2 * (size_t)i, type == MU_F16 ? 2 : 0);
    if (type == MU_F16) return mu_f16_to_f32(h);
    memcpy(&f, row + 4 * (size_t)i, 4);
    return f;
}

static void lora_add(const struct plain *p, const struct mu_lora *l, const float *x, float *out) /* C9 */
{
    float u[MU_MAX_LORA_RANK], strength = l->scale * p->ad->spec.scale;
    strength = strength * p->strength;
    for (int k = 0; k < l->rank; k++) {
        u[k] = 0;
        for (int c = 0; c < l->n_col; c++) u[k] = fmaf(lora_value(mu_lora_a_row(l, k), l->a_type, c), x[c], u[k]);
    }
    for (int i = 0; i < l->n_row; i++) {
        float sum = 0;
        for (int k = 0; k < l->rank; k++) sum = fmaf(lora_value(mu_lora_b_row(l, i), l->b_type, k), u[k], sum);
        out[i] = fmaf(strength, sum, out[i]);
    }
}

static void product(const struct plain *p, const struct mu_mat *m, const struct mu_lora *l, const float *x, float *out)
{
    static _Alignas(64) int8_t q[MAX];
    static _Alignas(64) uint16_t bf16[MAX];
    static float s[MAX / 32];
    static int16_t sum[MAX / 16];
    struct mu_act act = {.n_tok = 1, .n_col = m->n_col, .f32 = x, .bf16 = bf16, .q = q, .s = s, .sum = sum};
    p->k->to_bf16(x, m->n_col, bf16);
    if (mu_type_info(m->type)->act == MU_ACT_Q8) assert_true(p->k->quantize(x, m->n_col, q, s, sum));
    p->k->matmul(m, &act, 0, m->n_row, out, (size_t)m->n_row);
    if (!l || l->rank == 0) return;
    float seen[MAX]; /* what the matrix sees of x */
    enum mu_act_kind kind = mu_type_info(m->type)->act;
    for (int i = 0; i < m->n_col; i++)
        seen[i] = kind == MU_ACT_Q8 ? (float)q[i] * s[i / 32] : kind == MU_ACT_BF16 ? mu_bf16_to_f32(bf16[i]) : x[i];
    lora_add(p, l, seen, out);
}

static float as_added(const struct mu_mat *m, float y) /* C4 */
{
    return mu_type_info(m->type)->block_values > 1 ? mu_bf16_to_f32(mu_f32_to_bf16(y)) : y;
}

static void norm(const struct plain *p, const float *x, const struct mu_gguf_tensor *w, float *out)
{
    assert_true(p->k->rms_norm(x, (const float *)(const void *)w->data, p->m->cfg.d_model, p->m->cfg.norm_eps, out));
}

static void attention(const struct plain *p, int layer, int pos, float *q, float *k, float *v, float *out)
{
    const struct mu_config *c = &p->m->cfg;
    float turn[MAX];
    int group = c->n_head / c->n_kv_head, halves = p->m->arch->rope == MU_ROPE_HALVES;
    p->k->rope_table(p->freq, c->n_rot / 2, pos, 1, turn);
    p->k->rope(q, c->n_head, c->d_head, c->n_rot, halves, turn);
    p->k->rope(k, c->n_kv_head, c->d_head, c->n_rot, halves, turn);
    for (int h = 0; h < c->n_kv_head; h++)
        p->k->kv_store(MU_KV_F16, k + h * c->d_head, v + h * c->d_head, c->d_head, pos, p->k_cache[layer][h],
                       p->v_cache[layer][h]);
    for (int h = 0; h < c->n_head; h++) {
        const void *k_page = p->k_cache[layer][h / group], *v_page = p->v_cache[layer][h / group];
        struct mu_attn a = {.n_tok = 1,
                            .n_rep = 1,
                            .d_head = c->d_head,
                            .pos0 = pos,
                            .page_tokens = 64,
                            .window = c->window,
                            .scale = c->attn_scale,
                            .q = q + h * c->d_head,
                            .out = out + h * c->d_head,
                            .k_page = &k_page,
                            .v_page = &v_page};
        p->k->attn(&a);
    }
}

/* C8, from the definition: whole matrices of all experts, of whose products one expert's rows are looked at. */
static void experts(const struct plain *p, const struct mu_mat *w, const float *x, float *out)
{
    const struct mu_config *c = &p->m->cfg;
    float score[MAX], gate[MAX], up[MAX], y[MAX], hidden[MAX], weight[MAX], max = 0, sum = 0;
    bool chosen[MAX] = {false};
    product(p, &w[MU_T_ROUTER], NULL, x, score);
    product(p, &w[MU_T_GATE], NULL, x, gate);
    product(p, &w[MU_T_UP], NULL, x, up);
    for (int k = 0; k < c->n_expert_used; k++) {
        int best = -1;
        for (int e = c->n_expert - 1; e >= 0; e--) /* ties to the lower index */
            if (!chosen[e] && (best < 0 || score[e] >= score[best])) best = e;
        chosen[best] = true;
        if (k == 0) max = score[best];
    }
    for (int e = 0; e < c->n_expert; e++)
        if (chosen[e]) sum = sum + (weight[e] = mu_expf(score[e] - max));
    for (int i = 0; i < c->d_model; i++) out[i] = 0;
    for (int e = 0; e < c->n_expert; e++) {
        if (!chosen[e]) continue;
        for (int i = 0; i < c->d_ff; i++) hidden[i] = mu_siluf(gate[e * c->d_ff + i]) * up[e * c->d_ff + i];
        product(p, &w[MU_T_DOWN], NULL, hidden, y);
        for (int i = 0; i < c->d_model; i++) out[i] = fmaf(weight[e] / sum, y[e * c->d_model + i], out[i]);
    }
}

/* The token at `pos`, its logits. */
static void token(const struct plain *p, int32_t id, int pos, float *logits)
{
    const struct mu_config *c = &p->m->cfg;
    float x[MAX], n[MAX], q[MAX], k[MAX], v[MAX], o[MAX], y[MAX], gate[MAX], up[MAX];
    assert_true(
        p->k->dequant_row(p->m->embed->type, p->m->embed->data + (size_t)id * p->m->embed->row_bytes, c->d_model, x));
    for (int l = 0; l < c->n_layer; l++) {
        const struct mu_mat *w = p->mat[l];
        const struct mu_lora *ad = p->ad ? p->ad->layer[l] : NULL;
        norm(p, x, p->m->layer[l][MU_T_ATTN_NORM], n);
        product(p, &w[MU_T_Q], ad ? &ad[MU_T_Q] : NULL, n, q);
        product(p, &w[MU_T_K], ad ? &ad[MU_T_K] : NULL, n, k);
        product(p, &w[MU_T_V], ad ? &ad[MU_T_V] : NULL, n, v);
        attention(p, l, pos, q, k, v, o);
        product(p, &w[MU_T_O], ad ? &ad[MU_T_O] : NULL, o, y);
        for (int i = 0; i < c->d_model; i++) x[i] = x[i] + as_added(&w[MU_T_O], y[i]);
        norm(p, x, p->m->layer[l][MU_T_FFN_NORM], n);
        if (c->n_expert) {
            experts(p, w, n, y);
            for (int i = 0; i < c->d_model; i++) x[i] = x[i] + as_added(&w[MU_T_DOWN], y[i]);
            continue;
        }
        product(p, &w[MU_T_GATE], ad ? &ad[MU_T_GATE] : NULL, n, gate);
        product(p, &w[MU_T_UP], ad ? &ad[MU_T_UP] : NULL, n, up);
        for (int i = 0; i < c->d_ff; i++) gate[i] = mu_siluf(gate[i]) * up[i];
        product(p, &w[MU_T_DOWN], ad ? &ad[MU_T_DOWN] : NULL, gate, y);
        for (int i = 0; i < c->d_model; i++) x[i] = x[i] + as_added(&w[MU_T_DOWN], y[i]);
    }
    norm(p, x, p->m->out_norm, n);
    product(p, &p->out, p->ad ? &p->ad->out : NULL, n, logits);
}

static void check(const struct mu_model *m, const struct mu_adapters *adapters, const char *name)
{
    struct plain p = {.m = m, .k = mu_kernels_available()[0]};
    const struct mu_config *c = &m->cfg;
    int32_t ids[N_POS];
    size_t n_vocab = (size_t)c->n_vocab, page = (size_t)64 * (size_t)c->d_head;
    if (adapters) p.ad = adapters->at[0];
    p.strength = 0.75f;
    assert_string_equal(p.k->name, "ref");
    assert_true(c->n_layer <= 8 && c->n_kv_head <= 16 && c->n_head * c->d_head <= MAX);
    int n_copy = c->n_expert ? c->n_expert : 1;
    assert_true(n_copy * c->d_model <= MAX && n_copy * c->d_ff <= MAX);
    mu_fp_env_set();
    mu_rope_freqs(c->rope_freq_base, c->n_rot, m->rope_factors, p.freq);
    p.out = pack(&p, m->output);
    for (int l = 0; l < c->n_layer; l++) {
        for (int id = 0; id < MU_T_MATRIX_COUNT; id++)
            if (m->layer[l][id]) p.mat[l][id] = pack(&p, m->layer[l][id]);
        for (int h = 0; h < c->n_kv_head; h++) {
            p.k_cache[l][h] = mu_aligned_alloc(64, page * sizeof(uint16_t));
            p.v_cache[l][h] = mu_aligned_alloc(64, page * sizeof(uint16_t));
            memset(p.k_cache[l][h], 0xff, page * sizeof(uint16_t)); /* NaN: nobody may read ahead */
            memset(p.v_cache[l][h], 0xff, page * sizeof(uint16_t));
        }
    }
    for (int i = 0; i < N_POS; i++) ids[i] = (i * 37 + 5) % c->n_vocab;
    float *want = malloc(N_POS * n_vocab * sizeof *want);
    for (int i = 0; i < N_POS; i++) token(&p, ids[i], i, want + (size_t)i * n_vocab);
    static const char *const splits[] = {"1", "2:1/1"};
    for (int s = 0; s < 2; s++) {
        struct mu_solo *solo = NULL;
        struct mu_solo_options opt = {
            .model = m, .adapters = adapters, .n_thread = 2, .serving = {.n_ctx = 64, .n_slot = 1, .step_tokens = 64}};
        struct rows rows = {.at = malloc(N_POS * n_vocab * sizeof(float)), .n_vocab = c->n_vocab};
        float *got = rows.at;
        MUST(mu_split_parse(splits[s], &opt.split, err));
        MUST(mu_solo_open(&opt, &solo, err));
        if (adapters) mu_solo_adapt(solo, 0, 1, p.strength);
        MUST(mu_solo_feed(solo, 0, ids, N_POS, MU_OUT_ALL, NULL, rows_take, &rows, NULL, err));
        mu_solo_close(solo);
        for (size_t i = 0; i < N_POS * n_vocab; i++)
            if (memcmp(&got[i], &want[i], sizeof *got) != 0)
                fail_msg("%s, split %s: position %zu, id %zu: %.9g, expected %.9g", name, splits[s], i / n_vocab,
                         i % n_vocab, (double)got[i], (double)want[i]);
        free(got);
    }
    free(want);
    mu_free(p.out.data);
    for (int l = 0; l < c->n_layer; l++) {
        for (int id = 0; id < MU_T_MATRIX_COUNT; id++) mu_free(p.mat[l][id].data);
        for (int h = 0; h < c->n_kv_head; h++) {
            mu_free(p.k_cache[l][h]);
            mu_free(p.v_cache[l][h]);
        }
    }
}

static void test_synth(void **state)
{
    (void)state;
    static const uint32_t types[] = {MU_Q4_0, MU_Q8_0, MU_F16, MU_BF16, MU_F32, MU_Q6_K, MU_Q2_K, MU_MXFP4, MU_TQ2_0};
    for (size_t i = 0; i < sizeof types / sizeof *types; i += getenv("MUSTER_TEST_REDUCED") ? 4 : 1) {
        struct mu_synth spec = {.arch = "llama",
                                .n_layer = 2,
                                .n_head = 8,
                                .n_kv_head = 4,
                                .d_head = 32,
                                .d_model = 256,
                                .d_ff = 512,
                                .n_vocab = 300,
                                .n_ctx = 256,
                                .rope_freq_base = 10000,
                                .type = types[i],
                                .output_type = types[i],
                                .seed = 2};
        struct mu_model *m = synth_open(&spec);
        check(m, NULL, mu_type_info(types[i])->name);
        const struct lora_recipe recipe = {
            .rank = 5, .type = i % 2 ? MU_F16 : MU_F32, .alpha = 9, .skip = 1u << MU_T_K, .out = true, .seed = i};
        struct mu_adapters *a = lora_open(m, &recipe, 1);
        check(m, a, "with an adapter");
        mu_adapters_close(a);
        mu_model_close(m);
    }
}

static void test_experts(void **state)
{
    (void)state;
    static const uint32_t types[] = {MU_Q8_0, MU_BF16, MU_F32};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        struct mu_synth spec = {.arch = "llama",
                                .n_layer = 2,
                                .n_head = 4,
                                .n_kv_head = 2,
                                .d_head = 32,
                                .d_model = 192,
                                .d_ff = 96,
                                .n_expert = 5,
                                .n_expert_used = 3,
                                .n_vocab = 300,
                                .n_ctx = 256,
                                .rope_freq_base = 10000,
                                .type = types[i],
                                .output_type = types[i],
                                .seed = 3};
        struct mu_model *m = synth_open(&spec);
        check(m, NULL, "experts");
        mu_model_close(m);
    }
}

static void test_fixtures(void **state)
{
    (void)state;
    static const char *const names[] = {"llama3.Q4_K_M", "llama2.f16", "mistral.f16"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i += getenv("MUSTER_TEST_REDUCED") ? 4 : 1) {
        struct mu_model *m = fixture_model(names[i]);
        check(m, NULL, names[i]);
        mu_model_close(m);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_synth), cmocka_unit_test(test_experts),
                                       cmocka_unit_test(test_fixtures)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
