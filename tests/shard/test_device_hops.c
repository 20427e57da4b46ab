/* Residuals that go from device to device by links between stages: the same bytes as one processor's, and every one by link
 * where it may.
 *
 * Ranks are threads that run the steps of a script each at its own pace, so that several steps are on their way at once;
 * nobody waits for anybody but by what the pass sends. The devices are the host's, whose sends end when they are received,
 * or the emulated GPU's with NCCL's stand-in (MUSTER_DEVICE_PLUGIN), where links that wait for each other would stop. */
#include "ways_util.h"

#include <pthread.h>

#include "base/clock.h"
#include "base/pool.h"
#include "shard/device.h"
#include "transport/comm.h"
#include "worker/device_link.h"
#include "worker/shard_comm.h"

enum {
    N_SLOT = 3,
    N_CTX = 128,
    PAGES = N_CTX / MU_PAGE_TOKENS,
    STEP_TOKENS = 40,
    MOST_STEPS = 28,
    NO_TOKENS = 17,
    SOON_MS = 60000
};
static int n_step = MOST_STEPS;
static const struct mu_serving serving = {
    .n_ctx = N_CTX, .n_slot = N_SLOT, .n_page = N_SLOT * PAGES, .step_tokens = STEP_TOKENS, .n_thread = 1};

/* ---- the script ---- */

struct script {
    struct mu_step *step[MOST_STEPS];
    uint32_t position[N_SLOT];
};

static void seq_add(const struct mu_model *m, struct script *c, struct mu_step *s, uint32_t slot, uint32_t n,
                    enum mu_out_kind out)
{
    uint32_t pos = c->position[slot], have = (pos + MU_PAGE_TOKENS - 1) / MU_PAGE_TOKENS;
    for (; have * MU_PAGE_TOKENS < pos + n; have++)
        s->page[s->n_page++] = (struct mu_step_page){slot, slot * PAGES + have};
    s->seq[s->n_seq++] =
        (struct mu_step_seq){.slot = slot, .pos0 = pos, .n_tok = n, .tok_off = s->n_tok, .out = (uint8_t)out};
    for (uint32_t i = 0; i < n; i++)
        s->ids[s->n_tok + i] = (int32_t)((slot * 131 + (pos + i) * 17) % (uint32_t)m->cfg.n_vocab);
    s->n_tok += n;
    c->position[slot] += n;
}

/* Prompts, some beside decodes and some whose logits nobody wants; then decodes, which are replayed; a prompt among them,
 * and a step without tokens. */
static void script_make(const struct mu_model *m, struct script *c)
{
    static const uint32_t prompt[] = {33, 1, 7, 20};
    memset(c, 0, sizeof *c);
    for (int k = 0; k < n_step; k++) {
        struct mu_step *s;
        MUST(mu_step_create(&serving, m->cfg.n_vocab, &c->step[k], err));
        s = c->step[k];
        s->number = (uint64_t)k + 1;
        if (k < 4) {
            seq_add(m, c, s, 0, prompt[k], k == 1 ? MU_OUT_NONE : MU_OUT_LOGITS);
            if (k > 1) seq_add(m, c, s, 1, 5, k == 3 ? MU_OUT_ALL : MU_OUT_NONE);
        } else if (k == 12) {
            seq_add(m, c, s, 2, 30, MU_OUT_ALL);
        } else if (k != NO_TOKENS) {
            for (uint32_t slot = 0; slot < (k < 14 ? 2 : N_SLOT); slot++) seq_add(m, c, s, slot, 1, MU_OUT_LOGITS);
        }
    }
}

static void script_free(struct script *c)
{
    for (int k = 0; k < n_step; k++) mu_free(c->step[k]);
}

/* ---- ranks ---- */

struct gang {
    const struct mu_model *m;
    const struct script *script;
    struct mu_plan plan;
    int slow_stage;         /* whose ranks sleep before each step; -1: none */
    int stop_rank, stop_at; /* stays away from that step on, until the others have ended; -1: nobody */
    int fail_rank;          /* has an error of its own at that step; -1: nobody */
    int timeout_ms;
    pthread_barrier_t ended;
    float *logits; /* the leader's, step after step */
    size_t n_logit;
};

struct rank {
    struct gang *g;
    int rank;
    struct mu_comm *comm;
    pthread_t thread;
    enum mu_status st;
    struct mu_err err;
    int n_done;       /* steps */
    int64_t spent_ns; /* the last one */
    uint64_t n_hop, n_replay;
    bool on_device;
};

static void steps_run(struct rank *r, struct mu_shard *shard)
{
    struct gang *g = r->g;
    for (int k = 0; k < n_step; k++) {
        struct mu_step_result result;
        struct mu_step *step = g->script->step[k], *bad = NULL;
        if (r->rank == g->stop_rank && k == g->stop_at) return;
        if (g->plan.rank[r->rank].stage == g->slow_stage) mu_sleep_ms(3);
        if (r->rank == g->fail_rank && k == g->stop_at) {
            if ((r->st = mu_step_create(&serving, g->m->cfg.n_vocab, &bad, &r->err)) != MU_OK) return;
            bad->n_tok = 1; /* of no sequence */
            step = bad;
        }
        int64_t start = mu_now_ns();
        r->st = mu_shard_step(shard, step, &result, &r->err);
        r->spent_ns = mu_now_ns() - start;
        mu_free(bad);
        if (r->st != MU_OK) {
            mu_shard_leave(shard);
            return;
        }
        size_t n = (size_t)result.n_logit_row * (size_t)g->m->cfg.n_vocab;
        if (n > 0) {
            g->logits = realloc(g->logits, (g->n_logit + n) * sizeof *g->logits);
            memcpy(g->logits + g->n_logit, result.logits, n * sizeof *g->logits);
            g->n_logit += n;
        }
        r->n_done++;
    }
    for (int idle; (idle = mu_shard_idle(shard, &r->err)) != 1;)
        if (idle < 0) {
            r->st = r->err.code;
            return;
        }
}

static void *rank_main(void *arg)
{
    struct rank *r = arg;
    struct gang *g = r->g;
    struct mu_pool *pool = NULL;
    struct mu_shard_link *link = NULL;
    struct mu_shard *shard = NULL;
    struct mu_device_link_ids ids;
    struct mu_shard_options opt = {.model = g->m, .plan = &g->plan, .rank = r->rank, .serving = serving};
    opt.device_timeout_ms = r->comm ? r->comm->timeout_ms = g->timeout_ms : g->timeout_ms;
    r->on_device = g->plan.split.device[r->rank] != MU_ON_CPU;
    mu_fp_env_set();
    MU_TRY(r->st, mu_pool_create(&(struct mu_pool_options){.n_threads = 1}, &pool, &r->err), end);
    if (r->comm) {
        MU_TRY(r->st, mu_shard_link_create(r->comm, &g->plan, &link, &opt.comm, &r->err), end);
        MU_TRY(r->st, mu_device_link_agree(r->comm, &g->plan, r->rank, NULL, &ids, &r->err), end);
        mu_device_link_use(&ids, &opt);
    }
    opt.pool = pool;
    MU_TRY(r->st, mu_shard_create(&opt, &shard, &r->err), end);
    steps_run(r, shard);
    if (r->on_device) r->n_hop = mu_shard_device_hops(shard);
    if (r->on_device) r->n_replay = mu_shard_device_replays(shard);
end:
    pthread_barrier_wait(&g->ended);
    mu_shard_destroy(shard);
    mu_shard_link_destroy(link);
    mu_comm_close(r->comm);
    mu_pool_destroy(pool);
    return NULL;
}

static void gang_run(struct gang *g, const char *split, struct rank *ranks)
{
    struct mu_comm *comm[MU_MAX_RANKS] = {0};
    struct mu_split parsed;
    MUST(mu_split_parse(split, &parsed, err));
    MUST(mu_plan_build(g->m, &parsed, &g->plan, err));
    if (g->plan.n_rank > 1) MUST(mu_comm_local_open(g->plan.n_rank, comm, err));
    pthread_barrier_init(&g->ended, NULL, (unsigned)g->plan.n_rank);
    for (int i = 0; i < g->plan.n_rank; i++) {
        ranks[i] = (struct rank){.g = g, .rank = i, .comm = comm[i], .err = MU_ERR_INIT};
        assert_int_equal(pthread_create(&ranks[i].thread, NULL, rank_main, &ranks[i]), 0);
    }
    for (int i = 0; i < g->plan.n_rank; i++) pthread_join(ranks[i].thread, NULL);
    pthread_barrier_destroy(&g->ended);
}

static struct gang gang_of(const struct mu_model *m, const struct script *script)
{
    return (struct gang){
        .m = m, .script = script, .slow_stage = -1, .stop_rank = -1, .fail_rank = -1, .timeout_ms = SOON_MS};
}

/* ---- what comes out ---- */

/* Which hops are by link. */
static const struct {
    const char *split, *linked;
} ways[] = {
    {"1@gpu0/1@gpu1", "1"},
    {"1@gpu3/1@gpu1/1@gpu2", "11"},
    {"1@gpu0:1@gpu1/1@gpu2:1@gpu3", "1"},
    {"3@gpu0:1@gpu1/1@gpu2", "1"},
    {"1@gpu2/2@gpu0:1@gpu3:1@gpu1/1@gpu4:1@gpu5", "11"},
    {"1@gpu0/1@gpu1/1", "10"},
    {"1/1@gpu0/1@gpu1", "01"},
    {"1@gpu0/1:1@gpu1/1@gpu2", "00"},       /* a stage of both kinds */
    {"1@gpu0/1@gpu0/1@gpu1", "00"},         /* two ranks on one GPU: neighbours … */
    {"1@gpu0/1@gpu1/1@gpu2/1@gpu0", "010"}, /* … and not */
};
enum { N_WAY = sizeof ways / sizeof *ways, SHORT_WAYS = 4 };
static int n_way = N_WAY;

/* Every residual of a rank whose hops are by link, and no other. */
static uint64_t hops_wanted(const struct gang *g, int rank, const char *linked)
{
    const struct mu_plan_rank *p = &g->plan.rank[rank];
    uint64_t n = 0, n_sent = (uint64_t)(n_step > NO_TOKENS ? n_step - 1 : n_step);
    bool sends = false;
    for (int i = 0; i < g->plan.n_rank; i++) sends |= mu_plan_residual_from(&g->plan, NULL, i) == rank;
    if (p->stage > 0 && linked[p->stage - 1] == '1') n += n_sent;
    if (p->stage < g->plan.n_stage - 1 && linked[p->stage] == '1' && sends) n += n_sent;
    return n;
}

static void check_way(const struct mu_model *m, const struct script *script, const struct gang *want, const char *split,
                      const char *linked, int slow_stage, const char *name)
{
    struct rank ranks[MU_MAX_RANKS];
    struct gang g = gang_of(m, script);
    char what[160];
    g.slow_stage = slow_stage;
    setenv("MUSTER_CUDA_EMULATED_LATE", slow_stage >= 0 ? "1" : "0", 1); /* the queue runs when it is looked at */
    snprintf(what, sizeof what, "%s, %s, links %s, slow stage %d", name, split, linked, slow_stage);
    gang_run(&g, split, ranks);
    for (int i = 0; i < g.plan.n_rank; i++) {
        const struct rank *r = &ranks[i];
        uint64_t hops = hops_wanted(&g, i, linked);
        if (r->st != MU_OK) fail_msg("%s, rank %d: %s", what, i, r->err.text);
        assert_int_equal(r->n_done, n_step);
        if (r->on_device && r->n_hop != hops)
            fail_msg("%s, rank %d: %llu residuals by link, expected %llu", what, i, (unsigned long long)r->n_hop,
                     (unsigned long long)hops);
        bool alone = g.plan.stage[g.plan.rank[i].stage].n_rank == 1;
        if (r->on_device && alone) assert_true(r->n_replay >= (uint64_t)n_step / 3);
    }
    assert_int_equal(g.n_logit, want->n_logit);
    same(g.logits, want->logits, g.n_logit / (size_t)m->cfg.n_vocab, m->cfg.n_vocab, what);
    free(g.logits);
}

/* paces: some stage is slower than the others, too. */
static void check_model(const struct mu_model *m, bool paces, const char *name)
{
    struct rank alone[MU_MAX_RANKS];
    struct script script;
    script_make(m, &script);
    struct gang want = gang_of(m, &script);
    gang_run(&want, "1", alone);
    if (alone[0].st != MU_OK) fail_msg("%s: %s", name, alone[0].err.text);
    assert_true(want.n_logit > 0);
    for (int i = 0; i < n_way; i++) {
        int n_stage = (int)strlen(ways[i].linked) + 1;
        for (int slow = -1; slow < (paces ? n_stage : 0); slow++)
            check_way(m, &script, &want, ways[i].split, ways[i].linked, slow, name);
    }
    setenv("MUSTER_CUDA_EMULATED_LATE", "0", 1);
    setenv("MUSTER_GPU_LINK", "0", 1);
    check_way(m, &script, &want, ways[0].split, "0", -1, name);
    unsetenv("MUSTER_GPU_LINK");
    free(want.logits);
    script_free(&script);
}

static struct mu_model *model_of(struct mu_synth spec)
{
    spec.n_layer = 4;
    spec.n_ctx = N_CTX;
    return synth_open(&spec);
}

/* A few kernels' worth. */
static struct mu_synth small_llama(void)
{
    struct mu_synth spec = odd_llama(0);
    spec.n_head = 2;
    spec.n_kv_head = 2;
    spec.d_head = spec.d_model = 32;
    spec.d_ff = 64;
    spec.n_vocab = 258;
    return spec;
}

static void test_ways(void **state)
{
    (void)state;
    struct mu_model *m = model_of(n_way < N_WAY ? small_llama() : odd_llama(0));
    check_model(m, true, "llama");
    mu_model_close(m);
    if (n_way < N_WAY) return;
    m = model_of(odd_family(1)); /* experts */
    check_model(m, false, "experts");
    mu_model_close(m);
    m = model_of(odd_family(12)); /* a norm with two vectors, attention and feed-forward side by side */
    check_model(m, false, "falcon");
    mu_model_close(m);
}

/* ---- faults ---- */

static void must_say(const struct rank *r, const char *words, const char *or_words)
{
    if (!strstr(r->err.text, words) && !strstr(r->err.text, or_words))
        fail_msg("rank %d: '%s' does not say '%s'", r->rank, r->err.text, words);
}

/* A rank that stays away from a step: whoever sends to it or receives from it says so by its number, in time. */
static void test_hangs(void **state)
{
    enum { TIMEOUT_MS = 1500 };
    static const char split[] = "1@gpu0/1@gpu1/1@gpu2";
    (void)state;
    struct mu_model *m = model_of(small_llama());
    struct script script;
    struct rank r[MU_MAX_RANKS];
    script_make(m, &script);
    for (int who = 0; who < 3; who++) {
        struct gang g = gang_of(m, &script);
        g.timeout_ms = TIMEOUT_MS;
        g.stop_rank = who;
        g.stop_at = 7;
        gang_run(&g, split, r);
        assert_int_equal(r[who].st, MU_OK);
        assert_int_equal(r[who].n_done, g.stop_at);
        for (int i = 0; i < 3; i++) {
            if (i == who) continue;
            if (r[i].st != MU_ETIMEOUT && r[i].st != MU_EPEER)
                fail_msg("rank %d of a gang without rank %d: %s", i, who, r[i].err.text);
            assert_true(r[i].spent_ns < 4 * (int64_t)TIMEOUT_MS * MU_MS);
        }
        char from[40], to[40];
        snprintf(from, sizeof from, "the residual from rank %d", who);
        snprintf(to, sizeof to, "the residual to rank %d", who);
        /* The host's device tells a receive that failed at whatever is waited for. */
        if (who < 2) must_say(&r[who + 1], from, "link: rank 0 sent nothing");
        if (who > 0) must_say(&r[who - 1], to, to);
        free(g.logits);
    }
    script_free(&script);
    mu_model_close(m);
}

/* A rank that ends with an error leaves its links: nobody waits for the deadline. Of the host's devices: those of NCCL look
 * at a deadline only. */
static void test_leaves(void **state)
{
    (void)state;
    struct mu_model *m = model_of(odd_llama(0));
    struct script script;
    struct rank r[MU_MAX_RANKS];
    script_make(m, &script);
    for (int who = 0; who < 2; who++) {
        struct gang g = gang_of(m, &script);
        g.fail_rank = who;
        g.stop_at = 6;
        gang_run(&g, "1@gpu0/1@gpu1", r);
        assert_int_equal(r[who].st, MU_EPROTO);
        assert_int_equal(r[1 - who].st, MU_EPEER);
        const char *words =
            who ? "the residual to rank 1: link: rank 1 has left" : "the residual from rank 0: link: rank 0 has left";
        must_say(&r[1 - who], words, words);
        assert_true(r[1 - who].spent_ns < SOON_MS / 4 * MU_MS);
        free(g.logits);
    }
    script_free(&script);
    mu_model_close(m);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_ways), cmocka_unit_test(test_hangs),
                                       cmocka_unit_test(test_leaves)};
    setenv("MUSTER_DEVICE_HOST_LINK", "1", 1);
    setenv("MUSTER_DEVICE_HOST_COUNT", "6", 1);
    if (argc > 1 && strcmp(argv[1], "short") == 0) { /* on the emulated GPU: one model, what has links alone */
        n_way = SHORT_WAYS;
        n_step = 12;
        setenv("MUSTER_CUDA_EMULATED_DEVICES", "6", 1);
        return cmocka_run_group_tests_name("short", ((const struct CMUnitTest[]){tests[0], tests[1]}), NULL, NULL);
    }
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
