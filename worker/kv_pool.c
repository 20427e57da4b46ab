/* See kv_pool.h. Pages are numbers; everything known of one is in its struct page. */
#include "worker/kv_pool.h"

#include <string.h>

#include "base/alloc.h"

struct page {
    uint32_t n_holder;
    uint32_t next;         /* of its bucket; published ones only */
    uint32_t older, newer; /* of the cached ones, MU_KV_NOTHING at the ends */
    uint64_t identity;     /* 0: private or free */
    uint64_t parent;
    struct mu_kv_kind kind;
    int32_t ids[MU_PAGE_TOKENS];
};

struct mu_kv_pool {
    struct page *page; /* [n_page] */
    uint32_t n_page;
    uint32_t *free; /* a stack */
    uint32_t n_free, n_cached;
    uint32_t oldest, newest; /* cached */
    uint32_t *bucket;        /* [n_bucket], a power of two */
    uint32_t n_bucket;
    uint64_t next_identity;
};

enum mu_status mu_kv_pool_create(uint32_t n_page, struct mu_kv_pool **pool_out, struct mu_err *err)
{
    struct mu_kv_pool *p = mu_calloc(1, sizeof *p);
    if (!p) return mu_fail(err, MU_ENOMEM, "out of memory for the pool of KV pages");
    p->n_page = n_page;
    for (p->n_bucket = 1; p->n_bucket < n_page && p->n_bucket < 1u << 30;) p->n_bucket *= 2;
    p->next_identity = 1;
    p->page = mu_calloc(n_page, sizeof *p->page);
    p->free = mu_calloc(n_page, sizeof *p->free);
    p->bucket = mu_calloc(p->n_bucket, sizeof *p->bucket);
    if (!p->page || !p->free || !p->bucket) {
        mu_kv_pool_destroy(p);
        return mu_fail(err, MU_ENOMEM, "out of memory for the pool of %u KV pages", n_page);
    }
    p->oldest = p->newest = MU_KV_NOTHING;
    memset(p->bucket, 0xff, p->n_bucket * sizeof *p->bucket);
    for (uint32_t i = 0; i < n_page; i++) p->free[i] = n_page - 1 - i; /* page 0 is taken first */
    p->n_free = n_page;
    *pool_out = p;
    return MU_OK;
}

void mu_kv_pool_destroy(struct mu_kv_pool *p)
{
    if (!p) return;
    mu_free(p->page);
    mu_free(p->free);
    mu_free(p->bucket);
    mu_free(p);
}

uint32_t mu_kv_pool_available(const struct mu_kv_pool *p)
{
    return p->n_free + p->n_cached;
}
uint32_t mu_kv_pool_cached(const struct mu_kv_pool *p)
{
    return p->n_cached;
}
uint32_t mu_kv_pool_holders(const struct mu_kv_pool *p, uint32_t page)
{
    return p->page[page].n_holder;
}
uint64_t mu_kv_pool_identity(const struct mu_kv_pool *p, uint32_t page)
{
    return p->page[page].identity;
}

/* ---- the index of published pages ---- */

static uint64_t mix(uint64_t h, uint64_t v)
{
    h = (h ^ v) * 0x9E3779B97F4A7C15u;
    return h ^ (h >> 29);
}

bool mu_kv_kind_is(const struct mu_kv_kind *a, const struct mu_kv_kind *b)
{
    return a->adapter == b->adapter && a->far == b->far &&
           memcmp(&a->adapter_scale, &b->adapter_scale, sizeof a->adapter_scale) == 0;
}

static uint32_t *bucket_of(const struct mu_kv_pool *p, const struct mu_kv_kind *kind, uint64_t parent,
                           const int32_t *ids)
{
    uint32_t scale;
    memcpy(&scale, &kind->adapter_scale, sizeof scale);
    uint64_t h = mix(mix(parent, (uint64_t)kind->adapter << 33 | (uint64_t)kind->far << 32 | scale), 1);
    for (int i = 0; i < MU_PAGE_TOKENS; i += 2)
        h = mix(h, (uint64_t)(uint32_t)ids[i] << 32 | (uint64_t)(uint32_t)ids[i + 1]);
    return &p->bucket[(h >> 32) & (p->n_bucket - 1)];
}

uint32_t mu_kv_pool_find(const struct mu_kv_pool *p, const struct mu_kv_kind *kind, uint64_t parent,
                         const int32_t ids[MU_PAGE_TOKENS])
{
    uint32_t i = *bucket_of(p, kind, parent, ids);
    for (; i != MU_KV_NOTHING; i = p->page[i].next) {
        const struct page *g = &p->page[i];
        if (g->parent == parent && mu_kv_kind_is(&g->kind, kind) && memcmp(g->ids, ids, sizeof g->ids) == 0) break;
    }
    return i;
}

static void forget(struct mu_kv_pool *p, uint32_t page)
{
    struct page *g = &p->page[page];
    uint32_t *at = bucket_of(p, &g->kind, g->parent, g->ids);
    while (*at != page) at = &p->page[*at].next;
    *at = g->next;
    g->identity = 0;
}

/* ---- cached ones, by age ---- */

static void cached_remove(struct mu_kv_pool *p, uint32_t page)
{
    const struct page *g = &p->page[page];
    *(g->older == MU_KV_NOTHING ? &p->oldest : &p->page[g->older].newer) = g->newer;
    *(g->newer == MU_KV_NOTHING ? &p->newest : &p->page[g->newer].older) = g->older;
    p->n_cached--;
}

static void cached_add(struct mu_kv_pool *p, uint32_t page)
{
    struct page *g = &p->page[page];
    g->older = p->newest;
    g->newer = MU_KV_NOTHING;
    *(p->newest == MU_KV_NOTHING ? &p->oldest : &p->page[p->newest].newer) = page;
    p->newest = page;
    p->n_cached++;
}

/* ---- what becomes of a page ---- */

uint64_t mu_kv_pool_publish(struct mu_kv_pool *p, uint32_t page, const struct mu_kv_kind *kind, uint64_t parent,
                            const int32_t ids[MU_PAGE_TOKENS])
{
    uint32_t known = mu_kv_pool_find(p, kind, parent, ids), *bucket = bucket_of(p, kind, parent, ids);
    uint64_t identity = known != MU_KV_NOTHING ? p->page[known].identity : p->next_identity++;
    if (known != MU_KV_NOTHING) {
        if (p->page[known].n_holder) return identity;
        cached_remove(p, known);
        forget(p, known);
        p->free[p->n_free++] = known;
    }
    struct page *g = &p->page[page];
    g->identity = identity;
    g->parent = parent;
    g->kind = *kind;
    memcpy(g->ids, ids, sizeof g->ids);
    g->next = *bucket;
    *bucket = page;
    return identity;
}

uint32_t mu_kv_pool_take(struct mu_kv_pool *p)
{
    uint32_t page;
    if (p->n_free) {
        page = p->free[--p->n_free];
    } else {
        page = p->oldest;
        cached_remove(p, page);
        forget(p, page);
    }
    p->page[page].n_holder = 1;
    return page;
}

void mu_kv_pool_retain(struct mu_kv_pool *p, uint32_t page)
{
    if (p->page[page].n_holder++ == 0) cached_remove(p, page);
}

void mu_kv_pool_release(struct mu_kv_pool *p, uint32_t page)
{
    struct page *g = &p->page[page];
    if (--g->n_holder > 0) return;
    if (g->identity)
        cached_add(p, page);
    else
        p->free[p->n_free++] = page;
}

bool mu_kv_pool_sound(const struct mu_kv_pool *p)
{
    uint32_t n_private = 0, n_published = 0, n_listed = 0, n_held = 0, n_cached = 0;
    for (uint32_t i = 0; i < p->n_free; i++)
        if (p->page[p->free[i]].n_holder || p->page[p->free[i]].identity) return false;
    for (uint32_t i = p->oldest, before = MU_KV_NOTHING; i != MU_KV_NOTHING; before = i, i = p->page[i].newer) {
        if (p->page[i].n_holder || !p->page[i].identity || p->page[i].older != before || ++n_cached > p->n_page)
            return false;
    }
    for (uint32_t b = 0; b < p->n_bucket; b++)
        for (uint32_t i = p->bucket[b]; i != MU_KV_NOTHING; i = p->page[i].next)
            if (!p->page[i].identity || ++n_listed > p->n_page) return false;
    for (uint32_t i = 0; i < p->n_page; i++) {
        n_published += p->page[i].identity != 0;
        n_private += !p->page[i].identity && p->page[i].n_holder;
        n_held += p->page[i].n_holder > 0;
    }
    return n_cached == p->n_cached && n_listed == n_published && p->n_free + n_private + n_published == p->n_page &&
           p->n_free + p->n_cached + n_held == p->n_page;
}
