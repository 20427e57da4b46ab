/* A step on the wire:
 *
 *   u64 number   u32 n_free   u32 n_page   u32 n_window   u32 n_seq   u32 n_tok   u32 n_adjust   u32 n_mask
 *   n_free × u32 slot
 *   n_page × { u32 slot, u32 page }
 *   n_window × { u32 slot, u32 at, u32 page }
 *   n_seq  × { u32 slot, u32 pos0, u32 n_tok, u8 out, u8 far, u8 rough, u8 masked, u32 n_adjust, sampling, u16 adapter,
 *             f32 adapter_scale }
 *   sampling { f32 temperature, u32 top_k, f32 top_p, f32 min_p, f32 typical_p, f32 repeat_penalty,
 *             f32 presence_penalty, f32 frequency_penalty, u8 logprobs, u8 top_logprobs, u64 seed }
 *   n_tok    × i32 id, sequence after sequence (so tok_off is not sent, and neither is what follows)
 *   n_adjust × { i32 id, f32 bias, u32 n_generated, u8 flags }
 *   n_mask   × u8[n_vocab / 8, rounded up]
 *
 * What decoding has accepted cannot make the pass read or write out of bounds; whether a slot has pages enough is for
 * kv.c, which holds the tables. */
#include "shard/step.h"

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "base/alloc.h"

enum { HEAD_BYTES = 8 + 7 * 4, PAGE_BYTES = 8, WINDOW_BYTES = 12, ADJUST_BYTES = 13 };
enum { SAMPLING_BYTES = 8 * 4 + 2 + 8, SEQ_BYTES = 3 * 4 + 4 + 4 + SAMPLING_BYTES + 2 + 4 };

/* Of each slot what the tokens of a step see, wherever it began. */
uint32_t mu_step_max_window(const struct mu_serving *v)
{
    if (!mu_plan_window_pages(v)) return 0;
    uint64_t n = (uint64_t)v->n_slot * mu_plan_window_span(v);
    return n < UINT32_MAX ? (uint32_t)n : UINT32_MAX;
}

uint32_t mu_step_max_adjust(const struct mu_serving *serving, int n_vocab)
{
    uint32_t most = (uint32_t)serving->n_ctx + MU_STEP_MORE_ADJUSTS;
    return most < (uint32_t)n_vocab ? most : (uint32_t)n_vocab;
}

static size_t mask_bytes_of(int n_vocab)
{
    return ((size_t)n_vocab + 7) / 8;
}

/* Sequences in one step. */
static size_t max_seq(const struct mu_serving *v)
{
    return (size_t)(v->n_slot < v->step_tokens ? v->n_slot : v->step_tokens);
}

/* *total += n · size */
static bool add_product(size_t n, size_t size, size_t *total)
{
    size_t bytes;
    return mu_mul_size(n, size, &bytes) && mu_add_size(*total, bytes, total);
}

size_t mu_step_max_bytes(const struct mu_serving *v, int n_vocab)
{
    size_t total = HEAD_BYTES, n_seq = max_seq(v), per_seq = SEQ_BYTES;
    bool fits = add_product(mu_step_max_adjust(v, n_vocab), ADJUST_BYTES, &per_seq) &&
                mu_add_size(per_seq, mask_bytes_of(n_vocab), &per_seq) && add_product(n_seq, per_seq, &total) &&
                add_product((size_t)v->n_slot, 4, &total) && add_product(v->n_page, PAGE_BYTES, &total) &&
                add_product(mu_step_max_window(v), WINDOW_BYTES, &total) &&
                add_product((size_t)v->step_tokens, 4, &total);
    return fits ? total : SIZE_MAX;
}

enum mu_status mu_step_create(const struct mu_serving *serving, int n_vocab, struct mu_step **step_out,
                              struct mu_err *err)
{
    size_t n_slot = (size_t)serving->n_slot, n_page = serving->n_page, n_tok = (size_t)serving->step_tokens;
    size_t n_window = mu_step_max_window(serving), n_adjust, total = sizeof(struct mu_step);
    struct mu_step *step = NULL;
    if (serving->n_slot > 0 && serving->step_tokens > 0 && n_vocab > 0 &&
        mu_mul_size(max_seq(serving), mu_step_max_adjust(serving, n_vocab), &n_adjust) && n_adjust <= UINT32_MAX &&
        add_product(n_slot, sizeof(struct mu_step_seq) + sizeof(uint32_t), &total) &&
        add_product(n_page, sizeof(struct mu_step_page), &total) &&
        add_product(n_window, sizeof(struct mu_step_window), &total) &&
        add_product(n_adjust, sizeof(struct mu_step_adjust), &total) && add_product(n_tok, sizeof(int32_t), &total) &&
        add_product(n_slot, mask_bytes_of(n_vocab), &total))
        step = mu_calloc(1, total);
    if (!step)
        return mu_fail(err, MU_ENOMEM, "no memory for a step of %d slots, %u pages and %d tokens", serving->n_slot,
                       serving->n_page, serving->step_tokens);
    step->seq = (struct mu_step_seq *)(step + 1); /* the widest alignment first */
    step->page = (struct mu_step_page *)(step->seq + n_slot);
    step->window = (struct mu_step_window *)(step->page + n_page);
    step->adjust = (struct mu_step_adjust *)(step->window + n_window);
    step->free_slot = (uint32_t *)(step->adjust + n_adjust);
    step->ids = (int32_t *)(step->free_slot + n_slot);
    step->mask = (uint8_t *)(step->ids + n_tok);
    step->mask_bytes = mask_bytes_of(n_vocab);
    *step_out = step;
    return MU_OK;
}

void mu_step_clear(struct mu_step *step)
{
    step->n_free = step->n_page = step->n_window = step->n_seq = step->n_tok = 0;
    step->n_adjust = step->n_mask = 0;
}

uint8_t *mu_step_mask(struct mu_step *step, struct mu_step_seq *seq)
{
    if (!seq->mask) seq->mask = ++step->n_mask;
    return step->mask + (size_t)(seq->mask - 1) * step->mask_bytes;
}

static void sampling_encode(const struct mu_sampling *p, struct mu_writer *w)
{
    mu_write_f32(w, p->temperature);
    mu_write_u32(w, p->top_k);
    mu_write_f32(w, p->top_p);
    mu_write_f32(w, p->min_p);
    mu_write_f32(w, p->typical_p);
    mu_write_f32(w, p->repeat_penalty);
    mu_write_f32(w, p->presence_penalty);
    mu_write_f32(w, p->frequency_penalty);
    mu_write_u8(w, p->logprobs);
    mu_write_u8(w, (uint8_t)p->top_logprobs);
    mu_write_u64(w, p->seed);
}

static struct mu_sampling sampling_read(struct mu_reader *r)
{
    struct mu_sampling p = {0};
    p.temperature = mu_read_f32(r);
    p.top_k = mu_read_u32(r);
    p.top_p = mu_read_f32(r);
    p.min_p = mu_read_f32(r);
    p.typical_p = mu_read_f32(r);
    p.repeat_penalty = mu_read_f32(r);
    p.presence_penalty = mu_read_f32(r);
    p.frequency_penalty = mu_read_f32(r);
    p.logprobs = mu_read_u8(r) != 0;
    p.top_logprobs = mu_read_u8(r);
    p.seed = mu_read_u64(r);
    return p;
}

void mu_step_encode(const struct mu_step *step, struct mu_writer *w)
{
    mu_write_u64(w, step->number);
    mu_write_u32(w, step->n_free);
    mu_write_u32(w, step->n_page);
    mu_write_u32(w, step->n_window);
    mu_write_u32(w, step->n_seq);
    mu_write_u32(w, step->n_tok);
    mu_write_u32(w, step->n_adjust);
    mu_write_u32(w, step->n_mask);
    for (uint32_t i = 0; i < step->n_free; i++) mu_write_u32(w, step->free_slot[i]);
    for (uint32_t i = 0; i < step->n_page; i++) {
        mu_write_u32(w, step->page[i].slot);
        mu_write_u32(w, step->page[i].page);
    }
    for (uint32_t i = 0; i < step->n_window; i++) {
        mu_write_u32(w, step->window[i].slot);
        mu_write_u32(w, step->window[i].at);
        mu_write_u32(w, step->window[i].page);
    }
    for (uint32_t i = 0; i < step->n_seq; i++) {
        const struct mu_step_seq *q = &step->seq[i];
        mu_write_u32(w, q->slot);
        mu_write_u32(w, q->pos0);
        mu_write_u32(w, q->n_tok);
        mu_write_u8(w, q->out);
        mu_write_u8(w, q->far);
        mu_write_u8(w, q->rough);
        mu_write_u8(w, q->mask != 0);
        mu_write_u32(w, q->n_adjust);
        sampling_encode(&q->sampling, w);
        mu_write_u16(w, q->adapter);
        mu_write_f32(w, q->adapter_scale);
    }
    for (uint32_t i = 0; i < step->n_tok; i++) mu_write_i32(w, step->ids[i]);
    for (uint32_t i = 0; i < step->n_adjust; i++) {
        mu_write_i32(w, step->adjust[i].id);
        mu_write_f32(w, step->adjust[i].bias);
        mu_write_u32(w, step->adjust[i].n_generated);
        mu_write_u8(w, step->adjust[i].flags);
    }
    for (uint32_t i = 0; i < step->n_seq; i++) /* in the order of their sequences, whoever got his first */
        if (step->seq[i].mask)
            mu_write_bytes(w, step->mask + (size_t)(step->seq[i].mask - 1) * step->mask_bytes, step->mask_bytes);
}

static enum mu_status field_fail(struct mu_err *err, const struct mu_step *step, const char *field, uint64_t value,
                                 uint64_t limit)
{
    return mu_fail(err, MU_EPROTO, "step %llu: %s is %llu, expected at most %llu", (unsigned long long)step->number,
                   field, (unsigned long long)value, (unsigned long long)limit);
}

struct cursor { /* what the sequences so far have of the step's lists */
    uint32_t tok, adjust, mask;
};

static enum mu_status seq_decode(struct mu_reader *r, const struct mu_serving *serving, const struct mu_step *step,
                                 uint32_t max_adjust, uint32_t at, struct cursor *c, struct mu_step_seq *seq_out,
                                 struct mu_err *err)
{
    struct mu_step_seq q = {.tok_off = c->tok, .adjust_off = c->adjust};
    struct mu_err why = MU_ERR_INIT;
    q.slot = mu_read_u32(r);
    q.pos0 = mu_read_u32(r);
    q.n_tok = mu_read_u32(r);
    q.out = mu_read_u8(r);
    q.far = mu_read_u8(r);
    q.rough = mu_read_u8(r);
    uint8_t masked = mu_read_u8(r);
    q.n_adjust = mu_read_u32(r);
    q.sampling = sampling_read(r);
    q.adapter = mu_read_u16(r);
    q.adapter_scale = mu_read_f32(r);
    uint32_t n_ctx = (uint32_t)serving->n_ctx;
    if (q.slot >= (uint32_t)serving->n_slot)
        return field_fail(err, step, "a sequence's slot", q.slot, (uint64_t)serving->n_slot - 1);
    /* Once, or several times in a row, each going on where the one before it ended. */
    bool goes_on =
        at > 0 && step->seq[at - 1].slot == q.slot && q.pos0 == step->seq[at - 1].pos0 + step->seq[at - 1].n_tok;
    for (uint32_t i = 0; i < at && !goes_on; i++)
        if (step->seq[i].slot == q.slot)
            return mu_fail(err, MU_EPROTO, "step %llu: slot %u is listed twice", (unsigned long long)step->number,
                           q.slot);
    if (q.pos0 >= n_ctx) return field_fail(err, step, "a sequence's first position", q.pos0, n_ctx - 1);
    if (q.n_tok == 0)
        return mu_fail(err, MU_EPROTO, "step %llu: the sequence in slot %u has no tokens",
                       (unsigned long long)step->number, q.slot);
    uint32_t most = n_ctx - q.pos0 < step->n_tok - c->tok ? n_ctx - q.pos0 : step->n_tok - c->tok;
    if (q.n_tok > most) return field_fail(err, step, "a sequence's token count", q.n_tok, most);
    if (q.far > 1) return field_fail(err, step, "a sequence's mark of length", q.far, 1);
    if (q.rough > 1) return field_fail(err, step, "a sequence's mark of roughness", q.rough, 1);
    if (q.out >= MU_OUT_COUNT) return field_fail(err, step, "a sequence's output kind", q.out, MU_OUT_COUNT - 1);
    if (masked > 1) return field_fail(err, step, "a sequence's mark of a mask", masked, 1);
    if (masked > step->n_mask - c->mask)
        return field_fail(err, step, "the number of sequences with a mask", c->mask + 1, step->n_mask);
    most = step->n_adjust - c->adjust < max_adjust ? step->n_adjust - c->adjust : max_adjust;
    if (q.n_adjust > most) return field_fail(err, step, "a sequence's number of adjustments", q.n_adjust, most);
    if (mu_sampling_check(&q.sampling, &why) != MU_OK)
        return mu_fail(err, MU_EPROTO, "step %llu: slot %u: %s", (unsigned long long)step->number, q.slot, why.text);
    if (q.adapter > (uint32_t)serving->n_adapter)
        return field_fail(err, step, "a sequence's adapter", q.adapter, (uint64_t)serving->n_adapter);
    if (!isfinite(q.adapter_scale))
        return mu_fail(err, MU_EPROTO, "step %llu: slot %u: the scale of its adapter is not finite",
                       (unsigned long long)step->number, q.slot);
    c->tok += q.n_tok;
    c->adjust += q.n_adjust;
    c->mask += masked;
    if (masked) q.mask = c->mask;
    *seq_out = q;
    return MU_OK;
}

/* Adjustments of one sequence: ids ascend, so that each is there once and a rank finds its own rows'. */
static enum mu_status adjusts_decode(struct mu_reader *r, int n_vocab, const struct mu_step *step,
                                     const struct mu_step_seq *q, struct mu_err *err)
{
    int32_t last = -1;
    for (uint32_t i = 0; i < q->n_adjust; i++) {
        struct mu_step_adjust *a = &step->adjust[q->adjust_off + i];
        a->id = mu_read_i32(r);
        a->bias = mu_read_f32(r);
        a->n_generated = mu_read_u32(r);
        a->flags = mu_read_u8(r);
        if (a->id <= last || a->id >= n_vocab)
            return mu_fail(err, MU_EPROTO, "step %llu: slot %u: an adjustment of id %d, expected one from %d to %d",
                           (unsigned long long)step->number, q->slot, a->id, last + 1, n_vocab - 1);
        if (!(fabsf(a->bias) <= MU_SAMPLING_MAX_BIAS) || a->flags > (MU_ADJUST_SEEN | MU_ADJUST_FORBID))
            return mu_fail(err, MU_EPROTO, "step %llu: slot %u: id %d has bias %g and flags %u",
                           (unsigned long long)step->number, q->slot, a->id, (double)a->bias, a->flags);
        last = a->id;
    }
    return MU_OK;
}

static enum mu_status sum_fail(struct mu_err *err, const struct mu_step *step, const char *what, uint32_t announced,
                               uint32_t found)
{
    return mu_fail(err, MU_EPROTO, "step %llu: %u %s announced, but its sequences have %u",
                   (unsigned long long)step->number, announced, what, found);
}

static enum mu_status step_body_decode(struct mu_reader *r, const struct mu_serving *serving, int n_vocab,
                                       struct mu_step *step, struct mu_err *err)
{
    uint32_t n_slot = (uint32_t)serving->n_slot, max_adjust = mu_step_max_adjust(serving, n_vocab);
    for (uint32_t i = 0; i < step->n_free; i++) {
        uint32_t slot = step->free_slot[i] = mu_read_u32(r);
        if (slot >= n_slot) return field_fail(err, step, "a freed slot", slot, n_slot - 1);
    }
    for (uint32_t i = 0; i < step->n_page; i++) {
        struct mu_step_page *p = &step->page[i];
        p->slot = mu_read_u32(r);
        p->page = mu_read_u32(r);
        if (p->slot >= n_slot) return field_fail(err, step, "a page's slot", p->slot, n_slot - 1);
        if (p->page >= serving->n_page) return field_fail(err, step, "a page", p->page, serving->n_page - 1);
    }
    uint32_t n_window = mu_plan_window_pages(serving), max_page = ((uint32_t)serving->n_ctx - 1) / MU_PAGE_TOKENS;
    for (uint32_t i = 0; i < step->n_window; i++) {
        struct mu_step_window *p = &step->window[i];
        p->slot = mu_read_u32(r);
        p->at = mu_read_u32(r);
        p->page = mu_read_u32(r);
        if (p->slot >= n_slot) return field_fail(err, step, "a window page's slot", p->slot, n_slot - 1);
        if (p->at > max_page) return field_fail(err, step, "a window page's place", p->at, max_page);
        if (p->page >= n_window) return field_fail(err, step, "a window page", p->page, n_window - 1);
    }
    struct cursor c = {0};
    for (uint32_t i = 0; i < step->n_seq; i++) {
        enum mu_status st = seq_decode(r, serving, step, max_adjust, i, &c, &step->seq[i], err);
        if (st != MU_OK) return st;
    }
    if (c.tok != step->n_tok) return sum_fail(err, step, "tokens", step->n_tok, c.tok);
    if (c.adjust != step->n_adjust) return sum_fail(err, step, "adjustments", step->n_adjust, c.adjust);
    if (c.mask != step->n_mask) return sum_fail(err, step, "masks", step->n_mask, c.mask);
    for (uint32_t i = 0; i < step->n_tok; i++) {
        int32_t id = step->ids[i] = mu_read_i32(r);
        if (id < 0 || id >= n_vocab)
            return mu_fail(err, MU_EPROTO, "step %llu: token id %d, expected 0 … %d", (unsigned long long)step->number,
                           id, n_vocab - 1);
    }
    for (uint32_t i = 0; i < step->n_seq; i++) {
        enum mu_status st = adjusts_decode(r, n_vocab, step, &step->seq[i], err);
        if (st != MU_OK) return st;
    }
    const void *masks = mu_read_bytes(r, step->n_mask * step->mask_bytes);
    if (masks) memcpy(step->mask, masks, step->n_mask * step->mask_bytes);
    return MU_OK;
}

enum mu_status mu_step_decode(struct mu_reader *r, const struct mu_serving *serving, int n_vocab,
                              struct mu_step *step_out, struct mu_err *err)
{
    struct mu_step *step = step_out;
    uint64_t max_adjusts = (uint64_t)max_seq(serving) * mu_step_max_adjust(serving, n_vocab);
    step->number = mu_read_u64(r);
    step->n_free = mu_read_u32(r);
    step->n_page = mu_read_u32(r);
    step->n_window = mu_read_u32(r);
    step->n_seq = mu_read_u32(r);
    step->n_tok = mu_read_u32(r);
    step->n_adjust = mu_read_u32(r);
    step->n_mask = mu_read_u32(r);
    enum mu_status st = MU_OK;
    if (!r->ok)
        st = mu_fail(err, MU_EPROTO, "a step's header is cut short");
    else if (step->n_free > (uint32_t)serving->n_slot)
        st = field_fail(err, step, "the number of freed slots", step->n_free, (uint64_t)serving->n_slot);
    else if (step->n_page > serving->n_page)
        st = field_fail(err, step, "the number of pages", step->n_page, serving->n_page);
    else if (step->n_window > mu_step_max_window(serving))
        st = field_fail(err, step, "the number of window pages", step->n_window, mu_step_max_window(serving));
    else if (step->n_seq > (uint32_t)serving->n_slot)
        st = field_fail(err, step, "the number of sequences", step->n_seq, (uint64_t)serving->n_slot);
    else if (step->n_tok > (uint32_t)serving->step_tokens)
        st = field_fail(err, step, "the number of tokens", step->n_tok, (uint64_t)serving->step_tokens);
    else if (step->n_adjust > max_adjusts)
        st = field_fail(err, step, "the number of adjustments", step->n_adjust, max_adjusts);
    else if (step->n_mask > max_seq(serving))
        st = field_fail(err, step, "the number of masks", step->n_mask, max_seq(serving));
    else if (mu_reader_left(r) < 4ull * step->n_free + (uint64_t)PAGE_BYTES * step->n_page +
                                     (uint64_t)WINDOW_BYTES * step->n_window + (uint64_t)SEQ_BYTES * step->n_seq +
                                     4ull * step->n_tok + (uint64_t)ADJUST_BYTES * step->n_adjust +
                                     step->n_mask * (uint64_t)step->mask_bytes)
        st = mu_fail(err, MU_EPROTO, "step %llu is cut short", (unsigned long long)step->number);
    else
        st = step_body_decode(r, serving, n_vocab, step, err);
    if (st != MU_OK) mu_step_clear(step); /* nobody runs half a step */
    return st;
}
