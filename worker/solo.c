/* A gang inside one process.
 *
 * An outer pool has one member a rank; what a rank does (create, step, destroy) is one run of that pool, so each rank
 * lives on one thread, which is member 0 of the rank's own pool. With one rank the outer pool is the caller itself
 * and there is no transport.
 *
 *   caller ── outer pool ─┬─ rank 0 ── its pool of n_thread
 *                         ├─ rank 1 ── its pool
 *                         …
 *
 * A rank that fails closes its comm and its links at once, so the others end with an error; the first rank with an error
 * of its own (not about a peer) is the one that is told. After a failed step only close is of use.
 *
 * Ranks wait for each other without a deadline. The caller goes on when the last rank has returned, so to give up a slow
 * one would end nothing earlier, and would lose a gang that is only slow (a later stage waits while the first computes a
 * whole chunk) or that was stopped for a while (Ctrl-Z). Nor is anything left that only a deadline would end: a rank that
 * fails closes, a GPU has a deadline of its own, and a thread that never returns (its file system hangs) holds up the
 * caller either way. */
#include "worker/solo.h"

#include <limits.h>
#include <stdbool.h>
#include <string.h>

#include "base/alloc.h"
#include "base/pool.h"
#include "kernels/kernels.h"
#include "shard/adjust.h"
#include "transport/comm.h"
#include "worker/device_link.h"
#include "worker/rank.h"
#include "worker/seat.h"
#include "worker/shard_comm.h"

struct solo_rank {
    struct mu_seat seat;
    struct mu_comm *comm;
    struct mu_shard_link *link;
    struct mu_shard *shard;
    struct mu_step_result result;
    enum mu_status st;
    struct mu_err err;
};

struct solo_slot {
    uint32_t position, n_page;
    uint32_t n_window; /* places whose window page the ranks know */
    bool dirty;        /* to be freed by the next step */
    bool far;          /* turns by the long factors */
    uint16_t adapter;
    float adapter_scale;
    const struct mu_adjusts *adjusts; /* may be NULL, as the next */
    const uint8_t *mask;
};

struct mu_solo {
    struct mu_solo_options opt;
    struct mu_plan plan;
    struct mu_serving serving;
    struct mu_pool *outer;
    struct solo_rank *rank;
    struct solo_slot *slot;
    uint32_t **page_of; /* [slot]: its pages */
    uint32_t *pages;    /* backing of page_of */
    int32_t *ids;       /* [slot][n_ctx], where the model has two sets of rotation factors; else NULL */
    uint32_t *free_page;
    uint32_t n_free_page, max_page;
    uint32_t each; /* window pages of a slot: those from slot · each on. 0: layers with a window have no others */
    struct mu_step *step;
    uint64_t number;
    struct mu_topo *topo; /* before any thread was bound */
    const struct mu_step *running;
};

/* ---- what a rank does ---- */

/* It has failed: wakes those that wait for it. */
static void rank_leave(struct solo_rank *r)
{
    if (!r->comm) return;
    if (r->shard) mu_shard_leave(r->shard);
    mu_shard_link_destroy(r->link);
    r->link = NULL;
    mu_comm_close(r->comm);
    r->comm = NULL;
}

static void rank_create(void *arg, int member, int n_member)
{
    struct mu_solo *s = arg;
    struct solo_rank *r = &s->rank[member];
    struct mu_shard_options opt = {.model = s->opt.model, .plan = &s->plan, .rank = member, .serving = s->serving};
    opt.adapters = s->opt.adapters;
    opt.slow_links = s->opt.slow_links;
    struct mu_device_link_ids links = {0};
    (void)n_member;
    if (member == 0) {
        opt.load_progress = s->opt.load_progress;
        opt.load_ctx = s->opt.load_ctx;
    }
    MU_TRY(r->st, mu_seat_open(s->topo, &s->plan.split, member, s->opt.n_thread, s->opt.pin, &r->seat, &r->err), fail);
    if (r->comm) MU_TRY(r->st, mu_shard_link_create(r->comm, &s->plan, &r->link, &opt.comm, &r->err), fail);
    if (r->comm) MU_TRY(r->st, mu_device_link_agree(r->comm, &s->plan, member, NULL, &links, &r->err), fail);
    mu_device_link_use(&links, &opt);
    opt.pool = r->seat.pool;
    opt.numa = r->seat.numa;
    opt.device_timeout_ms = mu_rank_wait_ms(s->opt.model, &s->plan.split, &s->serving, s->opt.n_thread);
    MU_TRY(r->st, mu_shard_create(&opt, &r->shard, &r->err), fail);
    return;
fail:
    rank_leave(r);
}

static void rank_destroy(void *arg, int member, int n_member)
{
    struct solo_rank *r = &((struct mu_solo *)arg)->rank[member];
    (void)n_member;
    mu_shard_destroy(r->shard);
    if (r->comm) mu_shard_link_destroy(r->link);
    mu_comm_close(r->comm);
    mu_seat_close(&r->seat);
}

static void rank_step(void *arg, int member, int n_member)
{
    struct mu_solo *s = arg;
    struct solo_rank *r = &s->rank[member];
    (void)n_member;
    if (!r->shard || (s->plan.n_rank > 1 && !r->comm)) {
        r->st = mu_fail(&r->err, MU_EPEER, "rank %d has failed before", member);
        return;
    }
    r->st = mu_shard_step(r->shard, s->running, &r->result, &r->err);
    if (r->st != MU_OK) rank_leave(r);
}

/* The error to tell: of a rank that failed by itself, else of any. */
static enum mu_status ranks_status(const struct mu_solo *s, struct mu_err *err)
{
    const struct solo_rank *told = NULL;
    for (int i = 0; i < s->plan.n_rank; i++) {
        const struct solo_rank *r = &s->rank[i];
        if (r->st == MU_OK) continue;
        bool of_peer = r->st == MU_EPEER || r->st == MU_ETIMEOUT || r->st == MU_EPROTO;
        if (!told) told = r;
        if (!of_peer) {
            told = r;
            break;
        }
    }
    if (!told) return MU_OK;
    if (err) *err = told->err;
    return told->st;
}

/* ---- open and close ---- */

static enum mu_status slots_create(struct mu_solo *s, struct mu_err *err)
{
    size_t n_slot = (size_t)s->serving.n_slot, n_entry;
    s->max_page = ((uint32_t)s->serving.n_ctx + MU_PAGE_TOKENS - 1) / MU_PAGE_TOKENS;
    if (!mu_mul_size(n_slot, s->max_page, &n_entry) || n_entry > UINT32_MAX)
        return mu_fail(err, MU_EINVAL, "%d slots of %d tokens are too many", s->serving.n_slot, s->serving.n_ctx);
    if (s->serving.n_page == 0) s->serving.n_page = (uint32_t)n_entry;
    uint32_t n_window = mu_plan_window_pages(&s->serving);
    if (n_window) { /* where there are too few for all slots, the first ones have them */
        uint32_t span = mu_plan_window_span(&s->serving);
        s->each = n_window / (uint32_t)n_slot > span ? n_window / (uint32_t)n_slot : span;
    }
    s->slot = mu_calloc(n_slot, sizeof *s->slot);
    s->page_of = mu_calloc(n_slot, sizeof *s->page_of);
    s->pages = mu_calloc(n_entry, sizeof *s->pages);
    s->free_page = mu_calloc(s->serving.n_page, sizeof *s->free_page);
    if (!s->slot || !s->page_of || !s->pages || !s->free_page)
        return mu_fail(err, MU_ENOMEM, "no memory for %d slots of %d tokens", s->serving.n_slot, s->serving.n_ctx);
    if (s->opt.model->rope_long) {
        s->ids = mu_calloc(n_slot * (size_t)s->serving.n_ctx, sizeof *s->ids);
        if (!s->ids)
            return mu_fail(err, MU_ENOMEM, "no memory for %d slots of %d tokens", s->serving.n_slot, s->serving.n_ctx);
    }
    for (size_t i = 0; i < n_slot; i++) s->page_of[i] = s->pages + i * s->max_page;
    while (s->n_free_page < s->serving.n_page) {
        s->free_page[s->n_free_page] = s->serving.n_page - 1 - s->n_free_page; /* page 0 is taken first */
        s->n_free_page++;
    }
    return MU_OK;
}

enum mu_status mu_solo_open(const struct mu_solo_options *opt, struct mu_solo **solo_out, struct mu_err *err)
{
    struct mu_solo *s = mu_calloc(1, sizeof *s);
    enum mu_status st;
    if (!s) return mu_fail(err, MU_ENOMEM, "no memory for a gang in this process");
    s->opt = *opt;
    s->serving = opt->serving;
    s->serving.n_adapter = opt->adapters ? opt->adapters->n : 0;
    s->serving.lora_rank = opt->adapters ? opt->adapters->max_rank : 0;
    s->serving.n_thread = opt->n_thread;
    if (opt->n_thread < 1 || opt->serving.n_ctx < 1 || opt->serving.n_slot < 1 || opt->serving.step_tokens < 1) {
        st = mu_fail(err, MU_EINVAL, "threads %d, context %d, slots %d, tokens a step %d: each must be at least 1",
                     opt->n_thread, opt->serving.n_ctx, opt->serving.n_slot, opt->serving.step_tokens);
        goto fail;
    }
    if (!mu_kernels()) MU_TRY(st, mu_kernels_init(NULL, err), fail);
    MU_TRY(st, mu_plan_build(opt->model, &opt->split, &s->plan, err), fail);
    MU_TRY(st, slots_create(s, err), fail);
    MU_TRY(st, mu_step_create(&s->serving, opt->model->cfg.n_vocab, &s->step, err), fail);
    int n_rank = s->plan.n_rank;
    s->topo = mu_malloc(sizeof *s->topo);
    if (!s->topo) {
        st = mu_fail(err, MU_ENOMEM, "out of memory for the machine's topology");
        goto fail;
    }
    MU_TRY(st, mu_topo_read(s->topo, err), fail);
    s->rank = mu_calloc((size_t)n_rank, sizeof *s->rank);
    if (!s->rank) {
        st = mu_fail(err, MU_ENOMEM, "no memory for %d ranks", n_rank);
        goto fail;
    }
    struct mu_pool_options outer = {.n_threads = n_rank, .thread_init = mu_fp_env_init};
    MU_TRY(st, mu_pool_create(&outer, &s->outer, err), fail);
    if (n_rank > 1) {
        struct mu_comm *comms[MU_MAX_RANKS];
        MU_TRY(st, mu_comm_local_open(n_rank, comms, err), fail);
        for (int i = 0; i < n_rank; i++) {
            s->rank[i].comm = comms[i];
            comms[i]->timeout_ms = INT_MAX; /* none */
        }
    }
    mu_pool_run(s->outer, rank_create, s);
    MU_TRY(st, ranks_status(s, err), fail);
    *solo_out = s;
    return MU_OK;
fail:
    mu_solo_close(s);
    return st;
}

void mu_solo_close(struct mu_solo *s)
{
    if (!s) return;
    if (s->outer) mu_pool_run(s->outer, rank_destroy, s);
    mu_pool_destroy(s->outer);
    mu_free(s->rank);
    mu_free(s->slot);
    mu_free(s->page_of);
    mu_free(s->pages);
    mu_free(s->free_page);
    mu_free(s->ids);
    mu_free(s->step);
    mu_free(s->topo);
    mu_free(s);
}

const struct mu_plan *mu_solo_plan(const struct mu_solo *s)
{
    return &s->plan;
}
const struct mu_serving *mu_solo_serving(const struct mu_solo *s)
{
    return &s->serving;
}
void mu_solo_adapt(struct mu_solo *s, int slot, int adapter, float scale)
{
    s->slot[slot].adapter = (uint16_t)adapter;
    s->slot[slot].adapter_scale = scale;
}
void mu_solo_constrain(struct mu_solo *s, int slot, const struct mu_adjusts *adjusts, const uint8_t *mask)
{
    s->slot[slot].adjusts = adjusts;
    s->slot[slot].mask = mask;
}
uint32_t mu_solo_position(const struct mu_solo *s, int slot)
{
    return s->slot[slot].position;
}

struct mu_pool *mu_solo_pool(struct mu_solo *s)
{
    return s->rank[0].seat.pool;
}

struct mu_shard *mu_solo_shard(struct mu_solo *s, int rank)
{
    return s->rank[rank].shard;
}

/* ---- steps ---- */

enum mu_status mu_solo_step(struct mu_solo *s, const struct mu_step *step, struct mu_step_result *result_out,
                            struct mu_err *err)
{
    s->running = step;
    mu_pool_run(s->outer, rank_step, s);
    enum mu_status st = ranks_status(s, err);
    if (st == MU_OK) *result_out = s->rank[s->plan.leader].result;
    return st;
}

void mu_solo_reset(struct mu_solo *s, int slot)
{
    struct solo_slot *q = &s->slot[slot];
    while (q->n_page > 0) s->free_page[s->n_free_page++] = s->page_of[slot][--q->n_page];
    q->position = q->n_window = 0;
    q->far = false;
    q->dirty = true;
}

uint32_t mu_solo_truncate(struct mu_solo *s, int slot, uint32_t n)
{
    struct solo_slot *q = &s->slot[slot];
    if (n >= q->position) return q->position;
    q->position = n;
    /* The pages of the last `each` places are as they were. */
    if (s->each && mu_plan_window_first(s->serving.window, n) + s->each < q->n_window) mu_solo_reset(s, slot);
    if (q->far && n <= (uint32_t)s->opt.model->cfg.n_ctx_short) mu_solo_reset(s, slot);
    return q->position;
}

static void step_begin(struct mu_solo *s)
{
    struct mu_step *step = s->step;
    step->number = ++s->number;
    mu_step_clear(step);
    for (int i = 0; i < s->serving.n_slot; i++) {
        if (s->slot[i].dirty) step->free_slot[step->n_free++] = (uint32_t)i;
        s->slot[i].dirty = false;
    }
}

/* Window pages up to position end of a slot: place by place in turn, so that each lasts as long as a step sees it. */
static enum mu_status windows_add(struct mu_solo *s, int slot, uint64_t end, struct mu_err *err)
{
    struct solo_slot *q = &s->slot[slot];
    uint32_t n_window = mu_plan_window_pages(&s->serving), before = (uint32_t)slot * s->each;
    if (before + s->each > n_window)
        return mu_fail(err, MU_ELIMIT, "all %u window pages are taken: use fewer sequences or more pages", n_window);
    for (; s->each && (uint64_t)q->n_window * MU_PAGE_TOKENS < end; q->n_window++)
        s->step->window[s->step->n_window++] =
            (struct mu_step_window){.slot = (uint32_t)slot, .at = q->n_window, .page = before + q->n_window % s->each};
    return MU_OK;
}

/* Appends n ids of a slot, and the pages that they need. prompt: they are of one. */
static enum mu_status step_add(struct mu_solo *s, int slot, const int32_t *ids, uint32_t n, bool prompt,
                               enum mu_out_kind out, const struct mu_sampling *sampling, struct mu_err *err)
{
    struct mu_step *step = s->step;
    struct solo_slot *q = &s->slot[slot];
    uint64_t end = (uint64_t)q->position + n;
    if (end > (uint64_t)s->serving.n_ctx)
        return mu_fail(err, MU_ELIMIT, "the sequence has %llu tokens, but the context only %d: use a larger one",
                       (unsigned long long)end, s->serving.n_ctx);
    while ((uint64_t)q->n_page * MU_PAGE_TOKENS < end) {
        if (s->n_free_page == 0)
            return mu_fail(err, MU_ELIMIT, "all %u KV pages are taken: use fewer sequences or more pages",
                           s->serving.n_page);
        uint32_t page = s->free_page[--s->n_free_page];
        s->page_of[slot][q->n_page++] = page;
        step->page[step->n_page++] = (struct mu_step_page){(uint32_t)slot, page};
    }
    enum mu_status st = windows_add(s, slot, end, err);
    if (st != MU_OK) return st;
    struct mu_step_seq *seq = &step->seq[step->n_seq++];
    *seq = (struct mu_step_seq){.slot = (uint32_t)slot,
                                .pos0 = q->position,
                                .n_tok = n,
                                .tok_off = step->n_tok,
                                .out = (uint8_t)out,
                                .far = q->far,
                                .rough = prompt && s->serving.rough,
                                .adapter = q->adapter,
                                .adapter_scale = q->adapter_scale};
    if (sampling) seq->sampling = *sampling;
    if (out == MU_OUT_SAMPLE) {
        mu_adjusts_put(q->adjusts, step, seq);
        if (q->mask) memcpy(mu_step_mask(step, seq), q->mask, step->mask_bytes);
    }
    memcpy(step->ids + step->n_tok, ids, n * sizeof *ids);
    if (s->ids) memcpy(s->ids + (size_t)slot * (size_t)s->serving.n_ctx + q->position, ids, n * sizeof *ids);
    step->n_tok += n;
    return MU_OK;
}

/* Before a slot's sequence becomes n ids long: where it outgrows the model's short context, what it has is computed
 * again. */
static enum mu_status slot_grow(struct mu_solo *s, int slot, uint64_t n, struct mu_err *err)
{
    struct solo_slot *q = &s->slot[slot];
    if (!s->ids || q->far || n <= (uint64_t)s->opt.model->cfg.n_ctx_short) return MU_OK;
    uint32_t old = q->position;
    const int32_t *ids = s->ids + (size_t)slot * (size_t)s->serving.n_ctx;
    q->far = true;
    q->position = 0;
    while (q->position < old) {
        uint32_t left = old - q->position, most = (uint32_t)s->serving.step_tokens, chunk = left < most ? left : most;
        struct mu_step_result result;
        step_begin(s);
        enum mu_status st = step_add(s, slot, ids + q->position, chunk, false, MU_OUT_NONE, NULL, err);
        if (st == MU_OK) st = mu_solo_step(s, s->step, &result, err);
        if (st != MU_OK) return st;
        q->position += chunk;
    }
    return MU_OK;
}

static enum mu_status slot_check(const struct mu_solo *s, int slot, struct mu_err *err)
{
    if (slot >= 0 && slot < s->serving.n_slot) return MU_OK;
    return mu_fail(err, MU_EINVAL, "slot %d of %d", slot, s->serving.n_slot);
}

enum mu_status mu_solo_feed(struct mu_solo *s, int slot, const int32_t *ids, size_t n, enum mu_out_kind out,
                            const struct mu_sampling *sampling,
                            void (*on_logits)(const float *row, uint32_t position, void *ctx), void *ctx,
                            int32_t *id_out, struct mu_err *err)
{
    enum mu_status st = slot_check(s, slot, err);
    if (st != MU_OK) return st;
    if (n > (size_t)s->serving.n_ctx - s->slot[slot].position)
        return mu_fail(err, MU_ELIMIT, "the sequence has %zu tokens, but the context only %d: use a larger one",
                       n + s->slot[slot].position, s->serving.n_ctx);
    st = slot_grow(s, slot, n + s->slot[slot].position, err);
    if (st != MU_OK) return st;
    for (size_t at = 0; at < n;) {
        uint32_t chunk = (uint32_t)s->serving.step_tokens;
        if (chunk > n - at) chunk = (uint32_t)(n - at);
        bool last = at + chunk == n;
        struct mu_step_result result;
        uint32_t pos0 = s->slot[slot].position;
        step_begin(s);
        st = step_add(s, slot, ids + at, chunk, true, last || out == MU_OUT_ALL ? out : MU_OUT_NONE, sampling, err);
        if (st == MU_OK) st = mu_solo_step(s, s->step, &result, err);
        if (st != MU_OK) return st;
        s->slot[slot].position += chunk;
        for (int i = 0; on_logits && i < result.n_logit_row; i++)
            on_logits(result.logits + (size_t)i * (size_t)s->opt.model->cfg.n_vocab,
                      pos0 + chunk - (uint32_t)result.n_logit_row + (uint32_t)i, ctx);
        if (last && id_out) *id_out = result.id[0];
        at += chunk;
    }
    return MU_OK;
}

enum mu_status mu_solo_decode(struct mu_solo *s, const int *slots, const int32_t *ids, int n,
                              const struct mu_sampling *sampling, int32_t *next_out, struct mu_err *err)
{
    struct mu_step_result result;
    if (n > s->serving.step_tokens || n > s->serving.n_slot)
        return mu_fail(err, MU_EINVAL, "%d sequences in a step of %d slots and %d tokens", n, s->serving.n_slot,
                       s->serving.step_tokens);
    for (int i = 0; i < n; i++) {
        enum mu_status st = slot_check(s, slots[i], err);
        if (st == MU_OK) st = slot_grow(s, slots[i], (uint64_t)s->slot[slots[i]].position + 1, err);
        if (st != MU_OK) return st;
    }
    step_begin(s);
    for (int i = 0; i < n; i++) {
        enum mu_status st = step_add(s, slots[i], &ids[i], 1, false, MU_OUT_SAMPLE, sampling, err);
        if (st != MU_OK) return st;
    }
    enum mu_status st = mu_solo_step(s, s->step, &result, err);
    if (st != MU_OK) return st;
    for (int i = 0; i < n; i++) {
        s->slot[slots[i]].position++;
        next_out[i] = result.id[i];
    }
    return MU_OK;
}

enum mu_status mu_solo_guess(struct mu_solo *s, int slot, const int32_t *ids, int n, const struct mu_sampling *sampling,
                             int32_t *next_out, int *n_out, struct mu_err *err)
{
    struct mu_step_result result;
    enum mu_status st = slot_check(s, slot, err);
    if (st != MU_OK) return st;
    struct solo_slot *q = &s->slot[slot];
    uint32_t pos = q->position, most = (uint32_t)s->opt.model->cfg.n_ctx_short;
    if (n < 1 || n > s->serving.step_tokens || n > s->serving.n_slot)
        return mu_fail(err, MU_EINVAL, "%d guesses in a step of %d slots and %d tokens", n - 1, s->serving.n_slot,
                       s->serving.step_tokens);
    if ((st = slot_grow(s, slot, (uint64_t)pos + 1, err)) != MU_OK) return st;
    if (!q->far && (uint32_t)n > most - pos) n = (int)(most - pos);
    step_begin(s);
    for (int i = 0; i < n && st == MU_OK; i++) {
        st = step_add(s, slot, &ids[i], 1, false, MU_OUT_SAMPLE, sampling, err);
        q->position++;
    }
    if (st == MU_OK) st = mu_solo_step(s, s->step, &result, err);
    q->position = pos;
    if (st != MU_OK) return st;
    int k = 0;
    for (;; k++) {
        next_out[k] = result.id[k];
        if (k + 1 == n || result.id[k] != ids[k + 1]) break;
    }
    *n_out = k + 1;
    q->position = pos + (uint32_t)*n_out;
    return MU_OK;
}
