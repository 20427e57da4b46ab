/* Rotation, cache and attention of my heads.
 *
 * An item is (sequence, block of queries, KV head). Where every sequence has one token, an item rotates, stores and
 * attends in one go, since nobody else reads what it wrote. Otherwise all keys and values are stored first.
 *
 * A few long sequences are fewer items than would keep all threads busy to the end: a decode of one with two KV heads
 * has two. They are cut at segments (C5), of which CUT at a time are an item; after a meeting each (sequence, KV head) is
 * merged. What is computed is the same. */
#include <math.h>
#include <string.h>

#include "shard/parts.h"

enum {
    QUERY_ROWS = 96,  /* tokens times heads that the kernels like to have at once */
    QUERY_BLOCK = 24, /* tokens at least: with all groups of heads a multiple of the kernels' blocks of 6 and 8 */
    CUT = 4,          /* segments */
    CUT_FROM = 8,     /* segments of a sequence that is worth it: two meetings are a few µs */
    ITEMS_EACH = 8,   /* with so many items a thread nobody waits for long */
};

/* Blocks of so many tokens, into block0. */
static void blocks_cut(struct mu_shard *s, uint32_t query_block)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < s->step->n_seq; i++) {
        s->block0[i] = n;
        n += (s->step->seq[i].n_tok + query_block - 1) / query_block;
    }
    s->block0[s->step->n_seq] = n;
    s->query_block = query_block;
}

void mu_attend_plan(struct mu_shard *s)
{
    const int n_member = mu_pool_size(s->pool), few_items = ITEMS_EACH * n_member;
    const uint32_t whole = QUERY_ROWS / (uint32_t)(s->cfg.n_head / s->cfg.n_kv_head);
    blocks_cut(s, whole > QUERY_BLOCK ? whole : QUERY_BLOCK);
    if ((int)s->block0[s->step->n_seq] * s->kv.n_head < few_items) blocks_cut(s, QUERY_BLOCK);

    uint32_t n = 0, longest = 0, room = ((uint32_t)s->serving.n_ctx + MU_ATTN_SEGMENT - 1) / MU_ATTN_SEGMENT;
    for (uint32_t i = 0; i < s->step->n_seq; i++) {
        uint32_t len = s->step->seq[i].pos0 / MU_ATTN_SEGMENT + 1;
        s->segment0[i] = n;
        n += len;
        if (len > longest) longest = len;
    }
    s->segment0[s->step->n_seq] = n;
    bool few = s->decode && n_member > 1 && (int)s->step->n_seq * s->kv.n_head < few_items;
    s->n_cut = few && n <= room && longest >= CUT_FROM ? (int)(longest + CUT - 1) / CUT : 0;
}

/* My query heads that read my KV head j. */
static struct mu_range query_heads(const struct mu_shard *s, int j)
{
    int group = s->cfg.n_head / s->cfg.n_kv_head, first = (s->me.kv_heads.begin + j) * group;
    struct mu_range h = {first, first + group};
    if (h.begin < s->me.heads.begin) h.begin = s->me.heads.begin;
    if (h.end > s->me.heads.end) h.end = s->me.heads.end;
    return (struct mu_range){h.begin - s->me.heads.begin, h.end - s->me.heads.begin};
}

/* Heads are normed before they turn (weight NULL: not at all). */
static void head_norm(const struct mu_shard *s, float *v, int n_head, const float *weight)
{
    int d = s->cfg.d_head;
    for (int h = 0; weight && h < n_head; h++, v += d)
        if (!s->k->rms_norm(v, weight, d, s->cfg.norm_eps, v))
            for (int i = 0; i < d; i++) v[i] = NAN;
}

/* NULL where the layer does not turn. */
static const float *turn_of(const struct mu_shard *s, int layer, int t)
{
    return s->layer[layer].rope < 0 ? NULL : mu_rope_at(s, s->layer[layer].rope, t);
}

/* Token t of sequence q: its key of KV head j rotated, key and value stored. */
static void store_one(const struct mu_shard *s, const struct mu_step_seq *q, int layer, int j, int t)
{
    const struct kv *kv = &s->kv;
    size_t stride = (size_t)kv->n_head * (size_t)kv->d_head, at = (size_t)t * stride + (size_t)j * (size_t)kv->d_head;
    uint32_t pos = q->pos0 + ((uint32_t)t - q->tok_off);
    char *page = mu_kv_page(kv, layer, j, q->slot, pos / MU_PAGE_TOKENS);
    const float *turn = turn_of(s, layer, t);
    head_norm(s, s->key + at, 1, s->layer[layer].vec[MU_T_K_NORM]);
    if (turn) s->k->rope(s->key + at, 1, kv->d_head, s->cfg.n_rot, s->model->arch->rope == MU_ROPE_HALVES, turn);
    s->k->kv_store(kv->type, s->key + at, s->value + at, kv->d_head, (int)(pos % MU_PAGE_TOKENS), page,
                   page + kv->page_bytes / 2);
}

static void rotate_queries(const struct mu_shard *s, struct mu_range heads, int layer, int t)
{
    size_t d = (size_t)s->cfg.d_head, stride = (size_t)mu_range_len(s->me.heads) * d;
    float *q = s->q + (size_t)t * stride + (size_t)heads.begin * d;
    head_norm(s, q, mu_range_len(heads), s->layer[layer].vec[MU_T_Q_NORM]);
    const float *turn = turn_of(s, layer, t);
    if (turn)
        s->k->rope(q, mu_range_len(heads), s->cfg.d_head, s->cfg.n_rot, s->model->arch->rope == MU_ROPE_HALVES, turn);
    if (s->cfg.query_scale == 0.0f) return;
    const struct mu_step_seq *seq = &s->step->seq[s->seq_of[t]];
    int pos = (int)(seq->pos0 + ((uint32_t)t - seq->tok_off));
    float scale = mu_query_scale((double)s->cfg.query_scale, s->cfg.n_ctx_orig, pos);
    for (int i = 0; i < mu_range_len(heads) * s->cfg.d_head; i++) q[i] = q[i] * scale;
}

/* Tokens [t, t + n_tok) of sequence q over KV head j; the result is row `to` onwards of attn. */
static struct mu_attn attn_of(const struct run *r, const struct mu_step_seq *q, int layer, int j, int t, int n_tok,
                              int to)
{
    const struct mu_shard *s = r->s;
    const struct kv *kv = &s->kv;
    struct mu_range heads = query_heads(s, j);
    size_t d = (size_t)kv->d_head, stride = (size_t)mu_range_len(s->me.heads) * d;
    const float *sinks = s->layer[layer].vec[MU_T_SINKS];
    return (struct mu_attn){.kv = kv->type,
                            .n_tok = n_tok,
                            .n_rep = mu_range_len(heads),
                            .d_head = kv->d_head,
                            .pos0 = (int)(q->pos0 + ((uint32_t)t - q->tok_off)),
                            .page_tokens = MU_PAGE_TOKENS,
                            .window = s->layer[layer].window,
                            .scale = s->cfg.attn_scale,
                            .softcap = s->cfg.attn_softcap,
                            .sink = sinks ? sinks + s->me.heads.begin + heads.begin : NULL,
                            .q = s->q + (size_t)t * stride + (size_t)heads.begin * d,
                            .q_stride = stride,
                            .out = s->attn + (size_t)to * stride + (size_t)heads.begin * d,
                            .out_stride = stride,
                            .k_page = r->mine->k_page,
                            .v_page = r->mine->v_page};
}

/* My table of pages for the positions [begin, end). */
static void pages_take(const struct run *r, const struct mu_step_seq *q, int layer, int j, uint32_t begin, uint32_t end)
{
    const struct kv *kv = &r->s->kv;
    for (uint32_t p = begin / MU_PAGE_TOKENS; p * MU_PAGE_TOKENS < end; p++) {
        const char *page = mu_kv_page(kv, layer, j, q->slot, p);
        r->mine->k_page[p] = page;
        r->mine->v_page[p] = page + kv->page_bytes / 2;
    }
}

static void attend(const struct run *r, const struct mu_step_seq *q, int layer, int j, int t, int n_tok, int to)
{
    struct mu_attn a = attn_of(r, q, layer, j, t, n_tok, to);
    int first = a.window && a.pos0 >= a.window ? a.pos0 - a.window + 1 : 0;
    pages_take(r, q, layer, j, (uint32_t)first, (uint32_t)(a.pos0 + n_tok));
    r->s->k->attn(&a);
}

/* Sequence i, which has one token, over KV head j, with its segments apart. */
static struct mu_attn attn_cut(const struct run *r, int layer, int i, int j)
{
    const struct mu_shard *s = r->s;
    struct mu_attn a = attn_of(r, &s->step->seq[i], layer, j, i, 1, i);
    size_t before = (size_t)s->segment0[i] * (size_t)mu_range_len(s->me.heads) +
                    (size_t)(s->segment0[i + 1] - s->segment0[i]) * (size_t)query_heads(s, j).begin;
    a.part = s->part + before * (size_t)(a.d_head + 2);
    return a;
}

static void item_cut(const struct run *r, int layer, int item)
{
    const struct mu_shard *s = r->s;
    int j = item % s->kv.n_head, cut = item / s->kv.n_head % s->n_cut, i = item / s->kv.n_head / s->n_cut;
    struct mu_attn a = attn_cut(r, layer, i, j);
    int begin = cut * CUT * MU_ATTN_SEGMENT, end = begin + CUT * MU_ATTN_SEGMENT;
    if (a.window && a.pos0 - a.window + 1 > begin) begin = a.pos0 - a.window + 1;
    if (end > a.pos0 + 1) end = a.pos0 + 1;
    if (begin >= end) return;
    a.seg_begin = cut * CUT;
    a.seg_end = a.seg_begin + CUT;
    pages_take(r, &s->step->seq[i], layer, j, (uint32_t)begin, (uint32_t)end);
    s->k->attn(&a);
}

static void attend_cut(struct run *r, int layer)
{
    const struct mu_shard *s = r->s;
    int begin, end;
    while (mu_run_claim(r, r->n_tok * s->n_cut * s->kv.n_head, 1, 4, &begin, &end))
        for (int item = begin; item < end; item++) {
            item_cut(r, layer, item);
            mu_run_breathe(r);
        }
    mu_run_meet(r);
    while (mu_run_claim(r, r->n_tok * s->kv.n_head, 1, 4, &begin, &end))
        for (int item = begin; item < end; item++) {
            struct mu_attn a = attn_cut(r, layer, item / s->kv.n_head, item % s->kv.n_head);
            s->k->attn_merge(&a);
        }
    mu_run_meet(r);
}

static void item_decode(const struct run *r, int layer, int item)
{
    const struct mu_shard *s = r->s;
    int t = item / s->kv.n_head, j = item % s->kv.n_head; /* sequence i is token i */
    const struct mu_step_seq *q = &s->step->seq[t];
    store_one(s, q, layer, j, t);
    rotate_queries(s, query_heads(s, j), layer, t);
    attend(r, q, layer, j, t, 1, t);
}

/* Blocks of a sequence from its end: the longest first. */
static void item_block(const struct run *r, int layer, int item)
{
    const struct mu_shard *s = r->s;
    uint32_t block = (uint32_t)(item / s->kv.n_head), low = 0, high = s->step->n_seq;
    while (high - low > 1) {
        uint32_t mid = (low + high) / 2;
        if (s->block0[mid] <= block)
            low = mid;
        else
            high = mid;
    }
    const struct mu_step_seq *q = &s->step->seq[low];
    uint32_t from_end = block - s->block0[low], n_block = s->block0[low + 1] - s->block0[low];
    uint32_t begin = (n_block - 1 - from_end) * s->query_block;
    uint32_t n = q->n_tok - begin < s->query_block ? q->n_tok - begin : s->query_block;
    int t = (int)(q->tok_off + begin);
    attend(r, q, layer, item % s->kv.n_head, t, (int)n, t);
}

static void item_live(const struct run *r, int layer, int item)
{
    const struct mu_shard *s = r->s;
    int i = item / s->kv.n_head, t = s->live[i];
    attend(r, &s->step->seq[s->seq_of[t]], layer, item % s->kv.n_head, t, 1, i);
}

static void store_share(struct run *r, int layer)
{
    const struct mu_shard *s = r->s;
    struct mu_range mine = mu_run_share(r, r->n_tok);
    for (int t = mine.begin; t < mine.end; t++) {
        for (int j = 0; j < s->kv.n_head; j++) store_one(s, &s->step->seq[s->seq_of[t]], layer, j, t);
        rotate_queries(s, (struct mu_range){0, mu_range_len(s->me.heads)}, layer, t);
    }
}

void mu_run_attend(struct run *r, int layer, bool last)
{
    struct mu_shard *s = r->s;
    bool prune = last && s->prune;
    int n_item = s->decode ? r->n_tok : prune ? s->n_live : (int)s->block0[s->step->n_seq], begin, end;
    /* a window leaves too little to cut */
    bool cut = s->n_cut > 0 && (!s->layer[layer].window || s->layer[layer].window >= CUT_FROM * MU_ATTN_SEGMENT);
    if (!s->decode || cut) {
        store_share(r, layer);
        mu_run_meet(r);
    }
    if (cut) {
        attend_cut(r, layer);
        return;
    }
    if (prune && r->member == 0) { /* nobody reads the residual before the next meeting */
        size_t d = (size_t)s->cfg.d_model;
        for (int i = 0; i < s->n_live; i++)
            memmove(s->x + (size_t)i * d, s->x + (size_t)s->live[i] * d, d * sizeof *s->x);
    }
    while (mu_run_claim(r, n_item * s->kv.n_head, 1, 4, &begin, &end)) {
        for (int item = begin; item < end; item++) {
            if (s->decode)
                item_decode(r, layer, item);
            else if (prune)
                item_live(r, layer, item);
            else
                item_block(r, layer, item);
            mu_run_breathe(r);
        }
    }
    mu_run_meet(r);
}
