/* A step on the wire:
 *
 *   u64 number   u32 n_free   u32 n_page   u32 n_seq   u32 n_tok
 *   n_free × u32 slot
 *   n_page × { u32 slot, u32 page }
 *   n_seq  × { u32 slot, u32 pos0, u32 n_tok, u8 out, u8 far, f32 temperature, u32 top_k, f32 top_p, u64 seed,
 *             u16 adapter, f32 adapter_scale }
 *   n_tok  × i32 id, sequence after sequence (so tok_off is not sent)
 *
 * What decoding has accepted cannot make the pass read or write out of bounds; whether a slot has pages enough is for
 * kv.c, which holds the tables. */
#include "shard/step.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "base/alloc.h"

enum mu_status mu_step_create(const struct mu_serving *serving, struct mu_step **step_out, struct mu_err *err)
{
    size_t n_slot = (size_t)serving->n_slot, n_page = serving->n_page, n_tok = (size_t)serving->step_tokens;
    size_t seq_bytes, page_bytes, total = sizeof(struct mu_step);
    struct mu_step *step = NULL;
    if (serving->n_slot > 0 && serving->step_tokens > 0 &&
        mu_mul_size(n_slot, sizeof(struct mu_step_seq) + sizeof(uint32_t), &seq_bytes) &&
        mu_mul_size(n_page, sizeof(struct mu_step_page), &page_bytes) && mu_add_size(total, seq_bytes, &total) &&
        mu_add_size(total, page_bytes, &total) && mu_add_size(total, n_tok * sizeof(int32_t), &total))
        step = mu_calloc(1, total);
    if (!step)
        return mu_fail(err, MU_ENOMEM, "no memory for a step of %d slots, %u pages and %d tokens", serving->n_slot,
                       serving->n_page, serving->step_tokens);
    step->seq = (struct mu_step_seq *)(step + 1); /* the widest alignment first */
    step->page = (struct mu_step_page *)(step->seq + n_slot);
    step->free_slot = (uint32_t *)(step->page + n_page);
    step->ids = (int32_t *)(step->free_slot + n_slot);
    *step_out = step;
    return MU_OK;
}

void mu_step_encode(const struct mu_step *step, struct mu_writer *w)
{
    mu_write_u64(w, step->number);
    mu_write_u32(w, step->n_free);
    mu_write_u32(w, step->n_page);
    mu_write_u32(w, step->n_seq);
    mu_write_u32(w, step->n_tok);
    for (uint32_t i = 0; i < step->n_free; i++) mu_write_u32(w, step->free_slot[i]);
    for (uint32_t i = 0; i < step->n_page; i++) {
        mu_write_u32(w, step->page[i].slot);
        mu_write_u32(w, step->page[i].page);
    }
    for (uint32_t i = 0; i < step->n_seq; i++) {
        const struct mu_step_seq *q = &step->seq[i];
        mu_write_u32(w, q->slot);
        mu_write_u32(w, q->pos0);
        mu_write_u32(w, q->n_tok);
        mu_write_u8(w, q->out);
        mu_write_u8(w, q->far);
        mu_write_f32(w, q->temperature);
        mu_write_u32(w, q->top_k);
        mu_write_f32(w, q->top_p);
        mu_write_u64(w, q->seed);
        mu_write_u16(w, q->adapter);
        mu_write_f32(w, q->adapter_scale);
    }
    for (uint32_t i = 0; i < step->n_tok; i++) mu_write_i32(w, step->ids[i]);
}

static enum mu_status field_fail(struct mu_err *err, const struct mu_step *step, const char *field, uint64_t value,
                                 uint64_t limit)
{
    return mu_fail(err, MU_EPROTO, "step %llu: %s is %llu, expected at most %llu", (unsigned long long)step->number,
                   field, (unsigned long long)value, (unsigned long long)limit);
}

static enum mu_status seq_decode(struct mu_reader *r, const struct mu_serving *serving, const struct mu_step *step,
                                 uint32_t at, uint32_t tok_off, struct mu_step_seq *seq_out, struct mu_err *err)
{
    struct mu_step_seq q = {.tok_off = tok_off};
    q.slot = mu_read_u32(r);
    q.pos0 = mu_read_u32(r);
    q.n_tok = mu_read_u32(r);
    q.out = mu_read_u8(r);
    q.far = mu_read_u8(r);
    q.temperature = mu_read_f32(r);
    q.top_k = mu_read_u32(r);
    q.top_p = mu_read_f32(r);
    q.seed = mu_read_u64(r);
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
    uint32_t most = n_ctx - q.pos0 < step->n_tok - tok_off ? n_ctx - q.pos0 : step->n_tok - tok_off;
    if (q.n_tok > most) return field_fail(err, step, "a sequence's token count", q.n_tok, most);
    if (q.far > 1) return field_fail(err, step, "a sequence's mark of length", q.far, 1);
    if (q.out >= MU_OUT_COUNT) return field_fail(err, step, "a sequence's output kind", q.out, MU_OUT_COUNT - 1);
    if (!(isfinite(q.temperature) && q.temperature >= 0.0f))
        return mu_fail(err, MU_EPROTO, "step %llu: slot %u: the temperature is %g, expected 0 or more",
                       (unsigned long long)step->number, q.slot, (double)q.temperature);
    if (!(q.top_p > 0.0f && q.top_p <= 1.0f))
        return mu_fail(err, MU_EPROTO, "step %llu: slot %u: top_p is %g, expected a number in (0, 1]",
                       (unsigned long long)step->number, q.slot, (double)q.top_p);
    if (q.adapter > (uint32_t)serving->n_adapter)
        return field_fail(err, step, "a sequence's adapter", q.adapter, (uint64_t)serving->n_adapter);
    if (!isfinite(q.adapter_scale))
        return mu_fail(err, MU_EPROTO, "step %llu: slot %u: the scale of its adapter is not finite",
                       (unsigned long long)step->number, q.slot);
    *seq_out = q;
    return MU_OK;
}

static enum mu_status step_body_decode(struct mu_reader *r, const struct mu_serving *serving, int n_vocab,
                                       struct mu_step *step, struct mu_err *err)
{
    uint32_t n_slot = (uint32_t)serving->n_slot;
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
    uint32_t tok = 0;
    for (uint32_t i = 0; i < step->n_seq; i++) {
        enum mu_status st = seq_decode(r, serving, step, i, tok, &step->seq[i], err);
        if (st != MU_OK) return st;
        tok += step->seq[i].n_tok;
    }
    if (tok != step->n_tok)
        return mu_fail(err, MU_EPROTO, "step %llu: %u tokens announced, but its sequences have %u",
                       (unsigned long long)step->number, step->n_tok, tok);
    for (uint32_t i = 0; i < step->n_tok; i++) {
        int32_t id = step->ids[i] = mu_read_i32(r);
        if (id < 0 || id >= n_vocab)
            return mu_fail(err, MU_EPROTO, "step %llu: token id %d, expected 0 … %d", (unsigned long long)step->number,
                           id, n_vocab - 1);
    }
    return MU_OK;
}

enum mu_status mu_step_decode(struct mu_reader *r, const struct mu_serving *serving, int n_vocab,
                              struct mu_step *step_out, struct mu_err *err)
{
    enum { SEQ_BYTES = 4 + 4 + 4 + 1 + 1 + 4 + 4 + 4 + 8 + 2 + 4 };
    struct mu_step *step = step_out;
    step->number = mu_read_u64(r);
    step->n_free = mu_read_u32(r);
    step->n_page = mu_read_u32(r);
    step->n_seq = mu_read_u32(r);
    step->n_tok = mu_read_u32(r);
    enum mu_status st = MU_OK;
    if (!r->ok)
        st = mu_fail(err, MU_EPROTO, "a step's header is cut short");
    else if (step->n_free > (uint32_t)serving->n_slot)
        st = field_fail(err, step, "the number of freed slots", step->n_free, (uint64_t)serving->n_slot);
    else if (step->n_page > serving->n_page)
        st = field_fail(err, step, "the number of pages", step->n_page, serving->n_page);
    else if (step->n_seq > (uint32_t)serving->n_slot)
        st = field_fail(err, step, "the number of sequences", step->n_seq, (uint64_t)serving->n_slot);
    else if (step->n_tok > (uint32_t)serving->step_tokens)
        st = field_fail(err, step, "the number of tokens", step->n_tok, (uint64_t)serving->step_tokens);
    else if (mu_reader_left(r) <
             4ull * step->n_free + 8ull * step->n_page + SEQ_BYTES * (uint64_t)step->n_seq + 4ull * step->n_tok)
        st = mu_fail(err, MU_EPROTO, "step %llu is cut short", (unsigned long long)step->number);
    else
        st = step_body_decode(r, serving, n_vocab, step, err);
    if (st != MU_OK) step->n_free = step->n_page = step->n_seq = step->n_tok = 0; /* nobody runs half a step */
    return st;
}
