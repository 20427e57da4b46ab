/* KV pages: one pool for all slots, a page table a slot.
 *
 *   data  [layer][KV head][page][keys: 16 positions interleaved | values][…], in f16 or q8_0 (kernels/types.h)
 *
 * A page number means the same page in every layer and head, on every rank. The tables change only through the steps'
 * numbered changes, so all ranks hold the same; two slots may name the same page (a shared prefix). */
#include "base/alloc.h"
#include "shard/device.h"

enum mu_status mu_kv_create(struct mu_shard *s, struct mu_err *err)
{
    struct kv *kv = &s->kv;
    size_t n_layer = (size_t)mu_range_len(s->stage.layers), n_slot = (size_t)s->serving.n_slot, n_entry;
    kv->n_page = s->serving.n_page;
    kv->max_page = ((uint32_t)s->serving.n_ctx + MU_PAGE_TOKENS - 1) / MU_PAGE_TOKENS;
    kv->n_slot = s->serving.n_slot;
    kv->n_head = mu_range_len(s->me.kv_heads);
    kv->d_head = s->cfg.d_head;
    kv->type = s->serving.kv;
    kv->page_bytes = 2 * mu_kv_bytes(kv->type, kv->d_head, MU_PAGE_TOKENS);
    if (!mu_mul_size(kv->page_bytes, kv->n_page, &kv->bytes) ||
        !mu_mul_size(kv->bytes, (size_t)kv->n_head, &kv->bytes) || !mu_mul_size(kv->bytes, n_layer, &kv->bytes) ||
        !mu_mul_size(n_slot, kv->max_page, &n_entry))
        return mu_fail(err, MU_ENOMEM, "%u KV pages are too many: use fewer slots or a shorter context", kv->n_page);
    kv->slot = mu_calloc(n_slot, sizeof *kv->slot);
    kv->pages = mu_calloc(n_entry, sizeof *kv->pages);
    bool here = kv->bytes && s->plan.split.device[s->rank] == MU_ON_CPU;
    if (here) kv->data = mu_pages_alloc(kv->bytes);
    mu_numa_bind(s->numa, kv->data, kv->bytes);
    if (!kv->slot || !kv->pages || (here && !kv->data))
        return mu_fail(err, MU_ENOMEM, "no memory for %u KV pages (%zu MB): use fewer slots or a shorter context",
                       kv->n_page, kv->bytes >> 20);
    for (int i = 0; i < kv->n_slot; i++) kv->slot[i].page = kv->pages + (size_t)i * kv->max_page;
    return MU_OK;
}

void mu_kv_destroy(struct kv *kv)
{
    if (kv->data) mu_pages_free(kv->data, kv->bytes);
    mu_free(kv->slot);
    mu_free(kv->pages);
}

enum mu_status mu_kv_apply(struct kv *kv, const struct mu_step *step, struct mu_err *err)
{
    unsigned long long number = step->number;
    kv->n_set = 0;
    if (step->n_page > kv->n_page)
        return mu_fail(err, MU_EPROTO, "step %llu gives %u pages of %u", number, step->n_page, kv->n_page);
    for (uint32_t i = 0; i < step->n_free; i++) {
        if (step->free_slot[i] >= (uint32_t)kv->n_slot)
            return mu_fail(err, MU_EPROTO, "step %llu frees slot %u of %d", number, step->free_slot[i], kv->n_slot);
        kv->slot[step->free_slot[i]].n_page = 0;
    }
    for (uint32_t i = 0; i < step->n_page; i++) {
        const struct mu_step_page *p = &step->page[i];
        if (p->slot >= (uint32_t)kv->n_slot || p->page >= kv->n_page)
            return mu_fail(err, MU_EPROTO, "step %llu gives page %u of %u to slot %u of %d", number, p->page,
                           kv->n_page, p->slot, kv->n_slot);
        struct slot *slot = &kv->slot[p->slot];
        if (slot->n_page == kv->max_page)
            return mu_fail(err, MU_EPROTO, "step %llu gives slot %u more than the %u pages of a context", number,
                           p->slot, kv->max_page);
        uint32_t at = p->slot * kv->max_page + slot->n_page;
        if (kv->set) kv->set[kv->n_set++] = (struct mu_device_set){at, p->page};
        slot->page[slot->n_page++] = p->page;
    }
    for (uint32_t i = 0; i < step->n_seq; i++) {
        const struct mu_step_seq *q = &step->seq[i];
        if (q->slot >= (uint32_t)kv->n_slot)
            return mu_fail(err, MU_EPROTO, "step %llu runs slot %u of %d", number, q->slot, kv->n_slot);
        uint64_t end = (uint64_t)q->pos0 + q->n_tok, room = (uint64_t)kv->slot[q->slot].n_page * MU_PAGE_TOKENS;
        if (end > room)
            return mu_fail(err, MU_EPROTO, "step %llu runs slot %u up to position %llu, but its pages end at %llu",
                           number, q->slot, (unsigned long long)end, (unsigned long long)room);
    }
    return MU_OK;
}
