/* KV pages: a pool for each group of layers (plan.h), and a page table a slot and group.
 *
 *   data  [layer][KV head][page][keys: 16 positions interleaved | values][…], in f16 or q8_0 (kernels/types.h)
 *
 * A page number means the same page in every layer of its group and every head, on every rank. The tables change only
 * through the steps' numbered changes, so all ranks hold the same; two slots may name the same page (a shared prefix).
 *
 * Full pages are a slot's until it is freed. A window page may be given to another slot as soon as no later step of this
 * one sees its positions: a rank has done all that came before. This slot's table still names it then, and nobody looks:
 * attention takes pages from the first one that its queries see (attend.c; on a device the kernels do the same). What a
 * sequence sees without ever having been given it is an error of the leader, found here. */
#include <string.h>

#include "base/alloc.h"
#include "shard/device.h"

/* Offsets of the layers in data, and its size. */
static bool layers_place(struct mu_shard *s, struct kv *kv)
{
    for (int l = 0; l < mu_range_len(s->stage.layers); l++) {
        bool window = kv->n_page[KV_WINDOW] > 0 && mu_config_window(&s->cfg, s->stage.layers.begin + l) > 0;
        size_t bytes;
        kv->layer[l] = (struct kv_layer){window ? KV_WINDOW : KV_FULL, kv->bytes};
        if (!mu_mul_size(kv->page_bytes, kv->n_page[kv->layer[l].group], &bytes) ||
            !mu_mul_size(bytes, (size_t)kv->n_head, &bytes) || !mu_add_size(kv->bytes, bytes, &kv->bytes))
            return false;
    }
    return true;
}

enum mu_status mu_kv_create(struct mu_shard *s, struct mu_err *err)
{
    struct kv *kv = &s->kv;
    size_t n_layer = (size_t)mu_range_len(s->stage.layers), n_slot = (size_t)s->serving.n_slot, n_entry;
    kv->n_page[KV_FULL] = s->serving.n_page;
    kv->n_page[KV_WINDOW] = mu_plan_window_pages(&s->serving);
    kv->window = s->serving.window;
    kv->max_page = ((uint32_t)s->serving.n_ctx + MU_PAGE_TOKENS - 1) / MU_PAGE_TOKENS;
    kv->n_slot = s->serving.n_slot;
    kv->n_head = mu_range_len(s->me.kv_heads);
    kv->d_head = s->cfg.d_head;
    kv->type = s->serving.kv;
    kv->page_bytes = 2 * mu_kv_bytes(kv->type, kv->d_head, MU_PAGE_TOKENS);
    if (kv->n_page[KV_WINDOW] && kv->window < mu_plan_window(s->model))
        return mu_fail(err, MU_EINVAL, "pages for a window of %d tokens, but the model has one of %d", kv->window,
                       mu_plan_window(s->model));
    kv->layer = mu_calloc(n_layer, sizeof *kv->layer);
    if (!kv->layer) return mu_fail(err, MU_ENOMEM, "no memory for %zu layers", n_layer);
    if (!layers_place(s, kv) || !mu_mul_size(n_slot, kv->max_page, &n_entry) ||
        !mu_mul_size(n_entry, kv->n_page[KV_WINDOW] ? KV_GROUPS : 1, &n_entry))
        return mu_fail(err, MU_ENOMEM, "%u KV pages are too many: use fewer slots or a shorter context",
                       kv->n_page[KV_FULL]);
    kv->slot_pages = mu_calloc(n_slot, sizeof *kv->slot_pages);
    kv->table = mu_calloc(n_entry, sizeof *kv->table);
    bool here = kv->bytes && s->plan.split.device[s->rank] == MU_ON_CPU;
    if (here) kv->data = mu_pages_alloc(kv->bytes);
    mu_numa_bind(s->numa, kv->data, kv->bytes);
    if (!kv->slot_pages || !kv->table || (here && !kv->data))
        return mu_fail(err, MU_ENOMEM, "no memory for %u KV pages (%zu MB): use fewer slots or a shorter context",
                       kv->n_page[KV_FULL], kv->bytes >> 20);
    if (kv->n_page[KV_WINDOW])
        memset(mu_kv_table(kv, KV_WINDOW, 0), 0xff, n_slot * kv->max_page * sizeof *kv->table); /* KV_NO_PAGE */
    return MU_OK;
}

void mu_kv_destroy(struct kv *kv)
{
    if (kv->data) mu_pages_free(kv->data, kv->bytes);
    mu_free(kv->layer);
    mu_free(kv->slot_pages);
    mu_free(kv->table);
}

static void slot_free(struct kv *kv, uint32_t slot)
{
    kv->slot_pages[slot] = 0;
    if (kv->n_page[KV_WINDOW])
        memset(mu_kv_table(kv, KV_WINDOW, slot), 0xff, kv->max_page * sizeof *kv->table); /* KV_NO_PAGE */
}

static void page_set(struct kv *kv, enum kv_group group, uint32_t slot, uint32_t at, uint32_t page)
{
    uint32_t *entry = mu_kv_table(kv, group, slot) + at;
    if (kv->set) kv->set[kv->n_set++] = (struct mu_device_set){(uint32_t)(entry - kv->table), page};
    *entry = page;
}

static enum mu_status windows_apply(struct kv *kv, const struct mu_step *step, uint32_t most, struct mu_err *err)
{
    unsigned long long number = step->number;
    if (step->n_window > most)
        return mu_fail(err, MU_EPROTO, "step %llu gives %u window pages, expected at most %u", number, step->n_window,
                       most);
    for (uint32_t i = 0; i < step->n_window; i++) {
        const struct mu_step_window *p = &step->window[i];
        if (p->slot >= (uint32_t)kv->n_slot || p->at >= kv->max_page || p->page >= kv->n_page[KV_WINDOW])
            return mu_fail(err, MU_EPROTO, "step %llu gives window page %u of %u to place %u of %u of slot %u of %d",
                           number, p->page, kv->n_page[KV_WINDOW], p->at, kv->max_page, p->slot, kv->n_slot);
        page_set(kv, KV_WINDOW, p->slot, p->at, p->page);
    }
    return MU_OK;
}

/* Whether the sequence has the window pages that it sees and writes. */
static enum mu_status window_check(const struct kv *kv, const struct mu_step *step, const struct mu_step_seq *q,
                                   struct mu_err *err)
{
    const uint32_t *page = mu_kv_table(kv, KV_WINDOW, q->slot);
    for (uint32_t at = mu_plan_window_first(kv->window, q->pos0); at * MU_PAGE_TOKENS < q->pos0 + q->n_tok; at++)
        if (page[at] == KV_NO_PAGE)
            return mu_fail(err, MU_EPROTO, "step %llu runs slot %u from position %u on, but it has no window page %u",
                           (unsigned long long)step->number, q->slot, q->pos0, at);
    return MU_OK;
}

enum mu_status mu_kv_apply(struct mu_shard *s, const struct mu_step *step, struct mu_err *err)
{
    struct kv *kv = &s->kv;
    unsigned long long number = step->number;
    kv->n_set = 0;
    if (step->n_page > kv->n_page[KV_FULL])
        return mu_fail(err, MU_EPROTO, "step %llu gives %u pages of %u", number, step->n_page, kv->n_page[KV_FULL]);
    for (uint32_t i = 0; i < step->n_free; i++) {
        if (step->free_slot[i] >= (uint32_t)kv->n_slot)
            return mu_fail(err, MU_EPROTO, "step %llu frees slot %u of %d", number, step->free_slot[i], kv->n_slot);
        slot_free(kv, step->free_slot[i]);
    }
    for (uint32_t i = 0; i < step->n_page; i++) {
        const struct mu_step_page *p = &step->page[i];
        if (p->slot >= (uint32_t)kv->n_slot || p->page >= kv->n_page[KV_FULL])
            return mu_fail(err, MU_EPROTO, "step %llu gives page %u of %u to slot %u of %d", number, p->page,
                           kv->n_page[KV_FULL], p->slot, kv->n_slot);
        if (kv->slot_pages[p->slot] == kv->max_page)
            return mu_fail(err, MU_EPROTO, "step %llu gives slot %u more than the %u pages of a context", number,
                           p->slot, kv->max_page);
        page_set(kv, KV_FULL, p->slot, kv->slot_pages[p->slot]++, p->page);
    }
    enum mu_status st = windows_apply(kv, step, mu_step_max_window(&s->serving), err);
    for (uint32_t i = 0; st == MU_OK && i < step->n_seq; i++) {
        const struct mu_step_seq *q = &step->seq[i];
        if (q->slot >= (uint32_t)kv->n_slot)
            return mu_fail(err, MU_EPROTO, "step %llu runs slot %u of %d", number, q->slot, kv->n_slot);
        uint64_t end = (uint64_t)q->pos0 + q->n_tok, room = (uint64_t)kv->slot_pages[q->slot] * MU_PAGE_TOKENS;
        if (end > room)
            return mu_fail(err, MU_EPROTO, "step %llu runs slot %u up to position %llu, but its pages end at %llu",
                           number, q->slot, (unsigned long long)end, (unsigned long long)room);
        if (kv->n_page[KV_WINDOW]) st = window_check(kv, step, q, err);
    }
    return st;
}
