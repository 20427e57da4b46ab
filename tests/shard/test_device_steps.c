/* Steps of all kinds at random, on devices and on one processor: every sample, log probability, row of logits and state is the
 * same bytes. What a step may hold is in each script: decodes alone, of few shapes, so that they are replayed; then chunks
 * of prompts beside decodes, guesses (a slot twice in a step), outputs of every kind, masks, adjustments, adapters, slots that are freed,
 * and prompts that begin with pages of another slot. */
#include "lora_util.h"
#include "ways_util.h"

#include "shard/device.h"

static int only = -1; /* one model of a list */

enum { N_SLOT = 5, N_CTX = 400, STEP_TOKENS = 120, N_DECODE = 15, N_MIXED = 16, N_SHAPE = 5 };

static uint64_t rng_state;
static uint32_t rng(uint32_t n) /* [0, n) */
{
    rng_state = rng_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(rng_state >> 33) % n;
}

/* ---- what comes out ---- */

struct output {
    uint8_t *at;
    size_t n, room;
};

static void output_put(struct output *o, const void *from, size_t bytes)
{
    while (o->n + bytes > o->room) o->at = realloc(o->at, o->room = o->room * 2 + bytes);
    memcpy(o->at + o->n, from, bytes);
    o->n += bytes;
}

static void output_take(struct output *o, const struct mu_model *m, const struct mu_step *step,
                        const struct mu_step_result *r)
{
    size_t d = (size_t)m->cfg.d_model;
    output_put(o, r->id, step->n_seq * sizeof *r->id);
    for (uint32_t i = 0; i < step->n_seq; i++) {
        const struct mu_step_seq *q = &step->seq[i];
        const struct mu_logprobs *l = &r->logprobs[i];
        if (q->out == MU_OUT_SAMPLE && q->sampling.logprobs && r->id[i] >= 0) {
            output_put(o, &l->chosen, sizeof l->chosen);
            output_put(o, l->top, l->n_top * sizeof *l->top);
        }
        if (q->out >= MU_OUT_STATE) output_put(o, r->state + q->slot * d, d * sizeof *r->state);
    }
    output_put(o, r->logits, (size_t)r->n_logit_row * (size_t)m->cfg.n_vocab * sizeof *r->logits);
}

/* ---- steps ---- */

struct script { /* whoever runs it makes the same of it */
    const struct mu_model *m;
    struct mu_step *step;
    uint32_t position[N_SLOT], n_page[N_SLOT];
    uint32_t page[N_SLOT][N_CTX / MU_PAGE_TOKENS + 1],
        used[N_SLOT * (N_CTX / MU_PAGE_TOKENS + 1)]; /* slots that have it */
    int32_t ids[N_SLOT][N_CTX];
    uint16_t adapter[N_SLOT];
    float scale[N_SLOT];
    uint8_t far[N_SLOT];
    int n_adapter;
};

static void slot_begin(struct script *c, uint32_t slot)
{
    struct mu_step *s = c->step;
    for (uint32_t i = 0; i < c->n_page[slot]; i++) c->used[c->page[slot][i]]--;
    s->free_slot[s->n_free++] = slot;
    c->position[slot] = c->n_page[slot] = 0;
    c->adapter[slot] = (uint16_t)rng((uint32_t)c->n_adapter + 1);
    c->scale[slot] = rng(2) ? 1.0f : 0.25f;
    c->far[slot] = (uint8_t)rng(2);
    for (int i = 0; i < N_CTX; i++) c->ids[slot][i] = (int32_t)rng((uint32_t)c->m->cfg.n_vocab);
}

static void page_add(struct script *c, uint32_t slot, uint32_t page)
{
    c->used[page]++;
    c->page[slot][c->n_page[slot]++] = page;
    c->step->page[c->step->n_page++] = (struct mu_step_page){slot, page};
}

/* Whole pages of another slot's sequence, which slot's begins with. */
static void slot_share(struct script *c, uint32_t slot, uint32_t from)
{
    uint32_t n = c->position[from] / MU_PAGE_TOKENS;
    if (n == 0 || c->position[slot] > 0 || c->n_page[slot] > 0) return;
    c->adapter[slot] = c->adapter[from];
    c->scale[slot] = c->scale[from];
    c->far[slot] = c->far[from];
    memcpy(c->ids[slot], c->ids[from], n * MU_PAGE_TOKENS * sizeof **c->ids);
    for (uint32_t i = 0; i < n; i++) page_add(c, slot, c->page[from][i]);
    c->position[slot] = n * MU_PAGE_TOKENS;
}

static void sampling_any(struct script *c, struct mu_step_seq *q, bool plain)
{
    struct mu_step *s = c->step;
    struct mu_sampling *p = &q->sampling;
    p->temperature = rng(2) ? 0.0f : 0.5f + (float)rng(4);
    p->seed = rng(1000);
    q->adjust_off = s->n_adjust;
    if (plain) return;
    if (p->temperature > 0.0f && rng(3) == 0) p->top_k = 1 + rng(20);
    if (p->temperature > 0.0f && rng(3) == 0) p->top_p = 0.7f;
    p->logprobs = rng(3) == 0;
    p->top_logprobs = p->logprobs ? rng(4) : 0;
    for (int32_t id = (int32_t)rng(9); rng(3) == 0 && id < c->m->cfg.n_vocab; id += 1 + (int32_t)rng(60)) {
        if (q->n_adjust == 12) break;
        s->adjust[s->n_adjust++] =
            (struct mu_step_adjust){.id = id, .bias = (float)rng(9) - 4.0f, .flags = rng(4) ? 0 : MU_ADJUST_FORBID};
        q->n_adjust++;
    }
    if (rng(4) == 0) memset(mu_step_mask(s, q), (int)(0x11u << rng(4)), s->mask_bytes);
}

static void seq_add(struct script *c, uint32_t slot, uint32_t n, enum mu_out_kind out, bool plain)
{
    struct mu_step *s = c->step;
    struct mu_step_seq *q = &s->seq[s->n_seq++];
    *q = (struct mu_step_seq){.slot = slot,
                              .pos0 = c->position[slot],
                              .n_tok = n,
                              .tok_off = s->n_tok,
                              .out = (uint8_t)out,
                              .far = c->far[slot],
                              .adapter = c->adapter[slot],
                              .adapter_scale = c->scale[slot]};
    while (c->n_page[slot] * MU_PAGE_TOKENS < c->position[slot] + n) {
        uint32_t page = 0;
        while (c->used[page]) page++;
        page_add(c, slot, page);
    }
    if (out == MU_OUT_SAMPLE) sampling_any(c, q, plain);
    memcpy(s->ids + s->n_tok, c->ids[slot] + c->position[slot], n * sizeof *s->ids);
    s->n_tok += n;
    c->position[slot] += n;
}

/* Five shapes, of which each comes often: all slots; all but one; all, but one gives its logits, nothing, or its state. */
static void step_decode(struct script *c, int round)
{
    static const enum mu_out_kind second[N_SHAPE] = {MU_OUT_SAMPLE, MU_OUT_SAMPLE, MU_OUT_LOGITS, MU_OUT_NONE,
                                                     MU_OUT_STATE};
    for (uint32_t slot = 0; slot < (round % N_SHAPE == 1 ? N_SLOT - 1 : N_SLOT); slot++)
        seq_add(c, slot, 1, slot == 1 ? second[round % N_SHAPE] : MU_OUT_SAMPLE, true);
}

static void step_mixed(struct script *c)
{
    for (uint32_t slot = 0; slot < N_SLOT; slot++) {
        uint32_t room = (uint32_t)STEP_TOKENS - c->step->n_tok, n = 1;
        if (c->position[slot] > N_CTX - 60 || rng(12) == 0) {
            slot_begin(c, slot);
            if (rng(2)) slot_share(c, slot, (slot + 1) % N_SLOT);
        }
        if (rng(4) == 0 || room == 0) continue;
        if (rng(3) == 0) n = 1 + rng(rng(2) ? 7 : 50);
        if (n > room) n = room;
        enum mu_out_kind out = (enum mu_out_kind)rng(MU_OUT_COUNT);
        seq_add(c, slot, n, rng(2) ? MU_OUT_SAMPLE : out, rng(2));
        /* A guess at what follows, which is a sequence of the step too. */
        if (rng(4) == 0 && c->step->n_tok < STEP_TOKENS && c->step->n_seq + (N_SLOT - slot) < N_SLOT + 1)
            seq_add(c, slot, 1, MU_OUT_SAMPLE, true);
    }
}

/* All that the script gives. replays_out: of all ranks on devices. */
static struct output script_run(const struct mu_model *m, struct how how, int n_adapter, uint64_t seed, bool graphs,
                                uint64_t *replays_out)
{
    how.n_slot = N_SLOT;
    how.n_ctx = N_CTX;
    how.step_tokens = STEP_TOKENS;
    struct mu_solo *solo = solo_of(m, how);
    const struct mu_plan *plan = mu_solo_plan(solo);
    struct script *c = calloc(1, sizeof *c);
    struct output out = {0};
    c->m = m;
    c->n_adapter = n_adapter;
    rng_state = seed;
    MUST(mu_step_create(mu_solo_serving(solo), m->cfg.n_vocab, &c->step, err));
    for (int i = 0; i < plan->n_rank; i++)
        if (plan->split.device[i] != MU_ON_CPU) mu_shard_device_graphs(mu_solo_shard(solo, i), graphs);
    for (int k = 0; k < N_DECODE + N_MIXED; k++) {
        struct mu_step_result result;
        uint64_t number = c->step->number + 1;
        mu_step_clear(c->step);
        c->step->number = number;
        for (uint32_t slot = 0; k == 0 && slot < N_SLOT; slot++) slot_begin(c, slot);
        if (k < N_DECODE)
            step_decode(c, k);
        else
            step_mixed(c);
        MUST(mu_solo_step(solo, c->step, &result, err));
        output_take(&out, m, c->step, &result);
    }
    *replays_out = 0;
    for (int i = 0; i < plan->n_rank; i++)
        if (plan->split.device[i] != MU_ON_CPU) *replays_out += mu_shard_device_replays(mu_solo_shard(solo, i));
    mu_free(c->step);
    free(c);
    mu_solo_close(solo);
    return out;
}

/* ---- models ---- */

static const char *const splits[] = {"1@gpu0", "1@gpu0:1@gpu1", "2@gpu0:1", "1/1@gpu0", "1@gpu1/2:1@gpu0"};

static void output_same(const struct output *got, const struct output *want, const char *what)
{
    size_t at = 0;
    if (got->n == want->n && memcmp(got->at, want->at, got->n) == 0) return;
    while (at < got->n && at < want->n && got->at[at] == want->at[at]) at++;
    fail_msg("%s: byte %zu of %zu differs", what, at, want->n);
}

/* Plain first; of devices alone then replayed, and linked where they can be. */
static void check_script(const struct mu_model *m, const struct mu_adapters *a, int n_adapter, enum mu_kv_type kv,
                         uint64_t seed, const char *name)
{
    uint64_t replays;
    struct output want = script_run(m, (struct how){.adapters = a, .kv = kv}, n_adapter, seed, false, &replays);
    for (size_t i = 0; i < sizeof splits / sizeof *splits; i++) {
        for (int graphs = 0; graphs < (i < 2 ? 2 : 1); graphs++) {
            char what[160];
            struct how how = {.split = split_here(splits[i]), .adapters = a, .kv = kv};
            snprintf(what, sizeof what, "%s, %s%s", name, how.split, graphs ? ", replayed" : "");
            setenv("MUSTER_DEVICE_HOST_LINK", graphs ? "1" : "0", 1);
            struct output got = script_run(m, how, n_adapter, seed, graphs, &replays);
            output_same(&got, &want, what);
            if (!graphs) assert_int_equal(replays, 0);
            if (graphs && i == 0 && !a) assert_true(replays >= N_DECODE - N_SHAPE);
            free(got.at);
        }
    }
    free(want.at);
}

static void test_plain(void **state)
{
    (void)state;
    static const size_t families[] = {0, 1, 8, 10, 12, 13}; /* of ways_util.h: those with most of their own */
    for (size_t i = 0; i < sizeof families / sizeof *families; i++) {
        if (only >= 0 && i != (size_t)only) continue;
        struct mu_synth spec = odd_family(families[i]);
        spec.n_ctx = N_CTX;
        struct mu_model *m = synth_open(&spec);
        check_script(m, NULL, 0, i % 2 ? MU_KV_Q8_0 : MU_KV_F16, i + 1, spec.arch);
        mu_model_close(m);
    }
}

static void test_adapters(void **state)
{
    (void)state;
    static const struct lora_recipe recipes[] = {
        {.rank = 8, .type = MU_F32, .alpha = 16, .out = true, .seed = 1},
        {.rank = 33, .type = MU_F16, .alpha = 5, .skip = 1u << MU_T_Q | 1u << MU_T_UP | 1u << MU_T_DOWN, .seed = 2},
        {.rank = 1, .type = MU_F32, .alpha = 0, .skip = 1u << MU_T_GATE | 1u << MU_T_O, .seed = 3},
    };
    static const uint32_t types[] = {MU_Q8_0, MU_BF16, MU_F16};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        if (only >= 0 && i != (size_t)only) continue;
        struct mu_synth spec = odd_family(0);
        spec.arch = i == 1 ? "phi2" : "llama"; /* one without a gate */
        if (i == 1) spec.n_kv_head = spec.n_head;
        spec.n_ctx = N_CTX;
        spec.n_layer = 3;
        spec.type = spec.output_type = types[i];
        struct mu_model *m = synth_open(&spec);
        struct mu_adapters *a = lora_open(m, recipes, 3);
        check_script(m, a, 3, MU_KV_F16, i + 1, mu_type_info(types[i])->name);
        mu_adapters_close(a);
        mu_model_close(m);
    }
}

static void row_take(const float *row, uint32_t position, void *ctx)
{
    struct rows *r = ctx;
    (void)position;
    memcpy(r->at + (size_t)r->n++ * (size_t)r->n_vocab, row, (size_t)r->n_vocab * sizeof *row);
}

/* Decodes near the end of a context of 2.3 segments of attention, which is no power of two, with one slot: the scratch for
 * segments' results has room for these three and no fourth. */
static void test_context_of_any_size(void **state)
{
    enum { CTX = 600, PROMPT = 510, DECODES = 8 };
    (void)state;
    int32_t ids[PROMPT + DECODES];
    struct mu_synth spec = odd_family(0);
    spec.n_ctx = CTX;
    struct mu_model *m = synth_open(&spec);
    ids_fill(ids, PROMPT + DECODES, m->cfg.n_vocab, 3);
    struct rows rows[2];
    for (int device = 0; device < 2; device++) {
        struct how how = {.n_ctx = CTX, .n_slot = 1, .step_tokens = PROMPT};
        if (device) how.split = split_here("1@gpu0");
        struct mu_solo *solo = solo_of(m, how);
        rows[device] = (struct rows){calloc(DECODES, (size_t)m->cfg.n_vocab * sizeof(float)), m->cfg.n_vocab, 0, 0};
        MUST(mu_solo_feed(solo, 0, ids, PROMPT, MU_OUT_NONE, NULL, NULL, NULL, NULL, err));
        for (int i = 0; i < DECODES; i++)
            MUST(mu_solo_feed(solo, 0, ids + PROMPT + i, 1, MU_OUT_LOGITS, NULL, row_take, &rows[device], NULL, err));
        assert_int_equal(rows[device].n, DECODES);
        mu_solo_close(solo);
    }
    same(rows[1].at, rows[0].at, DECODES, m->cfg.n_vocab, "a context of 600 tokens");
    free(rows[0].at);
    free(rows[1].at);
    mu_model_close(m);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_plain), cmocka_unit_test(test_adapters),
                                       cmocka_unit_test(test_context_of_any_size)};
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    if (argc > 2) only = atoi(argv[2]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
