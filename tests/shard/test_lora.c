/* Adapters in the pass: what they add is what merging them would, and is the same bits whatever the split, the threads,
 * the instruction set, the chunks and the company. */
#include "base/alloc.h"
#include "base/io.h"
#include "model/synth.h"
#include "worker/embedder.h"

#include "lora_util.h"

static const struct lora_recipe recipes[] = {
    {.rank = 8, .type = MU_F32, .alpha = 16, .out = true, .seed = 1},
    {.rank = 33, .type = MU_F16, .alpha = 5, .skip = 1u << MU_T_Q | 1u << MU_T_UP | 1u << MU_T_DOWN, .seed = 2},
    {.rank = 1, .type = MU_F32, .alpha = 0, .skip = 1u << MU_T_GATE | 1u << MU_T_O, .seed = 3},
};
enum { N_RECIPE = sizeof recipes / sizeof *recipes };

static void ids_fill(int32_t *ids, size_t n, int n_vocab, uint32_t seed)
{
    for (size_t i = 0; i < n; i++) {
        seed = seed * 1664525u + 1013904223u;
        ids[i] = (int32_t)((seed >> 8) % (uint32_t)n_vocab);
    }
}

static struct mu_solo *solo_with(const struct mu_model *m, const struct mu_adapters *a, struct how how)
{
    how.adapters = a;
    return solo_of(m, how);
}

/* Logits of every position of one sequence, fed in chunks. */
static float *logits_of(const struct mu_model *m, const struct mu_adapters *a, struct how how, int adapter, float scale,
                        const int32_t *ids, size_t n, size_t chunk)
{
    struct mu_solo *solo = solo_with(m, a, how);
    struct rows rows = {.at = malloc(n * (size_t)m->cfg.n_vocab * sizeof(float)), .n_vocab = m->cfg.n_vocab};
    mu_solo_adapt(solo, 1, adapter, scale);
    for (size_t at = 0; at < n; at += chunk)
        MUST(mu_solo_feed(solo, 1, ids + at, n - at < chunk ? n - at : chunk, MU_OUT_ALL, NULL, rows_take, &rows, NULL,
                          err));
    assert_int_equal(rows.n, n);
    mu_solo_close(solo);
    return rows.at;
}

static void same(const float *got, const float *want, size_t n, const char *what)
{
    for (size_t i = 0; i < n; i++)
        if (memcmp(got + i, want + i, sizeof *got) != 0)
            fail_msg("%s: value %zu: %.9g, expected %.9g", what, i, (double)got[i], (double)want[i]);
}

/* ---- merged ---- */

/* Adds strength·B·A to an F32 tensor of the file. */
static void merge_one(FILE *f, const struct mu_gguf_tensor *t, const struct lora_recipe *r, int layer, int id, double s)
{
    size_t n_col = (size_t)t->ne[0], rank = (size_t)r->rank;
    float *row = malloc(n_col * sizeof *row);
    for (size_t i = 0; i < (size_t)t->n_row; i++) {
        memcpy(row, t->data + i * t->row_bytes, t->row_bytes);
        for (size_t c = 0; c < n_col; c++) {
            double sum = 0;
            for (size_t k = 0; k < rank; k++)
                sum += (double)lora_weight(r, layer, id, LORA_B, i * rank + k) *
                       (double)lora_weight(r, layer, id, LORA_A, k * n_col + c);
            row[c] = (float)(row[c] + s * sum);
        }
        assert_int_equal(fseek(f, (long)(t->offset + i * t->row_bytes), SEEK_SET), 0);
        assert_int_equal(fwrite(row, 1, t->row_bytes, f), t->row_bytes);
    }
    free(row);
}

static const struct mu_synth small = {.arch = "llama",
                                      .n_layer = 3,
                                      .n_head = 6,
                                      .n_kv_head = 3,
                                      .d_head = 16,
                                      .d_model = 96,
                                      .d_ff = 160,
                                      .n_vocab = 300,
                                      .n_ctx = 256,
                                      .rope_freq_base = 10000,
                                      .type = MU_F32,
                                      .output_type = MU_F32,
                                      .seed = 5};

static void test_merged(void **state)
{
    (void)state;
    enum { N = 30 };
    char path[300], merged_path[320];
    struct mu_model *m = lora_synth(&small, path, sizeof path), *merged = NULL;
    struct mu_adapters *a = lora_open(m, recipes, N_RECIPE);
    int32_t ids[N];
    size_t count = N * (size_t)m->cfg.n_vocab;
    ids_fill(ids, N, m->cfg.n_vocab, 3);
    snprintf(merged_path, sizeof merged_path, "%s.merged", path);
    float *base = logits_of(m, NULL, (struct how){0}, 0, 0, ids, N, N);
    for (int i = 0; i < N_RECIPE; i++) {
        const struct lora_recipe *r = &recipes[i];
        float scale = i == 1 ? -0.5f : 1.0f;
        double s = (r->alpha > 0 ? (double)r->alpha / r->rank : 1.0) * (double)scale;
        assert_int_equal(rename(path, merged_path), 0);
        MUST(mu_synth_write(&small, path, NULL, NULL, err));
        FILE *f = fopen(path, "r+");
        assert_non_null(f);
        for (int l = 0; l < m->cfg.n_layer; l++)
            for (const struct mu_tensor_rule *rule = mu_arch_rules(m->arch, &m->cfg); rule->suffix; rule++)
                if (lora_wants(r, m, l, rule)) merge_one(f, m->layer[l][rule->id], r, l, rule->id, s);
        if (r->out) merge_one(f, m->output, r, 0, LORA_OUT, s);
        fclose(f);
        MUST(mu_model_open(path, &merged, err));
        float *want = logits_of(merged, NULL, (struct how){0}, 0, 0, ids, N, N);
        float *got = logits_of(m, a, (struct how){0}, i + 1, scale, ids, N, N);
        double largest = 0, worst = 0, moved = 0;
        for (size_t k = 0; k < count; k++) {
            largest = fmax(largest, fabs((double)want[k]));
            worst = fmax(worst, fabs((double)got[k] - (double)want[k]));
            moved = fmax(moved, fabs((double)base[k] - (double)want[k]));
        }
        print_message("recipe %d: largest logit %.3g, base differs by %.3g, unmerged by %.3g\n", i, largest, moved,
                      worst);
        if (!(worst <= 1e-4 * largest)) fail_msg("recipe %d: %g off", i, worst);
        if (!(moved > 1e-3 * largest)) fail_msg("recipe %d: the adapter does nothing", i);
        mu_model_close(merged);
        free(want);
        free(got);
    }
    unlink(path);
    unlink(merged_path);
    free(base);
    mu_adapters_close(a);
    mu_model_close(m);
}

/* ---- same bits ---- */

enum { N_SEQ = 7, N_POS = 26 };
static const int adapter_of[N_SEQ] = {1, 1, 0, 2, 3, 0, 1};
static const float scale_of[N_SEQ] = {1, 1, 0, 1, 0.75f, 0, -2};

/* The sequences together, each at its own pace and with its own kind of output, against each alone. */
static void check_mixed(const struct mu_model *m, const struct mu_adapters *a, struct how how, int32_t (*ids)[N_POS],
                        float *const *want, const char *what)
{
    size_t n_vocab = (size_t)m->cfg.n_vocab, done[N_SEQ] = {0};
    uint32_t page = 0, pages[N_SEQ] = {0};
    struct mu_step *step = NULL;
    struct mu_step_result result;
    how.n_slot = N_SEQ;
    how.step_tokens = 64;
    struct mu_solo *solo = solo_with(m, a, how);
    MUST(mu_step_create(mu_solo_serving(solo), m->cfg.n_vocab, &step, err));
    for (bool more = true; more;) {
        more = false;
        step->number++;
        step->n_page = step->n_seq = step->n_tok = 0;
        for (uint32_t slot = 0; slot < N_SEQ; slot++) {
            uint32_t take = (uint32_t)((slot * 3 + step->number * 5) % 8); /* sometimes one, sometimes none */
            if (step->number % 4 == 0) take = 1;                           /* all of them decode */
            if (take > N_POS - done[slot]) take = (uint32_t)(N_POS - done[slot]);
            more |= done[slot] < N_POS;
            if (take == 0) continue;
            for (; pages[slot] * MU_PAGE_TOKENS < done[slot] + take; pages[slot]++)
                step->page[step->n_page++] = (struct mu_step_page){slot, page++};
            step->seq[step->n_seq++] = (struct mu_step_seq){.slot = slot,
                                                            .pos0 = (uint32_t)done[slot],
                                                            .n_tok = take,
                                                            .tok_off = step->n_tok,
                                                            .out = (uint8_t)((slot + step->number) % 4),
                                                            .adapter = (uint16_t)adapter_of[slot],
                                                            .adapter_scale = scale_of[slot]};
            memcpy(step->ids + step->n_tok, ids[slot] + done[slot], take * sizeof **ids);
            step->n_tok += take;
            done[slot] += take;
        }
        MUST(mu_solo_step(solo, step, &result, err));
        const float *row = result.logits;
        for (uint32_t i = 0; i < step->n_seq; i++) {
            const struct mu_step_seq *q = &step->seq[i];
            uint32_t first = q->out == MU_OUT_ALL ? q->pos0 : q->pos0 + q->n_tok - 1, end = q->pos0 + q->n_tok;
            if (q->out == MU_OUT_NONE) continue;
            if (q->out == MU_OUT_SAMPLE) {
                float max;
                int32_t id = mu_kernels()->argmax(want[q->slot] + (end - 1) * n_vocab, m->cfg.n_vocab, &max);
                if (result.id[i] != id)
                    fail_msg("%s: step %d, sequence %u at %u: id %d, expected %d", what, (int)step->number, q->slot,
                             end, result.id[i], id);
                continue;
            }
            same(row, want[q->slot] + first * n_vocab, (end - first) * n_vocab, what);
            row += (end - first) * n_vocab;
        }
    }
    mu_free(step);
    mu_solo_close(solo);
}

static const char *const splits[] = {"1", "2:1/1", "1:1:1:1:1"};
enum { N_SPLIT = sizeof splits / sizeof *splits };

static void check_ways(const struct mu_model *m, const char *name)
{
    char what[200];
    size_t n_vocab = (size_t)m->cfg.n_vocab;
    int32_t ids[N_SEQ][N_POS];
    float *want[N_SEQ], *bare;
    struct mu_adapters *a = lora_open(m, recipes, N_RECIPE);
    const char *best = mu_kernels() ? mu_kernels()->name : NULL;
    for (int i = 0; i < N_SEQ; i++) {
        ids_fill(ids[i], N_POS, m->cfg.n_vocab, i == 5 ? 2 : (uint32_t)i / 2); /* some the same, with other adapters */
        want[i] = logits_of(m, a, (struct how){0}, adapter_of[i], scale_of[i], ids[i], N_POS, N_POS);
        for (size_t k = 0; k < N_POS * n_vocab; k++)
            if (!isfinite(want[i][k])) fail_msg("%s: sequence %d is not finite", name, i);
    }
    if (memcmp(want[2], want[3], N_POS * n_vocab * sizeof(float)) == 0) fail_msg("%s: the adapter does nothing", name);
    bare = logits_of(m, NULL, (struct how){0}, 0, 0, ids[2], N_POS, N_POS);
    same(want[2], bare, N_POS * n_vocab, "without an adapter");
    free(bare);
    for (int i = 0; i < N_SPLIT; i++) {
        struct how how = {.split = splits[i], .n_thread = i == 0 ? 3 : 1 + i % 2};
        const size_t chunks[] = {N_POS, 7, 1};
        for (int c = 0; c < 3; c++) {
            int q = (i + c) % 2 ? 3 : 6 * (c / 2); /* adapters 1 and 2, one of them at a strength of its own */
            snprintf(what, sizeof what, "%s, split %s, sequence %d, chunks of %zu", name, splits[i], q, chunks[c]);
            size_t n = c == 2 ? 6 : N_POS;
            float *got = logits_of(m, a, how, adapter_of[q], scale_of[q], ids[q], n, chunks[c]);
            same(got, want[q], n * n_vocab, what);
            free(got);
        }
        snprintf(what, sizeof what, "%s, split %s, together", name, splits[i]);
        check_mixed(m, a, how, ids, want, what);
    }
    for (const struct mu_kernels *const *k = mu_kernels_available(); *k; k++) {
        MUST(mu_kernels_init((*k)->name, err));
        float *got = logits_of(m, a, (struct how){.split = "1:1"}, 1, 1, ids[0], N_POS, 9);
        same(got, want[0], N_POS * n_vocab, (*k)->name);
        free(got);
    }
    MUST(mu_kernels_init(best, err));
    for (int i = 0; i < N_SEQ; i++) free(want[i]);
    mu_adapters_close(a);
}

static void test_ways(void **state)
{
    (void)state;
    static const struct mu_synth shapes[] = {
        {.n_head = 6, .n_kv_head = 3, .d_head = 48, .d_model = 288, .d_ff = 352, .type = MU_Q4_0},
        {.n_head = 3, .n_kv_head = 3, .d_head = 80, .d_model = 240, .d_ff = 168, .type = MU_BF16},
        {.arch = "qwen2", .n_head = 6, .n_kv_head = 3, .d_head = 48, .d_model = 288, .d_ff = 352, .type = MU_F16},
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
        {.arch = "falcon",
         .n_head = 6,
         .n_kv_head = 2,
         .d_head = 80,
         .d_model = 480,
         .d_ff = 416,
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
        {.n_head = 6,
         .n_kv_head = 3,
         .d_head = 48,
         .d_model = 288,
         .d_ff = 352,
         .n_expert = 5,
         .n_expert_used = 3,
         .type = MU_Q4_0},
    };
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i += getenv("MUSTER_TEST_REDUCED") ? 4 : 1) {
        struct mu_synth spec = shapes[i];
        char path[300], name[60];
        if (!spec.arch) spec.arch = "llama";
        spec.n_layer = 2;
        spec.n_ctx = 256;
        spec.n_vocab = 300;
        spec.rope_freq_base = 10000;
        spec.output_type = spec.type;
        spec.seed = i + 1;
        struct mu_model *m = lora_synth(&spec, path, sizeof path);
        unlink(path);
        snprintf(name, sizeof name, "%s (%zu)", spec.arch, i);
        check_ways(m, name);
        mu_model_close(m);
    }
}

/* ---- beside texts that are embedded ---- */

enum { N_TEXT = 5 };
static const struct {
    enum mu_out_kind out; /* of each chunk, but MU_OUT_STATE and MU_OUT_LOGITS: of the last */
    int adapter;
    float scale;
} kinds[N_TEXT] = {{MU_OUT_LOGITS, 1, 1},
                   {MU_OUT_STATE_SUM, 2, 1},
                   {MU_OUT_STATE, 0, 0},
                   {MU_OUT_STATE_SUM, 1, 0.75f},
                   {MU_OUT_STATE, 3, 1}};

static enum mu_status vector_take(void *ctx, size_t at, const float *value, int n, struct mu_err *err)
{
    (void)at;
    (void)err;
    memcpy(ctx, value, (size_t)n * sizeof *value);
    return MU_OK;
}

/* What a text has alone: its vector, or the logits of its last token. */
static float *alone(const struct mu_model *m, const struct mu_adapters *a, int i, const int32_t *ids, size_t n)
{
    size_t d = (size_t)m->cfg.d_model, n_vocab = (size_t)m->cfg.n_vocab;
    float *want = calloc(d > n_vocab ? d : n_vocab, sizeof *want);
    if (kinds[i].out == MU_OUT_LOGITS) {
        float *all = logits_of(m, a, (struct how){0}, kinds[i].adapter, kinds[i].scale, ids, n, n);
        memcpy(want, all + (n - 1) * n_vocab, n_vocab * sizeof *all);
        free(all);
        return want;
    }
    const struct mu_embed how = {.pooling = kinds[i].out == MU_OUT_STATE ? MU_POOL_LAST : MU_POOL_MEAN, .raw = true};
    const struct mu_embed_text text = {ids, n};
    struct mu_embedder *e = NULL;
    struct mu_solo *solo = solo_with(m, a, (struct how){0});
    MUST(mu_embedder_create(solo, m, &e, err));
    mu_embedder_adapt(e, kinds[i].adapter, kinds[i].scale);
    MUST(mu_embedder_run(e, &how, &text, 1, vector_take, want, err));
    mu_embedder_destroy(e);
    mu_solo_close(solo);
    return want;
}

/* Sequences with adapters, some of which are embedded and some of which generate, in the same steps: the last layer goes on with
 * the tokens alone whose states or logits are wanted, and each of them has its own adapter there too. */
static void test_states(void **state)
{
    (void)state;
    char path[300];
    struct mu_synth spec = small;
    spec.type = MU_Q4_0;
    struct mu_model *m = lora_synth(&spec, path, sizeof path);
    unlink(path);
    struct mu_adapters *a = lora_open(m, recipes, N_RECIPE);
    size_t d = (size_t)m->cfg.d_model;
    int32_t ids[N_TEXT][N_POS];
    float *want[N_TEXT], vector[512];
    for (int i = 0; i < N_TEXT; i++) {
        ids_fill(ids[i], N_POS, m->cfg.n_vocab, (uint32_t)i);
        want[i] = alone(m, a, i, ids[i], N_POS);
    }
    for (int k = 0; k < N_SPLIT; k++) {
        struct mu_solo *solo = solo_with(m, a, (struct how){.split = splits[k], .n_slot = N_TEXT, .step_tokens = 64});
        struct mu_step *step = NULL;
        struct mu_step_result result;
        uint32_t done = 0;
        MUST(mu_step_create(mu_solo_serving(solo), m->cfg.n_vocab, &step, err));
        for (uint32_t slot = 0; slot < N_TEXT; slot++) step->page[step->n_page++] = (struct mu_step_page){slot, slot};
        for (uint32_t take = 11; done < N_POS; done += take) {
            if (take > N_POS - done) take = N_POS - done;
            bool last = done + take == N_POS;
            step->number++;
            step->n_seq = step->n_tok = 0;
            for (uint32_t slot = 0; slot < N_TEXT; slot++) {
                enum mu_out_kind out = kinds[slot].out;
                step->seq[step->n_seq++] =
                    (struct mu_step_seq){.slot = slot,
                                         .pos0 = done,
                                         .n_tok = take,
                                         .tok_off = step->n_tok,
                                         .out = (uint8_t)(last || out == MU_OUT_STATE_SUM ? out : MU_OUT_NONE),
                                         .adapter = (uint16_t)kinds[slot].adapter,
                                         .adapter_scale = kinds[slot].scale};
                memcpy(step->ids + step->n_tok, ids[slot] + done, take * sizeof **ids);
                step->n_tok += take;
            }
            MUST(mu_solo_step(solo, step, &result, err));
            step->n_page = 0;
        }
        for (int i = 0; i < N_TEXT; i++) {
            char what[80];
            snprintf(what, sizeof what, "split %s, sequence %d", splits[k], i);
            if (kinds[i].out == MU_OUT_LOGITS) {
                same(result.logits, want[i], (size_t)m->cfg.n_vocab, what);
                continue;
            }
            const struct mu_embed how = {.pooling = kinds[i].out == MU_OUT_STATE ? MU_POOL_LAST : MU_POOL_MEAN,
                                         .raw = true};
            assert_true(mu_embed_finish(&how, result.state + (size_t)i * d, N_POS, (int)d, vector));
            same(vector, want[i], d, what);
        }
        mu_free(step);
        mu_solo_close(solo);
    }
    for (int i = 0; i < N_TEXT; i++) free(want[i]);
    mu_adapters_close(a);
    mu_model_close(m);
}

/* ---- the same adapter as a PEFT folder ---- */

static void test_folders(void **state)
{
    (void)state;
    enum { N = 12 };
    static const struct mu_synth shapes[] = {
        {.arch = "llama", .n_head = 6, .n_kv_head = 3, .d_head = 48, .d_model = 288, .d_ff = 352, .type = MU_Q4_0},
        {.arch = "qwen2", .n_head = 6, .n_kv_head = 3, .d_head = 48, .d_model = 288, .d_ff = 352, .type = MU_F16},
        {.arch = "phi3", .n_head = 6, .n_kv_head = 2, .d_head = 48, .d_model = 288, .d_ff = 352, .type = MU_Q8_0},
        {.arch = "phi2", .n_head = 4, .n_kv_head = 4, .d_head = 72, .d_model = 288, .d_ff = 416, .type = MU_F32}};
    static const struct { /* configurations that come to the same strength as the recipe's alpha / rank */
        const char *json;
        uint32_t type;
    } forms[] = {
        {"{\"peft_type\":\"LORA\",\"r\":16,\"lora_alpha\":32,\"bias\":\"none\",\"use_dora\":false,\"modules_to_save\":"
         "null,"
         "\"rank_pattern\":{},\"alpha_pattern\":{},\"target_modules\":[\"q_proj\"]}",
         MU_F32},
        {"{\"peft_type\":\"LORA\",\"r\":16,\"lora_alpha\":8,\"use_rslora\":true}", MU_BF16},
        {"{\"peft_type\":\"LORA\",\"r\":4,\"lora_alpha\":1,"
         "\"rank_pattern\":{\"self_attn.q_proj\":16,\"k_proj\":16,\"v_proj\":16,\"qkv_proj\":16,\"o_proj\":16,"
         "\"dense\":16,"
         "\"gate_proj\":16,\"up_proj\":16,\"gate_up_proj\":16,\"fc1\":16,\"mlp.fc2\":16,\"down_proj\":16,\"lm_head\":"
         "16},"
         "\"alpha_pattern\":{\"model.layers.0.self_attn.q_proj\":32,\"q_proj\":32,\"k_proj\":32,\"v_proj\":32,\"qkv_"
         "proj\":32,"
         "\"o_proj\":32,\"dense\":32,\"gate_proj\":32,\"up_proj\":32,\"gate_up_proj\":32,\"fc1\":32,\"fc2\":32,"
         "\"down_proj\":32,\"lm_head\":32}}",
         MU_F16}};
    const struct lora_recipe recipe = {.rank = 16, .type = MU_F32, .alpha = 32, .out = true, .seed = 9};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        struct mu_synth spec = shapes[i];
        char path[300], *folder;
        spec.n_layer = 2;
        spec.n_ctx = 256;
        spec.n_vocab = 300;
        spec.rope_freq_base = 10000;
        spec.output_type = spec.type;
        struct mu_model *m = lora_synth(&spec, path, sizeof path);
        unlink(path);
        int32_t ids[N];
        ids_fill(ids, N, m->cfg.n_vocab, 1);
        struct mu_adapters *a = lora_open(m, &recipe, 1), *b = NULL;
        float *want = logits_of(m, a, (struct how){0}, 1, 1, ids, N, N);
        for (size_t k = 0; k < sizeof forms / sizeof *forms; k++) {
            struct mu_adapter_spec by = {.name = "folder", .scale = 1};
            MUST(mu_run_dir_create(&folder, err));
            snprintf(by.path, sizeof by.path, "%s", folder);
            lora_write_folder(m, &recipe, forms[k].type, forms[k].json, folder);
            MUST(mu_adapters_open(m, &by, 1, &b, err));
            float *got = logits_of(m, b, (struct how){.split = "1:1"}, 1, 1, ids, N, N);
            same(got, want, N * (size_t)m->cfg.n_vocab, spec.arch);
            free(got);
            mu_adapters_close(b);
            mu_run_dir_remove(folder);
            mu_free(folder);
        }
        free(want);
        mu_adapters_close(a);
        mu_model_close(m);
    }
}

/* ---- refused, and without memory ---- */

static void test_not_finite(void **state)
{
    (void)state;
    char path[300];
    struct mu_model *m = lora_synth(&small, path, sizeof path);
    unlink(path);
    struct mu_adapters *a = lora_open(m, recipes, 1);
    struct mu_err why = MU_ERR_INIT;
    struct mu_solo *solo = NULL;
    struct mu_lora *l = &a->at[0]->layer[1][MU_T_V];
    float *b = malloc((size_t)l->n_row * l->b_row_bytes);
    memcpy(b, l->b, (size_t)l->n_row * l->b_row_bytes);
    b[17] = INFINITY;
    l->b = (const uint8_t *)b;
    struct mu_solo_options opt = {
        .model = m, .adapters = a, .n_thread = 1, .serving = {.n_ctx = 64, .n_slot = 2, .step_tokens = 16}};
    MUST(mu_split_parse("1", &opt.split, err));
    assert_int_equal(mu_solo_open(&opt, &solo, &why), MU_EFORMAT);
    assert_non_null(strstr(why.text, "'a0'"));
    free(b);
    mu_adapters_close(a);
    mu_model_close(m);
}

static void test_unknown_adapter(void **state)
{
    (void)state;
    char path[300];
    struct mu_model *m = lora_synth(&small, path, sizeof path);
    unlink(path);
    struct mu_adapters *a = lora_open(m, recipes, 1);
    struct mu_err why = MU_ERR_INIT;
    int32_t id = 1, next;
    struct mu_solo *solo = solo_with(m, a, (struct how){0});
    mu_solo_adapt(solo, 0, 2, 1);
    assert_int_equal(mu_solo_feed(solo, 0, &id, 1, MU_OUT_SAMPLE, NULL, NULL, NULL, &next, &why), MU_EPROTO);
    assert_non_null(strstr(why.text, "adapter 2 of 1"));
    mu_solo_close(solo);
    mu_adapters_close(a);
    mu_model_close(m);
}

static void test_no_memory(void **state)
{
    (void)state;
    char path[300];
    struct mu_model *m = lora_synth(&small, path, sizeof path);
    unlink(path);
    struct mu_adapters *a = lora_open(m, recipes, 2);
    struct mu_err why = MU_ERR_INIT;
    struct mu_solo_options opt = {
        .model = m, .adapters = a, .n_thread = 2, .serving = {.n_ctx = 64, .n_slot = 2, .step_tokens = 16}};
    MUST(mu_split_parse("1:1", &opt.split, err));
    for (long n = 1;; n++) {
        struct mu_solo *solo = NULL;
        mu_alloc_fail_at(n);
        enum mu_status st = mu_solo_open(&opt, &solo, &why);
        mu_alloc_fail_at(0);
        if (st == MU_OK) {
            mu_solo_close(solo);
            if (n > 20) break; /* an allocation that may fail did */
            continue;
        }
        if (st != MU_ENOMEM) fail_msg("allocation %ld: %s", n, why.text);
        assert_true(n < 1000);
    }
    mu_adapters_close(a);
    mu_model_close(m);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_merged),    cmocka_unit_test(test_ways),       cmocka_unit_test(test_states),
        cmocka_unit_test(test_folders),   cmocka_unit_test(test_not_finite), cmocka_unit_test(test_unknown_adapter),
        cmocka_unit_test(test_no_memory),
    };
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
