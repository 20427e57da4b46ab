/* Everything that shapes a sample — adjustments, masks, the cuts, log probabilities — against plain readings of their
 * definitions in double precision, and that splits, threads, kernels and neighbours in a step leave no trace. */
#include "forward_util.h"

#include "base/alloc.h"
#include "kernels/kernels.h"
#include "shard/adjust.h"

enum { N_PROMPT = 5, N_IDS = 12, MAX_VOCAB = 17000, N_WAY = 22 };

static uint64_t rng_state = 1;
static uint32_t rng(uint32_t n) /* [0, n) */
{
    rng_state = rng_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(rng_state >> 33) % n;
}

static struct mu_model *model_make(int n_vocab)
{
    struct mu_synth spec = {.arch = "llama",
                            .n_layer = 2,
                            .n_head = 4,
                            .n_kv_head = 2,
                            .d_head = 16,
                            .d_model = 64,
                            .d_ff = 96,
                            .n_vocab = n_vocab,
                            .n_ctx = 256,
                            .rope_freq_base = 10000,
                            .type = MU_Q4_0,
                            .output_type = MU_Q8_0,
                            .seed = 5};
    return synth_open(&spec);
}

/* ---- what is asked ---- */

struct way { /* and the ids so far */
    struct mu_sampling p;
    const struct mu_bias *bias;
    size_t n_bias;
    const int32_t *end_ids;
    size_t n_end;
    const uint8_t *mask;
    int32_t ids[N_IDS];
};

/* Naively, from the ids: what an id's logit becomes. false: it cannot come. */
static bool logit_of(const struct way *w, int32_t id, double x, double *out)
{
    int seen = 0, generated = 0;
    for (int i = 0; i < N_IDS; i++) {
        seen += w->ids[i] == id && (w->p.repeat_last_n == 0 || i >= N_IDS - (int)w->p.repeat_last_n);
        generated += w->ids[i] == id && i >= N_PROMPT;
    }
    for (size_t i = 0; i < w->n_bias; i++)
        if (w->bias[i].id == id) x += w->bias[i].bias;
    if (seen && w->p.repeat_penalty != 0) x = x > 0 ? x / w->p.repeat_penalty : x * w->p.repeat_penalty;
    if (generated) x -= generated * (double)w->p.frequency_penalty + w->p.presence_penalty;
    *out = x;
    for (size_t i = 0; i < w->n_end; i++)
        if (w->end_ids[i] == id && N_IDS - N_PROMPT < (int)w->p.min_tokens) return false;
    return !w->mask || (w->mask[id / 8] >> id % 8 & 1);
}

struct candidate {
    int32_t id;
    double logit, share, far;
};
static int by_logit(const void *a, const void *b)
{
    const struct candidate *x = a, *y = b;
    if (x->logit != y->logit) return x->logit > y->logit ? -1 : 1;
    return x->id < y->id ? -1 : 1;
}
static int by_far(const void *a, const void *b)
{
    const struct candidate *x = a, *y = b;
    if (x->far != y->far) return x->far < y->far ? -1 : 1;
    return by_logit(a, b);
}

static void shares(struct candidate *c, int n)
{
    double total = 0;
    for (int i = 0; i < n; i++) total += c[i].share;
    for (int i = 0; i < n; i++) c[i].share /= total;
}

/* How many of c[n], in this order, it takes to reach p. */
static int prefix(const struct candidate *c, int n, double p)
{
    double sum = 0;
    for (int i = 0; i < n; i++)
        if ((sum += c[i].share) >= p) return i + 1;
    return n;
}

/* The id that comes by the definition; thresholds are moved by the factor `slack`, since floats and doubles differ where a sum just reaches
 * one. */
static int32_t expected(const float *row, int n_vocab, const struct way *w, double slack)
{
    static struct candidate c[MAX_VOCAB];
    int n = 0;
    for (int32_t id = 0; id < n_vocab; id++)
        if (logit_of(w, id, row[id], &c[n].logit)) c[n++].id = id;
    if (n == 0) return MU_SAMPLE_NONE_ALLOWED;
    qsort(c, (size_t)n, sizeof *c, by_logit);
    if (w->p.temperature == 0) return c[0].id;
    for (int i = 0; i < n; i++) c[i].share = exp((c[i].logit - c[0].logit) / w->p.temperature);
    if (w->p.top_k > 0 && (int)w->p.top_k < n) n = (int)w->p.top_k;
    shares(c, n);
    if (w->p.typical_p > 0 && w->p.typical_p < 1) {
        double entropy = 0;
        for (int i = 0; i < n; i++) entropy -= c[i].share > 0 ? c[i].share * log(c[i].share) : 0;
        for (int i = 0; i < n; i++) c[i].far = fabs(-log(c[i].share) - entropy);
        qsort(c, (size_t)n, sizeof *c, by_far);
        n = prefix(c, n, w->p.typical_p * slack);
        qsort(c, (size_t)n, sizeof *c, by_logit);
        shares(c, n);
    }
    int n_top = w->p.top_p > 0 && w->p.top_p < 1 ? prefix(c, n, w->p.top_p * slack) : n;
    int32_t best = -1;
    double best_value = 0;
    for (int i = 0; i < n_top && c[i].share >= w->p.min_p * c[0].share * slack; i++) {
        double u = mu_random_unit(w->p.seed, N_IDS, (uint64_t)c[i].id);
        double value = c[i].logit / w->p.temperature - log(-log(u));
        if (best < 0 || value > best_value) {
            best = c[i].id;
            best_value = value;
        }
    }
    return best;
}

/* ---- how it is run ---- */

struct runner { /* a gang whose steps are made by hand */
    const struct mu_model *m;
    struct mu_solo *solo;
    struct mu_step *step;
    struct mu_step_result result;
};

static struct runner runner_open(const struct mu_model *m, const char *split, int n_thread)
{
    struct runner r = {
        .m = m,
        .solo = solo_of(
            m, (struct how){.split = split, .n_thread = n_thread, .step_tokens = N_WAY * N_IDS, .n_slot = N_WAY})};
    MUST(mu_step_create(mu_solo_serving(r.solo), m->cfg.n_vocab, &r.step, err));
    return r;
}

static void runner_close(struct runner *r)
{
    mu_free(r->step);
    mu_solo_close(r->solo);
}

/* The prompts of n ways from their beginning, in one step; the step goes over the wire, as it would to another rank. */
static void run_ways(struct runner *r, const struct way *const *ways, uint32_t n)
{
    struct mu_step *s = r->step;
    uint64_t number = s->number + 1;
    mu_step_clear(s);
    for (uint32_t i = 0; number > 1 && i < N_WAY; i++) s->free_slot[s->n_free++] = i;
    s->number = number;
    for (uint32_t i = 0; i < n; i++) {
        const struct way *w = ways[i];
        struct mu_step_seq *q = &s->seq[s->n_seq++];
        struct mu_adjusts *a = NULL;
        *q = (struct mu_step_seq){
            .slot = i, .n_tok = N_IDS, .tok_off = s->n_tok, .out = MU_OUT_SAMPLE, .sampling = w->p};
        MUST(mu_adjusts_create(&(struct mu_adjusts_options){.sampling = &w->p,
                                                            .bias = w->bias,
                                                            .n_bias = w->n_bias,
                                                            .end_ids = w->end_ids,
                                                            .n_end = w->n_end,
                                                            .ids = w->ids,
                                                            .n_ids = N_IDS,
                                                            .n_prompt = N_PROMPT,
                                                            .max_ids = N_IDS,
                                                            .n_vocab = r->m->cfg.n_vocab},
                               &a, err));
        mu_adjusts_put(a, s, q);
        mu_adjusts_destroy(a);
        if (w->mask) memcpy(mu_step_mask(s, q), w->mask, s->mask_bytes);
        s->page[s->n_page++] = (struct mu_step_page){i, i};
        memcpy(s->ids + s->n_tok, w->ids, sizeof w->ids);
        s->n_tok += N_IDS;
    }
    struct mu_writer wire;
    mu_writer_init(&wire, mu_step_max_bytes(mu_solo_serving(r->solo), r->m->cfg.n_vocab));
    mu_step_encode(s, &wire);
    assert_true(wire.ok);
    struct mu_reader reader = mu_reader_of(wire.data, wire.len);
    MUST(mu_step_decode(&reader, mu_solo_serving(r->solo), r->m->cfg.n_vocab, s, err));
    mu_writer_free(&wire);
    MUST(mu_solo_step(r->solo, s, &r->result, err));
}

static const struct mu_bias biases[] = {{300, 6.5f}, {7, -1000}, {20, 3}, {21, 1000}, {499, 2.25f}};
static uint8_t odd_mask[(MAX_VOCAB + 7) / 8], none_mask[(MAX_VOCAB + 7) / 8], one_mask[(MAX_VOCAB + 7) / 8];
static int32_t ends[500];

static void ways_make(struct way *ways, int n_vocab)
{
    memset(odd_mask, 0xaa, sizeof odd_mask);
    one_mask[433 / 8] = 1 << 433 % 8;
    for (int i = 0; i < 500; i++) ends[i] = i;
    const struct way made[N_WAY] = {
        {.p = {.repeat_penalty = 5}},
        {.p = {.temperature = 1, .repeat_penalty = 0.5f, .repeat_last_n = 3}},
        {.p = {.temperature = 0.7f, .presence_penalty = 2, .frequency_penalty = -1.5f}},
        {.p = {.temperature = 1, .repeat_penalty = 1.3f, .presence_penalty = -2, .frequency_penalty = 0.5f},
         .bias = biases,
         .n_bias = 5},
        {.bias = biases, .n_bias = 5},
        {.p = {.temperature = 2}, .bias = biases, .n_bias = 3},
        {.p = {.temperature = 0, .min_tokens = 8}, .end_ids = ends, .n_end = 500},
        {.p = {.temperature = 0, .min_tokens = 7}, .end_ids = ends, .n_end = 64},
        {.p = {.temperature = 1, .min_tokens = 9}, .end_ids = ends, .n_end = 64},
        {.p = {.temperature = 1}, .mask = odd_mask},
        {.p = {.temperature = 1, .top_k = 9}, .mask = odd_mask},
        {.mask = one_mask},
        {.p = {.temperature = 3, .top_p = 0.9f}, .mask = one_mask},
        {.p = {.temperature = 1}, .mask = none_mask},
        {.p = {.temperature = 1, .min_p = 0.5f}, .mask = none_mask},
        {.p = {.temperature = 0.4f, .min_p = 0.6f}},
        {.p = {.temperature = 1, .typical_p = 0.5f}},
        {.p = {.temperature = 2, .top_k = 50, .typical_p = 0.6f, .top_p = 0.7f, .min_p = 0.2f}},
        {.p = {.temperature = 4, .top_p = 0.8f, .min_p = 0.3f, .repeat_penalty = 2, .frequency_penalty = 1},
         .bias = biases,
         .n_bias = 5,
         .mask = odd_mask},
        {.p = {.temperature = 1, .logprobs = true, .top_logprobs = 20}},
        {.p = {.logprobs = true, .top_logprobs = 3, .presence_penalty = 1}, .bias = biases, .n_bias = 5},
        {.p = {.temperature = 1, .logprobs = true, .top_k = 10, .top_p = 0.9f}, .mask = odd_mask},
    };
    for (int i = 0; i < N_WAY; i++) {
        ways[i] = made[i];
        for (int k = 0; k < N_IDS; k++) ways[i].ids[k] = (int32_t)rng(rng(2) ? 20 : (uint32_t)n_vocab);
        ways[i].ids[N_IDS - 1] = ways[i].ids[7] = ways[i].ids[1]; /* something is repeated */
    }
}

/* ---- samples ---- */

static void check_logprobs(const struct mu_logprobs *got, const struct way *w, const float *row, int n_vocab,
                           int32_t id)
{
    double max = row[0], total = 0, sum = 0;
    for (int i = 1; i < n_vocab; i++) max = row[i] > max ? row[i] : max;
    for (int i = 0; i < n_vocab; i++) total += exp(row[i] - max);
    if (!(fabs(got->chosen - (row[id] - max - log(total))) < 1e-4)) fail_msg("id %d: ln p = %g", id, got->chosen);
    assert_int_equal(got->n_top, w->p.top_logprobs);
    for (uint32_t i = 0; i < got->n_top; i++) {
        int32_t at = got->top[i].id;
        int before = 0;
        for (int v = 0; v < n_vocab; v++) before += row[v] > row[at] || (row[v] == row[at] && v < at);
        assert_int_equal(before, i);
        assert_true(fabs(got->top[i].logprob - (row[at] - max - log(total))) < 1e-4);
        sum += exp(got->top[i].logprob);
    }
    assert_true(sum < 1.0001);
}

static void check_model(int n_vocab, int n_seed)
{
    static const struct {
        const char *split;
        int n_thread;
    } how[] = {{"1", 1}, {"1", 3}, {"1:1", 1}, {"3:1/1:1:1", 1}, {"1/5:1:0.1", 2}};
    struct mu_model *m = model_make(n_vocab);
    struct way ways[N_WAY];
    float *row[N_WAY], *all[N_WAY];
    int32_t first[64][N_WAY];
    int n = 0, n_off = 0;
    ways_make(ways, n_vocab);
    for (int i = 0; i < N_WAY; i++) {
        all[i] = logits_all(m, (struct how){0}, ways[i].ids, N_IDS);
        row[i] = all[i] + (size_t)(N_IDS - 1) * (size_t)n_vocab;
    }
    const char *best = mu_kernels()->name;
    int n_kernels = 0;
    while (mu_kernels_available()[n_kernels]) n_kernels++;
    for (int h = 0; h < 5 + n_kernels; h++) {
        if (h >= 5) MUST(mu_kernels_init(mu_kernels_available()[h - 5]->name, err));
        struct runner r = runner_open(m, how[h < 5 ? h : 2].split, how[h < 5 ? h : 2].n_thread);
        for (int seed = 0; seed < (h ? 2 : n_seed); seed++) {
            const struct way *at[N_WAY];
            struct mu_logprobs alone;
            for (int i = 0; i < N_WAY; i++) {
                ways[i].p.seed = (uint64_t)seed * 77 + (uint64_t)i;
                at[i] = &ways[i];
                run_ways(&r, &at[i], 1);
                int32_t got = r.result.id[0];
                if (h == 0) {
                    first[seed][i] = got;
                    n++;
                    n_off += got != expected(row[i], n_vocab, &ways[i], 1 - 1e-5) &&
                             got != expected(row[i], n_vocab, &ways[i], 1 + 1e-5);
                }
                if (got != first[seed][i])
                    fail_msg("vocabulary %d, way of running %d, case %d, seed %d: id %d, expected %d", n_vocab, h, i,
                             seed, got, first[seed][i]);
                if (ways[i].p.logprobs) check_logprobs(&r.result.logprobs[0], &ways[i], row[i], n_vocab, got);
                if (i == 19) alone = r.result.logprobs[0];
            }
            run_ways(&r, at, N_WAY); /* all of them in one step */
            for (int i = 0; i < N_WAY; i++) assert_int_equal(r.result.id[i], first[seed][i]);
            assert_memory_equal(&r.result.logprobs[19], &alone, sizeof alone);
        }
        runner_close(&r);
    }
    MUST(mu_kernels_init(best, err));
    print_message("vocabulary %d: %d of %d samples are not the reference's\n", n_vocab, n_off, n);
    assert_true(n_off * 200 <= n); /* where two candidates or a threshold are within a rounding */
    for (int i = 0; i < N_WAY; i++) free(all[i]);
    mu_model_close(m);
}

static void test_samples(void **state)
{
    (void)state;
    check_model(500, 12);
    check_model(MAX_VOCAB, 3); /* blocks of 1,024 rows */
}

/* Ids that are wanted in order lie one in each run of 256 (shard/sample.c), so that none of them is found beside another: all but one
 * of them by top_k, and more of them by top_p than are looked for at first. Nearly each is as likely as any other. */
static void test_one_in_every_run(void **state)
{
    enum { N_RUN = (MAX_VOCAB + 255) / 256, N_CASE = 3, ROUNDS = 12 };
    (void)state;
    static uint8_t mask[(MAX_VOCAB + 7) / 8];
    struct mu_model *m = model_make(MAX_VOCAB);
    struct way ways[N_WAY];
    const struct way *at[N_WAY];
    static const struct mu_sampling cases[N_CASE] = {{.temperature = 50, .top_k = N_RUN - 1},
                                                     {.temperature = 50, .top_p = 0.9999f},
                                                     {.temperature = 50, .min_p = 0.01f}};
    int n_last = 0;
    for (int i = 0; i < N_RUN; i++) mask[(256 * i + 5) / 8] |= (uint8_t)(1 << (256 * i + 5) % 8);
    memset(ways, 0, sizeof ways);
    for (int k = 0; k < N_IDS; k++) ways[0].ids[k] = (int32_t)rng(MAX_VOCAB);
    float *all = logits_all(m, (struct how){0}, ways[0].ids, N_IDS), *row = all + (size_t)(N_IDS - 1) * MAX_VOCAB;
    int32_t last = 5; /* of those that may come */
    for (int i = 1; i < N_RUN; i++) last = row[256 * i + 5] < row[last] ? 256 * i + 5 : last;
    struct runner r = runner_open(m, "1:1", 2);
    for (int round = 0; round < ROUNDS; round++) {
        for (int i = 0; i < N_WAY; i++) {
            memcpy(ways[i].ids, ways[0].ids, sizeof ways[i].ids);
            ways[i].mask = mask;
            ways[i].p = cases[i % N_CASE];
            ways[i].p.seed = (uint64_t)(round * N_WAY + i);
            at[i] = &ways[i];
        }
        run_ways(&r, at, N_WAY);
        for (int i = 0; i < N_WAY; i++) {
            assert_int_equal(r.result.id[i], expected(row, MAX_VOCAB, &ways[i], 1));
            n_last += r.result.id[i] == last;
            assert_false(i % N_CASE == 0 && r.result.id[i] == last);
        }
    }
    assert_true(n_last > 0); /* it comes where it may */
    runner_close(&r);
    free(all);
    mu_model_close(m);
}

/* Log probabilities change no sample, and neither do parameters at their neutral values. */
static void test_neutral(void **state)
{
    (void)state;
    struct mu_model *m = model_make(500);
    struct runner r = runner_open(m, "1:1", 1);
    struct way w[3] = {
        {.p = {.temperature = 0.8f}},
        {.p = {.temperature = 0.8f, .logprobs = true}},
        {.p = {.temperature = 0.8f, .top_p = 1, .typical_p = 1, .repeat_penalty = 1, .repeat_last_n = 4}}};
    const struct way *at[3] = {&w[0], &w[1], &w[2]};
    for (int seed = 0; seed < 40; seed++) {
        for (int i = 0; i < 3; i++) {
            w[i].p.seed = (uint64_t)seed;
            for (int k = 0; k < N_IDS; k++) w[i].ids[k] = k * 7 + seed;
        }
        run_ways(&r, at, 3);
        assert_int_equal(r.step->n_adjust, 0);
        assert_int_equal(r.result.id[1], r.result.id[0]);
        assert_int_equal(r.result.id[2], r.result.id[0]);
    }
    runner_close(&r);
    mu_model_close(m);
}

/* ---- tables ---- */

static const struct mu_serving SERVING = {.n_ctx = 300, .n_slot = 2, .n_page = 20, .step_tokens = 16};

static void put(const struct mu_adjusts *a, struct mu_step *s)
{
    mu_step_clear(s);
    s->seq[0] = (struct mu_step_seq){0};
    mu_adjusts_put(a, s, &s->seq[0]);
    assert_int_equal(s->seq[0].n_adjust, s->n_adjust);
    assert_true(s->n_adjust <= mu_step_max_adjust(&SERVING, 60));
}

/* A table that has grown id by id is the one made of all ids at once (a request that is replayed), and both are what
 * counting says. */
static void test_table(void **state)
{
    (void)state;
    enum { VOCAB = 60, MOST = 200 };
    struct mu_step *grown = NULL, *fresh = NULL;
    MUST(mu_step_create(&SERVING, VOCAB, &grown, err));
    MUST(mu_step_create(&SERVING, VOCAB, &fresh, err));
    static const struct mu_sampling ps[] = {
        {.repeat_penalty = 1.1f},
        {.repeat_penalty = 1.1f, .repeat_last_n = 10},
        {.repeat_penalty = 2, .repeat_last_n = 64, .presence_penalty = 1},
        {.frequency_penalty = 1, .min_tokens = 30},
        {.min_tokens = 5},
        {.temperature = 1, .repeat_penalty = 1.5f, .repeat_last_n = 1, .frequency_penalty = 0.1f, .min_tokens = 100},
    };
    const struct mu_bias bias[] = {{59, 1}, {3, -2}};
    const int32_t end[] = {50, 3, 99, -1};
    for (size_t c = 0; c < sizeof ps / sizeof *ps; c++) {
        int32_t ids[MOST];
        size_t n_prompt = 1 + rng(100), n = n_prompt;
        for (size_t i = 0; i < MOST; i++) ids[i] = (int32_t)rng(rng(3) ? 8 : VOCAB);
        struct mu_adjusts_options o = {.sampling = &ps[c],
                                       .bias = bias,
                                       .n_bias = c % 2 ? 2 : 0,
                                       .end_ids = end,
                                       .n_end = 4,
                                       .ids = ids,
                                       .n_ids = n,
                                       .n_prompt = n_prompt,
                                       .max_ids = MOST,
                                       .n_vocab = VOCAB};
        struct mu_adjusts *a = NULL, *b = NULL;
        MUST(mu_adjusts_create(&o, &a, err));
        for (;; mu_adjusts_push(a, ids, ++n)) {
            o.n_ids = n;
            MUST(mu_adjusts_create(&o, &b, err));
            put(a, grown);
            put(b, fresh);
            mu_adjusts_destroy(b);
            assert_int_equal(grown->n_adjust, fresh->n_adjust);
            assert_memory_equal(grown->adjust, fresh->adjust, grown->n_adjust * sizeof *grown->adjust);
            uint32_t at = 0;
            for (int32_t id = 0; id < VOCAB; id++) {
                uint32_t seen = 0, generated = 0;
                size_t window = ps[c].repeat_last_n ? ps[c].repeat_last_n : MOST;
                for (size_t i = 0; i < n; i++) {
                    seen += ids[i] == id && i + window >= n && ps[c].repeat_penalty > 0;
                    generated += ids[i] == id && i >= n_prompt && (ps[c].presence_penalty || ps[c].frequency_penalty);
                }
                float value = o.n_bias && id == 59 ? 1 : o.n_bias && id == 3 ? -2 : 0;
                bool forbid = (id == 50 || id == 3) && n - n_prompt < ps[c].min_tokens;
                if (!seen && !generated && value == 0 && !forbid) continue;
                assert_true(at < grown->n_adjust);
                const struct mu_step_adjust *got = &grown->adjust[at++];
                assert_true(got->id == id && got->bias == value && got->n_generated == generated);
                assert_int_equal(got->flags, (seen ? MU_ADJUST_SEEN : 0) | (forbid ? MU_ADJUST_FORBID : 0));
            }
            assert_int_equal(at, grown->n_adjust);
            if (n == MOST) break;
        }
        mu_adjusts_destroy(a);
    }
    mu_free(grown);
    mu_free(fresh);
}

static void test_table_without_need(void **state)
{
    (void)state;
    struct mu_adjusts *a = NULL;
    const int32_t id = 1;
    const struct mu_sampling p = {.temperature = 1, .top_p = 0.5f, .repeat_penalty = 1, .repeat_last_n = 64};
    const struct mu_adjusts_options o = {
        .sampling = &p, .end_ids = &id, .n_end = 1, .ids = &id, .n_ids = 1, .n_prompt = 1, .max_ids = 9, .n_vocab = 5};
    MUST(mu_adjusts_create(&o, &a, err));
    assert_null(a);
    mu_adjusts_push(a, &id, 1);
    mu_adjusts_destroy(a);
}

/* ---- ranges ---- */

static void test_ranges(void **state)
{
    (void)state;
    static const struct {
        struct mu_sampling p;
        const char *says; /* NULL: fine */
    } c[] = {
        {{0}, NULL},
        {{.temperature = 100, .top_p = 1, .min_p = 1, .typical_p = 1, .repeat_penalty = 100, .presence_penalty = -2},
         NULL},
        {{.temperature = 1e-4f, .repeat_penalty = 0.01f}, NULL},
        {{.temperature = 1e-5f}, "temperature must be 0 (off) or from 0.0001 to 100, not 1e-05"},
        {{.temperature = NAN}, "temperature"},
        {{.top_p = -0.1f}, "top_p must be from 0 to 1"},
        {{.min_p = 1.1f}, "min_p"},
        {{.typical_p = INFINITY}, "typical_p"},
        {{.repeat_penalty = -1}, "repeat_penalty must be 0 (off) or from 0.01 to 100, not -1"},
        {{.presence_penalty = 2.5f}, "presence_penalty"},
        {{.frequency_penalty = -3}, "frequency_penalty"},
        {{.logprobs = true, .top_logprobs = 21}, "top_logprobs must be from 0 to 20, not 21"},
        {{.top_logprobs = 1}, "logprobs is not set"},
    };
    for (size_t i = 0; i < sizeof c / sizeof *c; i++) {
        struct mu_err why = MU_ERR_INIT;
        assert_int_equal(mu_sampling_check(&c[i].p, &why), c[i].says ? MU_EINVAL : MU_OK);
        if (c[i].says && !strstr(why.text, c[i].says)) fail_msg("case %zu: %s", i, why.text);
    }
    struct mu_bias many[MU_MAX_BIASES + 1];
    struct mu_err why = MU_ERR_INIT;
    for (int i = 0; i <= MU_MAX_BIASES; i++) many[i] = (struct mu_bias){MU_MAX_BIASES - i, 1};
    assert_int_equal(mu_biases_check(many, MU_MAX_BIASES, 2000, &why), MU_OK);
    assert_int_equal(mu_biases_check(many, MU_MAX_BIASES + 1, 2000, &why), MU_EINVAL);
    many[5].id = 1000;
    assert_int_equal(mu_biases_check(many, MU_MAX_BIASES, 2000, &why), MU_EINVAL);
    assert_string_equal(why.text, "logit_bias names token 1000 twice");
    many[5] = (struct mu_bias){2000, 1};
    assert_int_equal(mu_biases_check(many, MU_MAX_BIASES, 2000, &why), MU_EINVAL);
    many[5] = (struct mu_bias){5, NAN};
    assert_int_equal(mu_biases_check(many, MU_MAX_BIASES, 2000, &why), MU_EINVAL);
    assert_int_equal(mu_sampling_choice_seed(7, 0), 7);
    assert_true(mu_sampling_choice_seed(UINT64_MAX, 2) == 0x3c6ef372fe94f829u);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_samples), cmocka_unit_test(test_one_in_every_run),   cmocka_unit_test(test_neutral),
        cmocka_unit_test(test_table),   cmocka_unit_test(test_table_without_need), cmocka_unit_test(test_ranges)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
