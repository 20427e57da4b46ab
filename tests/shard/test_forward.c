/* One answer: the same bytes of logits whatever the split, the threads, the instruction set, the chunks and the
 * company.
 * MUSTER_TEST_REDUCED: short sequences, of the splits the plain one and the one with everything in it, of the instruction sets the
 * best (for ThreadSanitizer, which looks at the threads). */
#include "ways_util.h"

static const char *const splits[] = {"1", "1:1", "2:1:1", "1/1", "3:1/1:2", "1:1:1:1:1"};
enum { N_SPLIT = sizeof splits / sizeof *splits };
static bool reduced;

/* Every way to run one model, against one rank, one thread, all at once. */
static void check_ways_kv(const struct mu_model *m, const char *name, size_t n, enum mu_kv_type kv)
{
    char what[200];
    int n_vocab = m->cfg.n_vocab;
    int32_t ids[256];
    if (reduced && n > 24) n = 24;
    ids_fill(ids, n, n_vocab, 7);
    float *want = logits_all(m, (struct how){.kv = kv}, ids, n), *got;
    for (size_t i = 0; i < n * (size_t)n_vocab; i++)
        if (!isfinite(want[i])) fail_msg("%s: position %zu is not finite", name, i / (size_t)n_vocab);
    for (int i = 0; i < N_SPLIT; i++) {
        if (reduced && i != 0 && i != 4) continue;
        for (int threads = reduced ? 2 : 1; threads <= (i < 2 ? 3 : 2); threads++) {
            if (threads == 1 && i == 0) continue;
            struct how how = {.split = splits[i], .n_thread = threads, .kv = kv};
            snprintf(what, sizeof what, "%s, split %s, %d threads", name, splits[i], threads);
            got = logits_all(m, how, ids, n);
            same(got, want, n, n_vocab, what);
            free(got);
        }
        const size_t chunks[] = {7, 1};
        for (int c = 0; c < 2; c++) {
            size_t part = c == 0 || n < 24 ? n : 24; /* token by token: the first ones */
            got = logits_chunked(m, (struct how){.split = splits[i], .n_thread = i < 2 ? 2 : 1, .kv = kv}, ids, part,
                                 chunks[c]);
            snprintf(what, sizeof what, "%s, split %s, chunks of %zu", name, splits[i], chunks[c]);
            same(got, want, part, n_vocab, what);
            free(got);
        }
        got = logits_in_company(m, (struct how){.split = splits[i], .n_thread = i < 2 ? 2 : 1, .kv = kv}, ids, n);
        snprintf(what, sizeof what, "%s, split %s, in a batch of 8", name, splits[i]);
        same(got, want, n, n_vocab, what);
        free(got);
        struct how halves = {.split = splits[i], .n_thread = 1 + i % 2, .kv = kv, .slow_links = true};
        snprintf(what, sizeof what, "%s, split %s, halves of %zu", name, splits[i], n);
        got = logits_all(m, halves, ids, n);
        same(got, want, n, n_vocab, what);
        free(got);
        snprintf(what, sizeof what, "%s, split %s, halves of a batch", name, splits[i]);
        got = logits_in_company(m, halves, ids, n);
        same(got, want, n, n_vocab, what);
        free(got);
    }
    free(want);
}

static void check_ways(const struct mu_model *m, const char *name, size_t n)
{
    check_ways_kv(m, name, n, MU_KV_F16);
}

static void test_fixtures(void **state)
{
    (void)state;
    static const char *const names[] = {"llama2.f16",    "llama3.BF16",   "stories260K.f32", "llama3.Q8_0",
                                        "llama3.Q4_0",   "llama3.Q4_K_M", "llama3.Q6_K",     "llama3.Q3_K_M",
                                        "llama3.IQ4_XS", "llama3.MXFP4"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        struct mu_model *m = fixture_model(names[i]);
        check_ways(m, names[i], 70);
        mu_model_close(m);
    }
}

/* Every family that is not Llama; of Gemma 2, with its post-norms, also types whose sums are rounded on the wire. */
static const char *const families[] = {"qwen2.f16",         "qwen3.f16",      "phi2.f16",      "phi3.f16",
                                       "phi3-longrope.f16", "gemma.f16",      "gemma2.f16",    "gemma3.f16",
                                       "falcon7b.f16",      "falcon40b.f16",  "gemma2.Q4_K_M", "gemma2.Q8_0",
                                       "mixtral.f16",       "mixtral.Q4_K_M", "qwen3moe.f16"};
enum { N_FAMILY = sizeof families / sizeof *families };

static void test_families(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_FAMILY; i++) {
        struct mu_model *m = fixture_model(families[i]);
        check_ways(m, families[i], 70);
        mu_model_close(m);
    }
}

/* Position 0 … 149 by each instruction set this processor has. */
static void test_kernels(void **state)
{
    (void)state;
    static const char *const llamas[] = {"llama3.f16",  "llama3.BF16", "stories260K.f32",
                                         "llama3.Q8_0", "llama3.Q4_0", "llama3.Q4_K_M"};
    enum { N_LLAMA = sizeof llamas / sizeof *llamas };
    const char *best = mu_kernels() ? mu_kernels()->name : NULL;
    for (size_t i = 0; i < N_LLAMA + N_FAMILY && !reduced; i++) {
        struct mu_model *m = fixture_model(i < N_LLAMA ? llamas[i] : families[i - N_LLAMA]);
        int32_t ids[100];
        float *want = NULL;
        size_t n = 100;
        ids_fill(ids, n, m->cfg.n_vocab, 3);
        for (const struct mu_kernels *const *k = mu_kernels_available(); *k; k++) {
            MUST(mu_kernels_init((*k)->name, err));
            float *got = logits_all(m, (struct how){.n_thread = 2}, ids, n);
            if (want) same(got, want, n, m->cfg.n_vocab, (*k)->name);
            if (want)
                free(got);
            else
                want = got; /* ref is first */
        }
        free(want);
        mu_model_close(m);
    }
    MUST(mu_kernels_init(best, err));
}

/* A cache in q8_0: the same for every split and instruction set, and near the one in f16. Windows, soft caps, norms of
 * heads, heads of 8, 48 and 80 dimensions. */
static void test_q8_cache(void **state)
{
    (void)state;
    static const char *const names[] = {"llama3.Q4_K_M", "stories260K.f32", "gemma2.f16", "gemma3.f16", "phi2.f16"};
    const char *best = mu_kernels() ? mu_kernels()->name : NULL;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        struct mu_model *m = fixture_model(names[i]);
        enum { N = 70 };
        int32_t ids[N];
        float *want = NULL;
        size_t n_value = (size_t)N * (size_t)m->cfg.n_vocab;
        check_ways_kv(m, names[i], N, MU_KV_Q8_0);
        ids_fill(ids, N, m->cfg.n_vocab, 5);
        for (const struct mu_kernels *const *k = mu_kernels_available(); *k; k++) {
            MUST(mu_kernels_init((*k)->name, err));
            float *got = logits_all(m, (struct how){.n_thread = 2, .kv = MU_KV_Q8_0}, ids, N);
            if (want) same(got, want, N, m->cfg.n_vocab, (*k)->name);
            free(want);
            want = got;
        }
        MUST(mu_kernels_init(best, err));
        float *f16 = logits_all(m, (struct how){0}, ids, N);
        double error = 0, size = 0;
        for (size_t v = 0; v < n_value; v++) {
            error += (double)(want[v] - f16[v]) * (double)(want[v] - f16[v]);
            size += (double)f16[v] * (double)f16[v];
        }
        if (!(error > 0 && sqrt(error / size) < 0.02))
            fail_msg("%s: q8_0 differs from f16 by %g of the logits' size", names[i], sqrt(error / size));
        free(f16);
        free(want);
        mu_model_close(m);
    }
}

static void rows_any(const float *row, uint32_t position, void *ctx)
{
    struct rows *r = ctx;
    (void)position;
    memcpy(r->at + (size_t)r->n++ * (size_t)r->n_vocab, row, (size_t)r->n_vocab * sizeof *row);
}

/* Decodes of long sequences, which several threads share by segments: one, then two of unlike length, under a window of the
 * second model too. */
static void test_long(void **state)
{
    (void)state;
    if (reduced) skip();
    enum { N = 2310, LATE = 700, LAST = 3 };
    struct mu_synth spec = {.arch = "llama",
                            .n_layer = 2,
                            .n_head = 6,
                            .n_kv_head = 2,
                            .d_head = 40,
                            .d_model = 64,
                            .d_ff = 96,
                            .n_vocab = 300,
                            .n_ctx = 4096,
                            .rope_freq_base = 10000,
                            .type = MU_F16,
                            .output_type = MU_F16,
                            .seed = 3};
    int32_t ids[N];
    ids_fill(ids, N, spec.n_vocab, 11);
    for (int window = 0; window <= 2100; window += 2100)
        for (int kv = 0; kv < MU_KV_TYPE_COUNT; kv++) {
            char what[100];
            spec.window = window;
            struct mu_model *m = synth_open(&spec);
            assert_int_equal(m->cfg.window, window);
            float *want = NULL;
            for (int i = 0; i < 4; i++) { /* one thread cuts nothing */
                struct how how = {
                    .split = i == 3 ? "1:1" : "1", .n_thread = i + 1, .n_ctx = 4096, .kv = (enum mu_kv_type)kv};
                struct mu_solo *solo = solo_of(m, how);
                float *got = malloc((size_t)2 * LAST * (size_t)spec.n_vocab * sizeof *got);
                struct rows rows = {.at = got, .n_vocab = spec.n_vocab};
                MUST(mu_solo_feed(solo, 0, ids, N - LAST, MU_OUT_NONE, NULL, NULL, NULL, NULL, err));
                MUST(mu_solo_feed(solo, 1, ids, LATE, MU_OUT_NONE, NULL, NULL, NULL, NULL, err));
                for (int k = 0; k < LAST; k++)
                    MUST(mu_solo_feed(solo, 0, ids + N - LAST + k, 1, MU_OUT_LOGITS, NULL, rows_any, &rows, NULL, err));
                int next[2] = {ids[0], ids[1]};
                for (int k = 0; k < LAST; k++) /* greedy, both in each step */
                    MUST(mu_solo_decode(solo, (const int[]){0, 1}, next, 2, &(struct mu_sampling){0}, next, err));
                for (int slot = 0; slot < 2; slot++)
                    MUST(mu_solo_feed(solo, slot, ids + slot, 1, MU_OUT_LOGITS, NULL, rows_any, &rows, NULL, err));
                assert_int_equal(rows.n, LAST + 2);
                mu_solo_close(solo);
                snprintf(what, sizeof what, "window %d, %s, %d threads", window, mu_kv_type_name(how.kv), i + 1);
                if (want) same(got, want, LAST + 2, spec.n_vocab, what);
                if (want)
                    free(got);
                else
                    want = got;
            }
            free(want);
            mu_model_close(m);
        }
}

/* Shapes that divide badly: heads that cut blocks of 32, hidden rows that are no multiple of 256, more ranks than KV
 * heads. */
static void test_odd_shapes(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_ODD_LLAMA; i++) {
        char name[60];
        struct mu_synth spec = odd_llama(i);
        struct mu_model *m = synth_open(&spec);
        snprintf(name, sizeof name, "odd shape %zu", i);
        check_ways(m, name, spec.n_vocab > 10000 ? 20 : 40);
        if (spec.d_head % MU_Q_BLOCK) check_ways_kv(m, name, 40, MU_KV_Q8_0);
        mu_model_close(m);
    }
}

/* The same of every family: windows that cut pages, heads of 48 and 80 that turn in part, one key head for many ranks,
 * feed-forward rows that are no multiple of 32. */
static void test_odd_families(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_ODD_FAMILY; i++) {
        char name[60];
        struct mu_model *m = odd_family_open(i, name);
        check_ways(m, name, 40);
        mu_model_close(m);
    }
}

/* Experts that get more tokens of a step than one group holds, beside experts that get one or none: the same bytes as
 * token by token, where nothing is grouped. */
static void test_many_per_expert(void **state)
{
    (void)state;
    if (reduced) skip();
    const struct mu_synth shapes[] = {
        {.arch = "gpt-oss", .d_model = 288, .d_ff = 96, .n_expert = 7, .n_expert_used = 2, .type = MU_MXFP4},
        {.arch = "llama", .d_model = 2304, .d_ff = 40, .n_expert = 3, .n_expert_used = 1, .type = MU_F32},
        {.arch = "granitemoe", .d_model = 272, .d_ff = 168, .n_expert = 40, .n_expert_used = 8, .type = MU_BF16},
        {.arch = "qwen3moe", .d_model = 256, .d_ff = 480, .n_expert = 5, .n_expert_used = 3, .type = MU_Q5_0},
    };
    static const char *const ways[] = {"1", "3:1/1:2"};
    enum { N = 400, N_VOCAB = 300 };
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        struct mu_synth spec = shapes[i];
        int32_t ids[N];
        spec.n_layer = 2;
        spec.n_head = 2;
        spec.n_kv_head = 1;
        spec.d_head = 32;
        spec.n_ctx = 512;
        spec.n_vocab = N_VOCAB;
        spec.rope_freq_base = 10000;
        spec.output_type = MU_F32;
        spec.seed = i + 1;
        struct mu_model *m = synth_open(&spec);
        for (int t = 0; t < N; t++) ids[t] = t % 8 == 0 ? t % N_VOCAB : t % 3 == 0 ? 7 : 5; /* most go the same way */
        struct how all = {.n_ctx = N, .step_tokens = N};
        float *want = logits_chunked(m, (struct how){.n_ctx = N}, ids, N, 1);
        for (int w = 0; w < 2; w++) {
            for (int threads = 1; threads <= 3; threads++) {
                all.split = ways[w];
                all.n_thread = threads;
                float *got = logits_all(m, all, ids, N);
                same(got, want, N, N_VOCAB, spec.arch);
                free(got);
            }
        }
        free(want);
        mu_model_close(m);
    }
}

/* A model with short and long rotation factors: whatever was fed before in whatever pieces, the next id comes from the
 * logits that the whole sequence has by itself, also where it grows over the limit while others run. */
static void test_outgrown(void **state)
{
    (void)state;
    const struct mu_synth spec = {.arch = "phi3",
                                  .n_layer = 2,
                                  .n_head = 6,
                                  .n_kv_head = 2,
                                  .d_head = 48,
                                  .d_model = 288,
                                  .d_ff = 352,
                                  .n_rot = 36,
                                  .n_ctx = 256,
                                  .n_ctx_short = 64,
                                  .n_vocab = 400,
                                  .rope_freq_base = 10000,
                                  .type = MU_Q8_0,
                                  .output_type = MU_Q8_0,
                                  .seed = 4};
    static const char *const ways[] = {"1", "1:1", "2:1/1"};
    struct mu_model *m = synth_open(&spec);
    for (int i = 0; i < 3; i++) {
        struct mu_solo *solo = solo_of(m, (struct how){.split = ways[i], .n_thread = 2, .step_tokens = 24});
        enum { START = 58, END = 71 };
        int32_t ids[2][END], next[2] = {0};
        const int slots[2] = {0, 1};
        const struct mu_sampling greedy = {.temperature = 0};
        ids_fill(ids[0], START, 400, 5);
        ids_fill(ids[1], START, 400, 6);
        MUST(mu_solo_feed(solo, 0, ids[0], 31, MU_OUT_NONE, NULL, NULL, NULL, NULL, err));
        MUST(mu_solo_feed(solo, 0, ids[0] + 31, START - 31, MU_OUT_SAMPLE, &greedy, NULL, NULL, &next[0], err));
        MUST(mu_solo_feed(solo, 1, ids[1], START - 4, MU_OUT_SAMPLE, &greedy, NULL, NULL, &next[1], err));
        int changed = 0;
        for (int n = START; n < END; n++) {
            for (int k = 0; k < 2; k++) {
                size_t len = (size_t)(n - 4 * k), n_vocab = (size_t)m->cfg.n_vocab;
                float *want = logits_all(m, (struct how){0}, ids[k], len), *last = want + (len - 1) * n_vocab;
                int32_t best = likeliest(last, m->cfg.n_vocab);
                if (next[k] != best)
                    fail_msg("split %s, sequence %d: id %d at length %zu, expected %d", ways[i], k, next[k], len, best);
                if (len == 65) { /* the same ids by the short factors, to see that the limit means something */
                    m->cfg.n_ctx_short = 1000;
                    float *near = logits_all(m, (struct how){0}, ids[k], len);
                    m->cfg.n_ctx_short = 64;
                    changed += memcmp(near + (len - 1) * n_vocab, last, n_vocab * sizeof *last) != 0;
                    free(near);
                }
                free(want);
                ids[k][len] = next[k];
            }
            if (n + 1 < END) {
                const int32_t feed[2] = {ids[0][n], ids[1][n - 4]};
                MUST(mu_solo_decode(solo, slots, feed, 2, &greedy, next, err));
            }
        }
        assert_int_equal(changed, 2);
        mu_solo_close(solo);
    }
    mu_model_close(m);
}

/* Such a model's sequence that is cut back: above the limit it goes on; at or below it the long factors' cache is of no use,
 * so that nothing of it may stay, and what is fed again turns by the short ones. */
static void test_cut_back(void **state)
{
    (void)state;
    const struct mu_synth spec = {.arch = "phi3",
                                  .n_layer = 2,
                                  .n_head = 6,
                                  .n_kv_head = 2,
                                  .d_head = 48,
                                  .d_model = 288,
                                  .d_ff = 352,
                                  .n_rot = 36,
                                  .n_ctx = 256,
                                  .n_ctx_short = 64,
                                  .n_vocab = 400,
                                  .rope_freq_base = 10000,
                                  .type = MU_Q8_0,
                                  .output_type = MU_Q8_0,
                                  .seed = 4};
    static const struct {
        size_t keep, end; /* cut to keep, then fed until end */
        uint32_t position;
    } cases[] = {{79, 90, 79}, {65, 70, 65}, {64, 64, 0}, {63, 64, 0}, {64, 66, 0}, {1, 50, 0}, {0, 80, 0}};
    struct mu_model *m = synth_open(&spec);
    size_t n_vocab = (size_t)m->cfg.n_vocab;
    int32_t ids[90];
    ids_fill(ids, 90, 400, 5);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct mu_solo *solo = solo_of(m, (struct how){.split = i % 2 ? "2:1/1" : "1", .step_tokens = 24});
        size_t end = cases[i].end, from = cases[i].position * n_vocab, n_new = end - cases[i].position;
        struct rows rows = {
            .at = malloc(end * n_vocab * sizeof(float)), .n_vocab = m->cfg.n_vocab, .n = cases[i].position};
        MUST(mu_solo_feed(solo, 0, ids, 80, MU_OUT_NONE, NULL, NULL, NULL, NULL, err));
        assert_int_equal(mu_solo_truncate(solo, 0, (uint32_t)cases[i].keep), cases[i].position);
        assert_int_equal(mu_solo_position(solo, 0), cases[i].position);
        MUST(mu_solo_feed(solo, 0, ids + cases[i].position, n_new, MU_OUT_ALL, NULL, rows_take, &rows, NULL, err));
        float *want = logits_all(m, (struct how){0}, ids, end);
        if (memcmp(rows.at + from, want + from, n_new * n_vocab * sizeof *want) != 0)
            fail_msg("cut to %zu, then fed until %zu: other logits", cases[i].keep, end);
        free(want);
        free(rows.at);
        mu_solo_close(solo);
    }
    mu_model_close(m);
}

/* Every family with a window, in window pages, against one process where every layer holds everything. */
static void test_windows(void **state)
{
    (void)state;
    enum { N = 240 };
    int n_model = 0;
    for (size_t i = 0; i < N_ODD_FAMILY; i++) {
        struct mu_synth spec = odd_family(i);
        if (!spec.window) continue;
        struct mu_model *m = synth_open(&spec);
        enum mu_kv_type kv = n_model++ % 2 ? MU_KV_Q8_0 : MU_KV_F16;
        int32_t ids[N];
        ids_fill(ids, N, m->cfg.n_vocab, 7);
        float *want = logits_all(m, (struct how){.kv = kv}, ids, N);
        for (int s = 0; s < 4; s++) check_windows(m, spec.arch, splits[s], kv, ids, want, N);
        free(want);
        mu_model_close(m);
    }
    assert_true(n_model >= 5);
}

/* A sequence that is cut back goes on where the window pages are still there, else from its beginning. */
static void test_windows_cut_back(void **state)
{
    (void)state;
    struct mu_synth spec = odd_family(0);
    for (size_t i = 0; strcmp(spec.arch, "gemma3") != 0; i++) spec = odd_family(i);
    struct mu_model *m = synth_open(&spec);
    static const struct {
        uint32_t keep, position;
    } cases[] = {{230, 230}, {132, 132}, {131, 0}, {5, 0}, {0, 0}}; /* four pages: of 132 the fifth is the first */
    size_t n_vocab = (size_t)m->cfg.n_vocab;
    enum { N = 240 };
    int32_t ids[N], other[N];
    ids_fill(ids, N, m->cfg.n_vocab, 7);
    ids_fill(other, N, m->cfg.n_vocab, 8);
    float *want = logits_all(m, (struct how){0}, ids, N);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        uint32_t keep = cases[i].keep, from = cases[i].position;
        struct mu_solo *solo = solo_of(m, (struct how){.windows = true, .step_tokens = 20});
        struct rows rows = {.at = malloc(N * n_vocab * sizeof(float)), .n_vocab = m->cfg.n_vocab, .n = from};
        MUST(mu_solo_feed(solo, 0, ids, keep, MU_OUT_NONE, NULL, NULL, NULL, NULL, err));
        MUST(mu_solo_feed(solo, 0, other, N - keep, MU_OUT_NONE, NULL, NULL, NULL, NULL, err));
        assert_int_equal(mu_solo_truncate(solo, 0, keep), from);
        MUST(mu_solo_feed(solo, 0, ids + from, N - from, MU_OUT_ALL, NULL, rows_take, &rows, NULL, err));
        same(rows.at + from * n_vocab, want + from * n_vocab, N - from, m->cfg.n_vocab, "cut back");
        free(rows.at);
        mu_solo_close(solo);
    }
    free(want);
    mu_model_close(m);
}

/* Pages for one sequence in a gang with more places: the first one has the window pages. */
static void test_windows_of_one(void **state)
{
    (void)state;
    enum { N = 240 };
    struct mu_synth spec = odd_family(0);
    for (size_t i = 0; strcmp(spec.arch, "gemma3") != 0; i++) spec = odd_family(i);
    struct mu_model *m = synth_open(&spec);
    struct mu_solo_options opt = {
        .model = m,
        .n_thread = 1,
        .serving = {.n_ctx = 256, .n_slot = 8, .n_page = 8, .step_tokens = 20, .window = mu_plan_window(m)}};
    struct mu_solo *solo = NULL;
    struct rows rows = {.at = malloc(N * (size_t)m->cfg.n_vocab * sizeof(float)), .n_vocab = m->cfg.n_vocab};
    struct mu_err why = MU_ERR_INIT;
    int32_t ids[N];
    ids_fill(ids, N, m->cfg.n_vocab, 7);
    float *want = logits_all(m, (struct how){0}, ids, N);
    MUST(mu_split_parse("1", &opt.split, err));
    MUST(mu_solo_open(&opt, &solo, err));
    MUST(mu_solo_feed(solo, 0, ids, N, MU_OUT_ALL, NULL, rows_take, &rows, NULL, err));
    same(rows.at, want, N, m->cfg.n_vocab, "pages of one");
    mu_solo_reset(solo, 0);
    assert_int_equal(mu_solo_feed(solo, 7, ids, 1, MU_OUT_ALL, NULL, NULL, NULL, NULL, &why), MU_ELIMIT);
    assert_non_null(strstr(why.text, "window pages are taken"));
    mu_solo_close(solo);
    free(rows.at);
    free(want);
    mu_model_close(m);
}

/* Exactly the rows that were asked for, the same as when all are. */
static void test_outputs(void **state)
{
    (void)state;
    struct mu_model *m = fixture_model("llama3.Q4_0");
    size_t n = 60, n_vocab = (size_t)m->cfg.n_vocab;
    int32_t ids[60];
    ids_fill(ids, n, m->cfg.n_vocab, 21);
    float *all = logits_all(m, (struct how){0}, ids, n);
    static const char *const ways[] = {"1", "1:1", "1/1:1"};
    for (int i = 0; i < 3; i++) {
        struct mu_solo *solo = solo_of(m, (struct how){.split = ways[i], .n_thread = 2, .step_tokens = 32});
        struct mu_step *step = NULL;
        struct mu_step_result result;
        MUST(mu_step_create(mu_solo_serving(solo), m->cfg.n_vocab, &step, err));
        step->number = 1; /* pages alone: nothing runs */
        for (uint32_t p = 0; p < 3; p++) step->page[step->n_page++] = (struct mu_step_page){0, 2 - p};
        MUST(mu_solo_step(solo, step, &result, err));
        for (uint32_t at = 0; at < n; at += 30) {
            step->number++;
            step->n_page = 0;
            step->n_seq = 1;
            step->n_tok = 30;
            step->seq[0] =
                (struct mu_step_seq){.slot = 0, .pos0 = at, .n_tok = 30, .out = at ? MU_OUT_LOGITS : MU_OUT_NONE};
            memcpy(step->ids, ids + at, 30 * sizeof *ids);
            MUST(mu_solo_step(solo, step, &result, err));
            assert_int_equal(result.id[0], -1);
            assert_int_equal(result.n_logit_row, at ? 1 : 0);
        }
        same(result.logits, all + (n - 1) * n_vocab, 1, m->cfg.n_vocab, ways[i]);
        mu_free(step);
        mu_solo_close(solo);
    }
    free(all);
    mu_model_close(m);
}

/* One token of each of four sequences, of which some end a prompt's chunk that gives nothing. */
static void test_single_tokens(void **state)
{
    (void)state;
    enum { N_SEQ = 4, N = 6 };
    const struct mu_synth spec = {.arch = "llama",
                                  .n_layer = 2,
                                  .n_head = 4,
                                  .n_kv_head = 2,
                                  .d_head = 16,
                                  .d_model = 64,
                                  .d_ff = 96,
                                  .n_vocab = 300,
                                  .n_ctx = 64,
                                  .rope_freq_base = 10000,
                                  .type = MU_Q8_0,
                                  .output_type = MU_Q8_0};
    struct mu_model *m = synth_open(&spec);
    size_t n_vocab = (size_t)m->cfg.n_vocab;
    int32_t ids[N_SEQ][N];
    float *want[N_SEQ];
    for (int i = 0; i < N_SEQ; i++) {
        ids_fill(ids[i], N, m->cfg.n_vocab, (uint32_t)i);
        want[i] = logits_all(m, (struct how){0}, ids[i], N);
    }
    struct mu_solo *solo = solo_of(m, (struct how){.n_slot = N_SEQ, .step_tokens = 16});
    struct mu_step *step = NULL;
    struct mu_step_result result;
    MUST(mu_step_create(mu_solo_serving(solo), m->cfg.n_vocab, &step, err));
    for (uint32_t pos = 0; pos < N; pos++) {
        uint32_t silent = pos % N_SEQ, row = 0;
        step->number++;
        step->n_page = pos == 0 ? N_SEQ : 0;
        step->n_seq = step->n_tok = N_SEQ;
        for (uint32_t i = 0; i < N_SEQ; i++) {
            step->page[i] = (struct mu_step_page){i, i};
            step->ids[i] = ids[i][pos];
            step->seq[i] = (struct mu_step_seq){
                .slot = i, .pos0 = pos, .n_tok = 1, .tok_off = i, .out = i == silent ? MU_OUT_NONE : MU_OUT_LOGITS};
        }
        MUST(mu_solo_step(solo, step, &result, err));
        assert_int_equal(result.n_logit_row, N_SEQ - 1);
        for (uint32_t i = 0; i < N_SEQ; i++)
            if (i != silent)
                same(result.logits + row++ * n_vocab, want[i] + pos * n_vocab, 1, m->cfg.n_vocab, "single tokens");
    }
    mu_free(step);
    mu_solo_close(solo);
    for (int i = 0; i < N_SEQ; i++) free(want[i]);
    mu_model_close(m);
}

/* A rank's step must not run what its tables do not hold. */
static void test_refused_steps(void **state)
{
    (void)state;
    struct mu_model *m = fixture_model("llama3.Q4_0");
    struct mu_solo *solo = solo_of(m, (struct how){0});
    struct mu_step *step = NULL;
    struct mu_step_result result;
    struct mu_err why = MU_ERR_INIT;
    MUST(mu_step_create(mu_solo_serving(solo), m->cfg.n_vocab, &step, err));
    step->number = 1;
    step->n_seq = step->n_tok = 1;
    step->seq[0] = (struct mu_step_seq){.n_tok = 1, .out = MU_OUT_SAMPLE};
    assert_int_equal(mu_solo_step(solo, step, &result, &why), MU_EPROTO); /* no page */
    step->n_page = 1;
    step->page[0] = (struct mu_step_page){0, 1u << 20};
    assert_int_equal(mu_solo_step(solo, step, &result, &why), MU_EPROTO);
    step->page[0] = (struct mu_step_page){0, 0};
    step->ids[0] = m->cfg.n_vocab;
    assert_int_equal(mu_solo_step(solo, step, &result, &why), MU_EPROTO);
    step->ids[0] = 1;
    assert_int_equal(mu_solo_step(solo, step, &result, &why), MU_OK);
    assert_true(result.id[0] >= 0);
    mu_free(step);
    mu_solo_close(solo);
    mu_model_close(m);
}

/* Nor what it sees without having been given it. */
static void test_refused_windows(void **state)
{
    (void)state;
    struct mu_synth spec = odd_family(0);
    for (size_t i = 0; strcmp(spec.arch, "gemma3") != 0; i++) spec = odd_family(i);
    struct mu_model *m = synth_open(&spec);
    struct mu_solo *solo = solo_of(m, (struct how){.windows = true, .step_tokens = 20});
    uint32_t n_window = mu_plan_window_pages(mu_solo_serving(solo));
    struct mu_step *step = NULL;
    struct mu_step_result result;
    static const struct {
        struct mu_step_window window[2];
        uint32_t n, pos0;
        const char *says; /* NULL: it runs */
    } cases[] = {
        {{{0, 0, 0}}, 0, 0, "has no window page 0"},
        {{{2, 0, 0}}, 1, 0, "of slot 2 of 2"},
        {{{0, 8, 0}}, 1, 0, "place 8 of 8"},
        {{{0, 0, 1u << 20}}, 1, 0, "window page 1048576 of"},
        {{{0, 0, 0}}, 1, 0, NULL},
        {{{0, 2, 2}}, 1, 64, "from position 64 on, but it has no window page 1"},
        {{{0, 1, 1}, {0, 2, 2}}, 2, 64, NULL},
        {{{0, 0, 0}}, 0, 68, NULL}, /* sees 64 … 68 */
        {{{0, 0, 0}}, UINT32_MAX, 0, "expected at most 4"},
    };
    assert_true(n_window > 2);
    MUST(mu_step_create(mu_solo_serving(solo), m->cfg.n_vocab, &step, err));
    for (uint32_t p = 0; p < 3; p++) step->page[step->n_page++] = (struct mu_step_page){0, p};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct mu_err why = MU_ERR_INIT;
        step->number = i + 1;
        step->n_seq = step->n_tok = 1;
        step->seq[0] = (struct mu_step_seq){.pos0 = cases[i].pos0, .n_tok = 1, .out = MU_OUT_SAMPLE};
        step->n_window = cases[i].n;
        memcpy(step->window, cases[i].window, sizeof cases[i].window);
        enum mu_status st = mu_solo_step(solo, step, &result, &why);
        assert_int_equal(st, cases[i].says ? MU_EPROTO : MU_OK);
        if (cases[i].says && !strstr(why.text, cases[i].says)) fail_msg("case %zu: %s", i, why.text);
        step->n_page = 0;
    }
    mu_free(step);
    mu_solo_close(solo);
    mu_model_close(m);
}

/* Every allocation of a gang's start fails once: a clear error, nothing leaked (the sanitizer looks), and then it
 * works. */
static void test_no_memory(void **state)
{
    (void)state;
    struct mu_model *m = fixture_model("llama3.Q4_0");
    struct mu_solo_options opt = {.model = m, .n_thread = 2, .serving = {.n_ctx = 64, .n_slot = 2, .step_tokens = 16}};
    struct mu_err why = MU_ERR_INIT;
    static const char *const ways[] = {"1", "1:1"};
    for (int i = 0; i < 2; i++) {
        MUST(mu_split_parse(ways[i], &opt.split, err));
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
            assert_null(solo);
            assert_true(n < 1000);
        }
    }
    mu_model_close(m);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_outputs),         cmocka_unit_test(test_outgrown),
        cmocka_unit_test(test_cut_back),        cmocka_unit_test(test_refused_steps),
        cmocka_unit_test(test_odd_shapes),      cmocka_unit_test(test_odd_families),
        cmocka_unit_test(test_windows),         cmocka_unit_test(test_windows_cut_back),
        cmocka_unit_test(test_refused_windows), cmocka_unit_test(test_windows_of_one),
        cmocka_unit_test(test_fixtures),        cmocka_unit_test(test_families),
        cmocka_unit_test(test_kernels),         cmocka_unit_test(test_no_memory),
        cmocka_unit_test(test_single_tokens),   cmocka_unit_test(test_many_per_expert),
        cmocka_unit_test(test_q8_cache),        cmocka_unit_test(test_long),
    };
    reduced = getenv("MUSTER_TEST_REDUCED") != NULL;
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
